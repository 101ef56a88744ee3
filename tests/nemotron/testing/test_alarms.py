"""The matrix of environments: complete, small, and only what the processor can run."""

import itertools
import os
import subprocess
import sys
from dataclasses import astuple

import pytest

from nemotron.testing.alarms import (
    DIRECTORIES,
    HASH_SEEDS,
    KERNELS,
    ORDERS,
    PLACES,
    THREADS,
    Cell,
    pairwise_cells,
    supported_kernels,
)


def test_every_pair_of_settings_meets_in_a_cell():
    cells = {astuple(cell) for cell in pairwise_cells(tuple(KERNELS))}
    settings = (tuple(KERNELS), THREADS, HASH_SEEDS, range(len(PLACES)), ORDERS, DIRECTORIES)
    for (i, first), (j, second) in itertools.combinations(enumerate(settings), 2):
        met = {(cell[i], cell[j]) for cell in cells}
        assert met == set(itertools.product(first, second))


def test_the_matrix_has_at_most_eighteen_cells():
    assert len(pairwise_cells(tuple(KERNELS))) <= 18


@pytest.mark.parametrize("kernels", supported_kernels())
def test_a_cell_selects_the_kernels_that_it_names(kernels):
    program = "import torch; print(torch.backends.cpu.get_cpu_capability().lower(), torch.get_num_threads())"
    environment = {**os.environ, **Cell(kernels, "2", "0", 0).chosen}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kernels, "2"]
