"""The canonical form of a task: what is asked, whatever the wording, language, family, names or order of operands.

In: a calculation, numbers to compare, text to reverse. Out: a string, the same for every way of asking for the same.
`split_of` in problems/problem.py decides the split from it, so a task that evaluation uses is held out of the training
data of every family of exercises and of the problems of pretraining.

    python -c "from nemotron.recipes.sources.tasks import *;print(canonical_form(sum_of([7, -5, 2])))"

What one family asks alone has its canonical form in the module of that family. A name belongs to the task only if the
answer depends on it. Left out: what a worked step does on the way, such as the 7 + 2 in 7 + 2 - 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """Two whole numbers or operations with a sign (+, -, * or /) between them."""

    sign: str
    left: "Operation | int"
    right: "Operation | int"


def canonical_form(tree: Operation | int) -> str:
    """The same string for calculations that differ only in the order of terms or factors.

    3 + 4 and 4 + 3 are one task, and so are (9 - 4) + 2, 9 + (2 - 4) and the equation x + 4 = 9 + 2. 2 * (3 + 4) and
    2 * 3 + 2 * 4 are two tasks, because other numbers are computed on the way.
    """
    if isinstance(tree, int):
        return str(tree)
    return f"({' '.join(sorted(members(tree, '+' if tree.sign in '+-' else '*')))})"


def members(tree: Operation | int, sign: str, inverted: bool = False) -> list[str]:
    """The terms of a sum ("+") or the factors of a product ("*"), each with its sign: ["+7", "-5"], ["*6", "/2"]."""
    inverse = {"+": "-", "*": "/"}[sign]
    if isinstance(tree, Operation) and tree.sign in (sign, inverse):
        right_inverted = inverted != (tree.sign == inverse)
        return members(tree.left, sign, inverted) + members(tree.right, sign, right_inverted)
    if sign == "+" and isinstance(tree, int):
        return [f"{-tree if inverted else tree:+d}"]
    return [f"{inverse if inverted else sign}{canonical_form(tree)}"]


def sum_of(terms: Sequence[int]) -> Operation | int:
    """The sum of terms, of which some may be negative, as a calculation."""
    total: Operation | int = terms[0]
    for term in terms[1:]:
        total = Operation("+", total, term)
    return total


def canonical_choice(which: str, numbers: Sequence[int]) -> str:
    """The task of finding the "largest" or "smallest" number."""
    return f"{which} of {sorted(numbers)}"


def canonical_reversal(text: str) -> str:
    """The task of writing text backwards."""
    return f"backwards {text}"
