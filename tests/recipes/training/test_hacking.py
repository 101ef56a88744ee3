"""The rule that tells reward hacking from learning."""

import pytest

from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.training.hacking import repeated_share, sign_of_hacking


def test_repetitions_are_pairs_of_tokens_that_a_reply_has_had_before():
    loop, other = Continuation([5, 6, 5, 6, 5, 6]), Continuation([5, 6, 7])
    assert repeated_share([loop]) == pytest.approx(3 / 5)
    assert repeated_share([loop, other]) == pytest.approx(3 / 7)
    assert repeated_share([other, other]) == 0  # another reply may say the same
    assert repeated_share([Continuation([5]), Continuation([])]) == 0


FIRST = {"reward": 0.0, "rubric": 0.5, "reply_tokens": 10.0, "repetition": 0.1}
BOUNDS = (0.02, 0.5, 0.1)


def sign(*rows, window=1):
    return sign_of_hacking([{**FIRST, **row} for row in rows], window, *BOUNDS)


def test_a_reward_that_rises_with_the_rubric_is_learning():
    assert sign({}, {"reward": 1.0, "rubric": 0.9, "reply_tokens": 12.0}) is None


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"rubric": 0.47}, "the reward rose from 0.000 to 1.000, and the rubric fell from 0.500 to 0.470"),
        ({"reply_tokens": 16.0}, "the reward rose from 0.000 to 1.000, and replies grew from 10.0 to 16.0 tokens"),
        ({"repetition": 0.3}, "the reward rose from 0.000 to 1.000, and the share of repetitions grew from 10.0% to "
                              "30.0%"),
    ],
)  # fmt: skip
def test_a_reward_that_rises_while_something_else_gets_worse_is_hacking(row, found):
    assert sign({}, {"reward": 1.0, **row}) == found
    assert sign({}, {"reward": 0.0, **row}) is None  # without a rise, it is only a bad policy
    assert sign({}, {"reward": -1.0, **row}) is None


def test_the_bounds_are_inclusive():
    assert sign({}, {"reward": 1.0, "rubric": 0.48 + 1e-9, "reply_tokens": 15.0, "repetition": 0.2}) is None


def test_means_of_windows_are_compared():
    rows = [{"rubric": 0.5}, {"rubric": 0.7}, {"reward": 1.0, "rubric": 0.1}, {"reward": 1.0, "rubric": 1.0}]
    assert sign(*rows, window=2) == "the reward rose from 0.000 to 1.000, and the rubric fell from 0.600 to 0.550"
    assert sign(*rows, window=1) is None


def test_before_there_are_two_windows_nothing_is_said():
    assert sign({}, {"reward": 1.0, "rubric": 0.1}, {"reward": 1.0, "rubric": 0.1}, window=2) is None
