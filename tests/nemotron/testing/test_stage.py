"""What a finished tiny run says of itself, beside the golden that the package ships."""

import json
from importlib import resources

import pytest

from nemotron.testing.compare import parse_golden
from nemotron.testing.stage import reproduction

STAGE = "nano2/stage0_pretrain"


@pytest.fixture
def ladders():
    golden = resources.files("nemotron.golden").joinpath(f"{STAGE}.json").read_bytes()
    return parse_golden(golden)[0]["ladder"]


def write(directory, ladders):
    for step, ladder in ladders.items():
        (directory / step).mkdir()
        (directory / step / "ladder.json").write_text(json.dumps(ladder))
    return directory


def test_a_run_with_the_recorded_numbers_reproduces_them_to_the_last_bit(ladders, tmp_path):
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert line == f"reproduces golden/{STAGE}.json: yes (to the last bit)"


def loss_at(ladders, step):
    """The entry of the loss curve."""
    (entry,) = (e for e in ladders["training"] if (e["rung"], e["name"], e["step"]) == ("curve", "loss", step))
    return entry


def test_a_last_bit_that_differs_is_measured(ladders, tmp_path):
    loss_at(ladders, 41)["value"] *= 1 + 2**-40
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert line.endswith("yes (largest relative difference 9e-13, training, curve, loss, step 41)")


def test_a_run_that_departs_says_where(ladders, tmp_path):
    loss_at(ladders, 41)["value"] *= 1.5
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert f"reproduces golden/{STAGE}.json: no, it departs at training, curve, loss, step 41: golden" in line
    assert "off by 5e-01, relative" in line


def test_a_run_that_cannot_be_compared_says_why(ladders, tmp_path):
    loss_at(ladders, 41)["value"] = float("nan")
    assert "cannot be compared" in reproduction(STAGE, write(tmp_path, ladders))


def test_a_stage_without_a_golden_says_so(tmp_path):
    assert reproduction("nano2/stage9_dreams", tmp_path) == "nothing is recorded for nano2/stage9_dreams"
