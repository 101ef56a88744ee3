import itertools
import math

import numpy as np
import pytest

from nemotron.recipes.scoring.likelihood import RowScores
from nemotron.recipes.scoring.multiple_choice import Question, choice_accuracy, pick_choices

END = 0


def encode(text):
    return list(text.encode())


def score_by(loss):
    """A model whose loss for a token is `loss(token)` after any context."""

    def score(rows):
        return [
            RowScores(np.array([loss(token) for token in row[1:]], dtype=float), np.zeros(len(row) - 1, dtype=bool))
            for row in rows
        ]

    return score


def test_the_most_likely_choice_is_picked():
    cheap = score_by(lambda token: 0.0 if chr(token) in " 7" else 1.0)
    questions = [Question("a?", ("5", "7"), 1), Question("b?", ("7", "5", "6"), 2)]
    assert pick_choices(cheap, questions, encode, END) == [1, 0]


def test_prompt_tokens_do_not_count():
    rows_seen = []

    def score(rows):
        rows_seen.extend(rows)
        return [
            RowScores(
                # The same prompt can round differently in another batch. Exaggerated: it costs more before "6".
                np.array([1000.0 * (row[-2] == ord("6"))] * (len(row) - 4) + [0.0, row[-2] == ord("5"), 0.0]),
                np.zeros(len(row) - 1, dtype=bool),
            )
            for row in rows
        ]

    assert pick_choices(score, [Question("long prompt", ("5", "6"), 0)], encode, END) == [1]
    assert rows_seen == [[*encode("long prompt 5"), END], [*encode("long prompt 6"), END]]


def test_the_end_of_the_document_is_part_of_the_answer():
    # "1" is a more likely beginning than "12" but a less likely answer: the end costs 5 after "1" and 0 after "2".
    def score(rows):
        costs = {(" ", "1"): 1.0, ("1", "2"): 1.0, ("1", "\0"): 5.0, ("2", "\0"): 0.0}
        return [
            RowScores(np.array([costs.get((chr(a), chr(b)), 0.0) for a, b in itertools.pairwise(row)]), np.array([]))
            for row in rows
        ]

    assert pick_choices(score, [Question("n", ("1", "12"), 1)], encode, END) == [1]


def test_a_longer_choice_has_no_advantage():
    cost_per_token = score_by(lambda token: math.log(10))
    assert pick_choices(cost_per_token, [Question("n", ("1234", "1"), 0)], encode, END) == [1]


def test_a_token_that_merges_prompt_and_choice_is_scored():
    def merging(text):  # ": 5" is one token, 1
        return list(text.replace(": 5", "\1").encode())

    cost = score_by(lambda token: {1: 7.0, ord("6"): 2.0}.get(token, 0.0))
    assert pick_choices(cost, [Question("q:", ("5", "6"), 0)], merging, END) == [1]


def test_the_first_of_equally_likely_choices_is_picked():
    assert pick_choices(score_by(lambda token: 1.0), [Question("n", ("3", "3", "4"), 2)], encode, END) == [0]


def test_the_chance_level_is_the_mean_over_the_questions():
    questions = [Question("a", ("1", "2"), 0), Question("b", ("1", "2", "3", "4"), 3)]
    result = choice_accuracy(questions, [0, 1])
    assert (result.num_right, result.num_asked, result.chance_level) == (1, 2, 0.375)


@pytest.mark.parametrize("correct", [-1, 2])
def test_a_correct_index_outside_the_choices_is_refused(correct):
    with pytest.raises(ValueError, match=f"correct={correct} must be an index of the 2 choices"):
        Question("a", ("1", "2"), correct)
