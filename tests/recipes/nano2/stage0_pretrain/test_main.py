"""How the stage's orchestrator connects its steps; that they run is in test_stage.py."""

from pathlib import Path

import pytest

from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.__main__ import Config, connected, plan


def test_every_step_gets_the_stages_scale_seed_and_a_directory_of_its_own():
    steps = connected(Config(scale="small", seed=7, output_dir=Path("out")))
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 3
    assert [step.output_dir for step in steps] == [
        Path("out") / name for name in ("data_curation", "training", "evaluation")
    ]


@pytest.mark.parametrize(
    "config",
    [Config(data=data_curation.Config(num_steps=20)), Config(train=training.Config(num_steps=20))],
)
def test_curation_and_training_agree_on_the_steps(config):
    data, train, _ = connected(config)
    assert data.num_steps == train.num_steps == 20


def test_sizes_that_contradict_each_other_are_refused():
    config = Config(data=data_curation.Config(num_steps=20), train=training.Config(num_steps=30))
    with pytest.raises(ValueError, match=r"^--data\.num-steps 20 and --train\.num-steps 30 differ; give one of them$"):
        connected(config)


def test_the_plan_follows_the_flags_of_the_steps():
    page = plan(Config(train=training.Config(num_steps=1000)))
    assert "1,005" in page  # and the five of the long-context phase
