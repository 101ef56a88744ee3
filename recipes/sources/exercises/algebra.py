"""Math: sums and differences to work out, linear equations to solve, with their steps.

What goes in: a number of exercises, a seed, a split, a difficulty. What comes out: "What is 7 + 2 - 5?" and "Solve
x + 3 = 8 for x.", answered by a whole number, at difficulty 4 by a fraction. sympy reads every question again and
confirms its answer before the exercise leaves.

    python -c "import nemotron.recipes.sources.exercises.algebra as e;print(e.generate_exercises(1, 0, split='train'))"

Left out: stories (`recipes/sources/problems/arithmetic.py` has them), more than one unknown, powers.
"""

import random
import re
from fractions import Fraction

from nemotron.recipes.sources.exercises import Exercise, drawn_exercises, user_exercise
from nemotron.recipes.sources.problems import Split, drawn_integer, drawn_item

FAMILY = "math"
LARGEST = 9  # of any term or result of difficulty 1: one digit, one token, a table that is seen many times

Side = list[tuple[int, str]]
"""The terms of one side: a number and "x" or ""."""


def numbers(*values: int) -> Side:
    """A side without the unknown."""
    return [(value, "") for value in values]


def written(side: Side) -> str:
    """The side as one writes it: "2x - 5", "-x + 3"."""
    text = ""
    for number, unknown in side:
        sign = (" - " if number < 0 else " + ") if text else ("-" if number < 0 else "")
        text += sign + (unknown if unknown and abs(number) == 1 else f"{abs(number)}{unknown}")
    return text


def canonical_form(sides: list[Side]) -> str:
    """The same for all orders of the terms, and for both orders of the sides."""
    return " = ".join(sorted(" + ".join(sorted(f"{number}{unknown}" for number, unknown in side)) for side in sides))


def chain_steps(values: list[int]) -> tuple[int, list[str]]:
    """The sum of the values, and a step for each that is added: "7 + 12 = 19", "19 - 5 = 14"."""
    total, steps = values[0], []
    for value in values[1:]:
        steps.append(f"{written(numbers(total, value))} = {total + value}")
        total += value
    return total, steps


def digit_steps(left: int, right: int) -> list[str]:
    """Steps of a sum of two-digit numbers, or of a difference where `right` is negative: ones, tens, result."""
    sign, total = ("-" if right < 0 else "+"), left + right
    (tens, ones), (other_tens, other_ones) = divmod(left, 10), divmod(abs(right), 10)
    if right < 0:
        carry = ones < other_ones
        ones_step = f"ones: {ones + 10 * carry} - {other_ones} = {total % 10}{', borrowed 1' if carry else ''}"
    else:
        carry = ones + other_ones > 9
        ones_step = f"ones: {ones} + {other_ones} = {ones + other_ones}{', carry 1' if carry else ''}"
    tens_step = f"tens: {tens} {sign} {other_tens}{f' {sign} 1' if carry else ''} = {total // 10}"
    return [ones_step, tens_step, f"{written(numbers(left, right))} = {total}"]


def exercise(sides: list[Side], steps: list[str], answer: int | Fraction) -> Exercise:
    """Asks for the value of one side, or for the x that makes two sides equal."""
    text = " = ".join(map(written, sides))
    question = f"What is {text}?" if len(sides) == 1 else f"Solve {text} for x."
    return user_exercise(FAMILY, question, "\n".join(steps), str(answer), canonical_form(sides))


def drawn_chain(generator: random.Random) -> Exercise:
    """Two to four numbers added and subtracted: a + b + c, or x - c = a + b with the same steps."""
    values, length = [drawn_integer(generator, 1, LARGEST)], drawn_item(generator, (2, 3, 4, 4))
    while len(values) < length:
        value = drawn_integer(generator, 1, LARGEST) * (1 if generator.random() < 0.5 else -1)
        if 0 <= sum(values) + value <= LARGEST:
            values.append(value)
    total, steps = chain_steps(values)
    if generator.random() < 0.5:
        return exercise([numbers(*values)], steps, total)
    return exercise([[(1, "x"), (-values[-1], "")], numbers(*values[:-1])], steps, total)


def drawn_carry_or_quotient(generator: random.Random) -> Exercise:
    """Two-digit sums and differences with their carries, and ax = b."""
    if generator.random() < 0.5:
        left, right = drawn_integer(generator, 10, 99), drawn_integer(generator, 10, 99)
        values = [left, right] if generator.random() < 0.5 else [max(left, right), -min(left, right)]
        return exercise([numbers(*values)], digit_steps(*values), sum(values))
    factor, solution = drawn_integer(generator, 2, 12), drawn_integer(generator, 2, 30)
    product = factor * solution
    steps = [f"x = {product} / {factor}", f"{factor} * {solution} = {product}, so x = {solution}"]
    return exercise([[(factor, "x")], numbers(product)], steps, solution)


def drawn_one_sided(generator: random.Random) -> Exercise:
    """ax + b = c, solved by a whole number."""
    factor, solution = drawn_integer(generator, 2, 12), drawn_integer(generator, 1, 20)
    term = drawn_integer(generator, 1, 50) * (1 if generator.random() < 0.5 else -1)
    product = factor * solution
    steps = [
        f"{factor}x = {written(numbers(product + term, -term))} = {product}",
        f"x = {product} / {factor} = {solution}",
    ]
    return exercise([[(factor, "x"), (term, "")], numbers(product + term)], steps, solution)


def drawn_two_sided(generator: random.Random) -> Exercise:
    """ax + b = cx + d, solved by a fraction of either sign."""
    factor = other_factor = 0
    while factor * other_factor == 0 or factor == other_factor:
        factor, other_factor = drawn_integer(generator, -9, 9), drawn_integer(generator, -9, 9)
    term, other_term = drawn_integer(generator, -20, 20) or 21, drawn_integer(generator, -20, 20) or 21
    collected, moved = factor - other_factor, other_term - term
    reduced = str(Fraction(moved, collected))
    steps = [
        f"{written([(factor, 'x'), (-other_factor, 'x')])} = {written(numbers(other_term, -term))}",
        f"{written([(collected, 'x')])} = {moved}",
        f"x = {moved}/{collected}" + ("" if reduced == f"{moved}/{collected}" else f" = {reduced}"),
    ]
    sides = [[(factor, "x"), (term, "")], [(other_factor, "x"), (other_term, "")]]
    return exercise(sides, steps, Fraction(moved, collected))


def drawn(generator: random.Random, difficulty: int) -> Exercise:
    """One exercise of the difficulty."""
    kinds = {1: drawn_chain, 2: drawn_carry_or_quotient, 3: drawn_one_sided, 4: drawn_two_sided}
    return kinds[difficulty](generator)


def holds(exercise: Exercise) -> bool:
    """Whether sympy finds the answer right, reading nothing but the question."""
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
    """Exercises of one split; a smaller number of them is the beginning of a larger one.

    Args:
        num_exercises: how many; 0 gives none. Difficulty 1 has 8,057 tasks to train on and 905 to evaluate with; they
            repeat by chance.
        seed: picks which.
        split: "train" or "evaluation"; their tasks are disjoint, whatever the seeds and difficulties.
        difficulty: 1 sums and differences below 10 and x + a = b; 2 two-digit ones and ax = b; 3 ax + b = c; 4
            ax + b = cx + d.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return drawn_exercises(FAMILY, drawn, holds, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is the number, written as a decimal or a reduced fraction; for an equation also after "x =".

    A fraction that can be reduced is refused (our choice): 36/12 for 12x = 36 says the equation again.
    """
    unknown = r"(?:x\s*=\s*)?" if exercise.messages[-1]["content"].startswith("Solve") else ""
    match = re.fullmatch(rf"{unknown}(-?[0-9]{{1,9}})(\.[0-9]{{1,9}}|\s*/\s*[1-9][0-9]{{0,8}})?\.?", reply.strip())
    if not match:
        return False
    text = "".join((match[1] + (match[2] or "")).split())
    value = Fraction(text)
    return value == Fraction(exercise.answer) and ("/" not in text or text == str(value))
