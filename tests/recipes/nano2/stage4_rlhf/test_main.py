"""How the orchestrator of stage 4 connects its five steps; what holds for all is in ../stage1_sft/test_main.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.directory import working_name
from nemotron.recipes.nano2.__main__ import Config as RecipeConfig
from nemotron.recipes.nano2.stage4_rlhf import __main__ as stage4_rlhf
from nemotron.recipes.nano2.stage4_rlhf.__main__ import STAGE, STEPS, Config
from nemotron.testing.stage import stage_name, step_name


def test_the_golden_has_the_name_of_the_package():
    assert stage_name("nemotron.recipes.nano2.stage4_rlhf") == STAGE


def test_the_recipe_knows_the_stage_as_rlhf():
    assert type(RecipeConfig().rlhf) is Config


def test_every_step_gets_the_stages_scale_and_seed_and_its_own_directory():
    config = Config(scale="small", seed=7, output_dir=Path("out"))
    steps = (config.data, config.reward, config.train, config.merge, config.eval)
    assert [type(step) for step in steps] == [step.Config for step in STEPS]
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 5
    assert [step.output_dir for step in steps] == [Path("out") / step_name(step) for step in STEPS]


def test_each_step_reads_what_the_one_before_wrote(monkeypatch, tmp_path):
    given = {}

    class Written:
        def __init__(self, path):
            self.path = path

    for step in STEPS:

        def write(config, step=step):
            given[step_name(step)] = config
            return Written(config.output_dir)

        monkeypatch.setattr(step, "main", write)
    artifacts = stage4_rlhf.main(Config(output_dir=tmp_path / "out", base_checkpoint_path=tmp_path / "base"))
    assert {name: one.path.relative_to(tmp_path / "out").as_posix() for name, one in artifacts.items()} == {
        "dataset": "data_curation",
        "reward_model": "reward_model",
        "policy": "training",
        "checkpoint": "merging",  # what the next stage and the chat take
        "results": "evaluation",
    }
    assert given["data_curation"].base_checkpoint_path == tmp_path / "base"
    assert given["reward_model"].dataset_path == artifacts["dataset"].path
    assert given["training"].rewardmodel_path == artifacts["reward_model"].path
    assert given["merging"].checkpoint_path == artifacts["policy"].path
    assert given["evaluation"].checkpoint_path == artifacts["checkpoint"].path


@pytest.mark.parametrize("name", ["data", "reward", "train", "merge", "eval"])
def test_a_missing_device_of_any_step_is_refused_before_any_work(name, tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run")
    getattr(config, name).device = "cuda:99"
    with pytest.raises(ValueError, match="device=cuda:99: this machine has"):
        stage4_rlhf.main(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["reward", "train"])
def test_an_unfinished_run_of_either_training_that_cannot_be_read_is_refused_before_any_work(name, tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run")
    state = working_name(getattr(config, name).output_dir) / "training_state" / "step-00000001"
    state.mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"{state.parents[1]} holds an unfinished run of which no state can be read"):
        stage4_rlhf.main(config)


@pytest.mark.parametrize(
    ("name", "field"),
    [("reward", "dataset_path"), ("train", "rewardmodel_path"), ("merge", "checkpoint_path")],
)
def test_an_input_of_a_step_is_refused_in_a_whole_run(name, field):
    step = replace(getattr(Config(), name), **{field: Path("elsewhere")})
    with pytest.raises(ValueError, match=rf"^{name}\.{field}=elsewhere is set by the step before it in a whole run"):
        Config(**{name: step})
