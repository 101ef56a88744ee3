"""How replies are judged and counted, on replies written by hand."""

from dataclasses import replace

import pytest

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage1_sft import evaluation
from nemotron.recipes.nano2.stage1_sft.evaluation import MODES, Config
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.sources.exercises import FAMILIES
from nemotron.recipes.sources.exercises.tool_calling import TOOLS


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


def judged(tokenizer, exercise, text, mode="think"):
    return evaluation.judged(exercise, continuation(tokenizer, text), tokenizer, mode)


def test_a_right_answer_after_a_closed_thought_is_right(tokenizer, exercise):
    one = judged(tokenizer, exercise, f"some steps\n</think>\n\n{exercise.answer}\n<SPECIAL_12>")
    assert one.right
    assert one.obeyed
    assert one.reply.reasoning == "some steps"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("{answer}\n<SPECIAL_12>", "think"),  # a thought that never closes
        ("a\n</think>\nb\n</think>\n\n{answer}\n<SPECIAL_12>", "think"),  # closed twice
        ("a\n</think>\n\n{answer}\n<SPECIAL_12>", "no_think"),  # thinks, and was asked not to
    ],
)
def test_a_right_answer_in_a_wrong_format_is_wrong_and_disobeys(tokenizer, exercise, text, mode):
    one = judged(tokenizer, exercise, text.format(answer=exercise.answer), mode)
    assert not one.right
    assert not one.obeyed


def test_an_empty_thought_is_no_thinking(tokenizer, exercise):
    one = judged(tokenizer, exercise, f"</think>\n\n{exercise.answer}\n<SPECIAL_12>")
    assert one.right
    assert not one.obeyed


@pytest.mark.parametrize("mode", ["think", "no_think"])
def test_a_reply_that_comes_to_no_end_does_not_obey(tokenizer, exercise, mode):
    thought = "a\n</think>\n\n" if mode == "think" else ""
    assert judged(tokenizer, exercise, f"{thought}words\n<SPECIAL_12>", mode).obeyed
    assert not judged(tokenizer, exercise, f"{thought}words", mode).obeyed


@pytest.mark.parametrize("text", ["{answer}", "it is\n{answer} \nor not", "a</think>b</think>\n{answer}"])
def test_the_base_model_is_asked_for_no_format(tokenizer, exercise, text):
    assert judged(tokenizer, exercise, text.format(answer=exercise.answer), "base").right
    assert not judged(tokenizer, exercise, text.format(answer=exercise.answer + "1"), "base").right


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


@pytest.mark.parametrize(
    ("call", "valid"),
    [
        ('{"name": "get_stock", "arguments": {"item": "lamp"}}', True),
        ('{"name": "get_stock", "arguments": {"item": "no such lamp"}}', True),  # valid, and wrong
        ('{"name": "nonexistent", "arguments": {"item": "lamp"}}', False),
        ('{"name": "get_stock", "arguments": {"zzz": "lamp"}}', False),
        ('{"name": "get_stock", "arguments": {"item": NaN}}', False),
        ('{"name": "get_stock", "arguments": {"item": 3}}', False),
    ],
)
def test_a_valid_call_names_a_tool_and_gives_what_it_takes(tokenizer, call, valid):
    (exercise,) = FAMILIES["tool_calling"].generate_exercises(1, 0, split="evaluation")
    exercise = replace(exercise, tools=(TOOLS["get_stock"],))
    one = judged(tokenizer, exercise, f"a\n</think>\n\n<TOOLCALL>[{call}]</TOOLCALL>\n<SPECIAL_12>")
    assert evaluation.calls_are_valid(one) == valid


def test_only_where_a_call_is_the_answer_its_validity_counts(tokenizer):
    exercises = FAMILIES["tool_calling"].generate_exercises(20, 0, split="evaluation", difficulty=2)
    calls = [one for one in exercises if "<TOOLCALL>" in one.answer]
    assert 0 < len(calls) < len(exercises)
    answered = {mode: [judged(tokenizer, one, f"a</think>{one.answer}", mode) for one in exercises] for mode in MODES}
    metrics = evaluation.metrics_of(answered, resolved(Config(), "stage1_sft", "evaluation"))
    assert metrics["valid_tool_calls/think"] == 1


def test_a_thought_ends_before_its_tag_where_a_token_goes_on_after_it(exercise):
    tokenizer = train_tokenizer(["</think>. " * 50], 300)
    tokens = tokenizer.encode("a b</think>. 7").ids
    assert any(tokenizer.decode([token]).endswith(">.") for token in tokens)
    reply = Continuation(tokens, [0.0] * len(tokens), [False] * len(tokens), "length")
    assert evaluation.thought_length(reply, tokenizer) == len(tokenizer.encode("a b").ids)


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
                mode,
            )
            for exercise in exercises
        ]
        for mode in MODES
    }
    metrics = evaluation.metrics_of(answered, config)
    assert metrics["exact_match/math/think"] == metrics["exact_match/long_context/think"] == 1
    assert metrics["exact_match/all/think"] == metrics["exact_match/all/no_think"] == 1 / (len(FAMILIES) - 1)
    assert metrics["obeyed/no_think"] == 0  # none comes to an end
    assert metrics["stopped/think"] == metrics["valid_tool_calls/think"] == 0
    assert metrics["within_budget"] == 0  # six tokens of thought where three are allowed
    assert metrics["num_exercises"] == len(FAMILIES)


@pytest.mark.parametrize("name", ["thinking_budget", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be greater than 0"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_what_sampling_refuses_is_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value} must"):
        Config(**{name: value})


def test_a_temperature_of_0_is_greedy():
    assert Config(temperature=0.0).temperature == 0
