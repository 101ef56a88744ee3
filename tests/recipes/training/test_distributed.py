"""What several ranks compute together, in real processes: the losses of every kind of stage, and their gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.distributed import (
    check_rows,
    check_same,
    clip_gradients,
    from_first,
    gathered,
    joined,
    rank_rows,
    rank_share,
    summed,
    terms_of_all,
    training_process,
    whole_model,
    whole_on_first,
    world,
)

PROGRAM = Path(__file__).with_name("gradients.py")


def ended_ranks(size):
    """What each of `size` ranks of gradients.py prints; with one, as without torchrun."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # in torchrun's own process, as here
    processes = []
    for rank in range(size):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, str(PROGRAM)], env=environment, **pipes))
    texts = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), texts
    return [json.loads(out) for out, _ in texts]


@pytest.fixture(scope="module")
def computed():
    """What one process and what three ranks compute."""
    return {size: ended_ranks(size) for size in (1, 3)}


@pytest.mark.parametrize("kind", ["rows", "masked rows", "pairs", "replies", "scores", "distillation"])
def test_three_ranks_compute_the_loss_and_the_gradients_of_one_process(computed, kind):
    """Also where a rank has no row, no pair or no reply in a pass, and of two passes through one model."""
    (alone,) = computed[1]
    expected = alone[kind]
    for found in computed[3]:
        assert found[kind]["loss"] == pytest.approx(expected["loss"], rel=1e-12)
        assert found[kind]["norm"] == pytest.approx(expected["norm"], rel=1e-11)
        assert found[kind]["clipped"] == pytest.approx(expected["clipped"], rel=1e-11)
    assert computed[3][0][kind]["gradients"] == pytest.approx(expected["gradients"], rel=1e-9, abs=1e-14)


def test_every_rank_makes_as_many_passes(computed):
    passes = [found["passes"] for found in computed[3]]
    assert passes[0] == passes[1] == passes[2]
    assert sum(sum(found["rows of rank"]) for found in computed[3]) == 7


def test_ranks_tell_each_other_json_and_tensors(computed):
    for rank, found in enumerate(computed[3]):
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert found["from first"] == ["first", 0.1]
        assert found["summed"] == pytest.approx(0.1 + 1.1 + 2.1, rel=1e-15)
        assert found["joined"] == [1.0, 2.0, 2.0]  # none of rank 0, one 1, two 2
        assert found["whole"] == (computed[1][0]["whole"] if rank == 0 else [])
        assert found["whole model"] == pytest.approx(computed[1][0]["whole model"], rel=1e-12)
    assert [row for found in computed[3] for row in found["share"]] == list(range(8))


# One process: nothing happens, and no number changes.


def test_one_process_is_the_first_of_one():
    assert world() == (0, 1)
    assert gathered({"a": 0.1}) == [{"a": 0.1}]
    assert from_first(lambda: [1]) == [1]
    assert summed(0.1) == 0.1
    check_same("the run", {"a": 1})
    check_rows({"phase1": 1})


def test_one_process_has_all_rows_and_weights():
    tokens = torch.arange(12).view(4, 3)
    batch = Batch(tokens, tokens > 3, tokens * 0)
    assert [piece.tokens.tolist() for piece in rank_rows(batch, 3)] == [tokens[:3].tolist(), tokens[3:].tolist()]
    assert [piece.tolist() for piece in rank_rows(tokens, 9)] == [tokens.tolist()]
    assert rank_share([1, 2, 3]) == [1, 2, 3]
    assert joined(tokens) is tokens
    terms = [(tokens,)]
    assert terms_of_all(terms) is terms
    model = torch.nn.Linear(2, 2)
    assert whole_model(model) is model
    assert whole_on_first({"weight": model.weight})["weight"] is model.weight


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_one_process_clips_as_torch_does(max_norm):
    models = [torch.nn.Linear(3, 2).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(models[0].parameters(), max_norm).item()
    assert clip_gradients(models[1], max_norm) == expected
    assert torch.equal(models[0].weight.grad, models[1].weight.grad)


def test_processes_without_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SystemExit), training_process(object()):
        raise AssertionError("not reached")
