"""The pytest plugin: the `golden` fixture, and a full run fails if there is a golden that no test compared.

In a conftest.py: pytest_plugins = ["nemotron.testing.plugin"]
In a test: assert stage0.document == golden(name="nano2/stage0_pretrain")

A full run is one that nothing was left out of: no paths, no -k, -m, --lf or --ignore, and not stopped early. Runs that
mean to compare every golden without being full say so with --every-golden.
"""

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from nemotron.testing.snapshot import GOLDEN_DIRECTORY, GoldenExtension, compared_goldens

_num_deselected = pytest.StashKey[int]()
_forgotten = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --every-golden."""
    parser.getgroup("nemotron").addoption(
        "--every-golden",
        action="store_true",
        help="fail if a file in golden/ was compared by no test, even if only some tests were selected",
    )


@pytest.fixture
def golden(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    """The golden of a stage: `assert stage0.document == golden(name="nano2/stage0_pretrain")`."""
    return snapshot.use_extension(GoldenExtension)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what -k, -m and others leave out."""
    if items:
        stash = items[0].config.stash
        stash[_num_deselected] = stash.get(_num_deselected, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a full run red if it compared fewer goldens than there are."""
    config = session.config
    if not (is_full_run(session) or config.getoption("every_golden")) or config.getoption("collectonly"):
        return
    directory = config.rootpath / GOLDEN_DIRECTORY
    compared: set[Path] = config.stash.get(compared_goldens, set())
    forgotten = sorted(set(directory.rglob("*.json")) - compared)
    config.stash[_forgotten] = forgotten
    if forgotten and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the goldens that nothing compared."""
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
