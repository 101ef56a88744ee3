"""Recall by distance: does a model still find a fact that stands many tokens back?

In: rows that end in the three digits of an answer (recipes/curation/long_context.py writes them), a model's `Score`.
Out: per distance, the share of answers that the model gets entirely right, and of single digits.

An answer counts when each of its digits is the model's most likely token after everything before it, the right digits
included. That is the answer that greedy decoding writes: its first wrong digit is wrong here as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.likelihood import Row, Score

ANSWER_TOKENS = 3


@dataclass(frozen=True)
class Recall:
    """All rows of one distance."""

    answers: Accuracy
    """Whole answers: one of 1,000."""
    digits: Accuracy
    """Single digits, each given the right ones before it: one of 10."""
    answer_loss: float
    """Mean loss in nats of a whole answer; ln 1000 = 6.9 for a model that only knows it is a number."""


def recall_by_distance(
    score: Score, rows: Sequence[Row], answer_starts: Sequence[int], distances: Sequence[int]
) -> dict[int, Recall]:
    """Recall at each distance, from near to far.

    Args:
        score: the model.
        rows: token ids; each ends in the answer's three digits.
        answer_starts: per row, the index of the answer's first digit.
        distances: per row, the tokens between the fact and the answer.
    Raises:
        ValueError: if an answer does not end its row or is preceded by nothing.
    """
    for row, start in zip(rows, answer_starts, strict=True):
        if start < 1 or start + ANSWER_TOKENS != len(row):
            raise ValueError(
                f"answer_start={start} in a row of {len(row)} tokens; a recall row ends in the {ANSWER_TOKENS} digits "
                f"of its answer"
            )
    scores = score(rows)
    greedy = np.array([row.is_greedy[-ANSWER_TOKENS:] for row in scores]).reshape(-1, ANSWER_TOKENS)
    losses = np.array([row.losses[-ANSWER_TOKENS:].sum() for row in scores])
    results = {}
    for distance in sorted(set(distances)):
        chosen = np.array(distances) == distance
        count = int(chosen.sum())
        answers = Accuracy(int(greedy[chosen].all(axis=1).sum()), count, 10.0**-ANSWER_TOKENS)
        digits = Accuracy(int(greedy[chosen].sum()), count * ANSWER_TOKENS, 0.1)
        results[distance] = Recall(answers, digits, float(losses[chosen].mean()))
    return results
