"""How the stage's orchestrator connects its steps, and what it says where there is no base model."""

from pathlib import Path

import pytest

from nemotron.recipes.nano2.__main__ import Config as RecipeConfig
from nemotron.recipes.nano2.__main__ import connected as connected_stages
from nemotron.recipes.nano2.__main__ import main as recipe_main
from nemotron.recipes.nano2.stage1_sft import data_curation, evaluation, training
from nemotron.recipes.nano2.stage1_sft.__main__ import Config, base_checkpoint, connected, main


def test_every_step_gets_the_stages_scale_seed_and_a_directory_of_its_own():
    steps = connected(Config(scale="small", seed=7, output_dir=Path("out")))
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 3
    assert [step.output_dir for step in steps] == [
        Path("out") / name for name in ("data_curation", "training", "evaluation")
    ]


def test_the_base_model_of_the_scale_is_taken_from_where_stage_0_puts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = Path("outputs", "nano2", "small", "stage0_pretrain", "training")
    base.mkdir(parents=True)
    assert base_checkpoint(Config(scale="small")) == base
    assert base_checkpoint(Config(scale="small", base_checkpoint_path=tmp_path)) == tmp_path


def test_where_there_is_no_base_model_the_sentence_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage0_pretrain --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        main(Config(scale="small"))
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_that_only_one_step_is_given_is_refused(tmp_path):
    config = Config(data=data_curation.Config(base_checkpoint_path=tmp_path))
    with pytest.raises(ValueError, match=r"^--data\.base-checkpoint-path has no place here"):
        connected(config)


def test_the_recipe_gives_every_stage_its_scale_and_a_directory():
    pretrain, sft = connected_stages(RecipeConfig(scale="small", seed=7, output_dir=Path("out")))
    assert [(stage.scale, stage.seed) for stage in (pretrain, sft)] == [("small", 7)] * 2
    assert [stage.output_dir for stage in (pretrain, sft)] == [Path("out/stage0_pretrain"), Path("out/stage1_sft")]


@pytest.mark.parametrize(
    "steps", [{"train": training.Config(device="cuda:99")}, {"eval": evaluation.Config(device="cuda:99")}]
)
def test_a_device_that_is_not_there_is_refused_before_any_stage_begins(steps, tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run", **steps)
    with pytest.raises(ValueError, match="device=cuda:99: this machine has"):
        main(config)
    with pytest.raises(ValueError, match="device=cuda:99: this machine has"):
        recipe_main(RecipeConfig(output_dir=tmp_path / "run", sft=Config(**steps)))
    assert not (tmp_path / "run").exists()


def test_a_flag_of_stage_1_that_has_no_place_is_refused_before_stage_0_begins(tmp_path):
    sft = Config(train=training.Config(dataset_path=tmp_path))
    with pytest.raises(ValueError, match=r"^--train\.dataset-path has no place here"):
        recipe_main(RecipeConfig(output_dir=tmp_path / "run", sft=sft))
    assert not (tmp_path / "run").exists()
