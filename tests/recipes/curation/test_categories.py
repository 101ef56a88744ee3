import pytest

from nemotron.recipes.curation.categories import CATEGORIES, CODE_RULES, PROSE_RULES, TEMPLATED, kind_of
from nemotron.recipes.nano2.blend import PHASE1, PHASE2


def test_the_table_has_exactly_the_categories_of_the_blend():
    assert set(CATEGORIES) == {*PHASE1, *PHASE2}


def test_rules_for_prose_apply_to_english_pages_and_documents():
    assert PROSE_RULES == (
        "academic",
        "crawl++",
        "crawl-high",
        "crawl-medium",
        "crawl-medium-high",
        "syn-crawl-high",
        "syn-crawl-medium-high",
        "wiki",
    )


def test_rules_for_code_apply_to_source_and_not_to_questions_about_code():
    assert CODE_RULES == ("code", "nemotron-cc-code")
    assert kind_of("code-sft") == "code"


def test_only_fine_tuning_data_is_templated():
    assert {"stem-sft", "code-sft", "general-sft"} == TEMPLATED


@pytest.mark.parametrize(
    ("kind", "categories"),
    [
        ("code", {"code", "nemotron-cc-code", "code-sft"}),
        ("math", {"math", "stem-sft"}),
        ("prose", {*PROSE_RULES, "multilingual", "general-sft"}),
    ],
)
def test_each_kind_has_its_categories(kind, categories):
    assert {name for name in CATEGORIES if kind_of(name) == kind} == categories


def test_a_category_outside_the_table_is_prose():
    assert kind_of("poems") == "prose"
