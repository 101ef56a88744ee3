"""Every constraint is checked, and any reply that satisfies all of them is correct."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.instructions import (
    WORDS,
    check_answer,
    generate_exercises,
    is_complete,
    is_correct,
    longest_correct_reply,
    parts_of_list,
    parts_of_sentences,
)

LISTED = ["river", "lamp", "stone", "apple"]


def satisfies_constraints(listed: list[str], constraints: list, reply: str) -> bool:
    return is_complete(parts_of_list(listed, constraints, reply))


def satisfies_sentences(topic: str, number: int, constraints: list, reply: str) -> bool:
    return is_complete(parts_of_sentences(topic, number, constraints, reply))


@pytest.mark.parametrize(
    ("reply", "earned"),
    [
        ("river, lamp", {"count": 1, "end": 1}),
        ("river, stone", {"count": 1, "end": 0}),
        ("lamp", {"count": 0, "end": 1}),
        ("glass, lamp", {"count": 1 / 2, "end": 1 / 2}),
        ("lamp, lamp", {"count": 1 / 2, "end": 1 / 2}),
        ("glass, glass, lamp", {"count": 0, "end": 1 / 3}),
        ("sand", {"count": 0, "end": 0}),
        ("", {"count": 0, "end": 0}),
    ],
)
def test_a_constraint_counts_as_much_as_the_share_of_good_words(reply: str, earned: dict) -> None:
    assert parts_of_list(LISTED, [("count", 2), ("end", "lamp")], reply) == earned


@pytest.mark.parametrize(
    ("reply", "earned"),
    [
        ("The river is near a lamp. The river is not a stone.", {"sentences": 1, "mention": 1}),
        ("The river is near a lamp. The river is not a field.", {"sentences": 1, "mention": 0}),
        ("The river is near a lamp and a stone.", {"sentences": 0, "mention": 1}),
        ("The river is near a lamp. A stone.", {"sentences": 1 / 2, "mention": 1 / 2}),
        ("The river is near a lamp. The river is near a lamp.", {"sentences": 1 / 2, "mention": 0}),
        ("river", {"sentences": 0, "mention": 0}),
        ("", {"sentences": 0, "mention": 0}),
    ],
)
def test_a_constraint_counts_as_much_as_the_share_of_good_sentences(reply: str, earned: dict) -> None:
    assert parts_of_sentences("river", 2, [("mention", "lamp and stone")], reply) == earned


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
        (("with", "lamp"), ["lamp", "stone, lamp"], ["river, stone", "stone"]),
        (("alphabet", None), ["apple, lamp, river, stone", "stone", "apple, stone"], ["river, lamp", "stone, apple"]),
        (("upper", None), ["RIVER", "RIVER, APPLE", "STONE.", "RIVER,APPLE"], ["river", "RIVER, apple", "River"]),
    ],
)
def test_each_constraint_on_written_cases(constraint: tuple, right: list[str], wrong: list[str]) -> None:
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
    assert [reply for reply in right if not satisfies_constraints(LISTED, [constraint], reply)] == []
    assert [reply for reply in [*wrong, *general] if satisfies_constraints(LISTED, [constraint], reply)] == []


def test_white_space_at_a_comma_and_case_do_not_matter() -> None:
    written = ("river,lamp", "river , lamp", "river,\nlamp", "River, lamp", "River, Lamp.", "RIVER,LAMP")
    for constraint in (("count", 2), ("end", "lamp"), ("start", "r"), ("without", "stone")):
        assert [reply for reply in written if not satisfies_constraints(LISTED, [constraint], reply)] == []


def test_an_upper_case_reply_must_satisfy_the_other_constraints() -> None:
    for constraint in (("count", 3), ("end", "river"), ("start", "l"), ("without", "lamp"), ("alphabet", None)):
        assert not satisfies_constraints(LISTED, [constraint], "River,Lamp")
    assert satisfies_constraints(
        LISTED, [("alphabet", None)], "apple,River"
    )  # capitals come first in ASCII, not in the alphabet


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
    assert satisfies_constraints(["a b"], [("repeat", 3)], reply) is right
    assert satisfies_constraints(["a b"], [("repeat", 3)], reply.upper()) is right
    assert satisfies_constraints(["a b"], [("repeat", 3), ("upper", None)], reply.upper()) is right
    assert not satisfies_constraints(["a b"], [("repeat", 3), ("upper", None)], reply)


def test_several_replies_are_correct() -> None:
    exercise = next(
        e for e in generate_exercises(50, 0, split="train")
        if "exactly 2 words. Use the word" in e.messages[0]["content"]
    )  # fmt: skip
    first, second = exercise.answer.split(", ")
    assert check_answer(exercise, f"{second}, {first}")


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_the_difficulty_is_the_number_of_constraints(seed: int, difficulty: int) -> None:
    for exercise in generate_exercises(5, seed, split="train", difficulty=difficulty):
        details = json.loads(exercise.details)
        constraints = [(kind, value) for kind, value in details["constraints"]]
        kinds = {kind for kind, _value in constraints}
        assert len(constraints) == len(kinds)
        if "count" in kinds:
            assert len(constraints) == difficulty + 1
            assert longest_correct_reply(details["words"], constraints) == exercise.answer
        else:
            assert kinds & {"repeat", "mention"}
            assert difficulty > 1 or kinds == {"repeat"}
        assert exercise.reasoning.split("\n")[-1] == exercise.answer
        asked_for_upper = any(kind == "upper" for kind, _value in constraints)
        assert check_answer(exercise, exercise.answer.upper())
        assert check_answer(exercise, exercise.answer.capitalize()) is not (asked_for_upper or "topic" in details)


def test_longest_correct_reply_is_none_if_the_constraints_contradict_each_other() -> None:
    assert longest_correct_reply(LISTED, [("without", "lamp"), ("end", "lamp")]) is None
    assert longest_correct_reply(LISTED, [("alphabet", None), ("count", 3)]) == "lamp, river, stone"


def test_is_correct_rejects_details_that_differ_from_the_question() -> None:
    for exercise in generate_exercises(50, 0, split="train", difficulty=1):
        assert is_correct(exercise)
        assert not is_correct(replace(exercise, answer="RIVER, river"))
        assert not is_correct(replace(exercise, details=json.dumps({"words": ["a"], "constraints": []})))


def test_every_word_begins_with_a_different_letter() -> None:
    assert len({word[0] for word in WORDS}) == len(set(WORDS)) == len(WORDS)


def test_the_kinds_of_constraints_depend_on_the_difficulty():
    """The alphabetical order and sentences are asked for from difficulty two on."""
    asked = {
        difficulty: " ".join(
            exercise.messages[-1]["content"]
            for exercise in generate_exercises(60, 0, split="train", difficulty=difficulty)
        )
        for difficulty in (1, 2, 3)
    }
    assert ["alphabetical order" in text for text in asked.values()] == [False, True, True]
    assert ["Write exactly" in text for text in asked.values()] == [False, True, True]


GOOD = "The river is older than the lamp. The river runs past a stone."


@pytest.mark.parametrize(
    ("constraints", "reply", "right"),
    [
        ([], GOOD, True),
        ([], GOOD.removesuffix("."), True),
        ([], f"**{GOOD}**", True),
        ([], GOOD.replace(". ", "! "), True),
        ([], GOOD.replace(" The", "\nThe"), True),
        ([], "A stone and a lamp lie in the river. Is the river deep?", True),
        ([("long", 6)], GOOD, True),
        ([("long", 7)], GOOD, False),
        ([("end", "stone")], GOOD, True),
        ([("end", "lamp")], GOOD, False),
        ([("upper", None)], GOOD.upper(), True),
        ([("upper", None)], GOOD, False),
        ([], "", False),
        ([], "The river is older than the lamp.", False),  # one sentence
        ([], f"{GOOD} The river is deep.", False),  # three
        ([], "The river is deep. The river is cold.", False),  # mentions neither
        ([], "The river is like a lamp. It is like a stone too.", False),  # not about the river
        ([], "The lamp. The river is a stone.", False),  # too short
        ([], "river lamp stone river. river lamp stone river.", False),  # stuffed
        ([], "The river is near the lamp stone. The river is near the lamp stone.", False),  # twice the same
        ([], " ".join(f"river {word}" for word in WORDS) + ". The river " + " ".join(WORDS) + ".", False),
        ([], GOOD.replace("The river is", "the river is"), False),  # no capital letter
        ([], f"0\n{GOOD}", False),
        ([], f"<think>{GOOD}", False),
        ([], "... ! The river is older than the lamp. The river runs past a stone.", False),
        ([], "Write exactly 2 sentences about the river. Mention the words lamp and stone.", False),
    ],
)
def test_sentences_on_written_cases(constraints: list, reply: str, right: bool) -> None:
    assert satisfies_sentences("river", 2, [("mention", "lamp and stone"), *constraints], reply) is right


def test_every_kind_of_exercise_occurs_from_difficulty_two_on() -> None:
    for difficulty in (1, 2, 3, 4):
        exercises = generate_exercises(60, 0, split="train", difficulty=difficulty)
        beginnings = {exercise.messages[0]["content"][:14] for exercise in exercises}
        assert beginnings == {"Reply with dif", "Write the word"} | ({"Write exactly "} if difficulty > 1 else set())
