"""Written cases, conversions back and forth, and `is_correct` on wrong answers."""

import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.science import (
    SOLUTIONS,
    STEPS_OF_TEN,
    STEPS_OF_THE_CLOCK,
    check_answer,
    convert,
    generate_exercises,
    in_base,
    is_correct,
    quotient_step,
)

BY_HAND = {
    "How many cm are 12 m?": "1200",
    "How many kg are 7 t?": "7000",
    "How many h are 45 min? Answer with a whole number or a reduced fraction.": "3/4",
    "How many weeks are 21 days? Answer with a whole number or a reduced fraction.": "3",
    "Write each digit of the octal number 527 with three bits.": "101 010 111",
    "Write each digit of the octal number 10 with three bits.": "001 000",
    "Masses in g: wax 7, ice 12, salt 5. What is the mass of ice?": "12",
    "Masses in g: wax 7, ice 12, salt 5. Which is the heaviest?": "ice",
    "Masses in g: wax 7, ice 12, salt 5. Which is the lightest?": "salt",
    "Masses in g: wax 7, ice 12, salt 5. By how many g is the heaviest heavier than the lightest?": "7",
    "Write the number 37 of base 10 in base 2.": "100101",
    "Write the number 1201 of base 3 in base 10.": "46",
    "What are the chemical symbols of gold, tin and iron? Separate them by spaces.": "Au Sn Fe",
    "A train goes 66 m in 16 s. How many m/s is that? Answer with a whole number or a reduced fraction.": "33/8",
    "A train goes 7 km in 12 min. How many m/s is that? Answer with a whole number or a reduced fraction.": "175/18",
    "Atomic masses: H 1, C 12, N 14, O 16, S 32. What is the mass of one molecule C6H12O6?": "180",
}


@pytest.mark.parametrize(("question", "answer"), BY_HAND.items())
def test_is_correct_on_written_cases(question: str, answer: str) -> None:
    exercise = user_exercise("science", question, "", answer, "")
    assert is_correct(exercise)
    assert not is_correct(replace(exercise, answer=f"{answer}0"))
    assert check_answer(exercise, f"{answer}.")


def form_of(question: str) -> str:
    """The only form in `SOLUTIONS` that matches the question."""
    (form,) = [form for form in SOLUTIONS if re.fullmatch(form, question)]
    return form


def test_every_form_of_question_occurs_and_has_a_written_case() -> None:
    drawn = [e for d in (1, 2, 3, 4) for e in generate_exercises(60, 0, split="train", difficulty=d)]
    assert {form_of(e.messages[0]["content"]) for e in drawn} == set(SOLUTIONS) == set(map(form_of, BY_HAND))


@pytest.mark.parametrize(("small", "large", "factor"), STEPS_OF_TEN + STEPS_OF_THE_CLOCK)
def test_both_tables_of_units_agree(small: str, large: str, factor: int) -> None:
    assert convert("1", large, small) == factor
    assert convert("1", small, large) == Fraction(1, factor)


@given(number=st.integers(1, 4095), base=st.integers(2, 10))
def test_a_number_in_a_base_converts_back(number: int, base: int) -> None:
    assert int(in_base(number, base), base) == number


@given(seed=st.integers(0, 2**63), difficulty=st.integers(1, 4))
def test_every_equation_of_numbers_is_true(seed: int, difficulty: int) -> None:
    def value(text: str) -> Fraction:
        return sum(
            (
                Fraction(a) * Fraction(b or 1)
                for a, b in re.findall(r"([-\d/]+)(?: \* (\d+))?", text.replace("- ", "-"))
            ),
            Fraction(0),
        )

    for exercise in generate_exercises(10, seed, split="train", difficulty=difficulty):
        for line in exercise.reasoning.split("\n"):
            if re.fullmatch(r"[-\d/ *+=]+", line) and "=" in line:
                assert len({value(side) for side in line.split(" = ")}) == 1, line


def test_a_fraction_that_cannot_be_reduced_is_written_once() -> None:
    assert (quotient_step(16, 8), quotient_step(9, 4), quotient_step(6, 4)) == ("16/8 = 2", "9/4", "6/4 = 3/2")


def test_the_order_of_rows_does_not_change_the_task() -> None:
    for exercise in generate_exercises(60, 0, split="train", difficulty=2):
        _title, found, table = exercise.messages[0]["content"].partition("Masses in g: ")
        rows = re.findall(r"([a-z]+ \d+)[,.]", table)
        assert not found or exercise.canonical.endswith(f"? {' '.join(sorted(rows))}")


def test_a_fraction_must_be_reduced() -> None:
    question = "How many h are 45 min? Answer with a whole number or a reduced fraction."
    exercise = user_exercise("science", question, "", "3/4", "")
    assert [check_answer(exercise, reply) for reply in ("3/4", "3 / 4", "6/8", "0.75")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("beginning", "right", "wrong"),
    [
        ("How many cm are 12 m?", ["1200", "1200 cm", "1200cm."], ["1200 m", "12 m", "1200 cm cm", "cm", "1200.."]),
        ("How many h are 45 min?", ["3/4 h"], ["3/4 min", "45 min"]),
        ("Write each digit of the octal number 527", ["101010111", "101, 010, 111", "101\n010\n111."],
         ["101 111 010", "10101111", "1010 10111", "1010101110", "101010111..", "5 2 7", "101-010-111"]),
        ("Masses in g: wax 7, ice 12, salt 5. What is", ["12 g"], ["12 kg", "7 g", "ice"]),
        ("Masses in g: wax 7, ice 12, salt 5. Which is the heaviest?", ["Ice", "ICE."], ["wax", "12", "ice g"]),
        ("Masses in g: wax 7, ice 12, salt 5. By how many", ["7 g"], ["7 kg"]),
        ("What are the chemical symbols", ["Au  Sn\nFe"], ["AU SN FE", "Au, Sn, Fe", "Sn Au Fe", "AuSnFe"]),
        ("A train goes 66 m", ["33/8 m/s", "33 / 8 m/s."], ["33/8 km/s", "33/8 m"]),
        ("Atomic masses", ["180."], ["180 g"]),
    ],
)  # fmt: skip
def test_the_reply_may_vary_where_the_question_allows_it(beginning: str, right: list[str], wrong: list[str]) -> None:
    ((question, answer),) = [case for case in BY_HAND.items() if case[0].startswith(beginning)]
    exercise = user_exercise("science", question, "", answer, "")
    assert [reply for reply in right if not check_answer(exercise, reply)] == []
    assert [reply for reply in wrong if check_answer(exercise, reply)] == []
