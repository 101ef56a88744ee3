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


@dataclass(frozen=True)
class Session:
    """One finished run of pytest."""

    exit_code: int
    """0: everything passed; 1: a test failed; more: pytest could not run."""
    failed: tuple[str, ...]
    """Names of the tests that failed, other than those that compared a golden."""
    reports: dict[str, dict[str, Json]]
    """Stage -> its report.json, of every golden that was compared."""
    runs: dict[str, bytes]
    """Stage -> the golden that its run would be."""
    output: str


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
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        found = {str(path.parent.relative_to(reports)): path.parent for path in sorted(reports.rglob("report.json"))}
        return Session(
            exit_code=done.returncode,
            failed=failed_tests(results) if results.exists() else (),
            reports={stage: json.loads((path / "report.json").read_text("utf-8")) for stage, path in found.items()},
            runs={stage: (path / "run.json").read_bytes() for stage, path in found.items()},
            output=done.stdout.decode(errors="replace"),
        )


def failed_tests(results: Path) -> tuple[str, ...]:
    """Names of the tests that failed, or that could not be set up, without those that compared a golden.

    Args:
        results: what pytest's --junitxml wrote.
    """
    names = []
    for case in ElementTree.parse(results).iter("testcase"):
        compared = any(item.get("name") == COMPARES_GOLDEN for item in case.iter("property"))
        if not compared and (case.find("failure") is not None or case.find("error") is not None):
            names.append(case.get("name", ""))
    return tuple(names)
