"""Two mutants of the catalogue, each installed separately; one changes a beta by one part in a million."""

from pathlib import Path

import pytest

from nemotron.testing.power import CATALOGUES, read_catalogue, try_mutant

ROOT = Path(__file__).parents[2]
STAGE = "nano2/stage0_pretrain"
MUTANTS, TESTS = read_catalogue(ROOT / CATALOGUES / f"{STAGE}.toml")


@pytest.mark.parametrize("name", ["sensitivity-beta2", "weight-decay-on-norms"])
def test_mutant_is_killed_at_its_stage(name, tmp_path):
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    found = try_mutant(ROOT, STAGE, mutant, TESTS, tmp_path / "stages")
    assert found.killed_without_config
    assert found.first_red_stage == STAGE
    assert found.rung.startswith("training: ")
