"""Math: sums and differences to compute, linear equations to solve, with worked steps.

In: a number of exercises, a seed, a split, a difficulty. Out: "What is 7 + 2 - 5?" and "Solve x + 3 = 8 for x.",
answered by a whole number, or by a fraction at difficulty 4. Every question is parsed again and its answer confirmed
with sympy.

    python -c "import nemotron.recipes.sources.exercises.algebra as e;print(e.generate_exercises(1, 0, split='train'))"

Left out: word problems (see `recipes/sources/problems/arithmetic.py`), several unknowns, powers.
"""

import random
import re
from fractions import Fraction

from nemotron.recipes.sources import tasks
from nemotron.recipes.sources.answers import SAID_BEFORE, parse_number
from nemotron.recipes.sources.exercises.exercise import Exercise, draw_exercises, user_exercise
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item

FAMILY = "math"
LARGEST = 9  # any term or result at difficulty 1: one digit, one token, few enough sums to see each many times

Side = list[tuple[int, str]]
"""The terms of one side: each a number with "x" or ""."""


def numbers(*values: int) -> Side:
    """A side without the unknown."""
    return [(value, "") for value in values]


def format_side(side: Side) -> str:
    """The side as people write it: "2x - 5", "-x + 3"."""
    text = ""
    for number, unknown in side:
        sign = (" - " if number < 0 else " + ") if text else ("-" if number < 0 else "")
        text += sign + (unknown if unknown and abs(number) == 1 else f"{abs(number)}{unknown}")
    return text


def canonical_form(sides: list[Side]) -> str:
    """The task: to compute what stands without x, and divide it by what stands before x.

    The order of terms and sides does not matter, and x - 5 = 7 + 2 is the task 7 + 2 + 5. An equation with x on both
    sides is a task on its own, because its x must be collected.
    """
    with_x = [side for side in sides if any(unknown for _number, unknown in side)]
    if len(with_x) < 2:
        factor = sum(number for side in with_x for number, unknown in side if unknown) or 1
        terms = [-number for side in with_x for number, unknown in side if not unknown]
        terms = [number for side in sides if side not in with_x for number, _ in side] + terms
        total = tasks.sum_of(terms)
        return tasks.canonical_form(total if factor == 1 else tasks.Operation("/", total, factor))
    return " = ".join(sorted(" + ".join(sorted(f"{number}{unknown}" for number, unknown in side)) for side in sides))


def chain_steps(values: list[int]) -> tuple[int, list[str]]:
    """The sum of the values, and one step for each addition: "7 + 12 = 19", "19 - 5 = 14"."""
    total, steps = values[0], []
    for value in values[1:]:
        steps.append(f"{format_side(numbers(total, value))} = {total + value}")
        total += value
    return total, steps


def digit_steps(left: int, right: int) -> list[str]:
    """Steps of a sum of two-digit numbers, or of a difference if `right` is negative: ones, tens, result."""
    sign, total = ("-" if right < 0 else "+"), left + right
    (tens, ones), (other_tens, other_ones) = divmod(left, 10), divmod(abs(right), 10)
    if right < 0:
        carry = ones < other_ones
        ones_step = f"ones: {ones + 10 * carry} - {other_ones} = {total % 10}{', borrowed 1' if carry else ''}"
    else:
        carry = ones + other_ones > 9
        ones_step = f"ones: {ones} + {other_ones} = {ones + other_ones}{', carry 1' if carry else ''}"
    tens_step = f"tens: {tens} {sign} {other_tens}{f' {sign} 1' if carry else ''} = {total // 10}"
    return [ones_step, tens_step, f"{format_side(numbers(left, right))} = {total}"]


def make_exercise(sides: list[Side], steps: list[str], answer: int | Fraction) -> Exercise:
    """Asks for the value of one side, or for the x that makes two sides equal."""
    text = " = ".join(map(format_side, sides))
    question = f"What is {text}?" if len(sides) == 1 else f"Solve {text} for x."
    return user_exercise(FAMILY, question, "\n".join(steps), str(answer), canonical_form(sides))


def draw_chain(generator: random.Random) -> Exercise:
    """Two to four numbers added and subtracted, as a + b + c or as x - c = a + b; the steps are the same."""
    values, length = [draw_integer(generator, 1, LARGEST)], draw_item(generator, (2, 3, 4, 4))
    while len(values) < length:
        value = draw_integer(generator, 1, LARGEST) * (1 if generator.random() < 0.5 else -1)
        if 0 <= sum(values) + value <= LARGEST:
            values.append(value)
    total, steps = chain_steps(values)
    if generator.random() < 0.5:
        return make_exercise([numbers(*values)], steps, total)
    return make_exercise([[(1, "x"), (-values[-1], "")], numbers(*values[:-1])], steps, total)


def draw_carry_or_quotient(generator: random.Random) -> Exercise:
    """Two-digit sums and differences with carries, and ax = b."""
    if generator.random() < 0.5:
        left, right = draw_integer(generator, 10, 99), draw_integer(generator, 10, 99)
        values = [left, right] if generator.random() < 0.5 else [max(left, right), -min(left, right)]
        return make_exercise([numbers(*values)], digit_steps(*values), sum(values))
    factor, solution = draw_integer(generator, 2, 12), draw_integer(generator, 2, 30)
    product = factor * solution
    steps = [f"x = {product} / {factor}", f"{factor} * {solution} = {product}, so x = {solution}"]
    return make_exercise([[(factor, "x")], numbers(product)], steps, solution)


def draw_one_sided(generator: random.Random) -> Exercise:
    """ax + b = c with a whole number as the solution."""
    factor, solution = draw_integer(generator, 2, 12), draw_integer(generator, 1, 20)
    term = draw_integer(generator, 1, 50) * (1 if generator.random() < 0.5 else -1)
    product = factor * solution
    steps = [
        f"{factor}x = {format_side(numbers(product + term, -term))} = {product}",
        f"x = {product} / {factor} = {solution}",
    ]
    return make_exercise([[(factor, "x"), (term, "")], numbers(product + term)], steps, solution)


def draw_two_sided(generator: random.Random) -> Exercise:
    """ax + b = cx + d with a positive or negative fraction as the solution."""
    factor = other_factor = 0
    while factor * other_factor == 0 or factor == other_factor:
        factor, other_factor = draw_integer(generator, -9, 9), draw_integer(generator, -9, 9)
    term, other_term = draw_integer(generator, -20, 20) or 21, draw_integer(generator, -20, 20) or 21
    collected, moved = factor - other_factor, other_term - term
    reduced = str(Fraction(moved, collected))
    steps = [
        f"{format_side([(factor, 'x'), (-other_factor, 'x')])} = {format_side(numbers(other_term, -term))}",
        f"{format_side([(collected, 'x')])} = {moved}",
        f"x = {moved}/{collected}" + ("" if reduced == f"{moved}/{collected}" else f" = {reduced}"),
    ]
    sides = [[(factor, "x"), (term, "")], [(other_factor, "x"), (other_term, "")]]
    return make_exercise(sides, steps, Fraction(moved, collected))


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One exercise of the difficulty."""
    kinds = {1: draw_chain, 2: draw_carry_or_quotient, 3: draw_one_sided, 4: draw_two_sided}
    return kinds[difficulty](generator)


def is_correct(exercise: Exercise) -> bool:
    """Whether sympy confirms the answer, given only the text of the question."""
    import sympy

    x, answer = sympy.Symbol("x"), sympy.Rational(exercise.answer)
    question = re.fullmatch(r"What is ([^=]+)\?|Solve ([^=]+) = ([^=]+) for x\.", exercise.messages[-1]["content"])
    if not question:
        return False
    sides = [
        sympy.Add(*(
            sympy.Integer(int(f"{sign}{digits or 1}")) * (x if unknown else 1)
            for sign, digits, unknown in re.findall(r"([+-]?) ?(?=[0-9x])([0-9]*)(x?)", side)
        ))
        for side in question.groups()
        if side
    ]  # fmt: skip
    if len(sides) == 1:
        return bool(sides[0] == answer)
    difference = sides[0] - sides[1]
    return bool(difference.coeff(x) != 0 and difference.subs(x, answer) == 0)


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none. Difficulty 1 has about 1,800 training tasks, each in several
            forms, and 210 evaluation tasks.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1: sums and differences below 10, and x + a = b; 2: with two digits, and ax = b; 3: ax + b = c; 4:
            ax + b = cx + d.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is the number, as a decimal or a reduced fraction; for an equation also after "x ="."""
    solve = exercise.messages[-1]["content"].startswith("Solve")
    before = rf"(?:{SAID_BEFORE})?(?:x\s*=\s*)?" if solve else SAID_BEFORE
    return parse_number(reply, before=before) == Fraction(exercise.answer)
