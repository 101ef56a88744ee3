"""The evaluator agrees with Python on the expressions that it allows, and allows no others."""

import ast
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises.code_output import (
    LARGEST_PRODUCT,
    LARGEST_SIZE,
    LONGEST_EXPRESSION,
    evaluate,
    generate_exercises,
)


def test_python_prints_the_same_answers() -> None:
    exercises = [e for d in (1, 2, 3, 4) for e in generate_exercises(60, 0, split="train", difficulty=d)]
    printing = [e.messages[0]["content"].removeprefix("What does ").removesuffix(" print?") for e in exercises]
    ran = subprocess.run([sys.executable, "-c", "\n".join(printing)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [exercise.answer for exercise in exercises]


@given(st.recursive(st.integers(-99, 99) | st.text("abc'\"\\ é", max_size=5), lambda item: st.lists(item, max_size=4)))
def test_a_literal_evaluates_to_its_value(value) -> None:
    if len(repr(value)) <= LONGEST_EXPRESSION:
        assert evaluate(repr(value)) == value == ast.literal_eval(repr(value))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("max([4, 7, 1])", 7),
        ('sorted([4, 7, 1])[-1] - len("abc") * 2', 1),
        ('"abc"[::-1].upper()', "CBA"),
        ("[[1, 2], [3]][0][1:]", [2]),
        ("[x * y for x in [1, 2] if x > 1]", None),
        ("[[x * y for y in [1, 2]] for x in [3, 4]]", [[3, 6], [4, 8]]),
        ("[x for x in [1, 2, 3] if x > 1 if x < 3]", [2]),
        ("sum([x for x in []])", 0),
        ("-3 + min([2, 1])", -2),
        ("x", None),
        ("[x for x in [1]] + [x]", None),
    ],
)
def test_evaluate_on_written_cases(expression: str, value) -> None:
    if value is None:
        with pytest.raises(ValueError, match="not one of the expressions that are allowed"):
            evaluate(expression)
    else:
        assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "(", "1; 2", "x = 1", "a\0b", "\ud800", "True", "None", "1.5", "b'a'", "f'{1}'", "(1, 2)", "{1}",
        "7 // 2", "7 / 2", "not 1", "1 < 2 < 3", "1 if 1 else 2", "lambda: 1", "print(1)", "open('a')",
        "__import__('os')", "2 ** 9", "'a'.lower()", "'a'.__class__",
        "(1).real", "max(1, 2)", "max([1], key=len)", "max([1], default=1)", "len(*[[1]])",
        "[*[1]]", "[x for x, y in [[1, 2]]]", "[x for x in [1] for y in [2]]", "'ab'.upper('a')", "[1].upper()",
        "[x async for x in [1]]", "[[x async for x in [1]] for y in [2]]",
        "[1][1]", "[1]['a']", "'a' + 1", "-'a'", "len(3)", "max([])", "sorted([1, 'a'])", "[1][::0]", "[1, 2] * 'a'",
        "'a' * 999999999", "[0] * 1000 * 1001", "9" * 201, "-" * 199 + "1" * 2, "(" * 99 + ")" * 99, "'a' * [1]",
    ],
)  # fmt: skip
def test_a_malformed_or_forbidden_expression_raises_a_value_error(expression: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  which sentence it is depends on Python's version
        evaluate(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "[len([x for x in 'a' * 999]) for y in 'a' * 999]",
        "[[0] * 9999 for x in 'a' * 9999]",
        "[['a' * 9999 + 'b' for y in 'a' * 9999] for x in 'a' * 9]",
        "[[x + x for y in 'a' * 9999] for x in ['a' * 9999]]",
        "[[x[1:] for y in 'a' * 9999] for x in ['a' * 9999]]",
        "[len(['a' * 9999 for z in 'a' * 999]) for x in 'a' * 999]",
        "[x for x in 'a' * 9999 if len(['a' * 9999]) > 2]",
        "[[0] * 9999] * 9999",
        "[[[0] * 99] * 99] * 99",
        "'a' * 99999 + 'a' * 99999",
        "'a' * 200000",
    ],
)
def test_a_value_that_would_fill_the_memory_is_rejected_before_it_is_computed(expression: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match="is too large"):
        evaluate(expression)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * LARGEST_SIZE  # bytes


@pytest.mark.parametrize(
    ("expression", "value"),
    [("len([x for x in 'a' * 9999])", 9999), ("len([[y for y in 'a' * 99] for x in 'a' * 99])", 99)],
)
def test_a_comprehension_may_have_thousands_of_iterations(expression: str, value: int) -> None:
    assert evaluate(expression) == value


def test_an_expression_may_be_as_long_and_its_value_as_large_as_the_limits() -> None:
    assert evaluate("7" + " " * (LONGEST_EXPRESSION - 3) + "+1") == 8
    with pytest.raises(ValueError, match=f"an expression of {LONGEST_EXPRESSION + 1} characters is longer than 200"):
        evaluate("7" + " " * (LONGEST_EXPRESSION - 2) + "+1")
    assert evaluate(f"'a' * {LARGEST_SIZE}") == "a" * LARGEST_SIZE
    with pytest.raises(ValueError, match=f"a value of size {LARGEST_SIZE + 1} is too large"):
        evaluate(f"'a' * {LARGEST_SIZE + 1}")


def test_the_product_of_two_numbers_is_bounded() -> None:
    assert evaluate("1000 * 1000") == LARGEST_PRODUCT
    with pytest.raises(ValueError, match="a product of 1000 and 1001 is too large"):
        evaluate("1000 * -1001")


def test_a_repeated_list_counts_with_the_sizes_of_its_items() -> None:
    with pytest.raises(ValueError, match="a product of 10001 and 9999 is too large"):
        evaluate("[[0] * 9999] * 9999")


@given(st.text() | st.text("[]()0123456789+-*:,'\"x forinlesmaxdup.<=>", max_size=60))
def test_any_text_has_a_value_or_raises_a_value_error(expression: str) -> None:
    try:
        value = evaluate(expression)
    except ValueError:
        value = 0
    assert isinstance(value, int | str | list)
