"""Code: what does a short Python expression print?

What goes in: a number of exercises, a seed, a split, a difficulty. What comes out: "What does print(max([4, 7, 1]))
print?" with the steps by which a reader finds it. `evaluated`, an evaluator that knows nothing but these expressions,
confirms every answer.

    python -c "import nemotron.recipes.sources.exercises.code_output as e;print(e.evaluated('sorted([4, 7, 1])[0]'))"

Left out: statements, functions to write, other languages.
"""

import ast
import operator
import random
from collections.abc import Callable
from typing import Any

from nemotron.recipes.sources.exercises import Exercise, drawn_exercises, same_text, user_exercise
from nemotron.recipes.sources.problems import Split, drawn_integer, drawn_item

FAMILY = "code"
LETTERS = "abcdefgh"  # few, so that a small model meets every pair of them
LONGEST_EXPRESSION = 200  # characters; also bounds the depth of the tree
LARGEST_PRODUCT = 1_000_000  # of two numbers, or of a number and the size of what it repeats
LARGEST_SIZE = 100_000  # of a value, times the runs of the comprehensions around it; bounds time and memory

FUNCTIONS: dict[str, Callable] = {"len": len, "max": max, "min": min, "sorted": sorted, "sum": sum}
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.Eq: operator.eq,
}


# The evaluator --------------------------------------------------------------------------------------------------------


def evaluated(expression: str) -> Any:
    """The value of an expression, without running it as Python.

    It may hold whole numbers, strings, lists, + - *, > < ==, indices, slices, len, max, min, sorted, sum, .upper() and
    list comprehensions.

    Raises:
        ValueError: if it is malformed, holds anything else, has no value, or comes to more than LARGEST_SIZE.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"an expression of {len(expression)} characters is longer than {LONGEST_EXPRESSION}")
    try:
        return value_of(ast.parse(expression, mode="eval").body, {}, LARGEST_SIZE)
    except (ArithmeticError, IndexError, MemoryError, RecursionError, SyntaxError, TypeError) as error:
        raise ValueError(f"{expression!r} has no value: {error}") from error


def size_of(value: Any) -> int:
    """The characters of a string, 1 and the sizes of the items for a list, 1 for anything else."""
    return 1 + sum(map(size_of, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 1


def value_of(node: ast.expr | None, names: dict[str, Any], room: int) -> Any:
    """The value of a node.

    Args:
        names: the variables of the comprehensions around it.
        room: the largest size that the value may have: what all runs of these comprehensions have together, divided.
    """
    value = computed(node, names, room)
    if size_of(value) > room:
        raise ValueError(f"a value of size {size_of(value)} is too large")
    return value


def computed(node: ast.expr | None, names: dict[str, Any], room: int) -> Any:
    """The value of a node, of whatever size it is; arguments as for `value_of`."""
    match node:
        case None:  # a bound that a slice leaves open
            return None
        case ast.Constant(value=int() | str() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items):
            return [value_of(item, names, room) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -value_of(operand, names, room)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return product(value_of(left, names, room), value_of(right, names, room))
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]) if (
            type(op) in OPERATORS
        ):
            return OPERATORS[type(op)](value_of(left, names, room), value_of(right, names, room))
        case ast.Subscript(value=inner, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            return value_of(inner, names, room)[
                value_of(lower, names, room) : value_of(upper, names, room) : value_of(step, names, room)
            ]
        case ast.Subscript(value=inner, slice=index):
            return value_of(inner, names, room)[value_of(index, names, room)]
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](value_of(argument, names, room))
        case ast.Call(func=ast.Attribute(value=inner, attr="upper"), args=[], keywords=[]):
            return str.upper(value_of(inner, names, room))
        case ast.ListComp(
            elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=items, ifs=tests, is_async=0)]
        ):
            values = value_of(items, names, room)
            share = room // max(1, len(values))
            scopes = ({**names, name: value} for value in values)
            return [
                value_of(item, scope, share) for scope in scopes if all(value_of(test, scope, share) for test in tests)
            ]
    raise ValueError(f"{ast.unparse(node)} is none of the expressions that are allowed here")


def product(left: Any, right: Any) -> Any:
    """left * right, where that is not too large."""
    sizes = [abs(side) if isinstance(side, int) else size_of(side) for side in (left, right)]
    if sizes[0] * sizes[1] > LARGEST_PRODUCT:
        raise ValueError(f"a product of {sizes[0]} and {sizes[1]} is too large")
    return left * right


# Drawing an expression: its text, the steps, its value ----------------------------------------------------------------

Drawn = tuple[str, list[str], Any]


def digits(generator: random.Random, low: int, high: int) -> list[int]:
    """From `low` to `high` single digits."""
    return [drawn_integer(generator, 0, 9) for _ in range(drawn_integer(generator, low, high))]


def word(generator: random.Random, low: int, high: int) -> str:
    """From `low` to `high` letters."""
    return "".join(drawn_item(generator, LETTERS) for _ in range(drawn_integer(generator, low, high)))


def joined(items: Any) -> str:
    """The items with commas between them."""
    return ", ".join(map(str, items))


def drawn_call(generator: random.Random) -> Drawn:
    """len, max or min of a list, with what has been found after each item."""
    name, items = drawn_item(generator, ("len", "max", "min")), digits(generator, 2, 5)
    text = f"{name}({items})"
    if name == "len":
        return text, [f"count: {joined(f'{item} is {place}' for place, item in enumerate(items, 1))}"], len(items)
    found = [(max if name == "max" else min)(items[: place + 1]) for place in range(len(items))]
    return text, [f"{'largest' if name == 'max' else 'smallest'} so far: {joined(found)}"], found[-1]


def drawn_sorted(generator: random.Random) -> Drawn:
    """sorted() of a list."""
    items = digits(generator, 3, 4)
    ordered = [digit for digit in range(10) for _ in range(items.count(digit))]
    return f"sorted({items})", [f"smallest first: {joined(ordered)}"], ordered


def drawn_index(generator: random.Random) -> Drawn:
    """One item of a list."""
    items = digits(generator, 3, 5)
    index = drawn_integer(generator, 0, len(items) - 1)
    counted = [f"{place} is {item}" for place, item in enumerate(items[: index + 1])]
    return f"{items}[{index}]", [f"positions: {joined(counted)}"], items[index]


def drawn_reversal(generator: random.Random) -> Drawn:
    """A string of digits backwards: which letters stand in a token is more than a small model can learn by the way."""
    return reversal("".join(map(str, digits(generator, 3, 3))))


def reversal(text: str) -> Drawn:
    """A string backwards."""
    backwards = [text[-place] for place in range(1, len(text) + 1)]
    return f'"{text}"[::-1]', [f"characters: {joined(text)}", f"backwards: {joined(backwards)}"], "".join(backwards)


def drawn_slice(generator: random.Random) -> Drawn:
    """Some neighbours in a list."""
    items = digits(generator, 4, 6)
    start = drawn_integer(generator, 0, len(items) - 2)
    stop = drawn_integer(generator, start + 1, len(items))
    kept = [item for place, item in enumerate(items) if start <= place < stop]
    return f"{items}[{start}:{stop}]", [f"positions {start} to {stop - 1}: {joined(kept)}"], kept


def drawn_upper(generator: random.Random) -> Drawn:
    """A string backwards and in upper case."""
    text, steps, value = reversal(word(generator, 3, 4))
    value = "".join(chr(ord(letter) - 32) for letter in value)
    return f"{text}.upper()", [*steps, f"upper case: {joined(value)}"], value


def drawn_sum(generator: random.Random) -> Drawn:
    """Two calls with +, - or * between them."""
    sign = drawn_item(generator, "+-*")
    (text, steps, value), (other_text, other_steps, other) = drawn_call(generator), drawn_call(generator)
    result = {"+": value + other, "-": value - other, "*": value * other}[sign]
    return f"{text} {sign} {other_text}", [*steps, *other_steps, f"{value} {sign} {other} = {result}"], result


def drawn_comprehension(generator: random.Random) -> Drawn:
    """A formula applied to every item of a list; perhaps one item of the result, in order of size."""
    items, factor, term = digits(generator, 3, 5), drawn_integer(generator, 2, 5), drawn_integer(generator, 1, 9)
    values = [factor * item + term for item in items]
    steps = [f"{item} * {factor} + {term} = {value}" for item, value in zip(items, values, strict=True)]
    text = f"[x * {factor} + {term} for x in {items}]"
    if generator.random() < 0.5:
        return text, steps, values
    index = drawn_integer(generator, 0, len(items) - 1)
    ordered = sorted(values)
    return f"sorted({text})[{index}]", [*steps, f"smallest first: {joined(ordered)}"], ordered[index]


def drawn_filter(generator: random.Random) -> Drawn:
    """A formula applied to the items that pass a test, summed or counted; twice the items that are equal."""
    items, limit, factor = digits(generator, 5, 8), drawn_integer(generator, 2, 7), drawn_integer(generator, 2, 9)
    letters, letter = word(generator, 6, 9), drawn_item(generator, LETTERS)
    kept, count = [item for item in items if item > limit], sum(other == letter for other in letters)
    values = [item * factor for item in kept]
    text = f'sum([x * {factor} for x in {items} if x > {limit}]) - len([c for c in "{letters}" if c == "{letter}"])'
    steps = [
        f"above {limit}: {joined(kept) or 'none'}",
        f"times {factor}: {joined(values) or 'none'}",
        f"sum {sum(values)}, {letter} is there {count} times",
        f"{sum(values)} - {count} = {sum(values) - count}",
    ]
    return text, steps, sum(values) - count


def drawn_table(generator: random.Random) -> Drawn:
    """A function of one row of a list of lists."""
    rows = [digits(generator, 2, 4) for _ in range(drawn_integer(generator, 2, 4))]
    index, times = drawn_integer(generator, 0, len(rows) - 1), drawn_integer(generator, 2, 9)
    largest = max(max(row) for row in rows)
    text = f"sum({rows}[{index}]) * {times} - max([max(row) for row in {rows}])"
    row, total = rows[index], sum(rows[index])
    steps = [
        f"row {index} is {row}, its sum {total}",
        f"largest of all: {largest}",
        f"{total} * {times} - {largest} = {total * times - largest}",
    ]
    return text, steps, total * times - largest


DRAWN: dict[int, tuple[Callable[[random.Random], Drawn], ...]] = {
    1: (drawn_call, drawn_sorted, drawn_index, drawn_reversal),
    2: (drawn_slice, drawn_upper, drawn_sum),
    3: (drawn_comprehension,),
    4: (drawn_filter, drawn_table),
}


def drawn(generator: random.Random, difficulty: int) -> Exercise:
    """One expression of the difficulty, and what it prints."""
    text, steps, value = drawn_item(generator, DRAWN[difficulty])(generator)
    return user_exercise(FAMILY, f"What does print({text}) print?", "\n".join(steps), str(value), text)


def holds(exercise: Exercise) -> bool:
    """Whether the evaluator prints the answer."""
    expression = exercise.messages[-1]["content"].removeprefix("What does print(").removesuffix(") print?")
    return str(evaluated(expression)) == exercise.answer


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; a smaller number of them is the beginning of a larger one.

    Args:
        num_exercises: how many; 0 gives none.
        seed: picks which.
        split: "train" or "evaluation"; their expressions are disjoint, whatever the seeds and difficulties.
        difficulty: 1 one operation on a short list or string; 2 slices and two operations; 3 comprehensions; 4
            comprehensions with a test, lists of lists.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return drawn_exercises(FAMILY, drawn, holds, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is what is printed, to the character."""
    return same_text(reply, exercise.answer)
