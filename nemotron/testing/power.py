"""Apply known mistakes to a recipe, one at a time: each must turn its suite red.

In: a catalogue, tests/mutants/<recipe>/<stage>.toml, of source edits. Out: a line a mutant, killed or survived and by
which rung; the totals with and without the config rung of the golden, which alone would catch every constant; exit
code 1 if one survived that the catalogue does not explain, or was killed although it explains why it could not be.
Run: nox -s power -- nano2/stage0_pretrain    (python -m nemotron.testing.power, in the root of the repository)

Each mutant is installed by itself (pip install --no-deps --target) and its own copy of tests and golden is run from
there: in an editable environment a changed search path would move `nemotron`, but not `nemotron.recipes`. First the
goldens are compared, of the mutated stage and of those before it in its recipe; stages run in the order of their names
(stage0_, stage1_), so the first red one is where the mistake showed. Then, if no golden saw it, the other tests of the
mutated stage run, up to the first that fails.
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

from nemotron.testing.compare import Json
from nemotron.testing.report import CONFIG_RUNG
from nemotron.testing.session import Session, run_pytest

CATALOGUES = Path("tests", "mutants")
NO_TESTS = 5
"""pytest's exit code if none was selected, as where a stage has no other test than that of its golden."""
FAMILIES = ("data", "batching", "model", "optimizer", "checkpoint", "evaluation", "lineage", "environment")
INSTALLED = ("nemotron", "recipes", "golden", "pyproject.toml", "README.md", "LICENSE")
"""What an installation is made of."""
TESTED = ("tests", "golden", "conftest.py", "pyproject.toml", "recipes")
"""What a run of the tests reads from its root; the recipes because some tests run them as files."""
CANNOT_START = re.compile(r"\b(Import|ModuleNotFound|Syntax|Indentation|Name)Error\b")
"""What pytest shows of a mutant that cannot be imported, and exits with 2 or more as for a full disk."""


class CampaignError(RuntimeError):
    """A run that says nothing about its mutant: a full disk, a wrong path, an interrupt."""


@dataclass(frozen=True)
class Mutant:
    """One mistake, as one edit of one source file.

    Raises:
        ValueError: if the family is unknown.
    """

    name: str
    family: str
    story: str
    file: str
    """Relative to the root of the repository."""
    old: str
    """Stands exactly once in the file."""
    new: str
    incident: bool = False
    """Whether such a mistake was made in somebody's training code."""
    source: str = ""
    """Where it is reported, if it was."""
    survives: str = ""
    """Why the suite cannot see it, if it cannot; empty for a mutant that must be killed."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"mutant {self.name}: family {self.family!r} is none of {', '.join(FAMILIES)}")

    def applied(self, root: Path) -> str:
        """The text of the file below `root` with the mistake in it.

        Raises:
            ValueError: if `old` does not stand in it exactly once, or the edit changes nothing.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"mutant {self.name}: its old text stands {text.count(self.old)} times in {self.file}, not once; the "
                f"source moved on, so rewrite the mutant"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Verdict:
    """What a stage's tests said about a mutant."""

    mutant: str
    killed: bool
    killed_without_config: bool
    """By a test or by another rung of the golden than config."""
    first_red_stage: str
    """In running order; empty if none is red."""
    rung: str
    """The first broken rung that is not config, the first test that failed, or "crash"."""
    largest_moved: float
    """Largest relative difference among the broken floats; 0.0 if none broke by so much that it is one."""


def read_catalogue(path: Path) -> tuple[list[Mutant], list[str]]:
    """The mutants of a catalogue in its order, and its `tests`: files and folders of the tests of its stage.

    Raises:
        ValueError: if a name stands twice, or a mutant has a field that it cannot have or lacks one.
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
        raise ValueError(f"{path}: {name} stands there {names.count(name)} times; give each mutant its own name")
    return mutants, catalogue["tests"]


def stages_with_catalogue(root: Path) -> list[str]:
    """Recipe and stage of every catalogue, in running order."""
    catalogues = (root / CATALOGUES).glob("*/*.toml")
    return sorted(path.relative_to(root / CATALOGUES).with_suffix("").as_posix() for path in catalogues)


def try_mutant(root: Path, stage: str, mutant: Mutant | None, tests: list[str]) -> Verdict:
    """Install the repository in `root` with the mutant (None: as it is) and run the tests of the stage on it.

    Args:
        root: of the repository.
        stage: recipe and stage, "nano2/stage0_pretrain".
        mutant: what to change.
        tests: files and folders for pytest; those that compare no golden run only if the goldens see nothing, up to the
            first that fails.

    Raises:
        ValueError: if the mutant does not fit the source, or its installation is not what the tests would import.
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
            text = mutant.applied(root)
            for copy in (source, tested):
                if (copy / mutant.file).exists():
                    (copy / mutant.file).write_text(text, encoding="utf-8")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        pip = subprocess.run(
            [*install, "--target", str(installed), str(source)], capture_output=True, text=True, check=False
        )
        if pip.returncode:
            raise CampaignError(f"pip cannot install {mutant.name if mutant else root}:\n{pip.stderr[-1500:].strip()}")
        environment = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        recipe = stage.split("/", maxsplit=1)[0]
        origin = subprocess.run(
            [sys.executable, "-c", f"import nemotron.recipes.{recipe} as recipe; print(recipe.__file__)"],
            cwd=tested,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if origin.returncode == 0 and not Path(origin.stdout.strip()).is_relative_to(installed):
            raise ValueError(f"the tests would import {origin.stdout.strip()}, not the mutant in {installed}")
        upstream = [name for name in stages_with_catalogue(root) if name.startswith(f"{recipe}/") and name < stage]
        golden_tests = [*tests, *(path for name in upstream for path in read_catalogue(catalogue_of(root, name))[1])]

        def run(*arguments: str) -> Session:
            return run_pytest(tested, (*arguments, "-p", "no:cacheprovider"), environment=environment)

        session = run(*dict.fromkeys(golden_tests), "--only-golden")
        by_golden = verdict(mutant, session)
        if mutant is None and stage not in session.reports:
            raise CampaignError(
                f"no test in {', '.join(tests)} compares the golden of {stage}; name the file that does"
            )
        if by_golden.killed_without_config:
            return by_golden
        by_test = verdict(mutant, run(*tests, "--without-golden", "--exitfirst"))
        return replace(by_test, first_red_stage=by_golden.first_red_stage) if by_test.killed else by_golden


def catalogue_of(root: Path, stage: str) -> Path:
    """Where the mutants of a stage stand."""
    return root / CATALOGUES / f"{stage}.toml"


def verdict(mutant: Mutant | None, session: Session) -> Verdict:
    """Read what a session found; without one, a session in which every test was deselected found nothing.

    Raises:
        CampaignError: if pytest could not run, and not because of the mutant.
    """
    name = mutant.name if mutant else "no mutant"
    crashed = session.exit_code not in (0, 1, NO_TESTS)
    if crashed and not (mutant and CANNOT_START.search(session.output)):
        raise CampaignError(f"pytest could not run on {name} (exit code {session.exit_code}):\n{session.end}")
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
        largest_moved=max((moved(difference) for difference in beyond), default=0.0),
    )


def moved(difference: dict[str, str]) -> float:
    """How far a broken float is off, relative; 0.0 for what is no pair of floats."""
    try:
        golden, run = json.loads(difference["golden"]), json.loads(difference["run"])
    except ValueError:
        return 0.0
    if not isinstance(golden, float) or not isinstance(run, float) or golden == 0:
        return 0.0
    return abs(run - golden) / abs(golden)


def try_all(
    root: Path, stage: str, mutants: list[Mutant], tests: list[str], jobs: int
) -> Iterator[tuple[Mutant, Verdict]]:
    """Try the mutants, `jobs` at a time, and yield each verdict as it comes."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(try_mutant, root, stage, mutant, tests): mutant for mutant in mutants}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an error ends the campaign


def totals(stage: str, results: list[tuple[Mutant, Verdict]]) -> list[str]:
    """The table's last lines: shares killed, with and without config, of real incidents, at the mutated stage."""

    def share(part: int, of: int) -> str:
        return f"{part} of {of} ({part / of:.0%})" if of else "none"

    killed = [verdict for _, verdict in results if verdict.killed]
    incidents = [verdict for mutant, verdict in results if mutant.incident]
    golden = [verdict for verdict in killed if verdict.first_red_stage]
    moved_least = [verdict for _, verdict in results if verdict.largest_moved]
    weakest = min(moved_least, key=lambda verdict: verdict.largest_moved, default=None)
    return [
        f"killed: {share(len(killed), len(results))}",
        f"killed without the config rung: {share(sum(v.killed_without_config for _, v in results), len(results))}",
        f"killed of real incidents: {share(sum(v.killed_without_config for v in incidents), len(incidents))}",
        f"first red stage is {stage}: {share(sum(v.first_red_stage == stage for v in golden), len(golden))}",
        f"weakest killed: {weakest.mutant}, moved by {weakest.largest_moved:.0e}"
        if weakest
        else "weakest killed: none",
    ]


def main() -> int:
    """Try catalogues from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", help="recipe and stage; every catalogue's if left out")
    parser.add_argument("--only", action="append", help="name of a mutant; may be given more than once")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time, a thread each")
    parser.add_argument("--json", type=Path, help="also write the verdicts there")
    arguments = parser.parse_args()
    root = Path.cwd()
    try:
        unexpected, verdicts = campaign(root, arguments.stages, arguments.only or [], arguments.jobs)
    except (ValueError, CampaignError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8")
    return 1 if unexpected else 0


def campaign(root: Path, stages: list[str], only: list[str], jobs: int) -> tuple[list[str], list[dict[str, Json]]]:
    """Try the mutants and show a line each, and the totals.

    Args:
        root: of the repository.
        stages: recipe and stage; every catalogue's if empty.
        only: names of mutants; all if empty.
        jobs: mutants at a time.

    Returns:
        Names of the mutants whose fate the catalogue does not explain, and every verdict as JSON.

    Raises:
        ValueError: if there is no such stage or mutant, one does not fit the source, or a stage is red without any;
            nothing was installed but in the last case.
        CampaignError: as for `try_mutant`.
    """
    known = stages_with_catalogue(root)
    for stage in stages:
        if stage not in known:
            raise ValueError(f"{stage} has no catalogue in {CATALOGUES}; there is {', '.join(known) or 'none'}")
    catalogues = {stage: read_catalogue(catalogue_of(root, stage)) for stage in stages or known}
    names = [mutant.name for mutants, _ in catalogues.values() for mutant in mutants]
    for name in only:
        if name not in names:
            raise ValueError(f"no mutant {name}; there is {', '.join(names)}")
    for mutants, _ in catalogues.values():
        for mutant in mutants:
            mutant.applied(root)
    unexpected, verdicts = [], []
    for stage, (catalogue, tests) in catalogues.items():
        mutants = [mutant for mutant in catalogue if not only or mutant.name in only]
        if not mutants:
            continue
        unmutated = try_mutant(root, stage, None, tests)
        if unmutated.killed:
            raise ValueError(f"{stage} is red without a mutant ({unmutated.rung or CONFIG_RUNG}); mend that first")
        results = []
        for mutant, found in try_all(root, stage, mutants, tests, jobs):
            results.append((mutant, found))
            said = f"killed by {found.rung or CONFIG_RUNG}" if found.killed else f"SURVIVED {mutant.survives}"
            if found.killed_without_config == bool(mutant.survives):
                unexpected.append(mutant.name)
                said += f", though it should survive: {mutant.survives}; drop that line" if mutant.survives else ""
            count = f"[{len(results)}/{len(mutants)}]"
            print(f"{count} {mutant.family}: {mutant.name}: {said}", file=sys.stderr, flush=True)
            verdicts.append({"stage": stage, **asdict(found)})
        print("\n".join(totals(stage, results)), file=sys.stderr)
    return unexpected, verdicts


if __name__ == "__main__":
    sys.exit(main())
