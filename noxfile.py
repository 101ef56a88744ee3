"""Sessions: `nox` runs the tests, `nox -s lint types tests` runs what CI runs; `-r` reuses the environments.

Sessions that run pytest take its arguments: `nox -s tests -- -k stage0`.

    lint     ruff: the rules in pyproject.toml, and the format
    types    mypy on the installed wheel, outside this directory, as in a project that depends on it
    tests    the whole suite, in two processes side by side
    tiny     every stage at tiny scale, compared with its golden
    bless    replace a golden: `nox -s bless -- stage0 --reason "..."`
    power    known mistakes, one at a time: each must make the tests of its stage fail
    mutation cosmic-ray on the comparison: the share of small edits that its tests find
    portable the tests of the tooling without what only POSIX systems have; on Windows as they are
    plugin   the pytest plugin in projects that do not use it, with old and new versions of pytest and syrupy
    alarms   the tiny run with other processor kernels, threads, hash seeds, directories, locales: no number may change
    faults   every step killed at every change to the file system that it makes, and run again; takes hours
    kills    the recipe killed at 20 random moments, and the same command again: no digest may change; takes an hour
    devices  the training steps of a tiny run again in two processes each: the same numbers; 10 minutes
    report   the report of a run in headless Chromium: no stored script runs, nothing overflows, axe finds nothing
    bench    the benchmarks in benchmarks/; not part of the tests
    gpu      what one GPU does with this code: a table, no part of which begins after 8 minutes; without one a sentence
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
BACKGROUND_TESTS = "tests/pipelines"  # nearly half of the time; no golden is compared there
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


def install_project(session: nox.Session) -> None:
    """Install this directory in editable mode, with its test dependencies, at the pinned versions."""
    session.install("-e", ".[test]", *CONSTRAINTS)


def build_wheel(session: nox.Session, outside: Path) -> Path:
    """Build the wheel of this directory into `outside`/wheel."""
    for leftover in (outside / "wheel", ROOT / "build"):  # an old build may contain deleted modules
        shutil.rmtree(leftover, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(outside / "wheel"), ".")
    (wheel,) = (outside / "wheel").glob("nemotron_recipes-*.whl")
    return wheel


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
    wheel = build_wheel(session, outside)
    session.install(f"{wheel}[test]", "mypy", *CONSTRAINTS)
    session.install("--force-reinstall", "--no-deps", str(wheel))  # a reused environment may have an older one
    session.chdir(outside)
    session.run("mypy", "-p", "nemotron", "--config-file", str(ROOT / "pyproject.toml"))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite: one half in the background, the other one here; with arguments, pytest with them."""
    install_project(session)
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    # One thread each: threads that wait for each other on the same cores would slow down both.
    path = os.pathsep.join([session.bin, os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    slowest = "--durations=25"
    # The cache is for one process.
    command = [Path(session.bin, "pytest"), BACKGROUND_TESTS, slowest, "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as log:
        background = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            session.run("pytest", f"--ignore={BACKGROUND_TESTS}", slowest, env={"OMP_NUM_THREADS": "1"})
        finally:
            failed = background.wait()
            log.seek(0)
            print(log.read())
    if failed:
        session.error(f"{BACKGROUND_TESTS} failed, see above")


@nox.session
def portable(session: nox.Session) -> None:
    """Run the tests of the tooling without what only POSIX has (tests/without_posix); on Windows, as they are."""
    install_project(session)
    marks, environment = "not posix", {}
    if os.name == "posix":  # without fcntl there are no locks, and filelock says so when it is imported
        marks += " and not locks"
        environment = {
            "PYTHONPATH": str(ROOT / "tests" / "without_posix"),
            "PYTHONWARNINGS": "ignore:only soft file lock",
        }
    session.run("pytest", "tests/nemotron", "-m", marks, "-W", "ignore:only soft", *session.posargs, env=environment)


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


NEIGHBORS = ROOT / "tests" / "nemotron" / "testing" / "neighbor"
PLUGIN_CELLS = [  # pytest, syrupy, xdist
    nox.param("7.4.0", None, None, id="oldest pytest"),
    nox.param("7.4.4", "4.9.1", "3.8.0", id="pytest 7, xdist"),
    nox.param("8.3.5", "5.0.0", None, id="pytest 8"),
    nox.param("8.4.2", "6.0.0", "3.8.0", id="pytest 8, xdist"),
    nox.param("9.0.0", "6.0.0", None, id="oldest declared"),
    nox.param("9.0.0", "6.0.0", "3.8.0", id="oldest declared, xdist"),
    nox.param("9.2.0", "7.0.2", None, id="newest"),
    nox.param("9.2.0", "7.0.2", "3.8.0", id="newest, xdist"),
]


@nox.session
@nox.parametrize(("pytest", "syrupy", "xdist"), PLUGIN_CELLS)
def plugin(session: nox.Session, pytest: str, syrupy: str | None, xdist: str | None) -> None:
    """Run a project that does not use the plugin, and the example that does, with the installed wheel.

    tests/nemotron/testing/neighbor is green without the plugin, and must be green with it. No torch is needed, so each
    environment is small.
    """
    outside = Path(session.create_tmp()).resolve()
    shutil.rmtree(outside, ignore_errors=True)
    wheel = build_wheel(session, outside)
    constraints = outside / "constraints.txt"  # the pinned versions, without those of this cell
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    constraints.write_text(
        "".join(pin for pin in pins if not pin.startswith(("pytest==", "syrupy=="))), encoding="utf-8", newline="\n"
    )
    chosen = {"pytest": pytest, "syrupy": syrupy, "pytest-xdist": xdist}
    packages = [f"{name}=={version}" for name, version in chosen.items() if version]
    session.install(*packages, "filelock", "pydantic", "tyro", "numpy", "matplotlib", "-c", str(constraints))
    session.install("--no-deps", "--force-reinstall", str(wheel))

    shutil.copytree(NEIGHBORS, outside / "neighbor")
    session.chdir(outside / "neighbor")
    in_parallel: list[list[str]] = [[], ["-n", "2"]] if xdist else [[]]
    for processes in in_parallel:
        for arguments in ([], ["-k", "plain"], ["check_plain.py"], ["--snapshot-update"] if syrupy else ["-v"]):
            session.run("pytest", *processes, *arguments)
    for changed in (".golden_report/mine/first/report.txt", "golden/answers.json"):
        if (outside / "neighbor" / changed).read_bytes() != (NEIGHBORS / changed).read_bytes():
            session.error(f"the plugin changed {changed} of a project that does not use it")

    shutil.copytree(ROOT / "examples" / "letters", outside / "letters")
    session.chdir(outside / "letters")
    ini = Path("pytest.ini")  # older versions than it asks for are tried too
    ini.write_text(
        ini.read_text(encoding="utf-8").replace("minversion = 8\n", "filterwarnings = error\n"),
        encoding="utf-8",
        newline="\n",
    )
    for processes in in_parallel:  # also where goldens are not supported, a test without one passes
        session.run("pytest", *processes, "-k", "guessing")
    supported = syrupy is not None and syrupy.split(".")[0] in ("6", "7")  # SYRUPY_MAJORS of the plugin
    session.run("pytest", success_codes=[0 if supported else 1])
    if xdist:
        session.run("pytest", "-n", "2", success_codes=[1])  # goldens are compared in one process


@nox.session
def alarms(session: nox.Session) -> None:
    """Run the stages at tiny scale in other environments; a number that changes is an alarm."""
    install_project(session)
    session.run("python", "-m", "nemotron.testing.alarms", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill every step of every stage at every change that it makes to the file system, and run it again."""
    install_project(session)
    session.run("python", "tests/pipelines/faults.py", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill the recipe at random moments and give the same command again; `-- --help` prints the flags."""
    install_project(session)
    session.run("python", "tests/pipelines/kills.py", *session.posargs)


@nox.session
def devices(session: nox.Session) -> None:
    """Train every stage of a tiny run again in several processes; `-- DIRECTORY --processes 2` takes a finished run."""
    install_project(session)
    arguments = list(session.posargs)
    if not arguments:
        directory = Path(session.create_tmp()).resolve() / "run"
        session.run("python", "-m", "nemotron.recipes.nano2", "--scale", "tiny", "--output-dir", str(directory))
        arguments = [str(directory), "--processes", "2"]
    session.run("python", "tests/pipelines/devices.py", *arguments)


@nox.session
def report(session: nox.Session) -> None:
    """Check the report in a browser; `REPORT_OF=outputs/nano2/tiny nox -s report` checks that of a run too."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        session.error("there is no Chromium; install it, for example with apt-get install chromium")
    install_project(session)
    session.install("axe-playwright-python", *CONSTRAINTS)
    environment = {"CHROMIUM": chromium}
    session.run("pytest", "tests/nemotron/report/check_browser.py", *session.posargs, env=environment)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks."""
    install_project(session)
    session.install("datasketch", *CONSTRAINTS)  # near_duplicates.py compares with it
    for path in sorted(Path("benchmarks").glob("*.py")):
        if path.stem not in ("gpu", "curation"):  # a session beside this one; a peer that needs other versions
            session.run("python", str(path))


@nox.session
def gpu(session: nox.Session) -> None:
    """Measure one GPU; `-- --try-out` runs every part on the processor, very small."""
    install_project(session)
    session.run("python", "benchmarks/gpu.py", *session.posargs)
