"""How exercises are asked, and how replies are judged and counted, on replies written by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.recipes.scoring import exercises as exam
from nemotron.recipes.scoring.exercises import Mode, ask, calls_are_valid, judge, reply_metrics, share, thought_length
from nemotron.recipes.sources.exercises.families import FAMILIES, VERIFIERS
from nemotron.recipes.sources.exercises.tool_calling import TOOLS

GREEDY = Sampling(max_new_tokens=6)
BASE = Mode("base", GREEDY, knows_format=False)
THINK = Mode("think", GREEDY)
NO_THINK = Mode("no_think", GREEDY, thinking=False)
MODES = (BASE, THINK, NO_THINK)


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


def judged(tokenizer, exercise, text, mode=THINK):
    return judge(exercise, continuation(tokenizer, text), tokenizer, CHAT, mode)


@pytest.mark.parametrize("mode", [BASE, THINK])
def test_a_verifier_that_fails_makes_no_answer_right_and_is_counted(tokenizer, exercise, monkeypatch, mode) -> None:
    text = "some steps\n</think>\n\nthe answer\n<SPECIAL_12>"
    fine = judged(tokenizer, exercise, text, mode)
    monkeypatch.setitem(VERIFIERS, "math", SimpleNamespace(check_answer=lambda exercise, reply: {}["no"]))
    failed = judged(tokenizer, exercise, text, mode)
    assert (failed.right, failed.fault) == (False, "KeyError: 'no'")
    assert not fine.fault
    metrics = reply_metrics({"first": [fine, failed, fine, fine], "second": [fine]})
    assert metrics["verifier_faults/first"] == 1 / 4
    assert metrics["verifier_faults/second"] == 0
    assert not [name for name in reply_metrics({"first": [fine]}) if name.startswith("verifier_faults")]


def test_a_right_answer_after_a_closed_thought_is_right(tokenizer, exercise):
    one = judged(tokenizer, exercise, f"some steps\n</think>\n\n{exercise.answer}\n<SPECIAL_12>")
    assert one.right
    assert one.obeyed
    assert one.reply.reasoning == "some steps"
    assert one.answer == exercise.answer


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("{answer}\n<SPECIAL_12>", THINK),  # the thought is not closed
        ("a\n</think>\nb\n</think>\n\n{answer}\n<SPECIAL_12>", THINK),  # closed twice
        ("a\n</think>\n\n{answer}\n<SPECIAL_12>", NO_THINK),  # thinks although asked not to
    ],
)
def test_a_right_answer_in_a_wrong_format_is_wrong_and_disobeys(tokenizer, exercise, text, mode):
    one = judged(tokenizer, exercise, text.format(answer=exercise.answer), mode)
    assert not one.right
    assert not one.obeyed


def test_an_empty_thought_does_not_count_as_thinking(tokenizer, exercise):
    one = judged(tokenizer, exercise, f"</think>\n\n{exercise.answer}\n<SPECIAL_12>")
    assert one.right
    assert not one.obeyed


@pytest.mark.parametrize("mode", [THINK, NO_THINK], ids=lambda mode: mode.name)
def test_a_reply_that_does_not_end_its_turn_does_not_obey(tokenizer, exercise, mode):
    thought = "a\n</think>\n\n" if mode is THINK else ""
    assert judged(tokenizer, exercise, f"{thought}words\n<SPECIAL_12>", mode).obeyed
    assert not judged(tokenizer, exercise, f"{thought}words", mode).obeyed


@pytest.mark.parametrize("text", ["{answer}", "it is\n{answer} \nor not", "a</think>b</think>\n{answer}"])
def test_the_base_model_is_right_if_any_line_is(tokenizer, exercise, text):
    assert judged(tokenizer, exercise, text.format(answer=exercise.answer), BASE).right
    assert not judged(tokenizer, exercise, text.format(answer=exercise.answer + "1"), BASE).right


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
def test_a_valid_call_names_a_tool_and_has_its_arguments(tokenizer, call, valid):
    (exercise,) = FAMILIES["tool_calling"].generate_exercises(1, 0, split="evaluation")
    exercise = replace(exercise, tools=(TOOLS["get_stock"],))
    one = judged(tokenizer, exercise, f"a\n</think>\n\n<TOOLCALL>[{call}]</TOOLCALL>\n<SPECIAL_12>")
    assert calls_are_valid(one) == valid


def test_validity_counts_only_where_the_answer_is_a_call(tokenizer):
    exercises = FAMILIES["tool_calling"].generate_exercises(20, 0, split="evaluation", difficulty=2)
    math = FAMILIES["math"].generate_exercises(1, 0, split="evaluation")
    calls = [one for one in exercises if "<TOOLCALL>" in one.answer]
    assert 0 < len(calls) < len(exercises)
    answered = [judged(tokenizer, one, f"a</think>{one.answer}") for one in [*exercises, *math]]
    assert reply_metrics({"think": answered})["valid_tool_calls/think"] == 1


def test_a_thought_ends_before_its_tag_even_if_a_token_spans_the_end_of_the_tag():
    tokenizer = train_tokenizer(["</think>. " * 50], 300)
    tokens = tokenizer.encode("a b</think>. 7").ids
    assert any(tokenizer.decode([token]).endswith(">.") for token in tokens)
    reply = Continuation(tokens, [0.0] * len(tokens), [False] * len(tokens), "length")
    assert thought_length(reply, tokenizer, CHAT.close_think) == len(tokenizer.encode("a b").ids)


@pytest.mark.parametrize("thought", ["", "a", "several words of it\nin two lines\n"])
def test_the_length_of_a_thought_excludes_its_tag(tokenizer, exercise, thought):
    one = judged(tokenizer, exercise, f"{thought}</think>\n\n7")
    assert one.num_thought == len(tokenizer.encode(thought).ids)


def test_without_thinking_no_thought_is_counted(tokenizer, exercise):
    assert judged(tokenizer, exercise, "on and on", NO_THINK).num_thought == 0


def test_an_unclosed_thought_is_as_long_as_the_reply(tokenizer):
    reply = continuation(tokenizer, "on and on")
    assert thought_length(reply, tokenizer, CHAT.close_think) == len(reply.tokens)


def test_a_thought_closed_by_the_budget_ends_there(tokenizer):
    reply = continuation(tokenizer, "abc\n</think>")
    reply.forced = [False, False, True] + [True] * (len(reply.tokens) - 3)
    assert thought_length(reply, tokenizer, CHAT.close_think) == 2


def test_the_mean_over_the_families_leaves_long_context_out(tokenizer):
    exercises = [family.generate_exercises(1, 0, split="evaluation")[0] for family in FAMILIES.values()]
    right = {"math", "long_context"}
    answered = {
        mode.name: [
            judged(
                tokenizer,
                exercise,
                ("" if mode is NO_THINK else "abcdef</think>") + (exercise.answer if exercise.family in right else "?"),
                mode,
            )
            for exercise in exercises
        ]
        for mode in MODES
    }
    metrics = reply_metrics(answered)
    assert metrics["exact_match/math/think"] == metrics["exact_match/long_context/think"] == 1
    assert metrics["exact_match/all/think"] == metrics["exact_match/all/no_think"] == 1 / (len(FAMILIES) - 1)
    assert metrics["obeyed/no_think"] == 0  # none ends its turn
    assert metrics["stopped/think"] == metrics["valid_tool_calls/think"] == 0
    assert metrics["format_errors/think"] == 0
    assert metrics["thought_tokens/think"] == len(tokenizer.encode("abcdef").ids)


def test_format_errors_and_ended_turns_are_shares_of_the_replies(tokenizer, exercise):
    texts = ["a</think>1\n<SPECIAL_12>", "never closed", "a</think>b</think>1", "a</think>1\n<SPECIAL_12>"]
    metrics = reply_metrics({"think": [judged(tokenizer, exercise, text) for text in texts]})
    assert metrics["format_errors/think"] == metrics["stopped/think"] == metrics["obeyed/think"] == 0.5


def test_an_exam_without_tool_calling_has_no_share_of_valid_calls(tokenizer, exercise):
    metrics = reply_metrics({"think": [judged(tokenizer, exercise, "a</think>1")]})
    assert "valid_tool_calls/think" not in metrics


@pytest.mark.parametrize(("holds", "expected"), [([True], 1), ([True, False, False, True], 0.5), ([False], 0)])
def test_a_share_counts_what_holds(holds, expected):
    assert share(holds) == expected


# --- asking ---


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, hybrid_override_pattern="M-*", intermediate_size=32,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, mamba_num_heads=2, mamba_head_dim=8, n_groups=1,
        ssm_state_size=8, chunk_size=8, max_position_embeddings=4096,
    )  # fmt: skip
    model = NemotronH(shape, dtype=torch.float64)
    initialize(model, 0)
    return model


@pytest.fixture
def prompts(monkeypatch):
    """What the model is given: (prompt, sampling, seed) of every exercise."""
    given, real = [], exam.generate

    def generate(model, prompts, sampling, seeds, *, num_slots):
        given.extend(zip(prompts, [sampling] * len(prompts), seeds, strict=True))
        return real(model, prompts, sampling, seeds, num_slots=num_slots)

    monkeypatch.setattr(exam, "generate", generate)
    return given


@pytest.fixture(scope="module")
def questions():
    return [family.generate_exercises(1, 0, split="evaluation")[0] for family in FAMILIES.values()][:5]


@pytest.mark.parametrize(("mode", "beginning"), [(THINK, "<think>\n"), (NO_THINK, "<think></think>")])
def test_the_prompt_of_an_exercise_begins_the_reply_in_its_mode(model, tokenizer, questions, prompts, mode, beginning):
    answered = ask(model, tokenizer, CHAT, questions, mode, seed=7, batch_replies=5)
    assert [one.exercise for one in answered] == questions
    for (prompt, sampling, _), question in zip(prompts, questions, strict=True):
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        assert question.messages[-1]["content"] in text
        assert text.endswith(f"Assistant\n{beginning}")
        assert sampling == replace(mode.sampling, stop_ids=CHAT.stop_ids)


def test_the_tools_of_an_exercise_are_in_its_prompt(model, tokenizer, prompts):
    (question,) = FAMILIES["tool_calling"].generate_exercises(1, 0, split="evaluation")
    ask(model, tokenizer, CHAT, [question], THINK, seed=7, batch_replies=1)
    text = tokenizer.decode(prompts[0][0])
    assert "<AVAILABLE_TOOLS>" in text
    assert all(tool["name"] in text for tool in question.tools)


@pytest.mark.parametrize("batch_replies", [1, 2, 5, 64])
def test_replies_and_seeds_do_not_depend_on_the_batch(model, tokenizer, questions, prompts, batch_replies):
    drawn = Mode("think", Sampling(max_new_tokens=6, temperature=1.0))
    answered = ask(model, tokenizer, CHAT, questions, drawn, seed=7, batch_replies=batch_replies)
    assert [seed for _, _, seed in prompts] == [7, 8, 9, 10, 11]
    expected = ask(model, tokenizer, CHAT, questions, drawn, seed=7, batch_replies=3)
    assert [one.continuation.tokens for one in answered] == [one.continuation.tokens for one in expected]
    assert len({tuple(one.continuation.tokens) for one in answered}) > 1


def test_progress_goes_to_stderr(model, tokenizer, questions, monkeypatch, capsys):
    monkeypatch.setattr(exam, "REPLIES_PER_LINE", 3)
    ask(model, tokenizer, CHAT, questions, THINK, seed=7, batch_replies=3)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == ["asked (think): 3/5, 0 right", "asked (think): 5/5, 0 right"]


def test_the_loss_of_right_replies_is_the_mean_over_their_tokens_in_each_family(exercise):
    tokenizer = train_tokenizer(["the thought closes </think> with an answer"], 300)
    config = ModelConfig(
        vocab_size=300, hidden_size=16, hybrid_override_pattern="M-*-", intermediate_size=32, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, mamba_num_heads=2, mamba_head_dim=16, n_groups=1, ssm_state_size=8,
    )  # fmt: skip
    model = NemotronH(config, dtype=torch.float64)
    initialize(model, 0)
    others = FAMILIES["safety"].generate_exercises(2, 0, split="evaluation")
    found = exam.right_reply_losses(model, [exercise, *others], tokenizer, CHAT, batch_tokens=64)
    assert list(found) == ["math", "safety"]
    for family, members in {"math": [exercise], "safety": others}.items():
        losses = []
        for one in members:
            reply = {"role": "assistant", "content": f"<think>\n{one.reasoning}\n</think>\n\n{one.answer}"}
            row = CHAT.encode(tokenizer, [*one.messages, reply])
            with torch.no_grad():
                logprobs = model(torch.tensor([row.ids]))[0].log_softmax(dim=-1)
            losses += [-logprobs[i - 1, row.ids[i]].item() for i in range(1, len(row.ids)) if row.in_loss[i]]
        assert found[family] == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_a_verifier_that_fails_is_named_with_its_exercise(tokenizer, exercise, monkeypatch, capsys) -> None:
    monkeypatch.setitem(VERIFIERS, "math", SimpleNamespace(check_answer=lambda exercise, reply: 1 / 0))
    replies = [continuation(tokenizer, f"so\n</think>\n\n{number}\n<SPECIAL_12>") for number in range(2)]
    monkeypatch.setattr(exam, "generate", lambda *given, **options: replies)
    ask(None, tokenizer, CHAT, [exercise] * 2, THINK, seed=0, batch_replies=2)
    said = capsys.readouterr().err
    assert said.count(f"the verifier of math failed on {exercise.id}: ZeroDivisionError: division by zero") == 2
