"""Every example runs in a fresh directory, with nothing but the installed package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing.session import SUMMARY

EXAMPLES = sorted(path for path in (Path(__file__).parents[1] / "examples").iterdir() if path.is_dir())


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.name)
def example(request, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", ".golden_report", ".pytest_cache", "outputs")
    return Path(shutil.copytree(request.param, tmp_path / request.param.name, ignore=ignored))


def run(directory, *command):
    outer = ("PYTHON", "PYTEST", SUMMARY)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_an_example_passes_its_own_tests_in_a_fresh_directory(example):
    done = run(example, "-m", "pytest")
    assert done.returncode == 0, done.stdout
    assert "reproduces its golden" in done.stdout
    assert (example / ".golden_report").is_dir()


def test_steps_of_an_example_run_one_by_one(example):
    for stage in sorted(example.glob("*/stage*")):
        package = f"{stage.parent.name}.{stage.name}"
        inputs = ((), ("--dataset-path", "outputs/data_curation"), ("--checkpoint-path", "outputs/training"))
        for step, given in zip(("data_curation", "training", "evaluation"), inputs, strict=True):
            done = run(example, "-m", f"{package}.{step}", *given)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("\n") == 1


def test_a_whole_stage_of_an_example_is_one_command(example):
    for stage in sorted(example.glob("*/stage*")):
        done = run(example, "-m", f"{stage.parent.name}.{stage.name}", "--scale", "tiny")
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert list(json.loads(line)) == ["dataset", "checkpoint", "results"]


def test_readme_of_an_example_shows_its_commands(example):
    readme = (example / "README.md").read_text()
    assert 'pip install "nemotron-recipes[test]"' in readme
    assert "python -m nemotron.testing.bless stage0 --reason" in readme
