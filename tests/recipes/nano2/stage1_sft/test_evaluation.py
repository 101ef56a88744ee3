"""How replies are judged and counted, on replies written by hand."""

import pytest

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage1_sft import evaluation
from nemotron.recipes.nano2.stage1_sft.evaluation import MODES, Config
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.sources.exercises import FAMILIES


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["the thought closes </think> with an answer"], 300)
    tokenizer.encode_special_tokens = False  # so that a test can write special tokens
    return tokenizer


@pytest.fixture(scope="module")
def exercise():
    (exercise,) = FAMILIES["math"].generate_exercises(1, 0, split="evaluation")
    return exercise


def continuation(tokenizer, text):
    tokens = tokenizer.encode(text).ids
    finish = "stop" if text.endswith("<SPECIAL_12>") else "length"
    return Continuation(tokens, [0.0] * len(tokens), [False] * len(tokens), finish)


def judged(tokenizer, exercise, text, thinking=True):
    return evaluation.judged(exercise, continuation(tokenizer, text), tokenizer, thinking)


def test_a_right_answer_after_a_closed_thought_is_right(tokenizer, exercise):
    one = judged(tokenizer, exercise, f"some steps\n</think>\n\n{exercise.answer}\n<SPECIAL_12>")
    assert one.right
    assert one.obeyed
    assert one.reply.reasoning == "some steps"


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("{answer}\n<SPECIAL_12>", True),  # a thought that never closes
        ("a\n</think>\nb\n</think>\n\n{answer}\n<SPECIAL_12>", True),  # closed twice
        ("a\n</think>\n\n{answer}\n<SPECIAL_12>", False),  # thinks, and was asked not to
    ],
)
def test_a_right_answer_in_a_wrong_format_is_wrong_and_disobeys(tokenizer, exercise, text, thinking):
    one = judged(tokenizer, exercise, text.format(answer=exercise.answer), thinking)
    assert not one.right
    assert not one.obeyed


def test_a_wrong_answer_in_the_right_format_is_wrong_and_obeys(tokenizer, exercise):
    one = judged(tokenizer, exercise, f"a\n</think>\n\n{exercise.answer}1\n<SPECIAL_12>")
    assert not one.right
    assert one.obeyed


def test_a_tool_call_is_judged_by_what_it_does(tokenizer):
    exercise = FAMILIES["tool_calling"].generate_exercises(1, 0, split="evaluation")[0]
    reply = exercise.answer.replace('": "', '":  "')  # other white space, the same call
    one = judged(tokenizer, exercise, f"a\n</think>\n\n{reply}\n<SPECIAL_12>")
    assert one.right
    assert one.reply.tool_calls


@pytest.mark.parametrize("thought", ["", "a", "several words of it\nin two lines\n"])
def test_the_length_of_a_thought_is_counted_without_its_tag(tokenizer, exercise, thought):
    one = judged(tokenizer, exercise, f"{thought}</think>\n\n7")
    assert one.num_thought == len(tokenizer.encode(thought).ids)


def test_a_thought_that_nothing_closes_is_as_long_as_the_reply(tokenizer, exercise):
    reply = continuation(tokenizer, "on and on")
    assert evaluation.thought_length(reply, tokenizer) == len(reply.tokens)


def test_a_thought_that_the_budget_closes_ends_there(tokenizer, exercise):
    reply = continuation(tokenizer, "abc\n</think>")
    reply.forced = [False, False, True] + [True] * (len(reply.tokens) - 3)
    assert evaluation.thought_length(reply, tokenizer) == 2


def test_the_mean_over_the_families_leaves_long_context_out(tokenizer):
    exercises = [family.generate_exercises(1, 0, split="evaluation")[0] for family in FAMILIES.values()]
    config = resolved(Config(thinking_budget=2, grace_tokens=1), "stage1_sft", "evaluation")
    right = {"math", "long_context"}
    answered = {
        mode: [
            judged(
                tokenizer,
                exercise,
                ("" if mode == "no_think" else "abcdef</think>")
                + (exercise.answer if exercise.family in right else "?"),
                mode != "no_think",
            )
            for exercise in exercises
        ]
        for mode in MODES
    }
    metrics = evaluation.metrics_of(answered, config)
    assert metrics["exact_match/math/think"] == metrics["exact_match/long_context/think"] == 1
    assert metrics["exact_match/all/think"] == metrics["exact_match/all/no_think"] == 1 / (len(FAMILIES) - 1)
    assert metrics["obeyed/no_think"] == 1
    assert metrics["stopped/think"] == metrics["valid_tool_calls/think"] == 0
    assert metrics["within_budget"] == 0  # six tokens of thought where three are allowed
    assert metrics["num_exercises"] == len(FAMILIES)


@pytest.mark.parametrize("name", ["thinking_budget", "max_new_tokens", "temperature"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be greater than 0"):
        Config(**{name: value})
