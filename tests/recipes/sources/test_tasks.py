"""A task has one canonical form, in whatever way and in whatever family it is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.exercises import algebra, code_output, multilingual, science
from nemotron.recipes.sources.problems import arithmetic
from nemotron.recipes.sources.tasks import Operation, canonical_choice, canonical_form, canonical_reversal, sum_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Operation("-", Operation("+", 9, 2), 4), Operation("+", Operation("-", 9, 4), 2)),
        (Operation("-", 9, Operation("-", 4, 2)), Operation("-", Operation("+", 2, 9), 4)),
        (Operation("/", Operation("*", 6, 5), 3), Operation("*", 5, Operation("/", 6, 3))),
        (Operation("+", 9, -4), Operation("-", 9, 4)),
    ],
)
def test_the_order_in_which_terms_and_factors_are_taken_does_not_change_the_task(one, other) -> None:
    assert canonical_form(one) == canonical_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Operation("/", 6, 3), Operation("/", 3, 6)),
        (Operation("-", 9, Operation("-", 4, 2)), Operation("-", 9, Operation("+", 4, 2))),
        (Operation("*", 2, Operation("+", 3, 4)), Operation("+", Operation("*", 2, 3), Operation("*", 2, 4))),
        (Operation("-", 6, 3), Operation("/", 6, 3)),
    ],
)
def test_another_calculation_is_another_task(one, other) -> None:
    assert canonical_form(one) != canonical_form(other)


@given(terms=st.lists(st.integers(-99, 99), min_size=1, max_size=5), seed=st.randoms(use_true_random=False))
def test_a_sum_is_the_same_task_in_any_order(terms: list[int], seed) -> None:
    shuffled = list(terms)
    seed.shuffle(shuffled)
    assert canonical_form(sum_of(shuffled)) == canonical_form(sum_of(terms))
    assert canonical_form(sum_of([*terms, 100])) != canonical_form(sum_of(terms))


def test_a_choice_ignores_the_order_and_keeps_what_is_chosen() -> None:
    assert canonical_choice("largest", [4, 7]) == canonical_choice("largest", [7, 4])
    assert canonical_choice("largest", [4, 7]) != canonical_choice("smallest", [4, 7])
    assert canonical_reversal("12") != canonical_reversal("21")


def asked_by_algebra(*sides: str) -> str:
    """The task of "What is 7 + 2?" or of an equation, such as ("x - 3", "4")."""
    read = [
        [(int(term.rstrip("x") + ("1" if term in ("x", "-x") else "")), "x" if "x" in term else "")
         for term in side.replace(" - ", " -").replace(" + ", " ").split()]
        for side in sides
    ]  # fmt: skip
    return algebra.canonical_form(read)


SUM = canonical_form(sum_of([3, 5, 1]))
SAME_TASKS = {
    "a sum, in math, in an equation and in code": [
        SUM,
        asked_by_algebra("5 + 1 + 3"),
        asked_by_algebra("x - 3", "5 + 1"),
        asked_by_algebra("1 + 3", "x - 5"),
        code_output.canonical_form("sum([1, 5, 3])"),
    ],
    "a quotient, in math, an equation and a speed": [
        canonical_form(Operation("/", 36, 12)),
        asked_by_algebra("12x", "36"),
        canonical_form(Operation("/", sum_of([36]), 12)),
    ],
    "an equation and an expression": [
        asked_by_algebra("4x - 5", "7"),
        canonical_form(Operation("/", Operation("+", 5, 7), 4)),
    ],
    "text backwards": [canonical_reversal("527"), code_output.canonical_form('"527"[::-1]')],
    "the largest number": [canonical_choice("largest", [7, 4, 12]), code_output.canonical_form("max([12, 4, 7])")],
    "the smallest number": [canonical_choice("smallest", [7, 4]), code_output.canonical_form("min([4, 7])")],
    "what a function sees in any order": [
        code_output.canonical_form("sorted([3, 1, 2])"), code_output.canonical_form("sorted([1, 2, 3])"),
    ],
    "operands": [
        code_output.canonical_form("len([1, 2]) * max([3, 4])"),
        code_output.canonical_form("max([4, 3]) * len([2, 1])"),
    ],
    "the items of a filter and the letters that it counts": [
        code_output.canonical_form('sum([x * 2 for x in [1, 5] if x > 2]) - len([c for c in "ab" if c == "a"])'),
        code_output.canonical_form('sum([x * 2 for x in [5, 1] if x > 2]) - len([c for c in "ba" if c == "a"])'),
    ],
    "octal digits as bits, and base 8 to base 2": [science.canonical_base(int("527", 8), 8, 2), "343 base 8 to 2"],
}  # fmt: skip
OTHER_TASKS = [
    ("[4, 7][0]", "[7, 4][0]"),
    ("[x * 2 for x in [1, 5]]", "[x * 2 for x in [5, 1]]"),
    ("len([1]) - len([2, 3])", "len([2, 3]) - len([1])"),
    ('"ab"[::-1]', '"ba"[::-1]'),
    ('"ab"[::-1]', '"ab"[::-1].upper()'),
    ("max([4, 7])", "min([4, 7])"),
]


@pytest.mark.parametrize("forms", SAME_TASKS.values(), ids=SAME_TASKS)
def test_a_task_is_the_same_in_every_family(forms: list[str]) -> None:
    assert len(set(forms)) == 1


@pytest.mark.parametrize(("one", "other"), OTHER_TASKS)
def test_code_whose_order_matters_is_another_task(one: str, other: str) -> None:
    assert code_output.canonical_form(one) != code_output.canonical_form(other)


def test_x_on_both_sides_is_another_task_than_a_calculation() -> None:
    assert asked_by_algebra("5x + 3", "2x + 9") == asked_by_algebra("9 + 2x", "3 + 5x")
    assert asked_by_algebra("5x + 3", "2x + 9") != asked_by_algebra("3x + 3", "9")


def test_the_families_really_share_tasks() -> None:
    """What is compared above is what the families draw."""
    drawn = {
        module.FAMILY: {e.canonical for e in module.generate_exercises(1_500, 1, split="evaluation")}
        for module in (algebra, code_output, multilingual)
    }
    drawn["arithmetic"] = {
        problem.canonical for problem in arithmetic.generate_problems(150, 1, split="evaluation", difficulty=1)
    }
    for one, other in (("math", "multilingual"), ("code", "multilingual"), ("math", "arithmetic")):
        assert drawn[one] & drawn[other], (one, other)
    speeds = {e.canonical for e in science.generate_exercises(300, 1, split="train", difficulty=3)}
    assert any(form.startswith("(*") for form in speeds)
