"""A run that is killed goes on when the same command is given again, and ends with the digests of a whole run.

`nox -s kills` kills the recipe at 20 random moments; here are a small stage, and the two places in stage 0 that matter.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("kills_program", Path(__file__).with_name("kills.py"))
assert spec
assert spec.loader
kills = importlib.util.module_from_spec(spec)
sys.modules["kills_program"] = kills  # dataclasses look their module up
spec.loader.exec_module(kills)

LETTERS = Path(__file__).parents[2] / "examples" / "letters"
MOMENTS = ["data_curation.incomplete", "data_curation/metadata.json", "training.incomplete", "training", "evaluation*"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """The smallest stage, and the digests of a run that nobody kills."""
    folder = Path(shutil.copytree(LETTERS, tmp_path_factory.mktemp("kills") / "letters"))
    command = (sys.executable, "-m", "letters.stage0_bigram")
    expected, _ = kills.whole_run(kills.Trial(command, folder / "whole", folder))
    assert list(expected) == ["data_curation", "evaluation", "training"]
    return command, folder, expected


@pytest.mark.posix
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stage_that_is_killed_goes_on_by_the_same_command(letters, moment):
    command, folder, expected = letters
    trial = kills.Trial(command, folder / f"killed {MOMENTS.index(moment)}", folder)
    killed = trial.kill(once=moment)
    assert (trial.again(killed) if killed else trial.artifacts()) == expected


@pytest.mark.posix
def test_pretraining_killed_in_training_and_in_evaluation_goes_on_by_the_same_command(tmp_path):
    """The numbers are compared with the golden, by the line at the end."""
    command = (sys.executable, "-m", "nemotron.recipes.nano2", "--scale", "tiny", "--stages", "0")
    trial = kills.Trial(command, tmp_path / "run")
    killed = trial.kill(once="stage0_pretrain/training.incomplete/training_state/step-00000035")
    assert killed
    assert killed.complete == {"stage0_pretrain/data_curation"}
    killed = trial.kill(once="stage0_pretrain/evaluation.incomplete")
    assert killed
    log = (tmp_path / "run.log").read_text()
    assert "stage0_pretrain 2/3 training runs: goes on with its unfinished run" in log
    assert "resumed at step 35" in log
    assert killed.complete == {"stage0_pretrain/data_curation", "stage0_pretrain/training"}
    trial.again(killed)
    assert trial.log.splitlines()[-1].startswith("reproduces golden/nano2/stage0_pretrain.json: yes")
