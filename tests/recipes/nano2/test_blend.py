import pytest

from nemotron.recipes.nano2.blend import BLEND, LONG_DOCUMENT_QA, PHASE1, PHASE2, RELEASED, renormalised


def test_the_proxy_percentages_sum_to_what_was_printed():
    assert sum(PHASE1.values()) == pytest.approx(100.0)
    assert sum(PHASE2.values()) == pytest.approx(100.1)


def test_a_fifth_of_the_long_context_phase_is_questions_on_long_documents():
    weights = renormalised(BLEND["long_context"], [*PHASE2, LONG_DOCUMENT_QA])
    assert weights[LONG_DOCUMENT_QA] == pytest.approx(0.2)
    assert weights["code"] / weights["math"] == pytest.approx(14.0 / 12.5)


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
