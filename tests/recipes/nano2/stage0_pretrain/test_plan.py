"""The plan against the finished tiny run; tests/pipelines/test_full_plan.py has it against the published run."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.plan import duration, page, plan_text, pretraining_plan, sparkline


def plan_of(scale):
    return pretraining_plan(data_curation.Config(scale=scale), training.Config(scale=scale))


def test_the_plan_says_what_the_finished_run_did(stage0):
    plan, checkpoint = plan_of("tiny"), stage0.checkpoint
    curve = pq.read_table(checkpoint.curve_path).to_pylist()
    assert plan.num_parameters == checkpoint.num_parameters
    assert plan.num_steps == checkpoint.num_steps == len(curve)
    assert plan.num_tokens == sum(row["tokens"] for row in curve)
    assert plan.learning_rates == [row["learning_rate"] for row in curve]
    assert [phase.name for phase in plan.phases for _ in range(phase.num_steps)] == [row["phase"] for row in curve]


def test_the_schedule_turns_where_the_plan_says():
    plan = plan_of("tiny")
    rates, turns = plan.learning_rates, plan.schedule
    peak = max(rates)
    assert rates[turns["end of the warmup"] - 1] < peak == rates[turns["end of the warmup"]]
    assert rates[turns["last step at the peak"]] == peak > rates[turns["last step at the peak"] + 1]
    assert rates[turns["end of the decay"]] == min(rates)


def test_the_plan_refuses_what_the_run_would_refuse():
    with pytest.raises(ValueError, match="give at most 82 warmup steps"):
        pretraining_plan(data_curation.Config(), training.Config(warmup_steps=83))


@pytest.mark.parametrize(
    ("data", "train", "sentence"),
    [
        ({"vocab_size": 2**63}, {}, "vocab_size=9223372036854775808 must be at most 1,048,576"),
        ({"num_sequences": 10**20}, {}, r"the run has 12,500,\S+ steps; a plan has at most 20,000,000, so give fewer"),
        ({"sequence_length": 10**400}, {}, r"a size of the run is too large to plan with \(.*\); give a smaller one"),
        ({}, {"learning_rate": 1e308}, r"learning_rate=1e\+308 is too large for a schedule; give a lower one"),
    ],
)
def test_a_size_that_no_machine_has_is_one_sentence(data, train, sentence):
    config = SimpleNamespace(data=data_curation.Config(**data), train=training.Config(**train), devices=1)
    with pytest.raises(ValueError, match=sentence):
        page(config)


def test_a_pass_is_planned_with_no_more_rows_than_the_batch():
    usual, large = (training.Config(micro_batch_sequences=rows) for rows in (8, 10**400))
    assert (
        pretraining_plan(data_curation.Config(), large).memory == pretraining_plan(data_curation.Config(), usual).memory
    )


def test_a_batch_that_does_not_divide_the_sequences_gives_one_smaller_step_per_phase():
    data = data_curation.Config(
        num_sequences=100, batch_sequences=1, long_context_sequences=7
    )  # 60, 30, 10 and 7 sequences
    plan = pretraining_plan(data, training.Config(warmup_steps=0))
    assert [phase.num_steps for phase in plan.phases] == [8, 4, 2, 4]
    assert plan.num_tokens == 100 * 128 + 7 * 512


def test_a_run_of_one_sequence_can_be_planned():
    data = data_curation.Config(num_sequences=1, long_context_sequences=0)
    plan = pretraining_plan(data, training.Config(warmup_steps=0))
    assert (plan.num_steps, plan.num_tokens) == (1, 128)
    assert "phase3" in plan_text(plan)


def test_sparkline_shows_the_lowest_and_the_highest_value():
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅"


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (0.01, "36 s"),
        (1 / 60, "1 min"),
        (0.5, "30 min"),
        (1, "1.0 h"),
        (47.96, "48.0 h"),
        (48, "2 days"),
        (24_000, "1,000 days"),
    ],
)
def test_a_duration_has_the_unit_that_a_person_would_use(hours, text):
    assert duration(hours) == text
