import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.blending import blend_order

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=1).map(
    lambda parts: {name: part / sum(parts.values()) for name, part in parts.items()}
)


@given(WEIGHTS, st.integers(0, 300))
def test_every_prefix_of_the_order_has_the_blend_up_to_one_sequence_per_category(weights, num_sequences):
    order = blend_order(weights, num_sequences)
    assert len(order) == num_sequences
    for name, weight in weights.items():
        count = 0
        for index, chosen in enumerate(order, start=1):
            count += chosen == name
            assert count - weight * index <= 1
            # A category is behind by what the others are ahead, which is at most 1 each.
            assert weight * index - count < len(weights)


@given(WEIGHTS)
def test_the_shares_of_a_long_order_converge_to_the_weights(weights):
    order = blend_order(weights, 1000)
    for name, weight in weights.items():
        assert math.isclose(order.count(name) / 1000, weight, abs_tol=0.003)


def test_an_order_computed_by_hand():
    # Before the sixth sequence, a is behind by 0.75 * 5 - 4 and b by 0.25 * 5 - 1, so b is next.
    assert "".join(blend_order({"b": 0.25, "a": 0.75}, 9)) == "abaaabaaa"


def test_a_tie_goes_to_the_first_name_in_any_dictionary_order():
    assert blend_order({"b": 0.5, "a": 0.5}, 4) == blend_order({"a": 0.5, "b": 0.5}, 4) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 0.0}])
def test_a_category_without_weight_is_never_drawn(weights):
    assert blend_order(weights, 5) == ["a"] * 5
