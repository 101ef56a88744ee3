"""Run pytest in a new process and collect the results: which tests failed, and the report of every golden.

In: a project's directory, pytest's arguments, an environment. Out: a `Session`.
Used where a stage must run in a separate process: `bless.py` (the same run twice), `alarms.py` (other environments),
`power.py` (a mistake in the recipe).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nemotron.testing.compare import Json
from nemotron.testing.report import COMPARES_GOLDEN

SUMMARY = "GITHUB_STEP_SUMMARY"
"""A GitHub job's pytest appends its reports there (plugin.py); a pytest started by it must not."""


@dataclass(frozen=True)
class Session:
    """One finished run of pytest."""

    exit_code: int
    """0: all tests passed; 1: a test failed; above 1: pytest could not run."""
    failed: tuple[str, ...]
    """Names of the tests that failed, without tests that failed because a run differs from its golden."""
    reports: dict[str, dict[str, Json]]
    """Stage -> its report.json, for every golden that a test requested and every stage that crashed."""
    runs: dict[str, bytes]
    """Stage -> its run in the format of a golden."""
    output: str

    @property
    def tail(self) -> str:
        """The end of pytest's output."""
        return self.output[-1500:].strip()


def selection(stage: str) -> tuple[str, str]:
    """Arguments for pytest that select the tests of a stage: "stage0", as for -k, or "nano2/stage0_words".

    A name with a recipe selects the test file that compares that golden (plugin.py), and tests in folders with both
    names.
    """
    return "-k", f"{stage} or ({stage.replace('/', ' and ')})" if "/" in stage else stage


def run_pytest(
    root: Path, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Session:
    """Run pytest on the project in `root`.

    Args:
        root: directory with pytest's configuration, the tests and golden/.
        arguments: for pytest, such as ("-k", "stage0").
        environment: variables to add to those of this process.
        cwd: working directory of the process; `root` if None.
    """
    with tempfile.TemporaryDirectory() as directory:
        reports, results = Path(directory) / "reports", Path(directory) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--golden-report-dir", str(reports), f"--junitxml={results}"]
        done = subprocess.run(
            [*command, "--rootdir", str(root), *arguments],
            cwd=cwd or root,
            env={**{name: value for name, value in os.environ.items() if name != SUMMARY}, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        found = {
            path.parent.relative_to(reports).as_posix(): path.parent for path in sorted(reports.rglob("report.json"))
        }
        contents = {stage: json.loads((path / "report.json").read_text("utf-8")) for stage, path in found.items()}
        runs = {stage: path / "run.json" for stage, path in found.items()}
        return Session(
            exit_code=done.returncode,
            failed=failed_tests(results, contents) if results.exists() else (),
            reports=contents,
            runs={stage: path.read_bytes() for stage, path in runs.items() if path.exists()},
            output=done.stdout.decode(errors="replace"),
        )


def failed_tests(results: Path, reports: Mapping[str, Mapping[str, Json]]) -> tuple[str, ...]:
    """Names of the tests that failed or could not be set up, without those whose run differs from its golden.

    Args:
        results: the file written by pytest's --junitxml.
        reports: stage -> its report.json.
    """
    names = []
    for case in ElementTree.parse(results).iter("testcase"):
        stages = {item.get("value", "") for item in case.iter("property") if item.get("name") == COMPARES_GOLDEN}
        differs = any(not reports[stage]["equal"] for stage in stages & reports.keys())
        if not differs and (case.find("failure") is not None or case.find("error") is not None):
            names.append(case.get("name", ""))
    return tuple(names)
