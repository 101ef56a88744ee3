from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron import Scale
from nemotron.recipes.nano2.sizes import SIZES, phase_steps, resolved
from nemotron.recipes.nemotron_h.plan import count_parameters

PARAMETERS = {
    "tiny": (200_000, 500_000),
    "small": (1_000_000, 10_000_000),
    "medium": (270_000_000, 330_000_000),
    "full": (12_310_001_152, 12_310_001_152),
}


@pytest.mark.parametrize("scale", SIZES)
def test_every_scale_has_the_parameters_that_it_promises(scale):
    least, most = PARAMETERS[scale]
    assert least <= count_parameters(SIZES[scale].model) <= most


@pytest.mark.parametrize("scale", SIZES)
def test_every_scale_has_all_kinds_of_layers(scale):
    assert set(SIZES[scale].model.hybrid_override_pattern) == {"M", "-", "*"}


@pytest.mark.parametrize("scale", SIZES)
def test_micro_batches_divide_batches(scale):
    sizes = SIZES[scale].pretrain
    assert sizes.batch_sequences % sizes.micro_batch_sequences == 0
    assert sizes.long_context_batch_sequences % sizes.long_context_micro_batch_sequences == 0


def test_full_scale_trains_on_the_published_number_of_tokens():
    sizes = SIZES["full"].pretrain
    assert sizes.num_steps * sizes.batch_sequences * sizes.sequence_length == pytest.approx(20e12, rel=1e-6)
    long_tokens = sizes.long_context_steps * sizes.long_context_batch_sequences * sizes.long_context_length
    assert long_tokens == pytest.approx(18.9e9, rel=1e-3)
    assert (
        sizes.long_context_batch_sequences * sizes.long_context_length == sizes.batch_sequences * sizes.sequence_length
    )


@given(st.integers(1, 10**9))
def test_phases_cover_every_step_and_switch_at_60_and_90_percent(num_steps):
    steps = phase_steps(num_steps)
    assert list(steps) == ["phase1", "phase2", "phase3"]
    assert sum(steps.values()) == num_steps
    assert steps["phase1"] <= 0.6 * num_steps < steps["phase1"] + 1
    assert steps["phase1"] + steps["phase2"] <= 0.9 * num_steps + 1e-6


@dataclass
class Step:
    scale: Scale = "tiny"
    output_dir: Path | None = None
    num_steps: int | None = None
    dataset_path: Path | None = None
    seed: int = 1


@dataclass
class Batch:
    scale: str = "tiny"
    batch_sequences: int | None = None


def test_resolved_fills_what_is_left_out_and_keeps_what_is_given():
    assert resolved(Step(), "stage0_pretrain", "training") == Step(
        output_dir=Path("outputs/nano2/tiny/stage0_pretrain/training"), num_steps=SIZES["tiny"].pretrain.num_steps
    )
    assert resolved(Step(num_steps=3), "stage0_pretrain", "training").num_steps == 3


def test_every_stage_gets_its_own_numbers():
    pretrain, sft = (resolved(Batch(), stage, "training") for stage in ("stage0_pretrain", "stage1_sft"))
    assert pretrain.batch_sequences == SIZES["tiny"].pretrain.batch_sequences
    assert sft.batch_sequences == SIZES["tiny"].sft.batch_sequences != pretrain.batch_sequences


def test_resolved_leaves_the_callers_config_alone():
    config = Step()
    resolved(config, "stage9", "training")
    assert config == Step()


def test_resolved_names_the_scales_when_it_does_not_know_one():
    with pytest.raises(ValueError, match="scale='huge' is unknown; use tiny, small, medium or full"):
        resolved(Step(scale="huge"), "stage9", "training")
