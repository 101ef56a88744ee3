"""Sessions: `nox` runs the tests, `nox -s lint types tests` runs what CI runs; `-r` reuses the environments.

Sessions that run pytest take its arguments: `nox -s tests -- -k stage0`.

    lint     ruff: the rules in pyproject.toml, and the format
    types    mypy on the installed wheel, outside this directory, as in a project that depends on it
    tests    the whole suite
    tiny     every stage at tiny scale, compared with its golden
    bless    replace a golden: `nox -s bless -- stage0 --reason "..."`
    power    known mistakes, one at a time: each must make the tests of its stage fail
    mutation cosmic-ray on the comparison: the share of small edits that its tests find
    alarms   the tiny run with other processor kernels, threads, hash seeds, directories, locales: no number may change
    bench    the benchmarks in benchmarks/; not part of the tests
"""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


def install_project(session: nox.Session) -> None:
    """Install this directory in editable mode, with its test dependencies, at the pinned versions."""
    session.install("-e", ".[test]", *CONSTRAINTS)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the rules in pyproject.toml and the format; `ruff check --fix` and `ruff format` fix most errors."""
    session.install("ruff", *CONSTRAINTS)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the installed wheel: an editable install hides nemotron.recipes from mypy."""
    outside = Path(session.create_tmp()).resolve()
    for leftover in (outside / "wheel", ROOT / "build"):  # an old build may contain deleted modules
        shutil.rmtree(leftover, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(outside / "wheel"), ".")
    (wheel,) = (outside / "wheel").glob("nemotron-*.whl")
    session.install(f"{wheel}[test]", "mypy", *CONSTRAINTS)
    session.install("--force-reinstall", "--no-deps", str(wheel))  # a reused environment may have an older one
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
    session.run("pytest", "--every-golden", "--only-golden", *session.posargs)


@nox.session
def bless(session: nox.Session) -> None:
    """Replace the golden of a stage and record the reason."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.bless", *session.posargs)


@nox.session
def power(session: nox.Session) -> None:
    """Try the recipe mutants in tests/mutants/; takes names of stages, `--only NAME` and `--jobs N`."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.power", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Mutate a copy of nemotron/testing/compare.py, one small edit at a time, and run its tests on each mutant."""
    session.install("cosmic-ray", *CONSTRAINTS)
    install_project(session)
    copy = Path(session.create_tmp()).resolve() / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for directory in ("nemotron", "tests/nemotron/testing", "tests/mutants"):
        shutil.copytree(ROOT / directory, copy / directory)
    session.chdir(copy)
    config, database = "tests/mutants/compare.toml", "compare.sqlite"
    environment = {"PYTHONPATH": str(copy)}
    session.run("cosmic-ray", "init", config, database, env=environment)
    session.run("cosmic-ray", "exec", config, database, env=environment)
    session.run("cr-report", "--surviving-only", "--show-diff", database)
    session.run("cr-rate", "--fail-over", "5", database)


@nox.session
def alarms(session: nox.Session) -> None:
    """Run the stages at tiny scale in other environments; a number that changes is an alarm."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.alarms", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks."""
    install_project(session)
    for path in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(path))
