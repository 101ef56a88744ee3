"""The number of threads of a step: one at tiny, torch's own at the other scales, and whatever a user chooses."""

import os
import subprocess
import sys

import psutil
import pytest
import torch

from nemotron.recipes.nemotron_h.threads import chosen_by_user, default_counts, threads_of

ALL = psutil.cpu_count()


def is_choice(name):
    """Whether a variable chooses how threads work."""
    return name.startswith(("OMP_", "GOMP_")) or name in ("MKL_NUM_THREADS", "KMP_BLOCKTIME")


@pytest.fixture
def no_choice(monkeypatch):
    """torch as it starts without any variable: with all processors."""
    for name in filter(is_choice, list(os.environ)):
        monkeypatch.delenv(name)
    before = torch.get_num_threads()
    torch.set_num_threads(ALL)
    yield
    torch.set_num_threads(before)


def threads_in_a_block(scale):
    with threads_of(scale):
        return torch.get_num_threads()


def test_tiny_computes_with_one_thread(no_choice):
    assert threads_in_a_block("tiny") == 1


@pytest.mark.parametrize("scale", ["small", "medium", "full"])
def test_larger_scales_compute_with_all_threads(no_choice, scale):
    assert threads_in_a_block(scale) == ALL


def test_after_the_block_there_are_as_many_threads_as_before(no_choice):
    with pytest.raises(KeyError), threads_of("tiny"):
        raise KeyError
    assert torch.get_num_threads() == ALL


def test_a_block_of_another_scale_inside_changes_nothing(no_choice):
    with threads_of("tiny"):
        assert threads_in_a_block("small") == 1
        assert threads_in_a_block("tiny") == 1
    assert threads_in_a_block("small") == ALL


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_THREAD_LIMIT", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY"),
        *("MKL_NUM_THREADS", "KMP_BLOCKTIME"),
    ],
)
def test_a_variable_of_the_user_wins(no_choice, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert threads_in_a_block("tiny") == ALL


def test_a_number_that_a_user_gave_torch_wins(no_choice):
    chosen = max(count for count in default_counts() if count) + 3
    torch.set_num_threads(chosen)
    assert chosen_by_user(chosen)
    assert threads_in_a_block("tiny") == chosen


@pytest.mark.parametrize("variables", [{}, {"OMP_NUM_THREADS": "2"}, {"GOMP_SPINCOUNT": "1000"}], ids=str)
def test_torch_as_it_starts_in_a_new_process(variables):
    program = (
        "import torch; from nemotron.recipes.nemotron_h.threads import chosen_by_user, threads_of\n"
        "started = torch.get_num_threads()\n"
        "with threads_of('tiny'): tiny = torch.get_num_threads()\n"
        "with threads_of('small'): small = torch.get_num_threads()\n"
        "print(chosen_by_user(started), started, tiny, small)"
    )
    environment = {name: value for name, value in os.environ.items() if not is_choice(name)} | variables
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    chosen, started, tiny, small = done.stdout.split()
    assert chosen == str(bool(variables))
    assert (tiny, small) == (started if variables else "1", started)
    if variables.get("OMP_NUM_THREADS", "0") <= str(ALL):
        assert started == variables.get("OMP_NUM_THREADS", started)
