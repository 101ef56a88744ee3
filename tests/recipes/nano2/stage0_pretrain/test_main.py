"""How the stage's orchestrator connects its steps; that they run is in test_stage.py."""

from pathlib import Path

import pytest

from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage
from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, plan, training
from nemotron.recipes.nano2.stage0_pretrain.__main__ import Config, main
from nemotron.testing.stage import step_name


def test_every_step_gets_the_stages_scale_and_seed_and_a_directory_for_itself():
    config = Config(scale="small", seed=7, output_dir=Path("out"))
    steps = (config.data, config.train, config.eval)
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 3
    assert [step.output_dir for step in steps] == [Path("out") / step_name(module) for module in stage.STEPS]


def test_the_steps_are_named_in_their_order():
    assert (data_curation, training, evaluation) == stage.STEPS


def test_the_plan_follows_the_flags_of_the_steps():
    config = Config()
    assert "steps                      105" in plan.page(config)
    config.data.num_sequences = 8000  # 1,000 steps, and the five of the long-context phase
    assert "steps                      1,005" in plan.page(config)
    config.train.batch_sequences = 16
    assert "steps                      505" in plan.page(config)


@pytest.mark.parametrize(
    ("step", "name", "value", "sentence"),
    [
        ("train", "device", "cuda:99", "device=cuda:99: this machine has"),
        ("eval", "device", "cuda:99", "device=cuda:99: this machine has"),
        ("train", "warmup_steps", 83, "give at most 82 warmup steps"),
        ("train", "batch_sequences", 4, r"data\.batch_sequences=8 .* and train\.batch_sequences=4 reads them"),
        (
            "data",
            "num_sequences",
            24,
            "warmup_steps=5 and the decay over the last 1 of 3 steps overlap; give at most 2",
        ),
    ],
)
def test_what_training_or_evaluation_would_refuse_is_refused_before_curation(tmp_path, step, name, value, sentence):
    config = Config(output_dir=tmp_path / "run")
    setattr(getattr(config, step), name, value)
    with pytest.raises(ValueError, match=sentence):
        main(config)
    assert not (tmp_path / "run").exists()


def test_a_long_context_that_cannot_be_cut_is_refused_before_curation(tmp_path):
    config = Config(output_dir=tmp_path / "run")
    config.data.long_context_length = 500
    config.train.cut_long_context = True
    with pytest.raises(ValueError, match="cut_long_context: 128 does not divide 500 tokens"):
        main(config)
    assert not (tmp_path / "run").exists()


def test_each_step_reads_what_the_step_before_wrote(tmp_path, monkeypatch):
    class Written:
        def __init__(self, path):
            self.path = path

    seen = []

    def record(step):
        def run(config):
            seen.append(config)
            return Written(config.output_dir)

        monkeypatch.setattr(step, "main", run)

    for step in stage.STEPS:
        record(step)
    config = Config(output_dir=tmp_path / "run")
    config.train.learning_rate = 0.5
    artifacts = main(config)
    assert list(artifacts) == ["dataset", "checkpoint", "results"]
    data, train, evaluate = seen
    assert (train.dataset_path, train.learning_rate) == (data.output_dir, 0.5)
    assert evaluate.checkpoint_path == train.output_dir
