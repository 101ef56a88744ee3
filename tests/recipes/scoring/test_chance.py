"""The chance level, and replies that try to be paid without an answer."""

import re
import time

import pytest

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.scoring import chance
from nemotron.recipes.scoring.chance import (
    PLAUSIBLE,
    Chance,
    always_refusing,
    best_constant,
    best_copying,
    best_rewarded,
    chance_levels,
    chance_metrics,
)
from nemotron.recipes.scoring.exercises import Mode, judge
from nemotron.recipes.scoring.guard import Guard
from nemotron.recipes.sources.exercises import instructions
from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.sources.exercises.instructions import WORDS
from nemotron.recipes.sources.exercises.safety import WAYS
from nemotron.recipes.sources.exercises.tool_calling import TOOLS

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def sums(*answers: str):
    return [user_exercise("math", "What is it?", "", answer, answer) for answer in answers]


def test_the_best_constant_is_the_reply_that_is_right_most_often() -> None:
    assert best_constant(sums("3", "4", "4", "5"), ["3", "4", "5", "6"]) == Chance("4", 0.5)


def test_of_equally_good_replies_the_shortest_and_then_the_first_is_taken_whatever_their_order() -> None:
    for replies in (["4.0", "5", "3"], ["3", "5", "4.0"]):
        assert best_constant(sums("3", "4", "5"), replies) == Chance("3", 1 / 3)
    assert best_constant(sums("4"), ["4.00", "4.0"]) == Chance("4.0", 1.0)


def test_replies_of_the_training_set_are_tried_and_only_those_of_the_family_and_difficulty() -> None:
    exercises = [e for family in FAMILIES.values() for e in family.generate_exercises(30, 0, split="evaluation")]
    levels = chance_levels(exercises, num_answers=300, seed=0)
    assert list(levels) == list(FAMILIES)
    assert levels["long_context"].reply not in PLAUSIBLE
    assert levels["long_context"].share > 0
    assert levels == chance_levels(exercises, num_answers=300, seed=0)
    without = chance_levels(exercises, num_answers=0, seed=0)
    assert without["long_context"].share < levels["long_context"].share


def test_the_metrics_leave_long_context_out_of_the_mean() -> None:
    levels = {"math": Chance("4", 0.25), "code": Chance("1", 0.75), "long_context": Chance("Rome", 1.0)}
    assert chance_metrics(levels, []) == {
        "chance/math": 0.25, "chance/code": 0.75, "chance/long_context": 1.0, "chance/all": 0.5,
        "always_refusing/safety": 0.0,
    }  # fmt: skip


# --- verifiers that fail ---


@pytest.fixture
def one_fails(monkeypatch):
    """Eight instructions, and a way to make the verifier of the first one do something else."""
    exercises = instructions.generate_exercises(8, 3, split="evaluation")
    real, asked = instructions.satisfied_parts, []

    def install(verify):
        def satisfied_parts(exercise, reply):
            if exercise.id != exercises[0].id:
                return real(exercise, reply)
            asked.append(reply)
            return verify(reply)

        monkeypatch.setattr(instructions, "satisfied_parts", satisfied_parts)
        return exercises, asked

    return install


def test_a_verifier_that_raises_costs_the_chance_level_one_exercise_and_is_named(one_fails, capsys) -> None:
    exercises, _ = one_fails(lambda reply: {}[reply])
    replies = [exercise.answer for exercise in exercises]
    others = (best_rewarded(exercises[1:], replies), best_copying(exercises[1:]), best_constant(exercises[1:], replies))
    capsys.readouterr()
    found = (best_rewarded(exercises, replies), best_copying(exercises), best_constant(exercises, replies))
    assert [one.reply for one in found] == [one.reply for one in others]
    assert [one.share for one in found] == pytest.approx([one.share * 7 / 8 for one in others])
    sentence = f"the verifier of instruction_following failed on {exercises[0].id}, for the chance level: KeyError"
    assert capsys.readouterr().err.count(sentence) >= 3


def test_after_a_fault_the_other_replies_to_an_exercise_still_count(one_fails) -> None:
    exercises, _ = one_fails(lambda reply: {"count": 1.0} if reply == "good" else {}[reply])
    assert best_rewarded(exercises[:1], ["bad", "good", "a"]) == Chance("good", 1.0)


@pytest.mark.posix
def test_a_verifier_that_hangs_costs_the_chance_level_its_time_once(one_fails, monkeypatch) -> None:
    monkeypatch.setattr(chance, "Guard", lambda: Guard(seconds=0.5))
    exercises, asked = one_fails(lambda reply: time.sleep(60))
    started = time.monotonic()
    best_rewarded(exercises, map(str, range(50)))
    best_copying(exercises)
    assert asked == ["0", exercises[0].messages[-1]["content"]]
    assert time.monotonic() - started < 20


def test_refusing_everything_gets_the_share_of_requests_that_are_forbidden() -> None:
    exercises = FAMILIES["safety"].generate_exercises(200, 0, split="evaluation")
    forbidden = sum("Not allowed." in exercise.reasoning for exercise in exercises) / 200
    assert always_refusing(exercises) == forbidden == pytest.approx(0.5, abs=0.1)


# At small's difficulty, of 150 exercises. A one-digit number is right once in ten times, a town once in 24.
HIGHEST_CHANCE = {"math": 0.2, "code": 0.12, "science": 0.06, "tool_calling": 0.03, "instruction_following": 0.05,
                  "long_context": 0.08, "multilingual": 0.08, "safety": 0.06}  # fmt: skip


@every_family
def test_no_constant_reply_gets_a_large_share(family) -> None:
    exercises = family.generate_exercises(150, 1234, split="evaluation")
    level = chance_levels(exercises, num_answers=400, seed=1234)[family.FAMILY]
    assert level.share <= HIGHEST_CHANCE[family.FAMILY], level


def all_calls(exercise) -> str:
    """A call of every tool of an exercise for every row that its text names."""
    words = re.findall(r"\w+", exercise.messages[-1]["content"])
    calls = [f'{{"name": "{tool}", "arguments": {{"item": "{word}"}}}}' for tool in TOOLS for word in words]
    return f"<TOOLCALL>[{', '.join(calls)}]</TOOLCALL>"


EVERY_NUMBER = list(map(str, range(-20, 120)))
POLICIES = {
    "nothing": lambda e: "",
    "white space": lambda e: " \n\t",
    "a period": lambda e: ".",
    "the prompt": lambda e: e.messages[-1]["content"],
    "the whole conversation": lambda e: "\n".join(m["content"] for m in e.messages),
    "the prompt and the answer": lambda e: f"{e.messages[-1]['content']}\n{e.answer}",
    "the answer after a guess": lambda e: f"0\n{e.answer}",
    "the answer or another": lambda e: f"{e.answer} or 0",
    "another or the answer": lambda e: f"0, {e.answer}",
    "the answer twice": lambda e: f"{e.answer}\n{e.answer}",
    "the steps": lambda e: e.reasoning + "\nand so on",
    "the steps and the answer": lambda e: f"{e.reasoning}\n\n{e.answer}",
    "every number": lambda e: " ".join(EVERY_NUMBER),
    "every number on a line": lambda e: "\n".join(EVERY_NUMBER),
    "every number with commas": lambda e: ",".join(EVERY_NUMBER),
    "every digit, grouped": lambda e: "1,2,3,4,5,6,7,8,9",
    "every word": lambda e: ", ".join(WORDS),
    "every way": lambda e: ". ".join(sorted(set(WAYS.values()))),
    "every call": all_calls,
    "every word of the prompt": lambda e: ", ".join(re.findall(r"\w+", e.messages[-1]["content"])),
    "very long": lambda e: f"{e.answer} " * 2_000,
    "the answer at the end of a long reply": lambda e: "no " * 20_000 + e.answer,
    "a thought in the answer": lambda e: f"<think>{e.answer}</think>",
    "an unclosed thought in the answer": lambda e: f"<think>{e.answer}",
    "the answer in a comment": lambda e: f"<!-- {e.answer} -->",
    "the answer in JSON": lambda e: f'{{"answer": "{e.answer}"}}',
}


@every_family
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_reply_that_gives_no_single_answer_is_never_right(family, policy) -> None:
    started = time.process_time()
    for difficulty in (1, 2):
        for exercise in family.generate_exercises(12, 3, split="train", difficulty=difficulty):
            assert not family.check_answer(exercise, policy(exercise)), policy(exercise)[:300]
    assert time.process_time() - started < 10


LISTED = re.compile(r"[:,] (\w+)(?=[,.])")
COPIED = {
    "the first word of the list": (lambda words: words[:1], 0),
    "the first two words": (lambda words: words[:2], 0.25),
    "the last two words": (lambda words: words[-2:], 0.25),
    "the first three words": (lambda words: words[:3], 0.25),
    "the list": (lambda words: words, 0),
    "the list in order": (sorted, 0),
}


@pytest.mark.parametrize(("policy", "most"), COPIED.values(), ids=COPIED)
def test_copying_from_the_list_satisfies_few_instructions(policy, most) -> None:
    family = FAMILIES["instruction_following"]
    exercises = family.generate_exercises(300, 1234, split="evaluation")
    replies = [", ".join(policy(LISTED.findall(e.messages[0]["content"]))) for e in exercises]
    right = [family.check_answer(e, reply) for e, reply in zip(exercises, replies, strict=True)]
    assert sum(right) / 300 <= most


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(["the thought closes </think> with an answer"], 300)
    tokenizer.encode_special_tokens = False
    return tokenizer


@every_family
@pytest.mark.parametrize(
    "text",
    [
        "{answer}",  # never closes its thought
        "so it is {answer}\n</think>\n\n<SPECIAL_12>",  # the answer is only inside the thought
        "so it is {answer}\n</think>\n\nsee above\n<SPECIAL_12>",
        "a\n</think>\n\n{answer}\n<think>\nor {answer}\n<SPECIAL_12>",  # thinks again, without an end
        "a\n</think>\n\n0\n</think>\n\n{answer}\n<SPECIAL_12>",  # two thoughts, two answers
    ],
)
def test_an_answer_inside_a_thought_or_after_two_thoughts_is_wrong(tokenizer, family, text) -> None:
    mode = Mode("think", Sampling(max_new_tokens=6))
    for exercise in family.generate_exercises(3, 3, split="train"):
        tokens = tokenizer.encode(text.format(answer=exercise.answer)).ids
        finish = "stop" if text.endswith("<SPECIAL_12>") else "length"
        reply = Continuation(tokens, [0.0] * len(tokens), [False] * len(tokens), finish)
        assert not judge(exercise, reply, tokenizer, CHAT, mode).right
