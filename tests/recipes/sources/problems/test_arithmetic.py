"""Every answer agrees with an independent calculation, and training never sees an evaluation task."""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.problems import arithmetic
from nemotron.recipes.sources.problems.arithmetic import (
    LARGEST_TERM,
    Operation,
    canonical_form,
    check_answer,
    generate_problems,
    worked_step,
)
from nemotron.recipes.sources.problems.problem import Problem

SEEDS = st.integers(0, 2**63)
DIFFICULTIES = st.sampled_from(sorted(LARGEST_TERM))


def value_of(expression: str) -> Fraction:
    """An independent calculator: Python's own grammar, exact fractions."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        return left * right if isinstance(node.op, ast.Mult) else left / right

    return value(ast.parse(expression, mode="eval").body)


# Words that only one word problem has -> the answer from the numbers of the question in their order.
STORIES: dict[str, Callable[..., Fraction]] = {
    r"and gets (\d+) more": lambda had, new: had + new,
    r"of them to": lambda had, given: had - given,
    r"has \d+ boxes with": lambda boxes, each: boxes * each,
    r"shares": Fraction,
    r"buys \d+ boxes": lambda boxes, each, given: boxes * each - given,
    r"bags of": lambda bags, each, single: bags * each + single,
    r"more than": lambda first, more: first + first + more,
    r"cents come back": lambda things, price, paid: paid - things * price,
    r"'s bus": lambda inside, out, new: inside - out + new,
    r"garden": lambda length, width: length + width + length + width,
    r"pack them into boxes": lambda first, second, size: Fraction(first + second, size),
    r"Every day": lambda first, second, days: days * first + days * second,
}


def reference_answer(problem: Problem) -> Fraction:
    """The answer, computed from the text of the question alone."""
    expression = re.fullmatch(r"What is ([-0-9+*/() ]+)\?", problem.question)
    if expression:
        return value_of(expression.group(1))
    stories = [solve for sign, solve in STORIES.items() if re.search(sign, problem.question)]
    assert len(stories) == 1, problem.question
    return Fraction(stories[0](*map(int, re.findall(r"\d+", problem.question))))


@given(seed=SEEDS, difficulty=DIFFICULTIES, split=st.sampled_from(["train", "evaluation"]))
def test_every_answer_agrees_with_an_independent_calculation(seed: int, difficulty: int, split) -> None:
    for problem in generate_problems(12, seed, split=split, difficulty=difficulty):
        assert Fraction(problem.answer) == reference_answer(problem)
        assert int(problem.answer) >= 0
        assert check_answer(problem, problem.answer)


def test_all_word_problems_and_all_expressions_occur() -> None:
    problems = generate_problems(2_000, 1, split="train")
    stories = Counter(next((sign for sign in STORIES if re.search(sign, p.question)), "expression") for p in problems)
    assert set(stories) == {*STORIES, "expression"}
    assert stories["expression"] == pytest.approx(1_000, abs=150)
    expressions = [p.question for p in problems if p.question.startswith("What is ")]
    assert {sign for question in expressions for sign in re.findall(r" ([-+*/]) ", question)} == {"+", "-", "*", "/"}
    assert sum("(" in question for question in expressions) == pytest.approx(450, abs=100)


def test_sympy_agrees_on_expressions() -> None:
    problems = generate_problems(60, 2, split="train", difficulty=3)
    expressions = [p for p in problems if p.question.startswith("What is ")]
    assert len(expressions) > 20
    for problem in expressions:
        assert sympy.sympify(problem.question.removeprefix("What is ").removesuffix("?")) == int(problem.answer)


@given(seed=SEEDS, difficulty=DIFFICULTIES)
def test_every_step_is_true_and_the_last_one_ends_with_the_answer(seed: int, difficulty: int) -> None:
    for problem in generate_problems(8, seed, split="train", difficulty=difficulty):
        for line in problem.steps.split("\n"):
            chain = line.rpartition(": ")[2].replace(", because", " BECAUSE").split(" BECAUSE ")
            for equation in chain:
                assert len({value_of(side) for side in equation.split(" = ")}) == 1, line
        last = problem.steps.split("\n")[-1].partition(", because")[0]
        assert last.rpartition(" = ")[2] == problem.answer


@pytest.mark.parametrize(
    ("sign", "left", "right", "step"),
    [
        ("+", 47, 38, "47 + 38 = 47 + 30 + 8 = 77 + 8 = 85"),
        ("+", 47, 30, "47 + 30 = 77"),
        ("+", 7, 305, "7 + 305 = 7 + 300 + 5 = 307 + 5 = 312"),
        ("-", 85, 38, "85 - 38 = 85 - 30 - 8 = 55 - 8 = 47"),
        ("-", 5, 0, "5 - 0 = 5"),
        ("*", 23, 14, "23 * 14 = 23 * 10 + 23 * 4 = 230 + 92 = 322"),
        ("*", 23, 4, "23 * 4 = 92"),
        ("/", 322, 14, "322 / 14 = 23, because 14 * 23 = 322"),
    ],
)
def test_worked_step_on_written_cases(sign: str, left: int, right: int, step: str) -> None:
    assert worked_step(sign, left, right) == step


@given(seed=SEEDS, difficulty=DIFFICULTIES)
def test_the_four_choices_are_unique_and_the_correct_one_is_at_its_index(seed: int, difficulty: int) -> None:
    for problem in generate_problems(8, seed, split="evaluation", difficulty=difficulty):
        assert len(set(problem.choices)) == 4
        assert [check_answer(problem, choice) for choice in problem.choices] == [
            position == problem.correct for position in range(4)
        ]
        assert all(choice.isdecimal() for choice in problem.choices)


def test_neither_position_nor_size_gives_the_correct_choice_away() -> None:
    problems = generate_problems(4_000, 3, split="train")
    places = Counter(p.correct for p in problems)
    ranks = Counter(sorted(map(int, p.choices)).index(int(p.answer)) for p in problems)
    assert max(abs(count - 1_000) for count in places.values()) < 4 * (4_000 * 0.25 * 0.75) ** 0.5
    assert max(ranks.values()) < 2_000


@given(seeds=st.tuples(SEEDS, SEEDS), difficulties=st.tuples(DIFFICULTIES, DIFFICULTIES))
def test_training_and_evaluation_share_no_task(seeds: tuple[int, int], difficulties: tuple[int, int]) -> None:
    training = generate_problems(60, seeds[0], split="train", difficulty=difficulties[0])
    evaluation = generate_problems(15, seeds[1], split="evaluation", difficulty=difficulties[1])
    assert not {p.canonical for p in training} & {p.canonical for p in evaluation}
    assert not {p.question for p in training} & {p.question for p in evaluation}


def test_the_split_depends_on_the_task_and_not_on_its_wording() -> None:
    problems = generate_problems(5_000, 4, split="train", difficulty=1)
    wordings = Counter(p.canonical for p in problems)
    assert wordings.most_common(1)[0][1] > 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Operation("+", 3, 4), Operation("+", 4, 3)),
        (Operation("*", 12, 5), Operation("*", 5, 12)),
        (Operation("+", 1, Operation("+", 2, 3)), Operation("+", Operation("+", 3, 1), 2)),
        (Operation("*", 2, Operation("-", 9, 4)), Operation("*", Operation("-", 9, 4), 2)),
    ],
)
def test_the_order_of_terms_and_factors_does_not_change_the_task(one: Operation, other: Operation) -> None:
    assert canonical_form(one) == canonical_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Operation("-", 7, 4), Operation("-", 4, 7)),
        (Operation("+", 3, 4), Operation("*", 3, 4)),
        (Operation("+", 1, Operation("*", 2, 3)), Operation("*", 3, Operation("+", 1, 2))),
        (Operation("+", 12, 3), Operation("+", 1, 23)),
    ],
)
def test_a_different_calculation_is_a_different_task(one: Operation, other: Operation) -> None:
    assert canonical_form(one) != canonical_form(other)


@given(seed=SEEDS, num_problems=st.integers(0, 30), more=st.integers(0, 30))
def test_fewer_problems_are_a_prefix_of_more(seed: int, num_problems: int, more: int) -> None:
    larger = generate_problems(num_problems + more, seed, split="train")
    assert generate_problems(num_problems, seed, split="train") == larger[:num_problems]
    assert len({p.question for p in larger}) == len({p.id for p in larger}) == len(larger)


def test_problems_are_the_same_on_every_machine() -> None:
    # Recorded with CPython 3.11.7, 3.12.1 and 3.13.0.
    problems = [
        generate_problems(300, seed, split=split) for seed in (1, 2) for split in ("train", "evaluation")
    ]  # fmt: skip
    assert hashlib.sha256(repr(problems).encode()).hexdigest() == (
        "2098d55789c896ebde2cda9e377c5c3fb18aad6dae5e6ac6d3c2170943d4bcf4"
    )


def test_numbers_grow_with_difficulty() -> None:
    largest = []
    for difficulty in sorted(LARGEST_TERM):
        questions = " ".join(p.question for p in generate_problems(300, 5, split="train", difficulty=difficulty))
        largest.append(max(map(int, re.findall(r"\d+", questions))))
    assert largest == sorted(set(largest))


def test_an_exhausted_difficulty_raises_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "MAX_FAILED_DRAWS", 3)
    with pytest.raises(ValueError, match=r"num_problems=500 is more than difficulty=1 has: .* raise the difficulty"):
        generate_problems(500, 0, split="evaluation", difficulty=1)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("1250", True), (" 1,250. ", True), ("1250.0", True), ("+1250", True), ("01250", True), ("-1250", False),
     ("1250.5", False), ("125", False), ("", False), ("twelve", False), ("1e3", False), ("1250 apples", False),
     ("2500/2", False), ("9" * 10_000, False), ("１２５０", False)],
)  # fmt: skip
def test_check_answer(answer: str, right: bool) -> None:
    problem = Problem("", "arithmetic", "", "", "1250", (), 0, "")
    assert check_answer(problem, answer) is right


@given(st.text())
def test_check_answer_accepts_any_text_without_an_exception(answer: str) -> None:
    assert check_answer(Problem("", "arithmetic", "", "", "7", (), 0, ""), answer) in (True, False)
