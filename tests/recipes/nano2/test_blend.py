"""The published blend and what is left of it where categories are absent."""

import pytest

from nemotron.recipes.nano2.blend import PHASE1, PHASE2, RELEASED, renormalised


def test_the_proxy_percentages_have_the_printed_sums():
    assert sum(PHASE1.values()) == pytest.approx(100.0)
    assert sum(PHASE2.values()) == pytest.approx(100.1)


def test_released_datasets_belong_to_categories_of_the_blend():
    assert set(RELEASED) <= set(PHASE1)
    assert all(uri.startswith("hf://datasets/nvidia/") for uris in RELEASED.values() for uri in uris)


def test_the_weight_of_absent_categories_goes_to_those_of_their_kind():
    """Prose keeps 63.9, code 18.6 and math 17.5 percent of phase 1."""
    assert renormalised(PHASE1, ["math", "academic", "code"]) == pytest.approx(
        {"academic": 0.639, "code": 0.186, "math": 0.175}
    )
    assert renormalised(PHASE1, ["math", "academic", "wiki", "code"]) == pytest.approx(
        {"academic": 0.639 * 4.1 / 4.7, "wiki": 0.639 * 0.6 / 4.7, "code": 0.186, "math": 0.175}
    )


def test_the_weight_of_an_absent_kind_goes_to_the_other_kinds():
    assert renormalised(PHASE1, ["math", "code"]) == pytest.approx({"code": 18.6 / 36.1, "math": 17.5 / 36.1})


@pytest.mark.parametrize("weights", [PHASE1, PHASE2])
def test_with_every_category_present_the_weights_are_the_printed_ones(weights):
    total = sum(weights.values())
    assert renormalised(weights, list(weights)) == pytest.approx({name: w / total for name, w in weights.items()})


def test_a_corpus_without_a_category_of_the_blend_is_refused():
    with pytest.raises(ValueError, match="no source belongs to a category of the blend; name one of crawl-medium"):
        renormalised(PHASE1, ["poems"])
