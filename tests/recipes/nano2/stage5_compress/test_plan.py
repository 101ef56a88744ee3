"""The plan of compression: the published numbers from first principles, and why a neighbor fits or not."""

import re

import pytest

from nemotron import SCALES
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage5_compress import plan
from nemotron.recipes.nano2.stage5_compress.__main__ import Config
from nemotron.recipes.nemotron_h import device
from nemotron.recipes.nemotron_h.inference_memory import A10G_BUDGET
from nemotron.recipes.nemotron_h.model import PUBLISHED_9B


@pytest.fixture(scope="module")
def full():
    return plan.page(Config(scale="full"))


def test_the_plan_of_full_has_the_published_numbers(full):
    """19.66 GiB, 56 layers with 4 of attention, hidden 4480, MLP 15680, 128 heads, 8.89 billion parameters."""
    assert f"{A10G_BUDGET:,} bytes, 19.66 GiB" in full
    assert "56 layers (4 of attention), hidden 4480, MLP 15680, 128 Mamba heads" in full
    assert "parameters               8,888,227,328" in full
    assert "parameters               12,310,001,152" in full
    assert "131,072 tokens, 1 at a time" in full
    assert PUBLISHED_9B.hybrid_override_pattern in full


def test_the_plan_says_of_each_neighbor_whether_it_fits_and_why(full):
    near = full.partition("one step of the grid from it")[2].partition("the largest that fit")[0]
    names = re.findall(r"^    (\w+=\d+) ", near, re.M)
    assert names == [
        *("num_layers=54", "hidden_size=4608", "intermediate_size=15360", "intermediate_size=16000"),
        "mamba_num_heads=120",
    ]
    assert "1,242 shapes fit" in full
    verdicts = re.findall(r"^      (fits with|is) [\d.e-]+ GiB (?:left|over): .*weights .*keys and values", near, re.M)
    assert len(verdicts) == len(names)


def test_the_teacher_does_not_fit_and_the_reason_is_its_weights(full):
    assert "is 6.41 GiB over: 26.07 of 19.66 GiB (weights 22.93, keys and values 3," in full


def test_the_schedule_of_full_has_the_published_tokens(full):
    """110B tokens in rows of 8,192, 25B of 49,152, 1B of 262,144, up to a row."""
    found = re.findall(r"^  length_(\d+) +[\d,]+ +[\d,]+ +[\d,]+ +([\d,]+)", full, re.M)
    tokens = {int(length): int(number.replace(",", "")) for length, number in found}
    assert list(tokens) == [8192, 49_152, 262_144]
    for number, expected in zip(tokens.values(), (110e9, 25e9, 1e9), strict=True):
        assert number == pytest.approx(expected, rel=1e-3)


def test_the_final_stages_of_full_have_the_published_tokens_and_merge(full):
    assert "distillation               400,031,744 tokens in rows of 262,144" in full
    assert "merge                      0.5 of the policy" in full
    assert "GRPO                       4,000 prompts" in full


def test_a_plan_without_final_stages_does_not_name_them():
    assert "final stages" not in plan.page(Config())
    assert "final stages" in plan.page(Config(final_stages=True))


def test_a_chunk_of_logits_is_in_memory_at_a_time(full):
    """2 models, 4 bytes, 1,024 tokens, 131,072 entries: 1 GiB, where the longest rows have 256 GiB."""
    assert full.count("1.000 GiB") == 3


def test_the_published_scores_stand_beside_each_other(full):
    assert re.search(r"MMLU +78\.24 +74\.53", full)
    assert "56 layers 51.48" in full


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_a_plan_and_shapes_that_fit(scale):
    config = Config(scale=scale)
    text = plan.page(config)
    assert text.startswith(f"Compression at scale {scale}\n")
    fit, of = re.search(r"grid +([\d,]+) of ([\d,]+) shapes fit", text).groups()
    assert 0 < int(fit.replace(",", "")) < int(of.replace(",", ""))
    for step in (config.train, config.scratch):
        assert plan.training.training_parts(plan.data_curation.planned_phases(config.data), step)


def test_a_budget_that_the_teacher_fits_is_refused():
    config = Config()
    config.prune.budget_bytes = 10**9
    with pytest.raises(ValueError, match=r"^budget_bytes=1,000,000,000 is not below the .* bytes of the teacher"):
        plan.page(config)


@pytest.mark.parametrize(("name", "values"), [("hidden_sizes", (4608,)), ("depths", (52, 54)), ("depths", (50,))])
def test_a_grid_without_the_published_shape_has_a_plan(name, values):
    config = Config(scale="full")
    setattr(config.prune, name, values)
    text = plan.page(config)
    assert "the published 9B" not in text
    assert "  the largest that fits\n    shape " in text


def test_the_grid_of_another_scale_keeps_every_layer():
    grid, target = plan.planned_grid(MODELS["small"], Config(scale="small").prune)
    assert grid.hybrid_override_pattern == (MODELS["small"].hybrid_override_pattern,)
    assert target is None


def test_memory_is_checked_with_the_smallest_student_that_may_come_out(monkeypatch):
    """Of 12.3 billion parameters in training, as many as the teacher has, no such device would hold the moments."""
    config = Config(scale="full", final_stages=False)
    config.prune.hidden_sizes, config.prune.intermediate_sizes, config.prune.mamba_heads = (2560,), (10_240,), (64,)
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: 141 * 10**9)
    plan.check(config)
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: 60 * 10**9)
    with pytest.raises(ValueError, match=r"^training needs .* and cuda has 56 GiB"):
        plan.check(config)
