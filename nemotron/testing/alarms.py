"""Run a tiny stage in other environments and compare every run with the golden: a number that moves is a false alarm.

In: stages that have a golden. Out: one line a cell, with the largest relative difference; exit code 1 at an alarm.
Run: python -m nemotron.testing.alarms [--stage nano2/stage0_pretrain] (in the root of the repository)

A cell sets, for a fresh process in a fresh directory: the vector instructions of torch's and of MKL's kernels, the
number of threads, PYTHONHASHSEED, locale and time zone. Any two values of two of these meet in at least one cell.

Left out: the order of tests, other processor architectures, other torch versions.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nemotron.testing.compare import compare
from nemotron.testing.snapshot import GOLDEN_DIRECTORY
from nemotron.testing.stage import stage_document

KERNELS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "ALL"},
}
"""Vector instructions -> the variables that select them. torch obeys even where the processor lacks them."""

THREADS = ("1", "2")
HASH_SEEDS = ("0", "1", "random")
PLACES = ({"LC_ALL": "C", "TZ": "UTC"}, {"LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu"})


@dataclass(frozen=True)
class Cell:
    """One environment."""

    kernels: str
    threads: str
    hash_seed: str
    place: int
    """Index into PLACES: locale and time zone."""

    @property
    def name(self) -> str:
        """For the table."""
        place = PLACES[self.place]
        return f"{self.kernels}, {self.threads} threads, hash seed {self.hash_seed}, {place['LC_ALL']}, {place['TZ']}"

    @property
    def chosen(self) -> dict[str, str]:
        """The environment variables that make the cell."""
        threads = {"OMP_NUM_THREADS": self.threads, "MKL_NUM_THREADS": self.threads}
        return {**KERNELS[self.kernels], **threads, "PYTHONHASHSEED": self.hash_seed, **PLACES[self.place]}


def supported_kernels() -> tuple[str, ...]:
    """The names in KERNELS that this processor can run, weakest first."""
    import torch

    best = torch.backends.cpu.get_cpu_capability().lower()
    names = tuple(KERNELS)
    return names[: names.index(best) + 1] if best in names else names[:1]


def pairwise_cells(kernels: tuple[str, ...]) -> list[Cell]:
    """Cells in which every two values of different settings meet: kernels x hash seeds, threads and places woven in."""
    return [
        Cell(kernel, THREADS[(i + j) % 2], hash_seed, (i + j) // 2 % 2)
        for i, kernel in enumerate(kernels)
        for j, hash_seed in enumerate(HASH_SEEDS)
    ]


def run_in_cell(stage: str, cell: Cell, directory: Path) -> None:
    """Run the stage ("nano2/stage0_pretrain") at tiny scale in a process of its own; its steps are left in `directory`.

    Raises:
        ValueError: if the run fails; with the last lines that it wrote.
    """
    module = f"nemotron.recipes.{stage.replace('/', '.')}"
    command = [sys.executable, "-m", module, "--scale", "tiny", "--output-dir", "run"]
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, **cell.chosen}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"{stage} failed in the cell ({cell.name}): {done.stderr[-2000:]}")


def main() -> int:
    """Run every cell; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stage", action="append", help="recipe and stage; every golden's if left out")
    goldens = {str(p.relative_to(GOLDEN_DIRECTORY).with_suffix("")): p for p in Path(GOLDEN_DIRECTORY).rglob("*.json")}
    stages = parser.parse_args().stage or sorted(goldens)
    if not stages or not set(stages) <= set(goldens):
        print(
            f"no golden for {', '.join(stages) or 'any stage'} in {Path(GOLDEN_DIRECTORY).resolve()}", file=sys.stderr
        )
        return 2
    kernels = supported_kernels()
    if len(kernels) < len(KERNELS):
        print(f"this processor cannot run {', '.join(list(KERNELS)[len(kernels) :])}", file=sys.stderr)
    num_alarms = 0
    for stage in stages:
        for cell in pairwise_cells(kernels):
            with tempfile.TemporaryDirectory() as directory:
                run_in_cell(stage, cell, Path(directory))
                comparison = compare(goldens[stage].read_bytes(), stage_document(stage, Path(directory) / "run"))
            num_alarms += not comparison.equal
            verdict = f"{comparison.largest:.0e}" if comparison.equal else f"ALARM {comparison.lines()[1].strip()}"
            print(f"{stage}  {cell.name}: {verdict}", file=sys.stderr)
    return 1 if num_alarms else 0


if __name__ == "__main__":
    sys.exit(main())
