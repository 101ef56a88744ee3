"""What a reward model is given of a reply, and what it cannot give."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.scorer import Scorer, scores_of
from nemotron.recipes.scoring import judge as judge_module
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.judge import Judge, best_graded, read_ids
from nemotron.recipes.sources.exercises.exercise import user_exercise

EXERCISE = replace(
    user_exercise("conversation", "What is 4 + 5?", "", "It is 9.", "4+5"),
    id="a",
    details=json.dumps({"value": "9", "candidates": []}),
)
END = "\n<SPECIAL_12>"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 400), path / "plain")
    save_chat_tokenizer(CHAT, path / "plain", path / "chat")
    return path / "chat"


@pytest.fixture(scope="module")
def scorer():
    model = NemotronH(replace(MODELS["tiny"], vocab_size=400), dtype=torch.float64)
    initialize(model, 0)
    return Scorer(model)


@pytest.fixture(scope="module")
def judge(path, scorer):
    return Judge(CHAT, path, scorer)


def continuation(judge, text):
    """A reply with this text, whose end of turn is a token."""
    body, ended, _ = text.partition("<SPECIAL_12>")
    ids = judge.tokenizer.encode(body, add_special_tokens=False).ids
    return Continuation([*ids, *CHAT.stop_ids[:1]] if ended else ids, finish="stop" if ended else "length")


def reward(judge, text, *, thinking=False):
    prompt = judge.prompt_of(EXERCISE, thinking=thinking)
    [found] = judge([prompt], [continuation(judge, text)])
    return found


def score(judge, answer):
    return scores_of(judge.scorer, [judge.read_ids(EXERCISE, answer)], batch_rows=1).item()


def test_the_total_is_the_score_and_the_parts_are_those_of_the_rubric(judge):
    found = reward(judge, f"It is 9.{END}")
    assert found.total == pytest.approx(score(judge, "It is 9."), rel=1e-12)
    assert found.parts == {"helpful": 1, "correct": 1, "concise": 1, "language": 1, "tone": 1, "rubric": 1}
    assert (found.form, found.right, found.answer) == (1, True, "It is 9.")


def test_the_reward_model_reads_the_answer_without_its_thought(judge):
    with_thought = reward(judge, f"4 + 5 = 9\n</think>\n\nIt is 9.{END}", thinking=True)
    assert with_thought.total == pytest.approx(reward(judge, f"It is 9.{END}").total, rel=1e-12)


def test_what_is_read_is_the_conversation_up_to_its_end_of_turn(path):
    tokenizer = load_chat_tokenizer(CHAT, path)
    text = tokenizer.decode(read_ids(EXERCISE, "It is 9.", tokenizer, CHAT), skip_special_tokens=False)
    assert text == (
        "<SPECIAL_10>System\n\n<SPECIAL_11>User\nWhat is 4 + 5?\n<SPECIAL_11>Assistant\n<think></think>It is 9.\n"
        "<SPECIAL_12>\n"
    )


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("It is 9.", False),  # cut
        ("4 + 5 = 9", True),
        (f"4 + 5 = 9{END}", True),  # a thought that is never closed
        (f"9\n</think>\n\nIt is 9.{END}", False),
        (f"\n</think>\n\nIt is 9.{END}", True),  # an empty thought
    ],
)
def test_a_reply_of_the_wrong_form_is_scored_as_the_empty_one(judge, text, thinking):
    found = reward(judge, text, thinking=thinking)
    assert found.total == pytest.approx(score(judge, ""), rel=1e-12)
    assert set(found.parts.values()) == {0}
    assert found.form < 1
    assert found.answer == ""


def test_each_reply_is_judged_with_its_own_prompt(judge):
    other = replace(EXERCISE, id="b", details=json.dumps({"value": "8", "candidates": []}))
    prompts = [judge.prompt_of(one, thinking=False) for one in (EXERCISE, other)]
    replies = [continuation(judge, f"It is {number}.{END}") for number in (9, 8, 9, 8)]
    assert [one.parts["correct"] for one in judge(prompts, replies)] == [1, 0, 0, 1]


def test_without_a_reward_model_the_total_is_that_of_the_rubric(path):
    found = reward(Judge(CHAT, path), f"It is 8.{END}")
    assert found.total == found.parts["rubric"] == 0.6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_with_the_prompt(path, value):
    model = NemotronH(replace(MODELS["tiny"], vocab_size=400), dtype=torch.float64)
    initialize(model, 0)
    broken = Scorer(model)
    with torch.no_grad():
        broken.lm_head.weight.fill_(value)
    sentence = r"^the reward model gives the reply 'It is 9\.' to the prompt a the score -?(nan|inf); train the reward "
    with pytest.raises(ValueError, match=sentence):
        reward(Judge(CHAT, path, broken), f"It is 9.{END}")


@pytest.mark.parametrize(
    ("rubric", "fault"),
    [
        (lambda *given: 1 / 0, "ZeroDivisionError: division by zero"),
        pytest.param(lambda *given: time.sleep(60), "TimeoutError: no result after 0.1 s", marks=pytest.mark.posix),
    ],
    ids=["raises", "hangs"],
)
@pytest.mark.parametrize("has_scorer", [True, False])
def test_a_rubric_that_fails_is_named_and_counted_and_the_score_stays(
    rubric, fault, has_scorer, path, scorer, monkeypatch, capsys
):
    monkeypatch.setattr(judge_module, "rubric_parts", rubric)
    judge = Judge(CHAT, path, scorer if has_scorer else None, seconds=0.1)
    found = reward(judge, f"It is 9.{END}")
    assert found.total == (pytest.approx(score(judge, "It is 9."), rel=1e-12) if has_scorer else 0)
    assert found.parts == dict.fromkeys(("helpful", "correct", "concise", "language", "tone", "rubric"), 0)
    assert (found.fault, found.right, found.form, found.answer) == (fault, False, 1, "It is 9.")
    assert f"the rubric failed on a reply to a: {fault}\n" in capsys.readouterr().err


def test_the_best_constant_answer_is_the_one_that_earns_most_on_average():
    others = [replace(EXERCISE, details=json.dumps({"value": value, "candidates": []})) for value in ("9", "9", "8")]
    assert best_graded(others, ["8", "It is 8.", "It is 9.", "It is 9"]) == Chance("It is 9.", pytest.approx(2.6 / 3))
    assert best_graded(others, ["a", "a", "b"]).reply == "a"
