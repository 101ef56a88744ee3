"""Every constraint is checked, and any reply that keeps to all of them is right."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.instructions import (
    WORDS,
    check_answer,
    first_right_reply,
    generate_exercises,
    holds,
    is_right,
)

LISTED = ["river", "lamp", "stone", "apple"]


@pytest.mark.parametrize(
    ("constraint", "right", "wrong"),
    [
        (
            ("count", 2),
            ["river, lamp", "stone, apple", "apple, river."],
            ["river", "river, lamp, stone", "river, river"],
        ),
        (("end", "lamp"), ["lamp", "river, lamp", "apple, stone, lamp"], ["lamp, river", "river"]),
        (("start", "s"), ["stone", "stone, river"], ["river, stone", "sand"]),
        (("without", "lamp"), ["river", "stone, apple"], ["river, lamp", "lamp"]),
        (("alphabet", None), ["apple, lamp, river, stone", "stone", "apple, stone"], ["river, lamp", "stone, apple"]),
        (("upper", None), ["RIVER", "RIVER, APPLE", "STONE.", "RIVER,APPLE"], ["river", "RIVER, apple", "River"]),
    ],
)
def test_a_constraint_by_hand(constraint: tuple, right: list[str], wrong: list[str]) -> None:
    general = [
        "",
        ".",
        "glass",
        "river lamp",
        "river, ",
        "river,,lamp",
        "river; lamp",
        "lamp, lamp",
        "lamp, Lamp",
        "LAMP, LAMP",
        "lamp,lamp",
        "Glass",
        "river, lamp, stone, apple, x",
    ]
    assert [reply for reply in right if not is_right(LISTED, [constraint], reply)] == []
    assert [reply for reply in [*wrong, *general] if is_right(LISTED, [constraint], reply)] == []


def test_space_at_a_comma_and_capitals_are_free() -> None:
    written = ("river,lamp", "river , lamp", "river,\nlamp", "River, lamp", "River, Lamp.", "RIVER,LAMP")
    for constraint in (("count", 2), ("end", "lamp"), ("start", "r"), ("without", "stone")):
        assert [reply for reply in written if not is_right(LISTED, [constraint], reply)] == []


def test_capitals_hide_no_fault() -> None:
    for constraint in (("count", 3), ("end", "river"), ("start", "l"), ("without", "lamp"), ("alphabet", None)):
        assert not is_right(LISTED, [constraint], "River,Lamp")
    assert is_right(LISTED, [("alphabet", None)], "apple,River")  # capitals come first in ASCII, not in the alphabet


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("a b, a b, a b", True),
        ("a b,a b,a b", True),
        ("ab, ab, ab", False),
        ("a b, a b", False),
        ("a b, a b, a b, a b", False),
        ("a b a b a b", False),
        ("a, b, a", False),
    ],
)
def test_repetitions_are_counted(reply: str, right: bool) -> None:
    assert is_right(["a b"], [("repeat", 3)], reply) is right
    assert is_right(["a b"], [("repeat", 3)], reply.upper()) is right
    assert is_right(["a b"], [("repeat", 3), ("upper", None)], reply.upper()) is right
    assert not is_right(["a b"], [("repeat", 3), ("upper", None)], reply)


def test_more_than_one_reply_is_right() -> None:
    exercise = next(
        e for e in generate_exercises(50, 0, split="train") if "exactly 2 words" in e.messages[0]["content"]
    )
    first, second, *_rest = json.loads(exercise.details)["words"]
    assert exercise.answer == f"{first}, {second}"
    assert check_answer(exercise, f"{second}, {first}")


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_there_are_as_many_constraints_as_the_difficulty_says(seed: int, difficulty: int) -> None:
    for exercise in generate_exercises(5, seed, split="train", difficulty=difficulty):
        details = json.loads(exercise.details)
        constraints = [(kind, value) for kind, value in details["constraints"]]
        assert len(constraints) == difficulty == len({kind for kind, _value in constraints})
        assert first_right_reply(details["words"], constraints) == exercise.answer
        assert exercise.reasoning.split("\n")[-1] == exercise.answer
        asked_for_upper = any(kind == "upper" for kind, _value in constraints)
        assert check_answer(exercise, exercise.answer.swapcase()) is not asked_for_upper


def test_the_first_right_reply_keeps_to_all_and_is_none_where_they_exclude_each_other() -> None:
    assert first_right_reply(LISTED, [("without", "lamp"), ("end", "lamp")]) is None
    assert first_right_reply(LISTED, [("alphabet", None), ("count", 3)]) == "lamp, river, stone"


def test_the_reader_notices_words_that_say_something_else_than_the_details() -> None:
    for exercise in generate_exercises(50, 0, split="train", difficulty=1):
        assert holds(exercise)
        assert not holds(replace(exercise, answer="RIVER, river"))
        assert not holds(replace(exercise, details=json.dumps({"words": ["a"], "constraints": []})))


def test_no_two_words_begin_alike() -> None:
    assert len({word[0] for word in WORDS}) == len(set(WORDS)) == len(WORDS)
