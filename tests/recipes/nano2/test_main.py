"""The orchestrators: what is finished is not run again."""

import pytest

from nemotron.recipes.nano2 import __main__ as recipe

STAGES = [*recipe.STAGES.values()]


@pytest.mark.parametrize("number", range(len(STAGES)))
def test_no_step_of_a_finished_stage_would_run_again(number, request, capsys):
    stage, done = STAGES[number], request.getfixturevalue(f"stage{number}")
    before = request.getfixturevalue(f"stage{number - 1}").checkpoint.path if number else None
    base = {"base_checkpoint_path": before} if number else {}
    capsys.readouterr()  # of the fixtures
    stage.main(stage.Config(scale="tiny", output_dir=done.directory, plan=True, **base))
    shown = "".join(capsys.readouterr())
    assert "runs:" not in shown
    assert shown.count("is current") == len(stage.STEPS)


@pytest.mark.parametrize("plan", [True, False])
def test_a_range_of_stages_without_the_checkpoint_that_it_begins_with_is_refused(plan, tmp_path):
    config = recipe.Config(output_dir=tmp_path / "new", stages="2:", plan=plan)
    with pytest.raises(ValueError, match=r"^stages=2: begins with .*stage1_sft/training, which does not exist; run "):
        recipe.main(config)
    assert not list(tmp_path.iterdir())
