"""The same tiny run in another environment: kernels, threads, hash seed, directory, locale, time zone."""

import os
import subprocess
import sys

from nemotron.testing.alarms import Cell, supported_kernels
from nemotron.testing.compare import Policy, compare, encode_golden
from nemotron.testing.stage import stage_document


def test_another_environment_gives_the_same_numbers(stage0, tmp_path):
    """A cell that differs from this process in all settings; test_pipes.py has another, `nox -s alarms` runs all."""
    kernels = supported_kernels()[: len(supported_kernels()) // 2 + 1][-1]
    environment = {**os.environ, **Cell(kernels, "2", "random", 0).environment}
    command = [sys.executable, "-m", "nemotron.recipes.nano2.stage0_pretrain", "--scale", "tiny", "--output-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    comparison = compare(
        encode_golden(stage0.document, Policy()),
        stage_document(stage0.name, tmp_path / "run", list(stage0.document["ladder"])),
    )
    assert comparison.equal, "\n".join(comparison.lines())
    assert done.stderr.splitlines()[-1].startswith(f"reproduces golden/{stage0.name}.json: yes (")
