"""Steps as processes: run by a shell, interrupted, killed, out of disk."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

STEPS = Path(__file__).parents[2] / "recipes" / "nano2" / "stage0_pretrain"

SHORT_TRAINING = "--num-steps 20 --warmup-steps 2 --long-context-steps 2 --validate-every-steps 10"
"""Flags for 22 steps on the tiny dataset."""


class Shell:
    """Runs lines of bash in the directory of the steps, as the README shows them; $OUT is an empty directory."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """`python` is this Python."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "OUT": str(self.output), "SHORT": SHORT_TRAINING, **more}

    def run(self, line: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Exit code, stdout and stderr of `line`, which reads an empty stdin."""
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail\n{line}"],
            cwd=STEPS,
            env=self.environment(more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, command: str) -> subprocess.Popen[str]:
        """One command as a process to send signals to; it writes to $OUT/stdout and $OUT/stderr."""
        with (self.output / "stdout").open("w") as stdout, (self.output / "stderr").open("w") as stderr:
            return subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=STEPS,
                env=self.environment({}),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
            )

    def wait_until(self, condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
        """Wait for `condition()` while the process runs."""
        while not condition():
            assert process.poll() is None, f"ended too early: {(self.output / 'stderr').read_text()}"
            time.sleep(0.002)

    def line_for(self, name: str, artifact) -> Path:
        """A file with the line that print_complete writes for an artifact."""
        path = self.output / f"{name}.json"
        entry = {"type": name, "path": str(artifact.path), "digest": artifact.digest}
        path.write_text(json.dumps({name: entry}) + "\n")
        return path

    @staticmethod
    def refusal(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
        """The one sentence of a program that refused: nothing on stdout, no traceback."""
        assert done.returncode == code, done.stderr
        assert not done.stdout
        return Shell.last_words(done.stderr)

    @staticmethod
    def last_words(stderr: str) -> str:
        """The last line on stderr, after making sure that there is no traceback."""
        assert "Traceback" not in stderr, stderr
        return stderr.rstrip().splitlines()[-1]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell with an output directory of its own."""
    return Shell(tmp_path)
