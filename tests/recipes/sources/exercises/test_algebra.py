"""Answers agree with exact fractions, and the order of terms does not change the task."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.algebra import (
    LARGEST,
    canonical_form,
    check_answer,
    digit_steps,
    format_side,
    generate_exercises,
    is_correct,
    numbers,
)
from nemotron.recipes.sources.exercises.exercise import user_exercise


def side_at(text: str, x: Fraction) -> Fraction:
    """The value of a side such as "-2x + 5" at x, computed without sympy."""
    terms = text.replace(" - ", " + -").split(" + ")
    return sum(
        (
            Fraction({"x": "1", "-x": "-1"}.get(term, term.removesuffix("x"))) * (x if "x" in term else 1)
            for term in terms
        ),
        Fraction(0),
    )


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_the_answer_solves_the_question(seed: int, difficulty: int) -> None:
    for exercise in generate_exercises(10, seed, split="train", difficulty=difficulty):
        text = re.sub(r"^(What is|Solve) |\?$| for x\.$", "", exercise.messages[0]["content"])
        values = [side_at(side, Fraction(exercise.answer)) for side in text.split(" = ")]
        assert {*values, Fraction(exercise.answer)} == {values[-1]} if "x" not in text else values[0] == values[1]


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 3))
def test_every_step_is_true(seed: int, difficulty: int) -> None:
    for exercise in generate_exercises(10, seed, split="train", difficulty=difficulty):
        for equation in re.findall(r"-?\d+(?: [-+*/] \d+)+ = -?\d+", exercise.reasoning):
            left, right = equation.replace(" - ", " + -").split(" = ")
            if "*" in left or "/" in left:
                first, sign, second = left.split()
                value = Fraction(first) * Fraction(second) ** (1 if sign == "*" else -1)
            else:
                value = sum(map(Fraction, left.split(" + ")), Fraction(0))
            assert value == int(right), exercise.reasoning


def test_difficulty_one_has_one_digit_numbers_and_steps_that_end_in_the_answer() -> None:
    for exercise in generate_exercises(500, 0, split="train"):
        amounts = map(int, re.findall(r"\d+", exercise.messages[0]["content"] + exercise.reasoning))
        assert max(amounts) <= LARGEST
        assert exercise.reasoning.split(" = ")[-1] == exercise.answer


@pytest.mark.parametrize(
    ("left", "right", "steps"),
    [
        (47, 38, ["ones: 7 + 8 = 15, carry 1", "tens: 4 + 3 + 1 = 8", "47 + 38 = 85"]),
        (41, 38, ["ones: 1 + 8 = 9", "tens: 4 + 3 = 7", "41 + 38 = 79"]),
        (95, 47, ["ones: 5 + 7 = 12, carry 1", "tens: 9 + 4 + 1 = 14", "95 + 47 = 142"]),
        (85, -38, ["ones: 15 - 8 = 7, borrowed 1", "tens: 8 - 3 - 1 = 4", "85 - 38 = 47"]),
        (88, -35, ["ones: 8 - 5 = 3", "tens: 8 - 3 = 5", "88 - 35 = 53"]),
    ],
)
def test_digit_steps_on_written_cases(left: int, right: int, steps: list[str]) -> None:
    assert digit_steps(left, right) == steps


def test_the_order_of_terms_and_sides_does_not_change_the_task() -> None:
    assert canonical_form([numbers(7, 12, -5)]) == canonical_form([numbers(12, -5, 7)])
    assert canonical_form([numbers(7, 12)]) != canonical_form([numbers(7, -12)])
    assert canonical_form([[(2, "x")], numbers(8)]) == canonical_form([numbers(8), [(2, "x")]])
    assert canonical_form([[(2, "x")], numbers(8)]) != canonical_form([[(8, "x")], numbers(2)])


def test_a_side_is_written_as_people_write_it() -> None:
    assert format_side([(-1, "x"), (5, ""), (-12, "x"), (1, "x")]) == "-x + 5 - 12x + x"


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("What is 7 + 12 - 5?", "14", True),
        ("What is 7 + 12 - 5?", "15", False),
        ("Solve x + 7 = 12 for x.", "5", True),
        ("Solve x + 7 = 12 for x.", "-5", False),
        ("Solve -9x - 16 = -4x + 20 for x.", "-36/5", True),
        ("Solve x + 1 = x + 1 for x.", "3", False),
        ("Solve x + 1 = 2 = x for x.", "1", False),
    ],
)
def test_is_correct_on_written_cases(question: str, answer: str, right: bool) -> None:
    assert is_correct(user_exercise("math", question, "", answer, "")) is right


@pytest.mark.parametrize(
    ("question", "answer", "right", "wrong"),
    [
        ("What is 7 + 12 - 5?", "14", ["14", "14.", "14.0"], ["x = 14", "41", "-14", "14.5", "14/1", "28/2", "7 + 7"]),
        ("Solve 12x = 36 for x.", "3", ["3", "x = 3", "x=3."], ["36/12", "x = 36/12", "y = 3", "x = x = 3", "3x", "x"]),
        ("Solve -9x - 16 = -4x + 20 for x.", "-36/5", ["-36/5", "x = -36 / 5", "-7.2", "x = -7.20."],
         ["36/5", "-72/10", "-7.3", "-36/-5", "-36/0", "7.2", "-36", "-7,2"]),
        ("Solve 3x = 1 for x.", "1/3", ["1/3"], ["0.333333333", "0.3", "3", "1/3/1", "9" * 5000]),
    ],
)  # fmt: skip
def test_a_number_may_be_written_in_any_reduced_form(
    question: str, answer: str, right: list[str], wrong: list[str]
) -> None:
    exercise = user_exercise("math", question, "", answer, "")
    assert [reply for reply in right if not check_answer(exercise, reply)] == []
    assert [reply for reply in wrong if check_answer(exercise, reply)] == []
