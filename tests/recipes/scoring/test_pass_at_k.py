"""pass@k against all choices, and paired differences against numpy."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.scoring.pass_at_k import Paired, paired_difference, pass_at_k


@pytest.mark.parametrize("num_replies", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_right_reply(num_replies) -> None:
    for num_right in range(num_replies + 1):
        replies = [index < num_right for index in range(num_replies)]
        for k in range(1, num_replies + 1):
            choices = [any(choice) for choice in combinations(replies, k)]
            assert pass_at_k(num_replies, num_right, k) == pytest.approx(sum(choices) / len(choices), abs=1e-15)


def test_pass_at_1_is_the_share_of_right_replies_and_large_numbers_do_not_overflow() -> None:
    assert pass_at_k(8, 3, 1) == 3 / 8
    assert pass_at_k(5_000, 1, 2_500) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [-1, 0, 9])
def test_more_replies_than_there_are_or_none_is_refused(k) -> None:
    with pytest.raises(ValueError, match=f"k={k} must be from 1 to the 8 replies; draw more replies"):
        pass_at_k(8, 3, k)


numbers = st.floats(-1, 1)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20))
def test_the_paired_difference_equals_that_of_numpy(pairs) -> None:
    after, before = zip(*pairs, strict=True)
    difference = np.subtract(after, before)
    found = paired_difference(after, before)
    assert found.difference == pytest.approx(difference.mean(), abs=1e-14)
    assert found.standard_error == pytest.approx(difference.std(ddof=1) / len(pairs) ** 0.5, abs=1e-14)


def test_a_difference_that_every_pair_has_has_no_standard_error_however_much_the_exercises_differ() -> None:
    assert paired_difference([0.25, 0.75, 1.0], [0.0, 0.5, 0.75]) == Paired(0.25, 0.0)
    assert paired_difference([1.0], [0.5]) == Paired(0.5, 0.0)


def test_the_difference_is_that_of_after_from_before() -> None:
    assert paired_difference([1.0, 1.0], [0.0, 1.0]) == Paired(0.5, 0.5)


def test_measurements_of_other_exercises_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0], [0.0, 1.0])
