"""How often one model's reply is better than another's, by a rule that gives each reply a number.

In: what the replies of two models to the same prompts earn, in the same order. Out: the win rate, in which a tie counts
as a half, with its standard error over questions; the shares of wins, ties and losses.
The two replies of a pair are compared by their numbers, so unlike with a judge that reads both, it does not matter
which of them comes first. Left out: a correction for length.
"""

from collections.abc import Sequence
from typing import NamedTuple

from nemotron.recipes.scoring.pass_at_k import paired_difference


class WinRate(NamedTuple):
    """The outcome of many comparisons, as shares."""

    win_rate: float
    """Wins and half of the ties."""
    win_rate_error: float
    """Standard error over questions."""
    wins: float
    ties: float
    losses: float


def win_rate(ours: Sequence[float], theirs: Sequence[float], questions: Sequence[int]) -> WinRate:
    """Compare the replies in the same place.

    Args:
        questions: the number of the question that each pair of replies answers; several pairs may answer one.
    Raises:
        ValueError: if there is no reply, or the arguments have different lengths.
    """
    if not ours:
        raise ValueError("there are no replies to compare; ask at least one question")
    points = [(1 + (one > other) - (one < other)) / 2 for one, other in zip(ours, theirs, strict=True)]
    means = by_question(points, questions)
    rate, error = paired_difference(means, [0.0] * len(means))
    return WinRate(rate, error, *(points.count(value) / len(points) for value in (1, 0.5, 0)))


def by_question(values: Sequence[float], questions: Sequence[int]) -> list[float]:
    """The mean of the values of each question, in the order of their first values."""
    groups: dict[int, list[float]] = {}
    for value, question in zip(values, questions, strict=True):
        groups.setdefault(question, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]
