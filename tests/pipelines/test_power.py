"""A sample of the catalogue, each from its own install: one of them a beta that is off by a millionth."""

from pathlib import Path

import pytest

from nemotron.testing.power import CATALOGUES, read_catalogue, try_mutant

ROOT = Path(__file__).parents[2]
STAGE = "nano2/stage0_pretrain"
MUTANTS, TESTS = read_catalogue(ROOT / CATALOGUES / f"{STAGE}.toml")


@pytest.mark.parametrize("name", ["sensitivity-beta2", "weight-decay-on-norms"])
def test_a_mutant_turns_its_stage_red(name):
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    found = try_mutant(ROOT, STAGE, mutant, TESTS)
    assert found.killed_without_config
    assert found.first_red_stage == STAGE
    assert found.rung.startswith("training: ")
