"""Measures of conversations and of reasoning, on replies small enough to check by eye."""

from types import SimpleNamespace

import pytest

from nemotron.recipes.nano2.stage4_rlhf import evaluation
from nemotron.recipes.nano2.stage4_rlhf.evaluation import Config
from nemotron.recipes.scoring.rewards import Reward


def reward(score, rubric, **parts):
    return Reward(score, parts={**parts, "rubric": rubric})


def test_the_rubric_is_the_mean_with_its_error_over_questions():
    """Two questions, each asked in two ways."""
    rewards = [reward(2.0, 1.0, correct=1.0), reward(0.0, 0.0, correct=0.0), reward(1.0, 0.5, correct=0.0),
               reward(1.0, 0.0, correct=1.0)]  # fmt: skip
    found = evaluation.chat_metrics("policy", rewards, [0, 1, 0, 1])
    assert found == {
        "part/correct/policy": 0.5,
        "rubric/policy": 0.375,
        "rubric_error/policy": pytest.approx(0.375),  # means 0.75 and 0
        "score/policy": 1.0,
    }


def test_reasoning_is_the_exact_match_of_the_reasoning_families():
    replies = [
        SimpleNamespace(exercise=SimpleNamespace(family=family), right=right)
        for family, right in [("math", True), ("code", False), ("science", True), ("science", True), ("safety", False)]
    ]
    found = evaluation.reasoning_metrics("merged", replies)
    assert found["reasoning/merged"] == 0.75
    assert found["reasoning_error/merged"] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["replies_per_prompt", "batch_replies", "batch_tokens", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be greater than 0$"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_what_sampling_refuses_is_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        Config(**{name: value})
