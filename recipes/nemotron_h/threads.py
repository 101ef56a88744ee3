"""How many threads compute a step on the processor: one at tiny, torch's own choice at the other scales.

In: a scale. Out: torch's number of threads inside a `with` block.

Threads that share an operation wait for each other, and for the next operation, in a loop that does nothing
("spinning"). The tensors of tiny are small. Sharing them saves a third of the time on an idle machine; beside another
busy program most of the time goes into waiting, and a training step takes three to four times as long. With one thread
nobody waits. At small and above, sharing is worth it. tests/README.md has the measurements.

A choice of the user wins: a variable of OpenMP (OMP_NUM_THREADS=4, OMP_WAIT_POLICY=PASSIVE, GOMP_SPINCOUNT=1000, ...),
MKL_NUM_THREADS or KMP_BLOCKTIME in the environment, or torch.set_num_threads with another number than torch's own.

Run: python benchmarks/threads.py --scale tiny
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from nemotron import Scale


@contextmanager
def threads_of(scale: Scale) -> Iterator[None]:
    """Compute with the number of threads that suits the scale, and with as many as before after the block."""
    before = torch.get_num_threads()
    if scale == "tiny" and not chosen_by_user(before):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def chosen_by_user(num_threads: int) -> bool:
    """Whether somebody chose how torch's threads work: by a variable, or by a number that torch does not start with."""
    own = any(name.startswith(("OMP_", "GOMP_")) or name in ("MKL_NUM_THREADS", "KMP_BLOCKTIME") for name in os.environ)
    return own or num_threads not in default_counts()


def default_counts() -> set[int | None]:
    """The numbers of threads that torch may start with: all processors, all cores, or those this process may use."""
    counts = {psutil.cpu_count(), psutil.cpu_count(logical=False)}
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        counts.add(len(psutil.Process().cpu_affinity()))
    return counts
