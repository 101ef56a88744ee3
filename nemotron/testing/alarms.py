"""Run the stages in other environments and compare each run with its golden: a number that changes is a false alarm.

In: stages that have a golden. Out: one line per cell with the largest relative difference; exit code 1 after an alarm.
Run: nox -s alarms    (python -m nemotron.testing.alarms [stage ...] in the root of the repository)

A cell is one environment: pytest runs the tests of one stage there in a new process. It sets the vector instructions
of the torch and MKL kernels, the number of threads, PYTHONHASHSEED, the order of the tests, the working directory, and
locale with time zone. Every pair of values of any two settings occurs in at least one cell.

Left out: other processor architectures, other torch versions.
"""

import argparse
import functools
import itertools
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

from nemotron.command_line import checked_arguments, program_name
from nemotron.testing.plugin import GOLDEN_DIRECTORY
from nemotron.testing.session import Session, run_pytest, selection

KERNELS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "ALL"},
}
"""Vector instructions -> the variables that select them. torch obeys even if the processor does not support them."""

THREADS = ("1", "2")
HASH_SEEDS = ("0", "1", "random")
ORDERS = ("file", "random")
DIRECTORIES = ("root", "elsewhere")
PLACES = ({"LC_ALL": "C", "TZ": "UTC"}, {"LC_ALL": "another", "TZ": "Asia/Kathmandu"})
"""Locale and time zone; "another" is replaced by the first of LOCALES that is installed."""
LOCALES = ("tr_TR.UTF-8", "de_DE.UTF-8", "C.UTF-8")
"""Turkish has a different capital i, German writes 1,5; the last one is always installed and changes least."""


@dataclass(frozen=True)
class Cell:
    """One environment."""

    kernels: str
    threads: str
    hash_seed: str
    place: int
    """Index into PLACES: locale and time zone."""
    order: str = "file"
    """Order of the tests."""
    directory: str = "root"
    """Working directory of the process."""

    @property
    def name(self) -> str:
        """All settings in one line."""
        place = f"{self.environment['LC_ALL']}, {self.environment['TZ']}"
        return (
            f"{self.kernels}, {self.threads} threads, hash seed {self.hash_seed}, {place}, {self.order} order, "
            f"{self.directory}"
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that the cell sets."""
        threads = {"OMP_NUM_THREADS": self.threads, "MKL_NUM_THREADS": self.threads}
        place = dict(PLACES[self.place])
        if place["LC_ALL"] == "another":
            place["LC_ALL"] = another_locale()
        return {**KERNELS[self.kernels], **threads, "PYTHONHASHSEED": self.hash_seed, **place}


@functools.cache
def another_locale() -> str:
    """The first of LOCALES that is installed."""
    try:
        listed = subprocess.run(
            ["locale", "-a"], capture_output=True, encoding="utf-8", errors="replace", check=False
        ).stdout
    except FileNotFoundError:
        listed = ""
    installed = {name.replace("utf8", "UTF-8") for name in listed.split()}  # as glibc spells it
    return next((name for name in LOCALES if name in installed), LOCALES[-1])


def supported_kernels() -> tuple[str, ...]:
    """The names in KERNELS that this processor can run, weakest first."""
    import torch

    best = torch.backends.cpu.get_cpu_capability().lower()
    names = tuple(KERNELS)
    return names[: names.index(best) + 1] if best in names else names[:1]


def pairwise_cells(kernels: tuple[str, ...]) -> list[Cell]:
    """Cells that together contain every pair of values of two settings.

    Greedy: each next cell is the one that covers the largest number of the pairs still missing.
    """
    settings = (kernels, THREADS, HASH_SEEDS, range(len(PLACES)), ORDERS, DIRECTORIES)
    candidates = [Cell(*values) for values in itertools.product(*settings)]
    missing = {pair for cell in candidates for pair in _pairs(cell)}
    cells = []
    while missing:
        cells.append(max(candidates, key=lambda cell: len(missing & _pairs(cell))))  # the first one of a tie
        missing -= _pairs(cells[-1])
    return cells


def _pairs(cell: Cell) -> set[object]:
    """Every pair of a cell's settings, each with its index."""
    return set(itertools.combinations(enumerate(astuple(cell)), 2))


def run_stage_in_cell(root: Path, stage: str, cell: Cell) -> Session:
    """Run the tests of a stage ("nano2/stage0_pretrain") with the settings of a cell."""
    tests = root / "tests" if (root / "tests").is_dir() else root
    arguments = [*selection(stage), "-p", "no:cacheprovider", str(tests)]
    if cell.order == "random":
        arguments += ["--random-order", "--random-order-bucket=global", "--random-order-seed=1"]
    with tempfile.TemporaryDirectory() as elsewhere:
        cwd = root if cell.directory == "root" else Path(elsewhere)
        return run_pytest(root, arguments, environment=cell.environment, cwd=cwd)


def main() -> int:
    """Run every cell; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=program_name(), description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False
    )
    parser.add_argument("stages", nargs="*", help="nano2/stage0_pretrain or stage0; default: all that have a golden")
    root = Path.cwd()
    goldens = sorted(
        path.relative_to(root / GOLDEN_DIRECTORY).with_suffix("").as_posix()
        for path in (root / GOLDEN_DIRECTORY).glob("*/*.json")
    )
    wanted = parser.parse_args(checked_arguments()).stages
    stages = [stage for stage in goldens if not wanted or any(_matches(name, stage) for name in wanted)]
    unknown = [name for name in wanted if not any(_matches(name, stage) for stage in goldens)]
    if unknown or not stages:
        known = ", ".join(goldens) or "none"
        print(f"no golden for {', '.join(unknown) or 'any stage'} in {root}; goldens: {known}", file=sys.stderr)
        return 2
    kernels = supported_kernels()
    if len(kernels) < len(KERNELS):
        print(f"this processor cannot run {', '.join(list(KERNELS)[len(kernels) :])}", file=sys.stderr)
    print(f"second locale: {another_locale()}, the first installed of {', '.join(LOCALES)}", file=sys.stderr)
    num_alarms, worst = 0, 0.0
    for stage in stages:
        for cell in pairwise_cells(kernels):
            session = run_stage_in_cell(root, stage, cell)
            report = session.reports.get(stage)
            if session.exit_code == 0 and report is not None and report["equal"]:
                verdict = f"{report['largest']:.0e}"
                worst = max(worst, report["largest"])
            else:
                num_alarms += 1
                reason = "; ".join(report["lines"][:2]) if report and not report["equal"] else ""
                verdict = f"ALARM {reason or ', '.join(session.failed) or session.tail}"
            print(f"{stage}  {cell.name}: {verdict}", file=sys.stderr, flush=True)
    print(f"{num_alarms} alarms, largest relative difference {worst:.0e}", file=sys.stderr)
    return 1 if num_alarms else 0


def _matches(name: str, stage: str) -> bool:
    """Whether `name` ("nano2/stage0_pretrain", "stage0_pretrain" or "stage0") means `stage`."""
    folder = stage.split("/")[1]
    return name in (stage, folder, folder.split("_", maxsplit=1)[0])


if __name__ == "__main__":
    sys.exit(main())
