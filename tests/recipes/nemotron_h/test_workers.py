"""Rollouts in several processes: the replies of one process, with the weights as they are, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.workers import Workers

SAMPLING = Sampling(12, (5,), temperature=1.0)
PROMPTS = [[20, 30, 40], [50], [20, 30, 40], [60, 70], [50], [20, 30, 40], [80]]
SEEDS = list(range(len(PROMPTS)))


def model_of(seed: int = 0) -> NemotronH:
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, seed)
    return model


@pytest.fixture(scope="module")
def running():
    """A model, and two processes that write with it."""
    model = model_of()
    with Workers(model, 2) as workers:
        yield model, workers


def assert_same(found, expected):
    """The same tokens; how many rows a product has may change the last bit of a log-probability."""
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.finish for one in found] == [one.finish for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, rel=0, abs=1e-12)


def test_the_replies_are_those_of_one_process(running):
    model, workers = running
    assert_same(workers.generate(PROMPTS, SAMPLING, SEEDS), generate(model, PROMPTS, SAMPLING, SEEDS))
    assert len(workers.pool._processes) == 2  # so both had something to write


def test_weights_that_change_in_place_change_for_the_processes_too(running):
    model, workers = running
    before = workers.generate(PROMPTS, SAMPLING, SEEDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([PROMPTS[0]])).square().sum().backward()
    optimizer.step()
    after = workers.generate(PROMPTS, SAMPLING, SEEDS)
    assert_same(after, generate(model, PROMPTS, SAMPLING, SEEDS))
    assert [one.tokens for one in after] != [one.tokens for one in before]


def test_fewer_prompts_than_processes_and_none(running):
    model, workers = running
    assert_same(workers.generate(PROMPTS[:1], SAMPLING, [3]), generate(model, PROMPTS[:1], SAMPLING, [3]))
    assert workers.generate([], SAMPLING, []) == []


def test_bad_prompts_are_named_by_their_place_among_all(running):
    with pytest.raises(ValueError, match=r"^prompt 2 is empty; give at least one token"):
        running[1].generate([[1], [2], []], SAMPLING, [0, 1, 2])
    with pytest.raises(ValueError, match=r"^1 seeds for 2 prompts; give one per prompt$"):
        running[1].generate([[1], [2]], SAMPLING, [0])


def keep_writing(workers):
    while True:  # the pool may notice a moment later
        workers.generate(PROMPTS[:1], SAMPLING, [0])


def test_a_process_that_is_killed_is_an_error_with_both_flags():
    """A whole run that ends by it: tests/pipelines/test_rlvr_runs.py."""
    with Workers(model_of(), 1) as workers:
        workers.generate(PROMPTS[:1], SAMPLING, [0])
        (pid,) = workers.pool._processes
        os.kill(pid, signal.SIGTERM)
        sentence = r"^a process that writes replies ended, .*; give fewer rollout_processes, and resume the run$"
        with pytest.raises(ChildProcessError, match=sentence):
            keep_writing(workers)


PARENT = """
import os, signal, time, torch
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.workers import Workers
if __name__ == "__main__":
    model = NemotronH(MODELS["tiny"])
    initialize(model, 0)
    workers = Workers(model, 1)
    workers.generate([[1]], Sampling(1), [0])
    print(*workers.pool._processes, flush=True)
    time.sleep(600)
"""


def test_the_processes_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process of a killed parent goes on"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [0, -1])
def test_at_least_one_process(number):
    with pytest.raises(ValueError, match=rf"^number={number} of processes must be at least 1$"):
        Workers(model_of(), number)


def test_a_model_that_is_not_on_the_processor_is_refused():
    with pytest.raises(ValueError, match=r"^the model is on meta, and processes share the weights of a model on cpu"):
        Workers(NemotronH(MODELS["tiny"], device="meta"), 1)
