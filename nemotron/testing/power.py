"""Apply known mistakes to a recipe, one at a time: each must make its tests fail.

In: a catalogue of source edits, tests/mutants/<recipe>/<stage>.toml. Out: one line per mutant, killed (by which rung)
or survived; the totals with and without the golden's config rung, which alone would find every changed constant; exit
code 1 if a mutant that must be killed survived or was found by the config rung alone, or if one was killed although its
entry says why it survives.
Run: nox -s power -- nano2/stage0_pretrain    (python -m nemotron.testing.power, in the root of the repository)

Each mutant is installed into a separate directory (pip install --no-deps --target), because a changed search path alone
would redirect `nemotron` but not `nemotron.recipes` in an editable environment. It is tested with copies of tests and
golden: the goldens of its stage and of the earlier stages of the recipe are compared first. Stages run in the order of
their names (stage0_, stage1_), so the earliest stage that fails is the one where the mistake shows. If nothing differs,
or the config rung alone, the tests of the mutated module and then the others of its stage run until one fails.

A step that does not import the mutated module is not run again (nemotron/stage.py): its artifact is a copy of the one
that the unchanged recipe made. For a module that no result should depend on (SHOWING), every step runs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nemotron.code import SHOWING
from nemotron.command_line import checked_arguments, program_name
from nemotron.testing.compare import Json, relative_difference
from nemotron.testing.report import CONFIG_RUNG
from nemotron.testing.session import Session, run_pytest

CATALOGUES = Path("tests", "mutants")
NO_TESTS = 5
"""pytest's exit code if no test was selected, for example if a stage has only the test of its golden."""
FAMILIES = ("data", "batching", "model", "optimizer", "checkpoint", "evaluation", "lineage", "environment")
INSTALLED = ("nemotron", "recipes", "golden", "pyproject.toml", "README.md", "LICENSE")
"""Files and directories that an installation needs."""
TESTED = ("tests", "golden", "conftest.py", "pyproject.toml", "recipes")
"""Files and directories that the tests read from their root; recipes because some tests run them as files."""
CANNOT_START = re.compile(r"\b(Import|ModuleNotFound|Syntax|Indentation|Name)Error\b")
"""Errors in pytest's output if a mutant cannot be imported; pytest then exits with 2 or more, as for a full disk."""


class CampaignError(RuntimeError):
    """A run failed for another reason than its mutant: a full disk, a wrong path, an interrupt."""


@dataclass(frozen=True)
class Mutant:
    """One mistake: one edit of one source file.

    Raises:
        ValueError: if the family is unknown.
    """

    name: str
    family: str
    story: str
    file: str
    """Relative to the root of the repository."""
    old: str
    """Must occur exactly once in the file."""
    new: str
    incident: bool = False
    """Whether this kind of mistake happened in public training code."""
    source: str = ""
    """The report of the incident."""
    survives: str = ""
    """Why the suite cannot find it; empty for a mutant that must be killed."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"mutant {self.name}: family={self.family!r} must be one of {', '.join(FAMILIES)}")

    def mutated_source(self, root: Path) -> str:
        """The text of the mutant's file in `root`, with the mistake.

        Raises:
            ValueError: if `old` does not occur exactly once in the file, or the edit changes nothing.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"mutant {self.name}: its old text must occur once in {self.file} and differ from the new one, but "
                f"occurs {text.count(self.old)} times; update the mutant to the present source"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Verdict:
    """The result of a stage's tests on a mutant."""

    mutant: str
    killed: bool
    killed_without_config: bool
    """Killed by a test, or by a rung of the golden other than config."""
    first_red_stage: str
    """The first stage in running order that differs from its golden or crashed; empty if there is none."""
    rung: str
    """The first broken rung that is not config, the first test that failed, or "crash"."""
    largest_change: float
    """Largest relative difference of the floats that differ; 0.0 if no float does."""


def read_catalogue(path: Path) -> tuple[list[Mutant], list[str]]:
    """The mutants of a catalogue, in order, and its `tests`: the test files and folders of its stage.

    Raises:
        ValueError: if a name occurs twice, or a mutant has an unknown field or lacks a required one.
    """
    mutants = []
    catalogue = tomllib.loads(path.read_text(encoding="utf-8"))
    for table in catalogue["mutant"]:
        try:
            mutants.append(Mutant(**table))
        except TypeError as error:
            raise ValueError(f"{path}: mutant {table.get('name')}: {error}") from error
    names = [mutant.name for mutant in mutants]
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: the name {name} occurs {names.count(name)} times; give each mutant its own name")
    return mutants, catalogue["tests"]


def stages_with_catalogue(root: Path) -> list[str]:
    """Names ("nano2/stage0_pretrain") of the stages that have a catalogue, in running order."""
    catalogues = (root / CATALOGUES).glob("*/*.toml")
    return sorted(path.relative_to(root / CATALOGUES).with_suffix("").as_posix() for path in catalogues)


def try_mutant(root: Path, stage: str, mutant: Mutant | None, tests: list[str], stages: Path) -> Verdict:
    """Install the repository in `root` with the mutant (None: unchanged) and run the tests of the stage on it.

    Args:
        root: root of the repository.
        stage: recipe and stage, "nano2/stage0_pretrain".
        mutant: the mistake to apply.
        tests: files and folders for pytest; those without a golden run only if no rung but config differs.
        stages: what the stages of the unchanged recipe made; without a mutant, what they make is kept there.

    Raises:
        ValueError: if the mutant does not fit the source, or the tests would not import its installation.
        CampaignError: if the installation or pytest fails for another reason than the mutant.
    """
    with tempfile.TemporaryDirectory() as directory:
        source, installed, tested = (Path(directory) / name for name in ("source", "installed", "tested"))
        for target, names in ((source, INSTALLED), (tested, TESTED)):
            target.mkdir()
            for name in names:
                ignored = shutil.ignore_patterns("__pycache__")
                if (root / name).is_dir():
                    shutil.copytree(root / name, target / name, ignore=ignored)
                else:
                    shutil.copy(root / name, target / name)
        if mutant is not None:
            text = mutant.mutated_source(root)
            for copy in (source, tested):
                if (copy / mutant.file).exists():
                    (copy / mutant.file).write_text(text, encoding="utf-8", newline="\n")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        pip = subprocess.run(
            [*install, "--target", str(installed), str(source)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if pip.returncode:
            raise CampaignError(f"pip cannot install {mutant.name if mutant else root}:\n{pip.stderr[-1500:].strip()}")
        kept = stages if mutant is None else Path(directory) / "stages"
        if mutant is not None and stages.is_dir() and module_of(mutant.file) not in SHOWING:
            shutil.copytree(stages, kept)
        environment = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        recipe = stage.split("/", maxsplit=1)[0]
        origin = subprocess.run(
            [sys.executable, "-c", f"import nemotron.recipes.{recipe} as recipe; print(recipe.__file__)"],
            cwd=tested,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if origin.returncode == 0 and not Path(origin.stdout.strip()).is_relative_to(installed):
            raise ValueError(
                f"the tests would import {origin.stdout.strip()}, not the mutant in {installed}; check PYTHONPATH"
            )
        upstream = [name for name in stages_with_catalogue(root) if name.startswith(f"{recipe}/") and name < stage]
        golden_tests = [*tests, *(path for name in upstream for path in read_catalogue(catalogue_of(root, name))[1])]

        def run(*arguments: str) -> Session:
            # One word: pytest would look for its settings beside a path that is a word by itself.
            options = ("-p", "no:cacheprovider", f"--stages-at={kept}")
            return run_pytest(tested, (*arguments, *options), environment=environment)

        session = run(*dict.fromkeys(golden_tests), "--only-golden")
        by_golden = judge_session(mutant, session)
        if mutant is None and stage not in session.reports:
            raise CampaignError(
                f"no test in {', '.join(tests)} compares the golden of {stage}; name the file that does"
            )
        if by_golden.killed_without_config:
            return by_golden
        first = [] if mutant is None else tests_of(root, mutant.file)
        by_test = judge_session(mutant, run(*dict.fromkeys([*first, *tests]), "--without-golden", "--exitfirst"))
        return replace(by_test, first_red_stage=by_golden.first_red_stage) if by_test.killed else by_golden


def module_of(file: str) -> str:
    """The module of a source file of the repository: nemotron.recipes.nano2.blend of recipes/nano2/blend.py."""
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name if name.startswith("nemotron") else f"nemotron.{name}"


def tests_of(root: Path, file: str) -> list[str]:
    """The tests of a source file: tests/recipes/nano2/test_blend.py of recipes/nano2/blend.py, if it is there."""
    folder, _, name = file.rpartition("/")
    tests = Path("tests", folder, f"test_{name.replace('__', '')}")
    return [tests.as_posix()] if (root / tests).is_file() else []


def catalogue_of(root: Path, stage: str) -> Path:
    """The path of a stage's catalogue."""
    return root / CATALOGUES / f"{stage}.toml"


def judge_session(mutant: Mutant | None, session: Session) -> Verdict:
    """The verdict of a pytest session on a mutant; a session without selected tests kills nothing.

    Raises:
        CampaignError: if pytest could not run for another reason than the mutant.
    """
    name = mutant.name if mutant else "no mutant"
    crashed = session.exit_code not in (0, 1, NO_TESTS)
    if crashed and not (mutant and CANNOT_START.search(session.output)):
        raise CampaignError(f"pytest could not run on {name} (exit code {session.exit_code}):\n{session.tail}")
    red = sorted(stage for stage, report in session.reports.items() if not report["equal"])
    beyond = [
        difference
        for stage in red
        for difference in session.reports[stage]["differences"]
        if difference["rung"] != CONFIG_RUNG
    ]
    if beyond:
        rung = f"{beyond[0]['step']}: {beyond[0]['rung']}"
    elif crashed or any(session.reports[stage]["error"] for stage in red):
        rung = "crash"
    else:
        rung = f"test: {session.failed[0]}" if session.failed else ""
    return Verdict(
        mutant=name,
        killed=session.exit_code not in (0, NO_TESTS),
        killed_without_config=bool(rung),
        first_red_stage=red[0] if red else "",
        rung=rung,
        largest_change=max((relative_change(difference) for difference in beyond), default=0.0),
    )


def relative_change(difference: dict[str, str]) -> float:
    """Relative difference of a pair of floats; 0.0 if the values are not both floats."""
    try:
        golden, run = json.loads(difference["golden"]), json.loads(difference["run"])
    except ValueError:
        return 0.0
    if not isinstance(golden, float) or not isinstance(run, float):
        return 0.0
    return relative_difference(golden, run)


def try_all(
    root: Path, stage: str, mutants: list[Mutant], tests: list[str], jobs: int, stages: Path
) -> Iterator[tuple[Mutant, Verdict]]:
    """Try the mutants, `jobs` at a time, and yield each verdict when it is there."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(try_mutant, root, stage, mutant, tests, stages): mutant for mutant in mutants}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an error stops the other mutants


def totals(stage: str, results: list[tuple[Mutant, Verdict]]) -> list[str]:
    """The last lines of the output: shares killed, with and without config, of incidents, and at the mutated stage."""

    def share(part: int, of: int) -> str:
        return f"{part} of {of} ({part / of:.0%})" if of else "none"

    killed = [verdict for _, verdict in results if verdict.killed]
    incidents = [verdict for mutant, verdict in results if mutant.incident]
    golden = [verdict for verdict in killed if verdict.first_red_stage]
    changed = [verdict for _, verdict in results if verdict.largest_change]
    weakest = min(changed, key=lambda verdict: verdict.largest_change, default=None)
    return [
        f"killed: {share(len(killed), len(results))}",
        f"killed without the config rung: {share(sum(v.killed_without_config for _, v in results), len(results))}",
        f"killed of real incidents: {share(sum(v.killed_without_config for v in incidents), len(incidents))}",
        f"first red stage is {stage}: {share(sum(v.first_red_stage == stage for v in golden), len(golden))}",
        f"weakest killed: {weakest.mutant}, relative difference {weakest.largest_change:.0e}"
        if weakest
        else "weakest killed: none",
    ]


def main() -> int:
    """Try catalogues from the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=program_name(), description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False
    )
    parser.add_argument("stages", nargs="*", help="recipe and stage; default: all that have a catalogue")
    parser.add_argument("--only", action="append", help="name of a mutant to try; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of mutants to try at a time")
    parser.add_argument("--json", type=Path, help="file for the verdicts as JSON")
    arguments = parser.parse_args(checked_arguments(repeatable=["--only"]))
    root = Path.cwd()
    try:
        unexpected, verdicts = campaign(root, arguments.stages, arguments.only or [], arguments.jobs)
    except (ValueError, CampaignError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 1 if unexpected else 0


def campaign(root: Path, stages: list[str], only: list[str], jobs: int) -> tuple[list[str], list[dict[str, Json]]]:
    """Try the mutants; print one line each, and the totals.

    Args:
        root: root of the repository.
        stages: recipe and stage; all stages with a catalogue if empty.
        only: names of mutants; all if empty.
        jobs: number of mutants to try at a time.

    Returns:
        Names of the mutants with an unexpected result, and every verdict as JSON.

    Raises:
        ValueError: if a stage or mutant is unknown, a mutant does not fit the source, or the tests of a stage fail
            without a mutant.
        CampaignError: as for `try_mutant`.
    """
    known = stages_with_catalogue(root)
    for stage in stages:
        if stage not in known:
            raise ValueError(f"{stage} has no catalogue in {CATALOGUES}; catalogues: {', '.join(known) or 'none'}")
    catalogues = {stage: read_catalogue(catalogue_of(root, stage)) for stage in stages or known}
    names = [mutant.name for mutants, _ in catalogues.values() for mutant in mutants]
    for name in only:
        if name not in names:
            raise ValueError(f"there is no mutant {name}; mutants: {', '.join(names)}")
    for mutants, _ in catalogues.values():
        for mutant in mutants:
            mutant.mutated_source(root)
    unexpected, verdicts = [], []
    with tempfile.TemporaryDirectory() as directory:
        kept = Path(directory, "stages")
        for stage, (catalogue, tests) in catalogues.items():
            mutants = [mutant for mutant in catalogue if not only or mutant.name in only]
            if not mutants:
                continue
            unmutated = try_mutant(root, stage, None, tests, kept)
            if unmutated.killed:
                raise ValueError(f"{stage} fails without a mutant ({unmutated.rung or CONFIG_RUNG}); fix that first")
            results = []
            for mutant, found in try_all(root, stage, mutants, tests, jobs, kept):
                results.append((mutant, found))
                result = f"killed by {found.rung or CONFIG_RUNG}" if found.killed else f"SURVIVED {mutant.survives}"
                if found.killed_without_config == bool(mutant.survives):
                    unexpected.append(mutant.name)
                    if mutant.survives:
                        result += f", but it should survive: {mutant.survives}; remove that line"
                    elif found.killed:
                        result += ", but it must be killed by another rung or a test"
                count = f"[{len(results)}/{len(mutants)}]"
                print(f"{count} {mutant.family}: {mutant.name}: {result}", file=sys.stderr, flush=True)
                verdicts.append({"stage": stage, **asdict(found)})
            print("\n".join(totals(stage, results)), file=sys.stderr)
    return unexpected, verdicts


if __name__ == "__main__":
    sys.exit(main())
