"""Drawing exercises, their rows, and comparing replies with answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises import algebra
from nemotron.recipes.sources.exercises.exercise import (
    Exercise,
    draw_exercises,
    exercise_from_row,
    exercise_to_row,
    last_word,
    same_number,
    same_text,
    same_words,
)
from nemotron.recipes.sources.exercises.families import FAMILIES


@given(name=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_an_exercise_equals_the_one_read_back_from_its_row(name: str, seed: int, difficulty: int) -> None:
    (exercise,) = FAMILIES[name].generate_exercises(1, seed, split="evaluation", difficulty=difficulty)
    row = exercise_to_row(exercise)
    assert all(isinstance(value, str) for value in row.values())
    assert exercise_from_row(row) == exercise


def test_a_wrong_answer_stops_the_generation() -> None:
    def wrong(generator, difficulty: int) -> Exercise:
        return Exercise("", "math", ({"role": "user", "content": "What is 1 + 1?"},), (), "1 + 1 = 3", "3", "1 + 1")

    with pytest.raises(AssertionError, match=r"sft/math/000000: '3' does not answer 'What is 1 \+ 1\?'"):
        draw_exercises("math", wrong, algebra.is_correct, 1, 0, "train", 1)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("7", True), (" 7.\n", True), ("7..", False), ("7 .", False), ("07", False), ("7,", False), ("", False)],
)
def test_same_text(reply: str, right: bool) -> None:
    assert same_text(reply, "7") is right
    assert same_text(reply, "7.") is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("it IS\n b", True),
        (" It is b. ", True),
        ("It is b..", False),
        ("Itis b", False),
        ("It is a b", False),
        ("", False),
    ],
)
def test_same_words(reply: str, right: bool) -> None:
    assert same_words(reply, "It is b.") is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("3", True),
        (" 3 m.\n", True),
        ("3m", True),
        ("3..", False),
        ("3 km", False),
        ("m 3", False),
        ("33", False),
        ("", False),
    ],
)
def test_same_number_accepts_the_unit(reply: str, right: bool) -> None:
    assert same_number(reply, "3", "m") is right


def test_same_number_allows_spaces_around_the_slash_of_a_fraction() -> None:
    assert same_number("3 / 4", "3/4", "")
    assert not same_number("3 4", "3/4", "")


def test_last_word() -> None:
    assert [last_word(answer) for answer in ("It is 31.", "The phone of Ada is 007.", "cups")] == ["31", "007", "cups"]


def test_no_exercises_are_allowed_and_fewer_are_refused() -> None:
    assert algebra.generate_exercises(0, 0, split="train") == []
    with pytest.raises(ValueError, match="num_exercises=-1 must not be negative"):
        algebra.generate_exercises(-1, 0, split="train")
