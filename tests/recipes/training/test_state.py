"""What an unfinished run is told from: a finished one, one of another dataset, one with another config."""

import pytest
import torch

from nemotron.recipes.nano2.sizes import SIZES
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.state import (
    Identity,
    Record,
    already_finished,
    read_training_state,
    refuse_unfinished_run,
    write_training_state,
)

IDENTITY: Identity = {"dataset": "d" * 64, "config": {"learning_rate": 1e-3, "seed": 7}}


@pytest.fixture(scope="module")
def model():
    model = NemotronH(SIZES["tiny"].model)
    initialize(model, 0)
    return model


def trained(directory, model, steps=1):
    """A state after so many steps in the directory."""
    optimizer = torch.optim.AdamW(model.parameters())
    model.lm_head.weight.sum().backward()
    optimizer.step()
    write_training_state(directory, IDENTITY, model, optimizer, Record(curve=[{"step": i} for i in range(steps)]))


def test_a_finished_run_has_nothing_to_resume(tmp_path, model, capsys):
    trained(tmp_path / "run", model)
    assert already_finished(tmp_path / "run", IDENTITY)
    assert capsys.readouterr().err == f"{tmp_path / 'run'} is finished; nothing to resume\n"


def test_an_unfinished_run_beside_a_finished_one_is_gone_on_with(tmp_path, model):
    trained(tmp_path / "run", model)
    trained(tmp_path / "run.incomplete", model)
    assert not already_finished(tmp_path / "run", IDENTITY)


def test_where_nothing_was_trained_nothing_is_finished(tmp_path):
    assert not already_finished(tmp_path / "run", IDENTITY)


OTHERS = [
    ({**IDENTITY, "dataset": "e" * 64}, "was trained on a dataset with digest dddddddddddd, not eeeeeeeeeeee"),
    ({**IDENTITY, "config": {"learning_rate": 1e-3, "seed": 8}}, "was trained with seed=7, not 8"),
]


@pytest.mark.parametrize(("identity", "sentence"), OTHERS)
def test_a_finished_run_of_something_else_is_not_taken_for_this_one(tmp_path, model, identity, sentence):
    trained(tmp_path / "run", model)
    with pytest.raises(ValueError, match=f"{sentence}; .* or drop --resume to begin anew"):
        already_finished(tmp_path / "run", identity)


@pytest.mark.parametrize(("identity", "sentence"), OTHERS)
def test_an_unfinished_run_of_something_else_is_not_gone_on_with(tmp_path, model, identity, sentence):
    work = tmp_path / "run.incomplete"
    trained(work, model)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=f"{sentence}; .* or delete .*incomplete to begin anew"):
        read_training_state(work, identity, model, optimizer)


def test_only_the_last_state_is_kept(tmp_path, model):
    trained(tmp_path, model, steps=1)
    trained(tmp_path, model, steps=2)
    assert [path.name for path in (tmp_path / "training_state").iterdir()] == ["step-00000002"]


def test_a_state_that_was_cut_short_is_no_state(tmp_path, model):
    trained(tmp_path, model)
    (state,) = (tmp_path / "training_state").iterdir()
    state.rename(state.with_name(state.name + ".partial"))
    refuse_unfinished_run(tmp_path)


def test_a_damaged_record_is_named(tmp_path, model):
    trained(tmp_path, model)
    (state,) = tmp_path.glob("training_state/step-*")
    (state / "state.json").write_text('{"dataset": ')
    with pytest.raises(ValueError, match=r"state\.json is damaged \(.*\); delete .*step-00000001 to go on without it"):
        read_training_state(tmp_path, IDENTITY, model, torch.optim.AdamW(model.parameters()))
