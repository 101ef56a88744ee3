"""Arithmetic with worked steps: expressions of one or two operations, and word problems about them.

In: a number of problems, a seed, a split, a difficulty. Out: unique problems about non-negative whole numbers, with
worked steps and four choices. Every answer is computed twice, step by step and as a fraction, before its problem is
returned.

    python -c "import nemotron.recipes.sources.problems.arithmetic as p;print(p.generate_problems(1, 0, split='train'))"

Left out: negative results, fractions, unit conversion.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from nemotron.recipes.sources.answers import parse_number
from nemotron.recipes.sources.problems.problem import (
    Problem,
    Split,
    check_num_problems,
    check_split,
    draw_integer,
    draw_item,
    problem_id,
    seeded_random,
    split_of,
)
from nemotron.recipes.sources.tasks import Operation, canonical_form

FAMILY = "arithmetic"
WORD_PROBLEM_SHARE = 0.5  # our choice
NUM_CHOICES = 4  # as in MMLU and most other multiple-choice benchmarks

# Difficulty -> largest term of a sum, largest factor. Our choice: from memorized tables to three-digit products.
LARGEST_TERM = {1: 20, 2: 100, 3: 1_000, 4: 10_000}
LARGEST_FACTOR = {1: 10, 2: 12, 3: 30, 4: 100}
MAX_FAILED_DRAWS = 2_000  # consecutive draws without a new question, after which a difficulty counts as exhausted


@dataclass(frozen=True)
class Wording:
    """A question about an operation, and the words that each step begins with."""

    question: str
    step_beginnings: tuple[str, ...]
    operation: Operation


# The arithmetic -------------------------------------------------------------------------------------------------------


def apply(sign: str, left: int, right: int) -> int:
    """The result of one operation on whole numbers; a division must leave no remainder."""
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    quotient, remainder = divmod(left, right)
    assert remainder == 0
    return quotient


def as_fraction(tree: Operation | int) -> Fraction:
    """The value, computed independently of the steps with exact fractions."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = as_fraction(tree.left), as_fraction(tree.right)
    return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[tree.sign](right)


def format_operation(tree: Operation | int) -> str:
    """The operation on one line, with every inner operation in parentheses."""
    if isinstance(tree, int):
        return str(tree)
    left, right = (
        format_operation(side) if isinstance(side, int) else f"({format_operation(side)})"
        for side in (tree.left, tree.right)
    )
    return f"{left} {tree.sign} {right}"


def worked_step(sign: str, left: int, right: int) -> str:
    """One operation worked out by the decimal places of its right side: "47 + 38 = 47 + 30 + 8 = 77 + 8 = 85"."""
    result = apply(sign, left, right)
    written_out = f"{left} {sign} {right}"
    if sign == "/":
        return f"{written_out} = {result}, because {right} * {result} = {left}"
    places = [int(digit) * 10**place for place, digit in enumerate(reversed(str(right))) if digit != "0"][::-1]
    if len(places) < 2:
        return f"{written_out} = {result}"
    if sign == "*":
        products = " + ".join(f"{left} * {place}" for place in places)
        sums = " + ".join(str(left * place) for place in places)
        return f"{written_out} = {products} = {sums} = {result}"
    chain, value = [written_out], left
    for done in range(len(places)):
        chain.append(f"{value} {sign} {f' {sign} '.join(map(str, places[done:]))}")
        value = apply(sign, value, places[done])
    return " = ".join([*chain, str(result)])


def worked_steps(tree: Operation | int) -> tuple[int, list[str]]:
    """The value, and one worked step for each operation, inner operations first."""
    if isinstance(tree, int):
        return tree, []
    left, left_steps = worked_steps(tree.left)
    right, right_steps = worked_steps(tree.right)
    return apply(tree.sign, left, right), [*left_steps, *right_steps, worked_step(tree.sign, left, right)]


# Drawing an operation -------------------------------------------------------------------------------------------------


def draw_operation(generator: random.Random, sign: str, difficulty: int) -> Operation:
    """One operation with numbers of the difficulty's size."""
    term, factor = LARGEST_TERM[difficulty], LARGEST_FACTOR[difficulty]
    if sign in "+-":
        left, right = draw_integer(generator, 1, term), draw_integer(generator, 1, term)
        return Operation(sign, left, right) if sign == "+" else Operation(sign, max(left, right), min(left, right))
    left, right = draw_integer(generator, 2, factor), draw_integer(generator, 2, factor)
    return Operation(sign, left, right) if sign == "*" else Operation(sign, left * right, right)


def draw_expression(generator: random.Random, difficulty: int) -> Wording:
    """An expression of one operation, or of two with the inner one on the left or right."""
    outer = draw_item(generator, "+-*/")
    if generator.random() < 0.5:
        operation = draw_operation(generator, outer, difficulty)
        return Wording(f"What is {format_operation(operation)}?", ("",), operation)
    inner = draw_operation(generator, draw_item(generator, "+-*/"), difficulty)
    value, _steps = worked_steps(inner)
    if outer == "+":
        other = draw_integer(generator, 1, LARGEST_TERM[difficulty])
        operation = Operation("+", other, inner) if generator.random() < 0.5 else Operation("+", inner, other)
    elif outer == "-":
        other = draw_integer(generator, 1, 2 * value + 1)
        operation = Operation("-", other, inner) if other >= value else Operation("-", inner, other)
    elif outer == "*":
        other = draw_integer(generator, 2, LARGEST_FACTOR[difficulty])
        operation = Operation("*", other, inner) if generator.random() < 0.5 else Operation("*", inner, other)
    else:  # the inner operation is a sum, rounded up to a multiple of the divisor
        divisor = draw_integer(generator, 2, LARGEST_FACTOR[difficulty])
        first = draw_integer(generator, 1, LARGEST_TERM[difficulty])
        second = draw_integer(generator, 1, LARGEST_TERM[difficulty])
        operation = Operation("/", Operation("+", first, second + -(first + second) % divisor), divisor)
    return Wording(f"What is {format_operation(operation)}?", ("", ""), operation)


# Word problems --------------------------------------------------------------------------------------------------------

NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Fatma", "Goro", "Hana", "Ivan", "Joan", "Kofi", "Lena", "Maya", "Noor")
THINGS = (
    "apples",
    "books",
    "buttons",
    "cards",
    "coins",
    "marbles",
    "nails",
    "pens",
    "seeds",
    "shells",
    "stamps",
    "tiles",
)
Draw = Callable[[int, int], int]


def gets_more(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    first, second = draw(1, term), draw(1, term)
    return Wording(
        f"{name} has {first} {things} and gets {second} more. How many {things} does {name} have now?",
        ("What was there and what comes: ",),
        Operation("+", first, second),
    )


def gives_away(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    kept, given = draw(1, term), draw(1, term)
    return Wording(
        f"{name} has {kept + given} {things} and gives {given} of them to {other}. How many are left?",
        ("What was there without what goes: ",),
        Operation("-", kept + given, given),
    )


def boxes(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    count, size = draw(2, factor), draw(2, factor)
    return Wording(
        f"{name} has {count} boxes with {size} {things} in each. How many {things} are that?",
        ("Boxes times what is in each: ",),
        Operation("*", count, size),
    )


def shares(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    people, each = draw(2, factor), draw(2, factor)
    return Wording(
        f"{name} shares {people * each} {things} equally among {people} people. How many does each of them get?",
        ("All of them divided by the people: ",),
        Operation("/", people * each, people),
    )


def boxes_then_gives(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    count, size = draw(2, factor), draw(2, factor)
    given = draw(1, count * size)
    return Wording(
        f"{name} buys {count} boxes with {size} {things} in each and gives {given} {things} to {other}. "
        f"How many {things} does {name} keep?",
        ("In the boxes: ", "Without what goes: "),
        Operation("-", Operation("*", count, size), given),
    )


def boxes_and_single(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    count, size, single = draw(2, factor), draw(2, factor), draw(1, term)
    return Wording(
        f"{name} finds {count} bags of {size} {things} and {single} single {things}. How many {things} are that?",
        ("In the bags: ", "With the single ones: "),
        Operation("+", Operation("*", count, size), single),
    )


def two_people(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    first, more = draw(1, term), draw(1, term)
    return Wording(
        f"{name} has {first} {things}. {other} has {more} more than {name}. How many {things} do they have together?",
        (f"{other} has: ", "Together: "),
        Operation("+", first, Operation("+", first, more)),
    )


def change(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    count, price, rest = draw(2, factor), draw(2, factor), draw(1, term)
    paid = count * price + rest
    return Wording(
        f"{name} buys {count} {things} for {price} cents each and pays with {paid} cents. How many cents come back?",
        ("The price: ", "What comes back: "),
        Operation("-", paid, Operation("*", count, price)),
    )


def bus(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    stay, leave, enter = draw(1, term), draw(1, term), draw(1, term)
    return Wording(
        f"{stay + leave} people sit in {name}'s bus. {leave} get off, {enter} get on. How many people are in it now?",
        ("After some got off: ", "After others got on: "),
        Operation("+", Operation("-", stay + leave, leave), enter),
    )


def fence(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    length, width = draw(1, term), draw(1, term)
    return Wording(
        f"{name}'s garden is a rectangle, {length} metres long and {width} metres wide. How many metres of fence go "
        f"around it?",
        ("Length and width: ", "There are two of each: "),
        Operation("*", 2, Operation("+", length, width)),
    )


def packed(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    size, count = draw(2, factor), draw(2, factor)
    first = draw(1, size * count - 1)
    return Wording(
        f"{name} brings {first} {things} and {other} brings {size * count - first}. They pack them into boxes of "
        f"{size}. How many boxes do they fill?",
        ("Together they have: ", "Divided by what a box holds: "),
        Operation("/", Operation("+", first, size * count - first), size),
    )


def two_days(draw: Draw, term: int, factor: int, name: str, other: str, things: str) -> Wording:
    days, first, second = draw(2, factor), draw(1, term), draw(1, term)
    return Wording(
        f"Every day {name} sorts {first} {things} and {other} sorts {second}. How many {things} do they sort in "
        f"{days} days?",
        ("In one day: ", "In all days: "),
        Operation("*", days, Operation("+", first, second)),
    )


WORDINGS = (
    gets_more, gives_away, boxes, shares, boxes_then_gives, boxes_and_single, two_people, change, bus, fence, packed,
    two_days,
)  # fmt: skip


def draw_word_problem(generator: random.Random, difficulty: int) -> Wording:
    """A word problem with random names, things and numbers."""
    wording = draw_item(generator, WORDINGS)
    position = draw_integer(generator, 0, len(NAMES) - 1)
    other = (position + draw_integer(generator, 1, len(NAMES) - 1)) % len(NAMES)
    return wording(
        lambda low, high: draw_integer(generator, low, high),
        LARGEST_TERM[difficulty],
        LARGEST_FACTOR[difficulty],
        NAMES[position],
        NAMES[other],
        draw_item(generator, THINGS),
    )


# Problems -------------------------------------------------------------------------------------------------------------


def generate_problems(num_problems: int, seed: int, *, split: Split, difficulty: int = 2) -> list[Problem]:
    """Unique problems of one split; fewer problems are a prefix of more.

    Args:
        num_problems: how many; 0 gives none.
        seed: selects the problems.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1 to 4, the size of the numbers.
    Returns:
        Problems with different questions; about half are word problems.
    Raises:
        ValueError: if a number is out of range, the split is unknown, or the difficulty has fewer than `num_problems`.
    """
    check_num_problems(num_problems)
    if difficulty not in LARGEST_TERM:
        raise ValueError(f"difficulty={difficulty} must be one of {', '.join(map(str, LARGEST_TERM))}")
    check_split(split)
    generator = seeded_random(FAMILY, seed, split, difficulty)
    questions: set[str] = set()
    problems: list[Problem] = []
    failed_draws = 0
    while len(problems) < num_problems:
        draw = draw_word_problem if generator.random() < WORD_PROBLEM_SHARE else draw_expression
        wording = draw(generator, difficulty)
        canonical = canonical_form(wording.operation)
        if split_of(canonical) != split or wording.question in questions:
            failed_draws += 1
            if failed_draws == MAX_FAILED_DRAWS:
                raise ValueError(
                    f"num_problems={num_problems} is more than difficulty={difficulty} has: no new question after the "
                    f"first {len(problems)}; ask for fewer or raise the difficulty"
                )
            continue
        failed_draws = 0
        questions.add(wording.question)
        value, steps = worked_steps(wording.operation)
        assert value == as_fraction(wording.operation) >= 0
        choices, correct = draw_choices(generator, wording.operation, value)
        problems.append(
            Problem(
                id=problem_id(FAMILY, split, len(problems)),
                family=FAMILY,
                question=wording.question,
                steps="\n".join(map("".join, zip(wording.step_beginnings, steps, strict=True))),
                answer=str(value),
                choices=choices,
                correct=correct,
                canonical=canonical,
            )
        )
    return problems


def draw_choices(generator: random.Random, operation: Operation, value: int) -> tuple[tuple[str, ...], int]:
    """Four unique answers with the correct one at a uniform position, and that position.

    The wrong ones are results of typical mistakes: a forgotten step, the wrong sign, off by one, two or ten, the digits
    reversed.
    """
    sides = [worked_steps(side)[0] for side in (operation.left, operation.right)]
    mistakes = [
        sides[0] + sides[1],
        abs(sides[0] - sides[1]),
        value + 1,
        value - 1,
        value + 2,
        value + 10,
        value - 10,
        int(str(value)[::-1]),
        *(side for side in sides if side > 1),
    ]
    wrong: list[int] = []
    while len(wrong) < NUM_CHOICES - 1:
        mistake = draw_item(generator, mistakes)
        if mistake >= 0 and mistake != value and mistake not in wrong:
            wrong.append(mistake)
    correct = draw_integer(generator, 0, NUM_CHOICES - 1)
    return tuple(map(str, [*wrong[:correct], value, *wrong[correct:]])), correct


COUNTED = re.compile(r"How many (\w+)(?<!are)(?<!does)\b")


def check_answer(problem: Problem, answer: str) -> bool:
    """Whether `answer` is the number that the problem asks for, with or without the noun that it counts.

    "1,250", "1250.0", "1250.", "$1250$" and "1250 apples" all mean 1250 apples; "1,2,5,0" and "12,50" mean nothing.
    """
    counted = COUNTED.search(problem.question)
    return parse_number(answer, unit=counted[1] if counted else "") == Fraction(problem.answer)
