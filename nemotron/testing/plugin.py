"""The pytest plugin: a fixture per stage, a fixture for goldens, a report of the differences.

In a conftest.py, one line per stage: stage0 = stage_fixture("nemotron.recipes.nano2.stage0_pretrain")
In a test: assert golden(name="nano2/stage0_pretrain") == stage0.document

`pip install 'nemotron-recipes[test]'` installs the plugin, and pytest finds it. The reports of the last session are in
.golden_report/<recipe>/<stage>/; a GitHub workflow also shows them in the summary of the job. `-k` also accepts the
name of a golden, and selects the tests of the file that compares it: -k nano2/stage0_pretrain.

A session fails if a compared run differs from its golden, even if no test failed. A full session also fails if there
is a golden that no test compared. A session is full if nothing was left out: it has no paths, -k, -m, --lf or --ignore,
and is not in a subdirectory, stopped early or distributed by xdist. --every-golden applies that check to any session.

pytest loads the plugin in every project of the environment. It does nothing in a project that calls no `stage_fixture`
and has no test that takes `golden`; if another plugin has a fixture `golden`, that project keeps it.
"""

import importlib.metadata
import json
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
"""In pytest's root directory; holds <recipe>/<stage>.json."""
REPORT_DIRECTORY = ".golden_report"
"""In pytest's root directory unless --golden-report-dir is given; holds <recipe>/<stage>/report.txt and other files."""
MAX_TRACEBACK_LINES = 10
SYRUPY_MAJORS = ("6", "7")
"""Versions of syrupy that goldens work with, as in the extra `test`; `nox -s plugin` tries oldest and newest."""
_INSTALL = "pip install 'nemotron-recipes[test]'"

reports = pytest.StashKey[dict[str, Report]]()
"""In pytest's config: stage -> its report, for every golden that a test requested and every stage that crashed."""
_declared: set[str] = set()
"""Stages for which this process has called `stage_fixture`."""
_golden_requested = pytest.StashKey[bool]()
"""In pytest's config: whether one of the collected tests takes `golden`; absent if this process collected nothing."""
_num_deselected = pytest.StashKey[int]()
"""In pytest's config: number of tests that -k, -m and other options left out."""
_problems = pytest.StashKey[list[str]]()
"""In pytest's config: a line for each reason, other than a failed test, why the session fails."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --every-golden, --only-golden, --without-golden, --golden-report-dir and --stages-at."""
    group = parser.getgroup("nemotron")
    group.addoption(
        "--every-golden",
        action="store_true",
        help="fail if no test compared one of the files in golden/, even if only some tests are selected",
    )
    group.addoption("--only-golden", action="store_true", help="run only the selected tests that compare a golden")
    group.addoption("--without-golden", action="store_true", help="run only the selected tests that compare no golden")
    group.addoption(
        "--golden-report-dir",  # not --report-dir: a conftest.py with an option of that name could not be loaded
        help=f"directory for reports; default: {REPORT_DIRECTORY} in pytest's root directory",
    )
    group.addoption(
        "--stages-at",
        type=Path,
        help="directory that keeps what the stages make, one folder per stage; what is current there is not run again",
    )


def stage_fixture(package: str, after: str | None = None) -> Any:
    """A session fixture that runs a stage once at tiny scale: `stage0 = stage_fixture("my_recipe.stage0_words")`.

    Args:
        package: package of the stage, with a `__main__` as `run_stage` describes it; the last two parts of its name,
            recipe and stage, also name the golden.
        after: name of the fixture of the previous stage, whose checkpoint this stage starts from: the stage's Config
            takes the checkpoint's directory as `base_checkpoint_path`.

    Returns:
        A fixture that gives tests a `StageRun`. If a step crashes, they fail with one sentence that names the step.
    """

    def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
        base = request.getfixturevalue(after).checkpoint.path if after else None
        folder, kept = package.rsplit(".", 1)[-1], request.config.getoption("--stages-at")
        try:
            return run_stage(package, kept / folder if kept else tmp_path_factory.mktemp(folder), base)
        except StageError as error:
            lines = "".join(traceback.format_exception(error.__cause__)).splitlines()[-MAX_TRACEBACK_LINES:]
            name, sentence = stage_name(package), str(error)
            request.config.stash[reports][name] = Report(name, error="\n".join([sentence, *lines]))
        pytest.fail(f"stage {name}: {sentence}", pytrace=False)

    stage.nemotron_stage = stage_name(package)  # type: ignore[attr-defined]
    _declared.add(stage_name(package))
    return pytest.fixture(scope="session")(stage)


class _Fixtures:
    """The fixtures of the plugin; an object, so that they can be left out."""

    @pytest.fixture
    def golden(self, request: pytest.FixtureRequest) -> "GoldenAssertion":
        """The golden of a stage: `assert golden(name="nano2/stage0_pretrain") == stage0.document`."""
        if _is_worker(request.config):
            pytest.fail("goldens must be compared in one process; run these tests without xdist's -n", pytrace=False)
        problem = _syrupy_problem(request.config)
        if problem:
            pytest.fail(f"goldens need syrupy {' or '.join(SYRUPY_MAJORS)}, {problem}", pytrace=False)
        from nemotron.testing.snapshot import GoldenAssertion, GoldenExtension

        snapshot = request.getfixturevalue("snapshot")

        class Extension(GoldenExtension):
            directory = request.config.rootpath / GOLDEN_DIRECTORY
            reports = request.config.stash[reports]
            properties = request.node.user_properties

        return GoldenAssertion(
            session=snapshot.session,
            extension_class=Extension,
            test_location=snapshot.test_location,
            update_snapshots=False,  # only bless.py replaces a golden
            update_new_snapshots_only=snapshot.update_snapshots,
        )


def _syrupy_problem(config: pytest.Config) -> str:
    """Why goldens cannot use syrupy, whose classes snapshot.py extends; empty if they can."""
    try:
        version = importlib.metadata.version("syrupy")
    except importlib.metadata.PackageNotFoundError:
        return f"which is not installed; {_INSTALL}"
    if version.split(".")[0] not in SYRUPY_MAJORS:
        return f"and {version} is installed; {_INSTALL}"
    return "" if hasattr(config.option, "update_snapshots") else "which is installed and not loaded; add -p syrupy"


def pytest_configure(config: pytest.Config) -> None:
    """Start without reports and problems; offer the fixture `golden`, unless another plugin has one of that name."""
    config.stash[reports] = {}
    config.stash[_problems] = []
    others = [plugin for plugin in config.pluginmanager.get_plugins() if "golden" in dir(plugin)]
    if _declared or all(Path(str(getattr(plugin, "__file__", ""))).name == "conftest.py" for plugin in others):
        config.pluginmanager.register(_Fixtures(), "nemotron-golden")


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for xdist."""
    return hasattr(config, "workerinput")


def _is_in_use(config: pytest.Config) -> bool:
    """Whether the project has anything to do with this plugin."""
    stash = config.stash
    requested = bool(stash[reports]) or stash.get(_golden_requested, False)
    return bool(_declared) or requested or bool(config.getoption("every_golden"))


def _delete_reports(config: pytest.Config) -> None:
    """Delete the reports of the previous session.

    Raises:
        pytest.UsageError: if a report cannot be deleted.
    """
    root = report_root(config)
    try:
        for report in root.glob("*/*/report.txt"):
            for name in FILES:
                (report.parent / name).unlink(missing_ok=True)
    except OSError as error:
        raise pytest.UsageError(_unwritable(root, error)) from error


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make -k accept the names of goldens, apply --only-golden and --without-golden, delete the previous reports."""
    config.stash[_golden_requested] = any(map(_takes_golden, items))
    if _is_in_use(config) and not config.getoption("collectonly"):
        _delete_reports(config)
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
    """Whether a test takes the fixture of this plugin, not another one of that name."""
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get("golden", ())
    return any(definition.func.__module__ == __name__ for definition in definitions[-1:])


def _stages_of(item: pytest.Item) -> set[str]:
    """Names ("nano2/stage0_pretrain") of the stages whose fixtures a test takes."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    names = {getattr(found[-1].func, "nemotron_stage", None) for found in definitions if found}
    return {name for name in names if isinstance(name, str)}


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the tests that -k, -m and other options leave out."""
    if items:
        stash = items[0].config.stash
        stash[_num_deselected] = stash.get(_num_deselected, 0) + len(items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports, and fail the session if a run differs from its golden or a golden was not compared."""
    config = session.config
    problems = config.stash[_problems]
    if config.getoption("collectonly") or not _is_in_use(config):
        return
    found = write_reports(config)
    if _is_worker(config):
        return
    if not session.testsfailed:  # a failed test has reported it already, or prevented the comparison
        problems += [
            f"golden/{report.stage}.json - the run differs, but no test failed; write assert golden(...) == ..."
            for report in found
            if not report.equal
        ]
        if is_full_run(session) or config.getoption("every_golden"):
            goldens = config.rootpath / GOLDEN_DIRECTORY
            recorded = {f"{path.parent.name}/{path.stem}" for path in goldens.glob("*/*.json") if is_golden(path)}
            missed = sorted(recorded - {report.stage for report in found})
            problems += [f"golden/{stage}.json - no test compared a run with it; write that test" for stage in missed]
    if getattr(config.option, "update_snapshots", False):
        problems += [
            f"golden/{report.stage}.json - --snapshot-update only writes missing goldens; to replace this one, commit "
            f'the change and run python -m nemotron.testing.bless {report.stage} --reason "..."'
            for report in found
            if report.comparison and not report.equal
        ]
    if problems and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def report_root(config: pytest.Config) -> Path:
    """The directory for the reports of a session."""
    return Path(config.getoption("golden_report_dir") or config.rootpath / REPORT_DIRECTORY)


def write_reports(config: pytest.Config) -> list[Report]:
    """Write the reports, one directory per stage, and GitHub's step summary if there is one; return the reports."""
    goldens, found = config.rootpath / GOLDEN_DIRECTORY, []
    for report in config.stash[reports].values():
        path = goldens / f"{report.stage}.json"
        if report.run and not report.golden and path.exists():  # just recorded
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
        config.stash[_problems].append(_unwritable(root, error))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and found:
        with open(summary, "a", encoding="utf-8", newline="\n") as file:
            for report in found:
                file.write("\n".join(["```", *report.lines(), "```", ""]))
    return found


def is_golden(path: Path) -> bool:
    """Whether golden/<recipe>/<stage>.json is or was a golden; a project may keep other files there."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return True  # damaged
    except OSError:
        return False  # a directory
    return isinstance(content, dict) and {"stage", "ladder"} <= content.keys()


def _unwritable(root: Path, error: OSError) -> str:
    return f"{root} - cannot write reports there ({error}); name another directory with --golden-report-dir"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the report of every stage, and the reasons, other than failed tests, why the session fails."""
    for report in config.stash[reports].values():
        for line in report.lines():
            terminalreporter.write_line(line, green=report.equal, red=not report.equal)
    for problem in config.stash[_problems]:
        terminalreporter.write_line(f"FAILED {problem}", red=True, bold=True)


def is_full_run(session: pytest.Session) -> bool:
    """Whether every test of the project was collected and selected, and the session was not stopped early."""
    config = session.config
    if _golden_requested not in config.stash:  # xdist's processes collect the tests, not this one
        return False
    everything = config.args_source is not config.ArgsSource.ARGS  # from testpaths, or the directory
    narrowed = config.stash.get(_num_deselected, 0) or any(
        config.getoption(option, default=None) for option in ("lf", "ignore", "ignore_glob")
    )
    here = config.invocation_params.dir == config.rootpath
    return everything and here and not narrowed and not session.shouldstop and not session.shouldfail
