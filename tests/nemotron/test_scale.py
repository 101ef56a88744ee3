"""apply_scale against its definition in fractions, and its four laws for any count and scale."""

from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron import SCALES, Scale, apply_scale

counts = st.integers(min_value=0, max_value=10**30) | st.integers(min_value=0, max_value=2_000_000)
scales: st.SearchStrategy[Scale] = st.sampled_from(SCALES)

SHARES = {"tiny": Fraction(1, 100), "small": Fraction(1, 10), "medium": Fraction(3, 10), "full": Fraction(1)}


@given(counts, scales)
def test_a_scale_takes_its_share_rounded_down_but_never_nothing(count: int, scale: Scale):
    share = max(floor(count * SHARES[scale]), min(count, 1))
    assert apply_scale(count, scale) == (min(share, 10_000) if scale == "tiny" else share)


@given(counts, scales)
def test_a_scale_takes_at_least_one_of_something_and_never_more_than_there_is(count: int, scale: Scale):
    assert min(count, 1) <= apply_scale(count, scale) <= count


@given(counts, counts, scales)
def test_a_larger_count_never_gives_fewer(count: int, other: int, scale: Scale):
    assert apply_scale(min(count, other), scale) <= apply_scale(max(count, other), scale)


@given(counts)
def test_a_larger_scale_never_gives_fewer(count: int):
    rows = [apply_scale(count, scale) for scale in SCALES]
    assert rows == sorted(rows)


def test_the_counts_of_the_design_by_hand():
    assert [apply_scale(150_000, scale) for scale in SCALES] == [1_500, 15_000, 45_000, 150_000]
    assert [apply_scale(count, "tiny") for count in (0, 1, 99, 199, 200, 999_999, 1_000_000, 10**9)] == [
        *(0, 1, 1, 1, 2, 9_999, 10_000, 10_000)
    ]


@given(st.text().filter(lambda scale: scale not in SCALES) | st.none() | st.integers())
def test_an_unknown_scale_is_refused_with_the_four_that_exist(scale: object):
    with pytest.raises(ValueError, match="tiny, small, medium, full") as error:
        apply_scale(100, scale)  # type: ignore[arg-type]
    assert repr(scale) in str(error.value)


@pytest.mark.parametrize("count", [-1, -(10**12), True, False, 1.0, 0.5, "100", None])
def test_a_count_that_is_not_a_number_of_rows_is_refused(count: object):
    with pytest.raises(ValueError, match=f"count={count!r}"):
        apply_scale(count, "full")  # type: ignore[arg-type]
