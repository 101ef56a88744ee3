"""The plan of compression: the published numbers from first principles, and why a neighbor fits or not."""

import re

import pytest

from nemotron import SCALES
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage5_compress import plan, search
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
    assert "56 layers (4 of attention, 27 of Mamba-2), hidden 4480, MLP 15680, 128 Mamba heads" in full
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


def test_the_plan_says_that_the_rule_would_not_have_taken_the_published_shape(full):
    """The shape is read from the paper; what is computed are its bytes and parameters."""
    assert "  the published 9B, whose shape is that of the paper\n" in full
    tried = full.partition("the largest that fit, of which each")[2].partition("the nearest that does not fit")[0]
    assert re.findall(r"hidden (\d+), MLP (\d+), (\d+) Mamba", tried) == [
        *(("5120", "15040", "120"), ("4736", "19200", "112"), ("4992", "16320", "128")),
    ]
    assert "the published 9B is not one of them: the rule is to take those that need most of the budget" in tried


def test_the_plan_shows_the_nearest_shape_that_does_not_fit(full):
    """Every neighbor of the published shape fits; one step of the width of an MLP and two of the hidden size do not."""
    found = full.partition("the nearest that does not fit, 3 steps of the grid away\n")[2].splitlines()[:2]
    assert found[0] == "    56 layers (4 of attention, 27 of Mamba-2), hidden 4736, MLP 16000, 128 Mamba heads"
    assert re.match(r"      is 0\.1\d+ GiB over: 19\.7\d of 19\.66 GiB", found[1])


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


def test_the_published_scores_are_in_one_table(full):
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


def test_the_grid_of_another_scale_has_every_number_of_layers_of_a_kind_that_may_stay():
    """Of M-M*-, four layers: one Mamba-2 layer and two MLPs, or two and one."""
    teacher, config = MODELS["tiny"], Config().prune
    patterns, published = plan.planned_patterns(teacher, config)
    assert patterns == ["M--*", "MM-*", "MM--*"]
    assert not published
    assert "  layers                   2 Mamba-2, 2 MLP, 1 attention; which ones, importance says\n" in plan.page(
        Config()
    )


@pytest.mark.parametrize(
    ("field", "value"), [("budget_bytes", 300_000), ("budget_bytes", 320_000), ("hidden_sizes", (63,))]
)
def test_a_search_that_the_run_accepts_has_a_plan(field, value):
    """Whichever layers importance removes: with all of them, nothing would fit these budgets."""
    config = Config()
    setattr(config.prune, field, value)
    plan.check(config)
    assert re.search(r"grid +[1-9]\d* of \d+ shapes fit", plan.page(config))


def test_a_budget_that_no_published_pattern_fits_has_a_plan_of_the_others():
    """Of 52 layers, more of the larger kind can go than in the published pattern."""
    config = Config(scale="full")
    config.prune.depths = (52,)
    shapes = search.narrowest_shapes(MODELS["full"], config.prune)
    (published,) = (one for one in shapes if one.config.hybrid_override_pattern.count("M") == 25)
    config.prune.budget_bytes = published.total_bytes - 1
    assert "  grid                       0 of" not in (text := plan.page(config))
    assert "which ones, importance says" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mamba_heads", (7,)),
        ("budget_bytes", 10_000),
        ("budget_bytes", 10**9),
        ("depths", (6,)),
        ("hidden_sizes", (65,)),
    ],
)
def test_a_plan_refuses_what_the_run_refuses_and_in_the_same_words(field, value):
    config = Config()
    setattr(config.prune, field, value)
    field_of_shape = {"budget_bytes": "budget_bytes", "mamba_heads": "n_groups", "depths": "num_layers"}
    with pytest.raises(ValueError, match=field_of_shape.get(field, "hidden_size")) as refused:
        plan.check(config)
    with pytest.raises(ValueError, match=f"^{re.escape(str(refused.value))}$"):
        plan.page(config)


def test_memory_is_checked_with_the_smallest_student_that_may_come_out(monkeypatch):
    """Of 12.3 billion parameters in training, as many as the teacher has, no such device would hold the moments."""
    config = Config(scale="full", final_stages=False)
    config.prune.hidden_sizes, config.prune.intermediate_sizes, config.prune.mamba_heads = (2560,), (10_240,), (64,)
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: 141 * 10**9)
    plan.check(config)
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: 60 * 10**9)
    with pytest.raises(ValueError, match=r"^training needs .* and cuda has 56 GiB"):
        plan.check(config)
