"""docs/add-recipe.md, followed to the letter in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing.session import SUMMARY

PAGE = Path(__file__).parents[1] / "docs" / "add-recipe.md"
FILE = re.compile(r"^`([^`\n]+)`:\n\n```\w*\n(.*?)^```", re.M | re.S)
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
CHANGE = "sed -i"

pytestmark = pytest.mark.posix  # sed


def test_the_page_leads_from_an_empty_folder_to_a_blessed_golden(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    for name, content in FILE.findall(text):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")
    outer = ("PYTHON", "PYTEST", "CI", "GITHUB_ACTIONS", SUMMARY)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "a", f"GIT_{role}_EMAIL": "a@example.org"}

    def run(command):
        line = ["bash", "-c", f"set -o pipefail; {command}"]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)

    for command in "".join(COMMANDS.findall(text)).splitlines():
        done = run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith(CHANGE):
            red = run("pytest")
            assert red.returncode == 1
            assert "first broken rung: training, config, learning_rate" in red.stdout
    assert "reproduces its golden" in run("pytest").stdout
    assert "a smaller step, because the loss jumped" in (tmp_path / "golden" / "CHANGES.md").read_text(encoding="utf-8")
    assert run("git status --porcelain").stdout == ""
