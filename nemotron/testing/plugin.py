"""The pytest plugin: a fixture for each stage, one for its golden, a report of what departs, and no golden forgotten.

In a conftest.py, one line a stage: stage0 = stage_fixture("nemotron.recipes.nano2.stage0_pretrain")
In a test: assert golden(name="nano2/stage0_pretrain") == stage0.document

`pip install nemotron[test]` brings the plugin along, pytest finds it by itself. Reports of the last session are in
.golden_report/<recipe>/<stage>/; in a GitHub workflow they stand in the summary of the job as well.

A full run is one that nothing was left out of: no paths, no -k, -m, --lf or --ignore, and not stopped early. It fails
if a golden was compared by no test. Runs that compare every golden without being full say so with --every-golden.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nemotron.testing.report import Report
from nemotron.testing.stage import StageRun, run_stage

if TYPE_CHECKING:
    from syrupy.assertion import SnapshotAssertion

GOLDEN_DIRECTORY = "golden"
"""Below pytest's root directory: <recipe>/<stage>.json."""
REPORT_DIRECTORY = ".golden_report"
"""Below pytest's root directory unless --report-dir says otherwise: <recipe>/<stage>/report.txt and more."""
COMPARES_GOLDEN = "compares_golden"
"""Property, in what --junitxml writes, of a test that asked for the `golden` fixture."""

compared_goldens = pytest.StashKey[set[Path]]()
"""In pytest's config: the goldens that a test of this session compared a run with."""
reports = pytest.StashKey[dict[str, Report]]()
"""In pytest's config: stage -> what this session's comparison found."""
_num_deselected = pytest.StashKey[int]()
_forgotten = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --every-golden, --only-golden and --report-dir."""
    group = parser.getgroup("nemotron")
    group.addoption(
        "--every-golden",
        action="store_true",
        help="fail if a file in golden/ was compared by no test, even if only some tests were selected",
    )
    group.addoption("--only-golden", action="store_true", help="of the selected tests, run those that compare a golden")
    group.addoption("--report-dir", help=f"where reports go; {REPORT_DIRECTORY} in pytest's root directory if left out")


def stage_fixture(package: str) -> Any:
    """A session fixture that runs a stage once at tiny scale: `stage0 = stage_fixture("my_recipe.stage0_words")`.

    Args:
        package: holds the modules data_curation, training and evaluation; its last two names are those of recipe and
            stage, and of the golden.

    Returns:
        A fixture; tests that take it get a `StageRun`. If a step crashes, they fail with one sentence that names it.
    """

    @pytest.fixture(scope="session")
    def stage(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
        return run_stage(package, tmp_path_factory.mktemp(package.rsplit(".", 1)[-1]))

    return stage


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> "SnapshotAssertion":
    """The golden of a stage: `assert golden(name="nano2/stage0_pretrain") == stage0.document`."""
    request.node.user_properties.append((COMPARES_GOLDEN, "yes"))
    try:
        from nemotron.testing.snapshot import GoldenExtension

        snapshot = request.getfixturevalue("snapshot")
    except (ImportError, pytest.FixtureLookupError):
        pytest.fail("goldens are compared with syrupy, which is not here; pip install 'nemotron[test]'", pytrace=False)

    class Extension(GoldenExtension):
        directory = request.config.rootpath / GOLDEN_DIRECTORY
        reports = request.config.stash.setdefault(reports, {})
        compared = request.config.stash.setdefault(compared_goldens, set())

    asserted: SnapshotAssertion = snapshot.use_extension(Extension)
    return asserted


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Obey --only-golden."""
    if config.getoption("only_golden"):
        others = [item for item in items if "golden" not in getattr(item, "fixturenames", ())]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what -k, -m and others leave out."""
    if items:
        stash = items[0].config.stash
        stash[_num_deselected] = stash.get(_num_deselected, 0) + len(items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports, and turn a full run red if it compared fewer goldens than there are."""
    config = session.config
    write_reports(config)
    if not (is_full_run(session) or config.getoption("every_golden")) or config.getoption("collectonly"):
        return
    directory = config.rootpath / GOLDEN_DIRECTORY
    compared: set[Path] = config.stash.get(compared_goldens, set())
    forgotten = sorted(set(directory.rglob("*.json")) - compared)
    config.stash[_forgotten] = forgotten
    if forgotten and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def write_reports(config: pytest.Config) -> None:
    """One directory a compared stage, and the lines of all of them in GitHub's step summary where there is one."""
    found = config.stash.get(reports, {})
    root = Path(config.getoption("report_dir") or config.rootpath / REPORT_DIRECTORY)
    for stage, report in found.items():
        report.write(root / stage)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and found:
        with open(summary, "a", encoding="utf-8") as file:
            for report in found.values():
                file.write("\n".join(["```", *report.lines(), "```", ""]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the report of every stage, and name the goldens that nothing compared."""
    for report in config.stash.get(reports, {}).values():
        for line in report.lines():
            terminalreporter.write_line(line, green=report.equal, red=not report.equal)
    for path in config.stash.get(_forgotten, []):
        name = path.relative_to(config.rootpath).as_posix()
        terminalreporter.write_line(
            f"FAILED {name} - no test compared a run with it; delete it or write that test", red=True, bold=True
        )


def is_full_run(session: pytest.Session) -> bool:
    """Whether every test of the project was collected and selected, and none was left out by stopping early."""
    config = session.config
    everything = config.args_source in (config.ArgsSource.TESTPATHS, config.ArgsSource.INVOCATION_DIR)
    narrowed = config.stash.get(_num_deselected, 0) or any(
        config.getoption(option, default=None) for option in ("lf", "ignore", "ignore_glob")
    )
    return everything and not narrowed and not session.shouldstop and not session.shouldfail
