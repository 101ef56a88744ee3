"""States of unfinished runs: when a run is finished, when it can be resumed, what is refused."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic.dataclasses import dataclass

from nemotron.config import ScaledConfig, at_every_scale, input_path, switch
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.state import (
    Identity,
    Record,
    check_no_unfinished_run,
    identity_of,
    is_finished,
    read_training_state,
    write_training_state,
)

IDENTITY: Identity = {"dataset": "d" * 64, "config": {"learning_rate": 1e-3, "seed": 7}}


@pytest.fixture(scope="module")
def model():
    model = NemotronH(MODELS["tiny"])
    initialize(model, 0)
    return model


def trained(directory, model, steps=1):
    """Write a state after `steps` steps into the directory."""
    optimizer = torch.optim.AdamW(model.parameters())
    model.lm_head.weight.sum().backward()
    optimizer.step()
    write_training_state(directory, IDENTITY, model, optimizer, Record(curve=[{"step": i} for i in range(steps)]))


def test_a_finished_run_has_nothing_to_resume(tmp_path, model, capsys):
    trained(tmp_path / "run", model)
    assert is_finished(tmp_path / "run", IDENTITY)
    assert capsys.readouterr().err == f"{tmp_path / 'run'} is finished; nothing to resume\n"


def test_resume_prefers_an_unfinished_run_over_a_finished_one(tmp_path, model):
    trained(tmp_path / "run", model)
    trained(tmp_path / "run.incomplete", model)
    assert not is_finished(tmp_path / "run", IDENTITY)


def test_without_a_state_no_run_is_finished(tmp_path):
    assert not is_finished(tmp_path / "run", IDENTITY)


OTHERS = [
    ({**IDENTITY, "dataset": "e" * 64}, "was trained on a dataset with digest dddddddddddd, not eeeeeeeeeeee"),
    ({**IDENTITY, "config": {"learning_rate": 1e-3, "seed": 8}}, "was trained with seed=7, not 8"),
]


@pytest.mark.parametrize(("identity", "sentence"), OTHERS)
def test_a_finished_run_with_another_dataset_or_config_is_refused(tmp_path, model, identity, sentence):
    trained(tmp_path / "run", model)
    with pytest.raises(ValueError, match=f"{sentence}; .* or drop --resume to start over"):
        is_finished(tmp_path / "run", identity)


@pytest.mark.parametrize(("identity", "sentence"), OTHERS)
def test_an_unfinished_run_with_another_dataset_or_config_is_not_resumed(tmp_path, model, identity, sentence):
    work = tmp_path / "run.incomplete"
    trained(work, model)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=f"{sentence}; .* or delete .*incomplete to start over"):
        read_training_state(work, identity, model, optimizer)


def test_only_the_last_state_is_kept(tmp_path, model):
    trained(tmp_path, model, steps=1)
    trained(tmp_path, model, steps=2)
    assert [path.name for path in (tmp_path / "training_state").iterdir()] == ["step-00000002"]


def test_an_incomplete_state_is_ignored(tmp_path, model):
    trained(tmp_path, model)
    (state,) = (tmp_path / "training_state").iterdir()
    state.rename(state.with_name(state.name + ".partial"))
    check_no_unfinished_run(tmp_path)


def test_a_damaged_state_is_refused_with_its_path(tmp_path, model):
    trained(tmp_path, model)
    (state,) = tmp_path.glob("training_state/step-*")
    (state / "state.json").write_text('{"dataset": ')
    with pytest.raises(ValueError, match=r"state\.json is damaged \(.*\); delete .*step-00000001 to go on without it"):
        read_training_state(tmp_path, IDENTITY, model, torch.optim.AdamW(model.parameters()))


@dataclass
class Config(ScaledConfig):
    """Of a training step."""

    learning_rate: float = 1e-3
    """A number."""
    output_dir: Path = Path("run")
    """A place."""
    dataset_path: Path | None = input_path()
    """Another place."""
    device: str = at_every_scale("cpu", recorded=False)
    """A place."""
    checkpoint_every_steps: int = at_every_scale(1, recorded=False)
    """Changes no number."""
    resume: bool = switch()
    """A way to start."""


def test_the_identity_of_a_run_is_its_dataset_and_what_its_result_depends_on():
    dataset = SimpleNamespace(digest="d" * 64)
    identity = identity_of(Config(seed=7), dataset)
    assert identity == {"dataset": "d" * 64, "config": {"scale": "tiny", "seed": 7, "learning_rate": 1e-3}}
    elsewhere = Config(seed=7, output_dir=Path("b"), device="cuda", checkpoint_every_steps=9, resume=True)
    assert identity_of(elsewhere, dataset) == identity
