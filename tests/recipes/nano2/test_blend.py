import pytest

from nemotron.recipes.nano2.blend import PHASE1, PHASE2, RELEASED, renormalised


def test_the_proxy_percentages_sum_to_what_was_printed():
    assert sum(PHASE1.values()) == pytest.approx(100.0)
    assert sum(PHASE2.values()) == pytest.approx(100.1)


def test_released_datasets_belong_to_categories_of_the_blend():
    assert set(RELEASED) <= set(PHASE1)
    assert all(uri.startswith("hf://datasets/nvidia/") for uris in RELEASED.values() for uri in uris)


def test_absent_categories_leave_the_others_in_proportion():
    assert renormalised(PHASE1, ["math", "academic", "code"]) == pytest.approx(
        {"academic": 4.1 / 24.5, "code": 14.0 / 24.5, "math": 6.4 / 24.5}
    )


def test_a_corpus_without_any_category_of_the_blend_is_refused():
    with pytest.raises(ValueError, match="no source belongs to a category of the blend; name one of crawl-medium"):
        renormalised(PHASE1, ["poems"])
