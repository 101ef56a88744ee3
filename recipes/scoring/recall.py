"""Recall by distance: does a model still find a fact that is many tokens back?

In: rows that end in the three digits of an answer (recipes/curation/long_context.py writes them), a model's `Score`.
Out: for each distance, the share of right answers and the share of right digits.

An answer is right if each of its digits is the model's most likely token, given everything before it. Greedy
decoding would get the same answers right, because it reads the same tokens up to its first wrong digit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.likelihood import Row, Score

ANSWER_TOKENS = 3


@dataclass(frozen=True)
class Recall:
    """Result over all rows of one distance."""

    answers: Accuracy
    """Whole answers; guessing one of 1,000."""
    digits: Accuracy
    """Single digits, each given the right digits before it; guessing one of 10."""
    answer_loss: float
    """Mean loss of a whole answer in nats. A model that knows only that three digits follow reaches ln 1000 = 6.9."""


def recall_by_distance(
    score: Score, rows: Sequence[Row], answer_starts: Sequence[int], distances: Sequence[int]
) -> dict[int, Recall]:
    """Recall at each distance, from near to far.

    Args:
        score: scores rows with the model.
        rows: token ids; each row ends in the three digits of its answer.
        answer_starts: for each row, the index of the first digit.
        distances: for each row, the number of tokens between fact and answer.
    Raises:
        ValueError: if an answer is not the end of its row, or nothing comes before it.
    """
    for row, start in zip(rows, answer_starts, strict=True):
        if start < 1 or start + ANSWER_TOKENS != len(row):
            raise ValueError(
                f"answer_start={start} does not fit a row of {len(row)} tokens; a recall row must end in the "
                f"{ANSWER_TOKENS} digits of its answer"
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
