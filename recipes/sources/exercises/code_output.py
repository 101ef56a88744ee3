"""Code: what does a short Python expression print?

In: a number of exercises, a seed, a split, a difficulty. Out: "What does print(max([4, 7, 1])) print?" with the steps
that lead to the output. `evaluate`, an evaluator for these expressions only, confirms every answer.

    python -c "import nemotron.recipes.sources.exercises.code_output as e;print(e.evaluate('sorted([4, 7, 1])[0]'))"

Left out: statements, functions to write, other languages.
"""

import ast
import operator
import random
from collections.abc import Callable
from typing import Any

from nemotron.recipes.sources import tasks
from nemotron.recipes.sources.answers import plain
from nemotron.recipes.sources.exercises.exercise import Exercise, draw_exercises, user_exercise
from nemotron.recipes.sources.problems.problem import Split, draw_integer, draw_item

FAMILY = "code"
LETTERS = "abcdefgh"  # few, so that a small model sees every pair of them
LONGEST_EXPRESSION = 200  # characters; also bounds the depth of the tree
LARGEST_PRODUCT = 1_000_000  # of two numbers, or of a number and the size of the value that it repeats
LARGEST_SIZE = 100_000  # of a value, times the iterations of the comprehensions around it; bounds time and memory

FUNCTIONS: dict[str, Callable] = {"len": len, "max": max, "min": min, "sorted": sorted, "sum": sum}
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.Eq: operator.eq,
}


# The evaluator --------------------------------------------------------------------------------------------------------


def evaluate(expression: str) -> Any:
    """The value of an expression, without running it as Python.

    It may contain whole numbers, strings, lists, + - *, > < ==, indices, slices, len, max, min, sorted, sum, .upper()
    and list comprehensions.

    Raises:
        ValueError: if it is malformed, contains anything else, has no value, or exceeds LARGEST_SIZE.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"an expression of {len(expression)} characters is longer than {LONGEST_EXPRESSION}")
    try:
        return evaluate_node(ast.parse(expression, mode="eval").body, {}, LARGEST_SIZE)
    except (ArithmeticError, IndexError, MemoryError, RecursionError, SyntaxError, TypeError) as error:
        raise ValueError(f"{expression!r} has no value: {error}") from error


def size_of(value: Any) -> int:
    """The length of a string; for a list, 1 plus the sizes of its items; 1 for anything else."""
    return 1 + sum(map(size_of, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 1


def evaluate_node(node: ast.expr | None, names: dict[str, Any], max_size: int) -> Any:
    """The value of a node.

    Args:
        names: the variables of the comprehensions around the node.
        max_size: largest size that the value may have: LARGEST_SIZE, divided by the number of times that the
            comprehensions compute the node.
    """
    value = compute_node(node, names, max_size)
    if size_of(value) > max_size:
        raise ValueError(f"a value of size {size_of(value)} is too large")
    return value


def compute_node(node: ast.expr | None, names: dict[str, Any], max_size: int) -> Any:
    """The value of a node, before its size is checked; arguments as for `evaluate_node`."""
    match node:
        case None:  # an omitted bound of a slice
            return None
        case ast.Constant(value=int() | str() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items):
            return [evaluate_node(item, names, max_size) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate_node(operand, names, max_size)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return multiply(evaluate_node(left, names, max_size), evaluate_node(right, names, max_size))
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]) if (
            type(op) in OPERATORS
        ):
            return OPERATORS[type(op)](evaluate_node(left, names, max_size), evaluate_node(right, names, max_size))
        case ast.Subscript(value=inner, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            bounds = (evaluate_node(bound, names, max_size) for bound in (lower, upper, step))
            return evaluate_node(inner, names, max_size)[slice(*bounds)]
        case ast.Subscript(value=inner, slice=index):
            return evaluate_node(inner, names, max_size)[evaluate_node(index, names, max_size)]
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](evaluate_node(argument, names, max_size))
        case ast.Call(func=ast.Attribute(value=inner, attr="upper"), args=[], keywords=[]):
            return str.upper(evaluate_node(inner, names, max_size))
        case ast.ListComp(
            elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=items, ifs=tests, is_async=0)]
        ):
            values = evaluate_node(items, names, max_size)
            max_item_size = max_size // max(1, len(values))
            scopes = ({**names, name: value} for value in values)
            return [
                evaluate_node(item, scope, max_item_size)
                for scope in scopes
                if all(evaluate_node(test, scope, max_item_size) for test in tests)
            ]
    raise ValueError(f"{ast.unparse(node)} is not one of the expressions that are allowed here")


def multiply(left: Any, right: Any) -> Any:
    """left * right, or a ValueError if it would be too large."""
    sizes = [abs(side) if isinstance(side, int) else size_of(side) for side in (left, right)]
    if sizes[0] * sizes[1] > LARGEST_PRODUCT:
        raise ValueError(f"a product of {sizes[0]} and {sizes[1]} is too large")
    return left * right


# The task -------------------------------------------------------------------------------------------------------------


class InOrder(ast.NodeTransformer):
    """Sorts what may be in any order: the operands of + and *, and the items that only a function sees."""

    def visit_Call(self, call: ast.Call) -> ast.AST:
        self.generic_visit(call)
        if isinstance(call.func, ast.Name):
            items = call.args[0].generators[0].iter if isinstance(call.args[0], ast.ListComp) else call.args[0]
            if isinstance(items, ast.List):
                items.elts.sort(key=ast.unparse)
            elif isinstance(items, ast.Constant) and isinstance(items.value, str):
                items.value = "".join(sorted(items.value))
        return call

    def visit_BinOp(self, operation: ast.BinOp) -> ast.AST:
        self.generic_visit(operation)
        if isinstance(operation.op, ast.Add | ast.Mult):
            operation.left, operation.right = sorted((operation.left, operation.right), key=ast.unparse)
        return operation


def canonical_form(expression: str) -> str:
    """The task, whatever the order of what may be in any order; as another family would ask for it, if one does."""
    match ast.parse(expression, mode="eval").body:
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=[ast.List(elts=items)]):
            which = "largest" if name == "max" else "smallest"
            return tasks.canonical_choice(which, [ast.literal_eval(item) for item in items])
        case ast.Call(func=ast.Name(id="sum"), args=[ast.List(elts=items)]) if items:
            return tasks.canonical_form(tasks.sum_of([ast.literal_eval(item) for item in items]))
        case ast.Subscript(value=ast.Constant(value=str(text)), slice=ast.Slice(lower=None, upper=None, step=step)) if (
            step and ast.unparse(step) == "-1"
        ):
            return tasks.canonical_reversal(text)
    return ast.unparse(InOrder().visit(ast.parse(expression, mode="eval")))


# Drawing an expression: its text, the steps, its value ----------------------------------------------------------------

Expression = tuple[str, list[str], Any]


def draw_digits(generator: random.Random, low: int, high: int) -> list[int]:
    """Between `low` and `high` digits."""
    return [draw_integer(generator, 0, 9) for _ in range(draw_integer(generator, low, high))]


def draw_word(generator: random.Random, low: int, high: int) -> str:
    """Between `low` and `high` letters."""
    return "".join(draw_item(generator, LETTERS) for _ in range(draw_integer(generator, low, high)))


def join(items: Any) -> str:
    """The items, separated by commas."""
    return ", ".join(map(str, items))


def draw_call(generator: random.Random) -> Expression:
    """len, max or min of a list; the step lists the result so far after each item."""
    name, items = draw_item(generator, ("len", "max", "min")), draw_digits(generator, 2, 5)
    text = f"{name}({items})"
    if name == "len":
        return text, [f"count: {join(f'{item} is {place}' for place, item in enumerate(items, 1))}"], len(items)
    found = [(max if name == "max" else min)(items[: place + 1]) for place in range(len(items))]
    return text, [f"{'largest' if name == 'max' else 'smallest'} so far: {join(found)}"], found[-1]


def draw_sorted(generator: random.Random) -> Expression:
    """sorted() of a list."""
    items = draw_digits(generator, 3, 4)
    ordered = [digit for digit in range(10) for _ in range(items.count(digit))]
    return f"sorted({items})", [f"smallest first: {join(ordered)}"], ordered


def draw_index(generator: random.Random) -> Expression:
    """One item of a list."""
    items = draw_digits(generator, 3, 5)
    index = draw_integer(generator, 0, len(items) - 1)
    counted = [f"{place} is {item}" for place, item in enumerate(items[: index + 1])]
    return f"{items}[{index}]", [f"positions: {join(counted)}"], items[index]


def draw_reversal(generator: random.Random) -> Expression:
    """A string of digits reversed. Not letters: which ones a token contains is too hard for a small model to learn."""
    return reversal("".join(map(str, draw_digits(generator, 3, 3))))


def reversal(text: str) -> Expression:
    """A string reversed."""
    backwards = [text[-place] for place in range(1, len(text) + 1)]
    return f'"{text}"[::-1]', [f"characters: {join(text)}", f"backwards: {join(backwards)}"], "".join(backwards)


def draw_slice(generator: random.Random) -> Expression:
    """A slice of a list."""
    items = draw_digits(generator, 4, 6)
    start = draw_integer(generator, 0, len(items) - 2)
    stop = draw_integer(generator, start + 1, len(items))
    kept = [item for place, item in enumerate(items) if start <= place < stop]
    return f"{items}[{start}:{stop}]", [f"positions {start} to {stop - 1}: {join(kept)}"], kept


def draw_upper(generator: random.Random) -> Expression:
    """A string reversed and in upper case."""
    text, steps, value = reversal(draw_word(generator, 3, 4))
    value = "".join(chr(ord(letter) - 32) for letter in value)
    return f"{text}.upper()", [*steps, f"upper case: {join(value)}"], value


def draw_sum(generator: random.Random) -> Expression:
    """Two calls with +, - or * between them."""
    sign = draw_item(generator, "+-*")
    (text, steps, value), (other_text, other_steps, other) = draw_call(generator), draw_call(generator)
    result = {"+": value + other, "-": value - other, "*": value * other}[sign]
    return f"{text} {sign} {other_text}", [*steps, *other_steps, f"{value} {sign} {other} = {result}"], result


def draw_comprehension(generator: random.Random) -> Expression:
    """A formula applied to every item of a list; in half of the cases one item of the sorted result."""
    items, factor, term = draw_digits(generator, 3, 5), draw_integer(generator, 2, 5), draw_integer(generator, 1, 9)
    values = [factor * item + term for item in items]
    steps = [f"{item} * {factor} + {term} = {value}" for item, value in zip(items, values, strict=True)]
    text = f"[x * {factor} + {term} for x in {items}]"
    if generator.random() < 0.5:
        return text, steps, values
    index = draw_integer(generator, 0, len(items) - 1)
    ordered = sorted(values)
    return f"sorted({text})[{index}]", [*steps, f"smallest first: {join(ordered)}"], ordered[index]


def draw_filter(generator: random.Random) -> Expression:
    """The sum of a formula over the items that pass a test, minus how often a letter occurs in a string."""
    items, limit, factor = draw_digits(generator, 5, 8), draw_integer(generator, 2, 7), draw_integer(generator, 2, 9)
    letters, letter = draw_word(generator, 6, 9), draw_item(generator, LETTERS)
    kept, count = [item for item in items if item > limit], sum(other == letter for other in letters)
    values = [item * factor for item in kept]
    text = f'sum([x * {factor} for x in {items} if x > {limit}]) - len([c for c in "{letters}" if c == "{letter}"])'
    steps = [
        f"above {limit}: {join(kept) or 'none'}",
        f"times {factor}: {join(values) or 'none'}",
        f"sum {sum(values)}, {letter} is there {count} times",
        f"{sum(values)} - {count} = {sum(values) - count}",
    ]
    return text, steps, sum(values) - count


def draw_table(generator: random.Random) -> Expression:
    """A function of one row of a list of lists."""
    rows = [draw_digits(generator, 2, 4) for _ in range(draw_integer(generator, 2, 4))]
    index, times = draw_integer(generator, 0, len(rows) - 1), draw_integer(generator, 2, 9)
    largest = max(max(row) for row in rows)
    text = f"sum({rows}[{index}]) * {times} - max([max(row) for row in {rows}])"
    row, total = rows[index], sum(rows[index])
    steps = [
        f"row {index} is {row}, its sum {total}",
        f"largest of all: {largest}",
        f"{total} * {times} - {largest} = {total * times - largest}",
    ]
    return text, steps, total * times - largest


KINDS: dict[int, tuple[Callable[[random.Random], Expression], ...]] = {
    1: (draw_call, draw_sorted, draw_index, draw_reversal),
    2: (draw_slice, draw_upper, draw_sum),
    3: (draw_comprehension,),
    4: (draw_filter, draw_table),
}


def draw_exercise(generator: random.Random, difficulty: int) -> Exercise:
    """One expression of the difficulty and its output."""
    text, steps, value = draw_item(generator, KINDS[difficulty])(generator)
    return user_exercise(FAMILY, f"What does print({text}) print?", "\n".join(steps), str(value), canonical_form(text))


def is_correct(exercise: Exercise) -> bool:
    """Whether the evaluator prints the answer."""
    expression = exercise.messages[-1]["content"].removeprefix("What does print(").removesuffix(") print?")
    return str(evaluate(expression)) == exercise.answer


def generate_exercises(num_exercises: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Exercise]:
    """Exercises of one split; fewer exercises are a prefix of more.

    Args:
        num_exercises: how many; 0 gives none.
        seed: selects the exercises.
        split: "train" or "evaluation"; they share no task, for any seeds and difficulties.
        difficulty: 1: one operation on a short list or string; 2: slices and two operations; 3: comprehensions; 4:
            comprehensions with a test, lists of lists.
    Raises:
        ValueError: if a number is out of range or the split is unknown.
    """
    return draw_exercises(FAMILY, draw_exercise, is_correct, num_exercises, seed, split, difficulty)


def check_answer(exercise: Exercise, reply: str) -> bool:
    """Whether the reply is exactly the output, whatever the white space in a list."""
    return plain(reply).replace(", ", ",") == exercise.answer.replace(", ", ",")
