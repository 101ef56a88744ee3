"""The pytest plugin: a fixture for each stage, one for its golden, a report of what departs, and no golden forgotten.

In a conftest.py, one line a stage: stage0 = stage_fixture("nemotron.recipes.nano2.stage0_pretrain")
In a test: assert golden(name="nano2/stage0_pretrain") == stage0.document

`pip install nemotron[test]` brings the plugin along, pytest finds it by itself. Reports of the last session are in
.golden_report/<recipe>/<stage>/; in a GitHub workflow they stand in the summary of the job as well. `-k` knows the
tests of a file that compares a golden by the golden's name as well: -k nano2/stage0_pretrain.

A session is red if a run that it compared is not as recorded, whatever its tests made of that. A full run is one that
nothing was left out of: no paths, no -k, -m, --lf or --ignore, not from a subdirectory, and not stopped early. It
fails if a golden was compared by no test. Runs that compare every golden without being full say so with --every-golden.
"""

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nemotron.testing.report import FILES, Report, report_of, with_upstream
from nemotron.testing.stage import StageError, StageRun, run_stage, stage_name

if TYPE_CHECKING:
    from nemotron.testing.snapshot import GoldenAssertion

GOLDEN_DIRECTORY = "golden"
"""Below pytest's root directory: <recipe>/<stage>.json."""
REPORT_DIRECTORY = ".golden_report"
"""Below pytest's root directory unless --report-dir says otherwise: <recipe>/<stage>/report.txt and more."""
COMPARES_GOLDEN = "compares_golden"
"""Property, in what --junitxml writes, of a test that compared a run with a golden: the name of the stage."""
MAX_TRACEBACK_LINES = 10

reports = pytest.StashKey[dict[str, Report]]()
"""In pytest's config: stage -> what this session found, of every golden that a test asked for or a stage crashed on."""
_num_deselected = pytest.StashKey[int]()
_faults = pytest.StashKey[list[str]]()
"""In pytest's config: lines on what turned the session red beside its tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --every-golden, --only-golden, --without-golden and --report-dir."""
    group = parser.getgroup("nemotron")
    group.addoption(
        "--every-golden",
        action="store_true",
        help="fail if a file in golden/ was compared by no test, even if only some tests were selected",
    )
    group.addoption("--only-golden", action="store_true", help="of the selected tests, run those that compare a golden")
    group.addoption("--without-golden", action="store_true", help="of the selected tests, run those that compare none")
    group.addoption("--report-dir", help=f"where reports go; {REPORT_DIRECTORY} in pytest's root directory if left out")


def stage_fixture(package: str, after: str | None = None) -> Any:
    """A session fixture that runs a stage once at tiny scale: `stage0 = stage_fixture("my_recipe.stage0_words")`.

    Args:
        package: holds the modules data_curation, training and evaluation; its last two names are those of recipe and
            stage, and of the golden.
        after: name of the fixture of the stage before, whose checkpoint this one starts from: its data_curation.Config
            takes the checkpoint's directory as `base_checkpoint_path`.

    Returns:
        A fixture; tests that take it get a `StageRun`. If a step crashes, they fail with one sentence that names it.
    """

    def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
        base = request.getfixturevalue(after).checkpoint.path if after else None
        try:
            return run_stage(package, tmp_path_factory.mktemp(package.rsplit(".", 1)[-1]), base)
        except StageError as error:
            lines = "".join(traceback.format_exception(error.__cause__)).splitlines()[-MAX_TRACEBACK_LINES:]
            name, sentence = stage_name(package), str(error)
            request.config.stash[reports][name] = Report(name, error="\n".join([sentence, *lines]))
        pytest.fail(f"stage {name}: {sentence}", pytrace=False)

    stage.stage = stage_name(package)  # type: ignore[attr-defined]
    return pytest.fixture(scope="session")(stage)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> "GoldenAssertion":
    """The golden of a stage: `assert golden(name="nano2/stage0_pretrain") == stage0.document`."""
    if hasattr(request.config, "workerinput"):
        pytest.fail("goldens are compared in one process; run these tests without -n of pytest-xdist", pytrace=False)
    try:
        from nemotron.testing.snapshot import GoldenAssertion, GoldenExtension

        snapshot = request.getfixturevalue("snapshot")
    except (ImportError, pytest.FixtureLookupError):
        pytest.fail("goldens are compared with syrupy, which is not here; pip install 'nemotron[test]'", pytrace=False)

    class Extension(GoldenExtension):
        directory = request.config.rootpath / GOLDEN_DIRECTORY
        reports = request.config.stash[reports]
        properties = request.node.user_properties

    return GoldenAssertion(
        session=snapshot.session,
        extension_class=Extension,
        test_location=snapshot.test_location,
        update_snapshots=False,  # bless.py replaces a golden
        update_new_snapshots_only=snapshot.update_snapshots,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start with nothing found."""
    config.stash[reports] = {}
    config.stash[_faults] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remove the reports of the session before.

    Raises:
        pytest.UsageError: if one of them cannot be removed.
    """
    root = report_root(session.config)
    if session.config.getoption("collectonly"):
        return
    try:
        for report in root.glob("*/*/report.txt"):
            for name in FILES:
                (report.parent / name).unlink(missing_ok=True)
    except OSError as error:
        raise pytest.UsageError(_unwritable(root, error)) from error


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let -k know the tests of a golden's file by its name, and obey --only-golden and --without-golden."""
    files: dict[Path, set[str]] = {}
    for item in items:
        if _takes_golden(item):
            files.setdefault(item.path, set()).update(_stages_of(item))
    for item in items:
        item.extra_keyword_matches.update(files.get(item.path, ()))
    for option, wanted in (("only_golden", True), ("without_golden", False)):
        if config.getoption(option):
            others = [item for item in items if _takes_golden(item) is not wanted]
            items[:] = [item for item in items if _takes_golden(item) is wanted]
            config.hook.pytest_deselected(items=others)


def _takes_golden(item: pytest.Item) -> bool:
    return "golden" in getattr(item, "fixturenames", ())


def _stages_of(item: pytest.Item) -> set[str]:
    """Recipe and stage of every stage fixture that a test takes."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    return {found[-1].func.stage for found in definitions if hasattr(found[-1].func, "stage")}


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what -k, -m and others leave out."""
    if items:
        stash = items[0].config.stash
        stash[_num_deselected] = stash.get(_num_deselected, 0) + len(items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports, and turn the session red if a run is not as recorded or a golden was forgotten."""
    config = session.config
    faults = config.stash[_faults]
    if config.getoption("collectonly"):
        return
    found = write_reports(config)
    if not session.testsfailed:  # else a test has said so already, or may have kept a golden from being compared
        faults += [
            f"golden/{report.stage}.json - the run is not as recorded, yet no test failed: assert golden(...) == ..."
            for report in found
            if not report.equal
        ]
        if is_full_run(session) or config.getoption("every_golden"):
            goldens = config.rootpath / GOLDEN_DIRECTORY
            recorded = {path.relative_to(goldens).with_suffix("").as_posix() for path in goldens.rglob("*.json")}
            forgotten = sorted(recorded - {report.stage for report in found})
            faults += [f"golden/{stage}.json - no test compared a run with it; write that test" for stage in forgotten]
    if getattr(config.option, "update_snapshots", False):
        faults += [
            f"golden/{report.stage}.json - --snapshot-update only records what is missing; to replace it, commit the "
            f'change and run nox -s bless -- {report.stage} --reason "..."'
            for report in found
            if report.comparison and not report.equal
        ]
    if faults and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def report_root(config: pytest.Config) -> Path:
    """Where the reports of a session go."""
    return Path(config.getoption("report_dir") or config.rootpath / REPORT_DIRECTORY)


def write_reports(config: pytest.Config) -> list[Report]:
    """Write what was found: a directory a stage, and GitHub's step summary where there is one; return it."""
    goldens, found = config.rootpath / GOLDEN_DIRECTORY, []
    for report in config.stash[reports].values():
        path = goldens / f"{report.stage}.json"
        if report.run and not report.golden and path.exists():  # recorded a moment ago
            found.append(report_of(path.read_bytes(), report.run))
        else:
            found.append(report)
    found = with_upstream(found)
    config.stash[reports] = {report.stage: report for report in found}
    root = report_root(config)
    try:
        for report in found:
            report.write(root / report.stage)
    except OSError as error:
        config.stash[_faults].append(_unwritable(root, error))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and found:
        with open(summary, "a", encoding="utf-8") as file:
            for report in found:
                file.write("\n".join(["```", *report.lines(), "```", ""]))
    return found


def _unwritable(root: Path, error: OSError) -> str:
    return f"{root} - reports cannot be written there ({error}); name another directory with --report-dir"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the report of every stage, and what turned the session red beside its tests."""
    for report in config.stash[reports].values():
        for line in report.lines():
            terminalreporter.write_line(line, green=report.equal, red=not report.equal)
    for fault in config.stash[_faults]:
        terminalreporter.write_line(f"FAILED {fault}", red=True, bold=True)


def is_full_run(session: pytest.Session) -> bool:
    """Whether every test of the project was collected and selected, and none was left out by stopping early."""
    config = session.config
    everything = config.args_source in (config.ArgsSource.TESTPATHS, config.ArgsSource.INVOCATION_DIR)
    narrowed = config.stash.get(_num_deselected, 0) or any(
        config.getoption(option, default=None) for option in ("lf", "ignore", "ignore_glob")
    )
    here = config.invocation_params.dir == config.rootpath
    return everything and here and not narrowed and not session.shouldstop and not session.shouldfail
