"""What can be run here: `nox` runs lint, types and tests; `nox -s tests` one of them; `-r` keeps the environments.

Sessions that end in pytest take its arguments: `nox -s tests -- -k stage0`.

    lint     ruff: the rules of pyproject.toml, and the layout
    types    mypy on the wheel, installed and checked outside of this directory, as someone who depends on it would
    tests    the whole suite
    tiny     every stage at tiny scale against its golden
    alarms   the tiny run under other processor kernels, threads, hash seeds, directories, locales: no number may move
    bench    benchmarks/, printed side by side; never part of a test
"""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


def install_project(session: nox.Session) -> None:
    """Install this directory, editable, with what its tests need, at the pinned versions."""
    session.install("-e", ".[test]", *CONSTRAINTS)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the rules of pyproject.toml and the layout; `ruff check --fix` and `ruff format` mend most of it."""
    session.install("ruff", *CONSTRAINTS)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the installed wheel: an editable install hides nemotron.recipes from mypy."""
    outside = Path(session.create_tmp()).resolve()
    for leftover in (outside / "wheel", ROOT / "build"):  # the build would pack modules that are deleted since
        shutil.rmtree(leftover, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(outside / "wheel"), ".")
    (wheel,) = (outside / "wheel").glob("nemotron-*.whl")
    session.install(f"{wheel}[test]", "mypy", *CONSTRAINTS)
    session.install("--force-reinstall", "--no-deps", str(wheel))  # a kept environment may hold an older one
    session.chdir(outside)
    session.run("mypy", "-p", "nemotron", "--config-file", str(ROOT / "pyproject.toml"))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite."""
    install_project(session)
    session.run("pytest", *session.posargs)


@nox.session
def tiny(session: nox.Session) -> None:
    """Run every stage at tiny scale and compare it with its golden."""
    install_project(session)
    stages = sorted(str(path) for path in Path("tests", "recipes").glob("*/stage*/test_stage.py"))
    session.run("pytest", "--every-golden", *stages, *session.posargs)


@nox.session
def alarms(session: nox.Session) -> None:
    """Run the tiny stages in other environments; a number that moves is an alarm."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.alarms", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks."""
    install_project(session)
    for path in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(path))
