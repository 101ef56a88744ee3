import numpy as np
import pytest

from nemotron.recipes.scoring.likelihood import RowScores
from nemotron.recipes.scoring.recall import recall_by_distance


def score_last(greedy, losses):
    """A model with the given is_greedy and losses on the last three tokens; all other tokens are unlikely."""

    def score(rows):
        return [
            RowScores(
                np.array([100.0] * (len(row) - 4) + list(row_losses)),
                np.array([False] * (len(row) - 4) + list(row_greedy), dtype=bool),
            )
            for row, row_greedy, row_losses in zip(rows, greedy, losses, strict=True)
        ]

    return score


def test_recall_of_hand_written_answers():
    greedy = [(1, 1, 1), (1, 0, 1), (0, 0, 0), (1, 1, 1)]
    losses = [(0, 0, 1), (1, 1, 1), (2, 2, 2), (0, 0, 0)]
    rows = [list(range(length)) for length in (8, 9, 10, 8)]
    results = recall_by_distance(score_last(greedy, losses), rows, [5, 6, 7, 5], [64, 32, 32, 32])
    assert list(results) == [32, 64]
    near, far = results[32], results[64]
    assert (near.answers.num_right, near.answers.num_asked, near.answers.chance_level) == (1, 3, 0.001)
    assert (near.digits.num_right, near.digits.num_asked, near.digits.chance_level) == (5, 9, 0.1)
    assert near.answer_loss == pytest.approx(3.0)
    assert (far.answers.num_right, far.answers.num_asked, far.answer_loss) == (1, 1, 1.0)


@pytest.mark.parametrize("start", [4, 6, 0])
def test_an_answer_that_does_not_end_its_row_is_refused(start):
    with pytest.raises(ValueError, match=f"answer_start={start} does not fit a row of 8 tokens"):
        recall_by_distance(score_last([(1, 1, 1)], [(0, 0, 0)]), [list(range(8))], [start], [32])


def test_an_answer_may_follow_a_single_token():
    (result,) = recall_by_distance(score_last([(1, 1, 1)], [(0, 0, 2)]), [list(range(4))], [1], [32]).values()
    assert (result.answers.num_right, result.answer_loss) == (1, 2.0)
