"""Wins, ties and losses, on numbers small enough to check by eye."""

import pytest

from nemotron.recipes.scoring.win_rate import by_question, win_rate


def test_a_tie_counts_as_a_half():
    found = win_rate([1.0, 0.5, 0.25, 0.25], [0.5, 0.5, 0.5, 0.0], [0, 1, 2, 3])
    assert (found.wins, found.ties, found.losses, found.win_rate) == (0.5, 0.25, 0.25, 0.625)


def test_swapping_the_models_swaps_wins_and_losses():
    ours, theirs, questions = [1.0, 0.5, 0.25, 0.7], [0.5, 0.5, 0.5, 0.1], [0, 0, 1, 1]
    one, other = win_rate(ours, theirs, questions), win_rate(theirs, ours, questions)
    assert one.win_rate == 1 - other.win_rate
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.win_rate_error == other.win_rate_error


def test_a_model_against_itself_wins_a_half():
    assert win_rate([0.1, 0.2], [0.1, 0.2], [0, 1]) == (0.5, 0, 0, 1, 0)


def test_the_error_is_over_questions_not_over_replies():
    """Both replies to a question have the same outcome, so there are two measurements, not four."""
    found = win_rate([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [5, 5, 9, 9])
    assert (found.win_rate, found.win_rate_error) == (0.5, pytest.approx(0.5))


def test_values_are_averaged_by_question():
    assert by_question([1.0, 2.0, 3.0], [7, 3, 7]) == [2.0, 2.0]


def test_no_replies_have_no_winner():
    with pytest.raises(ValueError, match="there are no replies to compare; ask at least one question"):
        win_rate([], [], [])
