"""The plan held against the finished tiny run; tests/pipelines/test_full_plan.py holds it against the published one."""

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.plan import pretraining_plan, sparkline


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


def test_the_schedule_turns_where_the_plan_says(stage0):
    plan = plan_of("tiny")
    rates, turns = plan.learning_rates, plan.schedule
    peak = max(rates)
    assert rates[turns["end of the warmup"] - 1] < peak == rates[turns["end of the warmup"]]
    assert rates[turns["last step at the peak"]] == peak > rates[turns["last step at the peak"] + 1]
    assert rates[turns["end of the decay"]] == min(rates)


def test_sizes_that_do_not_fit_are_refused_by_the_plan_too():
    with pytest.raises(ValueError, match="micro_batch_sequences=3 does not divide batch_sequences=8"):
        pretraining_plan(data_curation.Config(), training.Config(micro_batch_sequences=3))


def test_sparkline_shows_the_lowest_and_the_highest_value():
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅"
