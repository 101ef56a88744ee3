"""How the stage's orchestrator connects its steps; that they run is in test_stage.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, training
from nemotron.recipes.nano2.stage0_pretrain.__main__ import Config, connected, main, plan


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


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(train=training.Config(device="cuda:99")), "device=cuda:99: this machine has"),
        (Config(eval=evaluation.Config(device="cuda:99")), "device=cuda:99: this machine has"),
        (Config(train=training.Config(micro_batch_sequences=3)), "micro_batch_sequences=3 does not divide"),
        (Config(train=training.Config(warmup_steps=83)), "give at most 82 warmup steps"),
        (Config(train=training.Config(min_learning_rate=1.0)), "min_learning_rate=1.0 is above learning_rate=0.004"),
    ],
)
def test_what_training_or_evaluation_would_refuse_is_refused_before_curation(config, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        main(replace(config, output_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_warmup_may_end_where_the_decay_begins():
    config = resolved(training.Config(warmup_steps=82), "stage0_pretrain", "training")
    assert len(training.training_phases(config, 128, 512)) == 4
