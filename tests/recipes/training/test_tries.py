"""Conversations with tools, played by a policy that says what a test writes down."""

import json
import time
from dataclasses import replace

import pytest
import torch

from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.sources.exercises import workplace
from nemotron.recipes.training import tries as module
from nemotron.recipes.training.tries import (
    LEVELS,
    best_constant_policy,
    conversation_text,
    draw_tries,
    solved_share,
    try_metrics,
)

END = "<SPECIAL_12>"


@pytest.fixture(scope="module")
def verify(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(['<TOOLCALL>[{"name": "get_stock", "arguments": {"item": "pens"}}]'], 360), path)
    save_chat_tokenizer(CHAT, path, path)
    return Verifier(CHAT, path, seconds=0.2)


@pytest.fixture(scope="module")
def model():
    found = NemotronH(replace(MODELS["tiny"], max_position_embeddings=4096), dtype=torch.float64)
    initialize(found, 0)
    return found


def task_of(kind, number=0):
    """A task in which the policy makes every call itself; of "nothing", one with a single tool."""
    difficulty = 1 if kind == workplace.NOTHING else 2
    tasks = workplace.generate_exercises(60, 0, split="train", difficulty=difficulty)
    return [one for one in tasks if workplace.kind_of(one) == kind][number]


def written(*calls):
    return f"<TOOLCALL>{json.dumps(list(calls))}</TOOLCALL>{END}"


def solution(task):
    return [written(*calls) for calls in workplace.solution_of(task)]


def continuation(verify, text):
    tokens = verify.tokenizer.encode(text.removesuffix(END), add_special_tokens=False).ids
    tokens += [CHAT.special_ids[END]] * text.endswith(END)
    return Continuation(tokens, [-1.0] * len(tokens), [False] * len(tokens), "stop" if text.endswith(END) else "length")


def played(verify, model, monkeypatch, task, *replies, max_turns=4, thinking=False):
    """The one try of a policy that gives these replies in turn, and the prompts that it read."""
    said, read = list(replies), []

    def generate(model, prompts, sampling, seeds):
        read.extend(verify.decode(prompt) for prompt in prompts)
        return [continuation(verify, said.pop(0)) for _ in prompts]

    monkeypatch.setattr(module, "generate", generate)
    prompt = verify.prompt_of(task, thinking=thinking)
    (one,) = draw_tries(model, verify, [prompt], 1, Sampling(64, CHAT.stop_ids, 1.0), ("test",), max_turns=max_turns)
    return one, read


KINDS = pytest.mark.parametrize("kind", [workplace.LOOK_UP, workplace.CORRECT])


# --- what is right ---


@KINDS
def test_a_solution_is_right_and_so_it_is_if_a_sentence_follows(kind, verify, model, monkeypatch):
    task = task_of(kind)
    for replies in (solution(task), [*solution(task), f"Done.{END}"]):
        one, _ = played(verify, model, monkeypatch, task, *replies, max_turns=len(replies))
        assert (one.right, LEVELS[one.level], one.fault) == (True, "right", "")
        assert one.ended == (replies[-1] == f"Done.{END}")


def test_a_policy_that_stops_before_it_has_written_is_wrong(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    one, _ = played(verify, model, monkeypatch, task, solution(task)[0], f"Done.{END}")
    assert (one.right, LEVELS[one.level], one.ended) == (False, "called", True)


def test_reading_more_than_needed_is_right(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    first, second = solution(task)
    assert played(verify, model, monkeypatch, task, first, first, second, max_turns=3)[0].right


def test_nothing_is_right_where_nothing_fits_and_no_call_may_be_made(verify, model, monkeypatch):
    task = task_of(workplace.NOTHING)
    assert played(verify, model, monkeypatch, task, f"I cannot do that.{END}")[0].right
    (tool,) = task.tools
    key = tool["parameters"]["required"][0]
    one, _ = played(
        verify, model, monkeypatch, task, written({"name": tool["name"], "arguments": {key: "x"}}), f"No.{END}"
    )
    assert one.ran[0].failed  # nothing was changed, and still a call was made
    assert (one.right, LEVELS[one.level]) == (False, "well formed")


BROKEN = {
    "never ends": "I cannot do that.",
    "says nothing": END,
    "thinks although it should not": f"</think>No.{END}",
    "half a call": f"<TOOLCALL>[{END}",
    "only padding": "",
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_a_reply_that_breaks_the_format_ends_the_conversation_and_is_wrong(reply, verify, model, monkeypatch):
    one, read = played(verify, model, monkeypatch, task_of(workplace.NOTHING), reply)
    assert (one.right, LEVELS[one.level], one.ended, len(read)) == (False, "broken", False, 1)


def test_a_try_that_breaks_after_the_right_calls_is_wrong(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    one, _ = played(verify, model, monkeypatch, task, *solution(task), "and so on")
    assert (one.right, LEVELS[one.level]) == (False, "broken")


def test_a_policy_that_should_think_must(verify, model, monkeypatch):
    task = task_of(workplace.NOTHING)
    for reply, right in (
        (f"Nothing fits.\n</think>\n\nI cannot do that.{END}", True),
        (f"I cannot do that.{END}", False),
    ):
        assert played(verify, model, monkeypatch, task, reply, thinking=True)[0].right == right


# --- what the policy reads ---


def test_the_policy_reads_the_tools_answers_in_the_chat_format(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    first, second = solution(task)
    one, read = played(verify, model, monkeypatch, task, first, second, max_turns=2)
    assert read[0] == verify.decode(verify.prompt_of(task, thinking=False).tokens)
    call, answer = first.removesuffix(END), one.turns[0].ran[0].answer
    head = read[0].removesuffix("<SPECIAL_11>Assistant\n<think></think>")
    turn = f"<SPECIAL_11>Assistant\n{call}\n{END}\n<SPECIAL_11>User\n<TOOL_RESPONSE>[{answer}]</TOOL_RESPONSE>\n"
    assert read[1] == f"{head}{turn}<SPECIAL_11>Assistant\n<think></think>"


def test_an_earlier_thought_is_not_read_again(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    first, second = (f"I must look.\n</think>\n\n{reply}" for reply in solution(task))
    one, read = played(verify, model, monkeypatch, task, first, second, thinking=True, max_turns=2)
    assert one.right
    assert "I must look" not in read[1]
    assert read[1].endswith("<think>\n")


def test_a_failed_call_says_why_and_can_be_corrected(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    wrong = written({"name": "no_such_tool", "arguments": {}})
    one, read = played(verify, model, monkeypatch, task, wrong, *solution(task), max_turns=3)
    assert one.right
    assert [ran.failed for ran in one.ran] == [True, False, False]
    assert '{"error": "there is no tool \'no_such_tool\'; use one of' in read[1]


def test_the_last_of_the_turns_is_run_too_and_no_more_are_asked_for(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    one, read = played(verify, model, monkeypatch, task, *solution(task), max_turns=2)
    assert (one.right, len(read), one.ended) == (True, 2, False)
    one, read = played(verify, model, monkeypatch, task, *solution(task), max_turns=1)
    assert (one.right, len(read)) == (False, 1)


def test_a_conversation_that_fills_the_context_ends(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    prompt = verify.prompt_of(task, thinking=False)
    config = replace(model.config, max_position_embeddings=len(prompt.tokens) + 10)
    monkeypatch.setattr(model, "config", config)
    one, read = played(verify, model, monkeypatch, task, *solution(task))
    assert (len(read), one.right, LEVELS[one.level]) == (1, False, "called")


def test_a_task_that_does_not_fit_into_the_context_is_never_right(verify, model, monkeypatch):
    monkeypatch.setattr(model, "config", replace(model.config, max_position_embeddings=4))
    one, read = played(verify, model, monkeypatch, task_of(workplace.NOTHING))
    assert (read, one.turns, one.right) == ([], [], False)


# --- how tries are drawn ---


def test_tries_depend_on_purpose_task_number_and_turn_and_on_no_neighbor(verify, model):
    prompts = [verify.prompt_of(task_of(workplace.NOTHING, number), thinking=False) for number in range(2)]
    sampling = Sampling(6, CHAT.stop_ids, 1.0)

    def drawn(prompts, *purpose):
        return [one.tokens for one in draw_tries(model, verify, prompts, 2, sampling, purpose, max_turns=1)]

    both = drawn(prompts, "round", 1)
    assert both == drawn(prompts[:1], "round", 1) + drawn(prompts[1:], "round", 1)
    assert len({*both, *drawn(prompts, "round", 2)}) == 8


def test_the_turns_of_a_try_have_seeds_that_differ(verify, model, monkeypatch):
    task, seen = task_of(workplace.LOOK_UP), []

    def generate(model, prompts, sampling, seeds):
        seen.append(list(seeds))
        return [continuation(verify, solution(task)[0]) for _ in prompts]

    monkeypatch.setattr(module, "generate", generate)
    prompt = verify.prompt_of(task, thinking=False)
    draw_tries(model, verify, [prompt], 2, Sampling(64, CHAT.stop_ids, 1.0), ("test",), max_turns=3)
    assert len({seed for seeds in seen for seed in seeds}) == 6


# --- verifiers that fail ---


@pytest.mark.parametrize(
    ("verifier", "sentence"),
    [
        (lambda *given: 1 / 0, "ZeroDivisionError: division by zero"),
        pytest.param(lambda *given: time.sleep(60), "TimeoutError: no result after 0.2 s", marks=pytest.mark.posix),
    ],
    ids=["raises", "hangs"],
)
@pytest.mark.parametrize("name", ["run_calls", "is_right"])
def test_a_verifier_that_fails_is_named_and_its_try_is_not_judged(
    name, verifier, sentence, verify, model, monkeypatch, capsys
):
    task = task_of(workplace.LOOK_UP)
    monkeypatch.setattr(module, name, verifier)
    one, _ = played(verify, model, monkeypatch, task, *solution(task), max_turns=2)
    assert (one.right, one.fault) == (False, sentence)
    said = capsys.readouterr().err
    assert f"try 0 of {task.id} could not be judged: {sentence}" in said
    assert "1 of 1 tries could not be judged; they count as not right and are in no pair" in said


def test_nothing_is_said_of_judging_where_all_tries_are_judged(verify, model, monkeypatch, capsys):
    task = task_of(workplace.LOOK_UP)
    played(verify, model, monkeypatch, task, *solution(task), max_turns=2)
    assert "judged" not in capsys.readouterr().err


# --- what tries are worth ---


def test_metrics_compare_two_models_by_kind_with_errors_over_tasks(verify, model, monkeypatch):
    task, other = task_of(workplace.LOOK_UP), task_of(workplace.NOTHING)
    right = played(verify, model, monkeypatch, task, *solution(task), max_turns=2)[0]
    wrong = played(verify, model, monkeypatch, task, written({"name": "x", "arguments": {}}), f"No.{END}")[0]
    silent = played(verify, model, monkeypatch, other, END)[0]
    told = played(verify, model, monkeypatch, other, f"No.{END}")[0]
    found = try_metrics({"a": [wrong, wrong, silent, told], "b": [right, wrong, told, told]}, 2)
    assert found["success/look_up/a"] == 0
    assert found["success/look_up/b"] == found["success/nothing/a"] == 0.5
    assert found["success/all/a"] == 0.25
    assert found["success/all/b"] == 0.75
    assert found["success_difference/all"] == 0.5
    assert found["success_difference_error/all"] == 0
    assert found["success_error/all/a"] == pytest.approx(0.25)
    assert "success/correct/a" not in found  # no task of this kind
    assert (found["valid_calls/a"], found["valid_calls/b"]) == (0, 2 / 3)
    assert (found["ended/a"], found["broken/a"]) == (3 / 4, 1 / 4)
    assert (found["right_after_an_error/b"], found["calls_per_try/b"]) == (0, 3 / 4)
    assert solved_share([right, wrong, wrong, wrong]) == 0.25


def test_a_right_try_whose_first_call_failed_is_a_correction(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    wrong = written({"name": "x", "arguments": {}})
    corrected = played(verify, model, monkeypatch, task, wrong, *solution(task), max_turns=3)[0]
    given_up = played(verify, model, monkeypatch, task, wrong, f"No.{END}")[0]
    found = try_metrics({"a": [given_up], "b": [corrected]}, 1)
    assert (found["right_after_an_error/a"], found["right_after_an_error/b"]) == (0, 1)


def test_the_best_constant_policy_is_found_among_replies(verify):
    tasks = [task_of(workplace.NOTHING, number) for number in range(2)] + [task_of(workplace.CORRECT)]
    call = solution(tasks[-1])[0].removesuffix(END)
    found = best_constant_policy(tasks, [call, "No.", "Never."], 1)
    assert (found.reply, found.share) == ("No.", 2 / 3)


def test_the_text_of_a_conversation_has_calls_and_answers_in_turn(verify, model, monkeypatch):
    task = task_of(workplace.LOOK_UP)
    one = played(verify, model, monkeypatch, task, *solution(task), max_turns=2)[0]
    first, second = solution(task)
    answers = [ran.answer for ran in one.ran]
    assert conversation_text(one, verify.decode) == f"{first}\ntool: {answers[0]}\n{second}\ntool: {answers[1]}"
