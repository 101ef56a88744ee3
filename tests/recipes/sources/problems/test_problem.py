"""What all families of problems share: the split, random draws, texts and documents."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.problems import arithmetic, lookup
from nemotron.recipes.sources.problems.problem import (
    EVALUATION_SHARE,
    Problem,
    draw_integer,
    draw_item,
    problem_documents,
    problem_text,
    seeded_random,
    split_of,
)

WORKED = Problem("math/x/000000", "x", "How many?", "1 + 1 = 2", "2", ("1", "2"), 1, "(1 + 1)")
UNWORKED = Problem("math/x/000001", "x", "A is 7.\nWhat is A?", "", "7", ("7", "8"), 0, "a")


def test_a_text_is_question_steps_and_answer() -> None:
    assert problem_text(WORKED) == "Question: How many?\n1 + 1 = 2\nAnswer: 2"
    assert problem_text(WORKED, with_steps=False) == "Question: How many?\nAnswer: 2"


def test_without_steps_the_answer_is_on_the_line_of_the_question() -> None:
    assert problem_text(UNWORKED) == problem_text(UNWORKED, with_steps=False) == "A is 7.\nWhat is A? 7"


def test_documents_are_in_blocks_of_twenty_and_every_second_one_has_steps() -> None:
    documents = problem_documents(arithmetic.generate_problems(41, 0, split="train"))
    assert Counter(d.module for d in documents) == {
        "math/arithmetic/0000": 20,
        "math/arithmetic/0001": 20,
        "math/arithmetic/0002": 1,
    }
    assert {(d.category, d.licence, d.origin, d.has_example, d.exported) for d in documents} == {
        ("math", "Apache-2.0", "procedural", None, None)
    }
    assert [d.text.count("\n") > 1 for d in documents] == [index % 2 == 0 for index in range(41)]
    assert documents[23].id == "math/arithmetic/000023"


def test_about_a_tenth_of_all_tasks_are_for_evaluation() -> None:
    splits = Counter(split_of(f"({a} + {b})") for a in range(100) for b in range(100))
    assert splits["evaluation"] / 10_000 == pytest.approx(EVALUATION_SHARE, abs=0.01)


def test_the_seed_determines_the_sequence() -> None:
    assert [seeded_random("a", 1).random() for _ in range(2)] == [0.7751543533994082] * 2
    assert seeded_random("a", 1).random() != seeded_random("a", 2).random()
    assert seeded_random("a", 1).random() != seeded_random("b", 1).random()


@given(seed=st.integers(), low=st.integers(-50, 50), width=st.integers(0, 20))
def test_draws_cover_the_whole_range_and_nothing_else(seed: int, low: int, width: int) -> None:
    generator = seeded_random("test", seed)
    drawn = {draw_integer(generator, low, low + width) for _ in range(60 * (width + 1))}
    assert drawn == set(range(low, low + width + 1))
    assert {draw_item(generator, "abc") for _ in range(90)} == set("abc")


@pytest.mark.parametrize("family", [arithmetic, lookup])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_problems": -1, "split": "train"}, "num_problems=-1 must not be negative"),
        ({"num_problems": 1, "split": "test"}, "split='test' must be 'train' or 'evaluation'"),
        ({"num_problems": 1, "split": "train", "difficulty": -1}, "difficulty=-1 must"),
    ],
)
def test_an_argument_out_of_range_raises_a_value_error(family, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family.generate_problems(seed=0, **arguments)


@pytest.mark.parametrize("family", [arithmetic, lookup])
def test_zero_problems_are_allowed(family) -> None:
    assert family.generate_problems(0, 0, split="train") == []
    assert problem_documents([]) == []
