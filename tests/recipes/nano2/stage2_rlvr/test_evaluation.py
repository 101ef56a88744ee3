"""Measures of held-out instructions, on replies small enough to check by eye."""

import json
import math
from dataclasses import replace

import pytest

from nemotron.recipes.nano2.stage2_rlvr import evaluation
from nemotron.recipes.nano2.stage2_rlvr.evaluation import Config
from nemotron.recipes.scoring.rewards import Prompt, Reward, reward_parts
from nemotron.recipes.sources.exercises import ifeval
from nemotron.recipes.sources.exercises.exercise import user_exercise

WANTED = [
    {"id": "punctuation:no_comma", "kwargs": {}},
    {"id": "length_constraints:number_words", "kwargs": {"num_words": 4, "relation": "less than"}},
]


def instruction(number=0):
    exercise = user_exercise(ifeval.FAMILY, f"Say something, {number}.", "", "", f"{number}")
    return replace(exercise, id=str(number), details=json.dumps({"instructions": WANTED}))


def reward(answer, form=1.0):
    """What an answer earns, as the verifier computes it."""
    parts = reward_parts(instruction(), answer)
    right = all(part == 1 for part in parts.values())
    return Reward(sum(parts.values()) / len(parts), form, parts, right, answer)


ONE, NONE, BOTH = reward("yes, I do"), reward("well, I do not know, no"), reward("yes I do")
LOOSE = reward("Certainly, here it is:\nyes I do")
"""Wrong as it is; without its first line, as IFEval's loose measure reads it, both instructions are followed."""


def metrics_of(*rewards, replies_per_prompt=1):
    prompts = [
        Prompt(instruction(number), True, (1,)) for number in range(math.ceil(len(rewards) / replies_per_prompt))
    ]
    return evaluation.held_out_metrics("policy", prompts, rewards, replies_per_prompt)


def test_strict_measures_count_prompts_and_instructions():
    metrics = metrics_of(ONE, NONE, BOTH, BOTH)
    assert metrics["strict_prompt/policy"] == 2 / 4
    assert metrics["strict_instruction/policy"] == 5 / 8
    assert metrics["reward/policy"] == (0.5 + 0 + 1 + 1) / 4


def test_a_reply_whose_verifier_failed_satisfies_nothing():
    metrics = metrics_of(BOTH, Reward(0.0, fault="RuntimeError: no"))
    assert metrics["strict_prompt/policy"] == metrics["loose_prompt/policy"] == 1 / 2
    assert metrics["strict_instruction/policy"] == 1
    assert metrics_of(Reward(0.0, fault="RuntimeError: no"))["strict_instruction/policy"] == 0


def test_the_loose_measure_forgives_a_first_line():
    metrics = metrics_of(LOOSE, NONE)
    assert metrics["strict_prompt/policy"] == 0
    assert metrics["loose_prompt/policy"] == 1 / 2
    assert metrics["loose_instruction/policy"] == 2 / 4


def test_no_measure_forgives_an_error_of_form():
    malformed = Reward(0.05, 0.5, dict.fromkeys(BOTH.parts, 0.0))
    metrics = metrics_of(malformed)
    assert metrics["strict_instruction/policy"] == metrics["loose_instruction/policy"] == 0


def test_pass_at_k_is_a_prompt_that_any_of_k_replies_solves():
    metrics = metrics_of(BOTH, NONE, NONE, NONE, replies_per_prompt=2)
    assert metrics["pass@1/policy"] == 1 / 4
    assert metrics["pass@2/policy"] == 1 / 2


def test_one_reply_per_prompt_has_pass_at_1_only():
    assert [name for name in metrics_of(BOTH) if name.startswith("pass@")] == ["pass@1/policy"]


def test_the_gain_is_paired_by_question():
    """Two questions, both asked in two ways; the policy earns 0.75 more on the first and 0.25 more on the second."""
    earned = {"tuned": [0.0, 0.5, 0.0, 0.0], "policy": [0.5, 0.5, 1.0, 0.5]}
    found = evaluation.gain(earned, 2)
    assert found["reward_difference"] == 0.5
    assert found["reward_difference_error"] == pytest.approx(math.sqrt(0.125 / 2))


@pytest.mark.parametrize("name", ["replies_per_prompt", "batch_replies", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be greater than 0$"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_what_sampling_refuses_is_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        Config(**{name: value})
