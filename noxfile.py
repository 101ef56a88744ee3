"""What can be run here: `nox` runs the tests; `nox -s lint types tests` what CI runs; `-r` keeps the environments.

Sessions that end in pytest take its arguments: `nox -s tests -- -k stage0`.

    lint     ruff: the rules of pyproject.toml, and the layout
    types    mypy on the wheel, installed and checked outside of this directory, as someone who depends on it would
    tests    the whole suite
    tiny     every stage at tiny scale against its golden
    bless    record a golden anew: `nox -s bless -- stage0 --reason "..."`
    power    known mistakes, one at a time: each must turn its stage red
    mutation cosmic-ray on the comparison: how many small edits of it the tests notice
    alarms   the tiny run under other processor kernels, threads, hash seeds, directories, locales: no number may move
    bench    benchmarks/, printed side by side; never part of a test
"""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
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
    session.run("pytest", "--every-golden", "--only-golden", *session.posargs)


@nox.session
def bless(session: nox.Session) -> None:
    """Record the golden of a stage anew, with the reason."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.bless", *session.posargs)


@nox.session
def power(session: nox.Session) -> None:
    """Try every recipe mutant of the catalogues in tests/mutants/; takes `--only NAME`, `--jobs N`, and stages."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.power", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Mutate a copy of nemotron/testing/compare.py, one small edit at a time, and run its tests on each."""
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
    """Run the tiny stages in other environments; a number that moves is an alarm."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.alarms", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks."""
    install_project(session)
    for path in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(path))
