"""How the stage's orchestrator connects its steps, and what it refuses before any work.

What holds for the orchestrators of all stages is tested in ../stage1_sft/test_main.py.
"""

from pathlib import Path

import pytest

from nemotron.recipes.nano2.__main__ import Config as RecipeConfig
from nemotron.recipes.nano2.__main__ import main as recipe_main
from nemotron.recipes.nano2.stage2_rlvr import data_curation
from nemotron.recipes.nano2.stage2_rlvr.__main__ import STEPS, Config, main
from nemotron.testing.stage import step_name


def test_every_step_gets_the_stages_scale_and_seed_and_its_own_directory():
    config = Config(scale="small", seed=7, output_dir=Path("out"))
    steps = (config.data, config.train, config.eval)
    assert [type(step) for step in steps] == [step.Config for step in STEPS]
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 3
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
    artifacts = main(Config(output_dir=tmp_path / "out", base_checkpoint_path=tmp_path / "base"))
    assert {name: one.path for name, one in artifacts.items()} == {
        "dataset": tmp_path / "out" / "data_curation",
        "checkpoint": tmp_path / "out" / "training",
        "results": tmp_path / "out" / "evaluation",
    }
    assert given["data_curation"].base_checkpoint_path == tmp_path / "base"
    assert given["training"].dataset_path == artifacts["dataset"].path
    assert given["evaluation"].checkpoint_path == artifacts["checkpoint"].path


def test_the_fine_tuned_model_is_by_default_where_stage_1_writes_it():
    base = Path("outputs", "nano2", "small", "stage1_sft", "training")
    assert Config(scale="small").base_checkpoint_path == base == RecipeConfig(scale="small").sft.train.output_dir
    assert Config(scale="small", base_checkpoint_path=Path("mine")).base_checkpoint_path == Path("mine")


def test_a_missing_fine_tuned_model_is_refused_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage1_sft --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        main(Config(scale="small"))
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuned_model_given_to_only_one_step_is_refused(tmp_path):
    data = data_curation.Config(base_checkpoint_path=tmp_path)
    with pytest.raises(ValueError, match=r"^data\.base_checkpoint_path=.* is set by the step before it in a whole run"):
        Config(data=data)


def test_reinforcement_without_prompts_is_refused_before_pretraining(tmp_path):
    recipe = RecipeConfig(output_dir=tmp_path / "run")
    recipe.rlvr.data.raw_prompts = "all"
    with pytest.raises(ValueError, match="raw_prompts=all needs --sources"):
        recipe_main(recipe)
    assert not (tmp_path / "run").exists()
