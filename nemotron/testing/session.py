"""Run pytest in a process of its own and read what it found: which tests failed, and the report of every golden.

In: a project's directory, pytest's arguments, an environment. Out: a `Session`.
Used where a stage has to run apart from this process: `bless.py` (twice the same), `alarms.py` (in other environments),
`power.py` (with a mistake in the recipe).
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
from nemotron.testing.plugin import COMPARES_GOLDEN

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Where a job's own pytest writes its reports (plugin.py); one that runs inside of it must not."""


@dataclass(frozen=True)
class Session:
    """One finished run of pytest."""

    exit_code: int
    """0: everything passed; 1: a test failed; more: pytest could not run."""
    failed: tuple[str, ...]
    """Names of the tests that failed, other than those whose run a report shows to depart from its golden."""
    reports: dict[str, dict[str, Json]]
    """Stage -> its report.json, of every golden that a test asked for and every stage that crashed."""
    runs: dict[str, bytes]
    """Stage -> the golden that its run would be."""
    output: str

    @property
    def end(self) -> str:
        """The last words of pytest."""
        return self.output[-1500:].strip()


def selection(stage: str) -> tuple[str, str]:
    """Arguments for pytest: the tests of a stage, named as in -k ("stage0") or with its recipe ("nano2/stage0_words").

    With its recipe: the file that compares its golden (plugin.py), and what lies in folders of these two names.
    """
    return "-k", f"{stage} or ({stage.replace('/', ' and ')})" if "/" in stage else stage


def run_pytest(
    root: Path, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Session:
    """Run pytest on the project in `root`.

    Args:
        root: holds pytest's configuration, the tests and golden/.
        arguments: for pytest, as in ("-k", "stage0").
        environment: variables beyond those of this process.
        cwd: where the process runs; `root` if left out.
    """
    with tempfile.TemporaryDirectory() as directory:
        reports, results = Path(directory) / "reports", Path(directory) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--report-dir", str(reports), f"--junitxml={results}"]
        done = subprocess.run(
            [*command, "--rootdir", str(root), *arguments],
            cwd=cwd or root,
            env={**{name: value for name, value in os.environ.items() if name != SUMMARY}, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        found = {str(path.parent.relative_to(reports)): path.parent for path in sorted(reports.rglob("report.json"))}
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
    """Names of the tests that failed, or that could not be set up, without those whose run departs from its golden.

    Args:
        results: what pytest's --junitxml wrote.
        reports: stage -> its report.json.
    """
    names = []
    for case in ElementTree.parse(results).iter("testcase"):
        stages = {item.get("value", "") for item in case.iter("property") if item.get("name") == COMPARES_GOLDEN}
        departs = any(not reports[stage]["equal"] for stage in stages & reports.keys())
        if not departs and (case.find("failure") is not None or case.find("error") is not None):
            names.append(case.get("name", ""))
    return tuple(names)
