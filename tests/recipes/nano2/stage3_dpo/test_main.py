"""What the orchestrator of stage 3 declares; what holds for all of them is in ../stage1_sft/test_main.py."""

from nemotron.recipes.nano2.__main__ import Config as RecipeConfig
from nemotron.recipes.nano2.stage3_dpo.__main__ import STAGE, Config
from nemotron.testing.stage import stage_name


def test_the_golden_has_the_name_of_the_package():
    assert stage_name("nemotron.recipes.nano2.stage3_dpo") == STAGE


def test_the_recipe_knows_the_stage_as_dpo():
    assert type(RecipeConfig().dpo) is Config
