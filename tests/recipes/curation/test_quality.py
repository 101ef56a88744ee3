import math

import pytest

from nemotron.recipes.curation.categories import CODE_RULES, PROSE_RULES
from nemotron.recipes.curation.quality import HEURISTICS, quality_rules
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources import Document

HEURISTIC = {heuristic.name: heuristic for heuristic in HEURISTICS}

# heuristic -> for each bound, a text just inside and a text just outside
BORDERS = {
    "words": [("one two three four five", "one two three four"), ("w " * 100_000, "w " * 100_001)],
    "mean word length": [("aaa bbb", "aaa bb"), ("a" * 10, "a" * 11)],
    "words with a letter": [("a " * 4 + "1", "a " * 15 + "1 " * 4)],
    "stop words": [("return the node", "return a node")],
    "symbols per word": [("# " + "word " * 9, "# " + "word " * 8), ("word " * 9 + "...", "word " * 8 + "...")],
    "top bigram": [("ab cd ab cd " + "x" * 32, "ab cd ab cd " + "x" * 31)],  # 8 of 40 characters, 8 of 39
    "longest line": [("a" * 250, "a" * 251)],
    "letters": [("ab123", "ab1234")],
    "import lines": [("import a\n" * 4 + "b = a", "import a\n" * 5 + "b = a")],
}


def test_a_text_of_too_many_words_is_refused_with_the_way_to_cut_it():
    sentence = r"leaves none of 1 items, .*; cut a longer text into several \.txt files, for example with split -l 500 "
    book = document("the cat and the dog " * 20_001, PROSE_RULES[0])
    with pytest.raises(ValueError, match=sentence):
        apply_to_list([book], quality_rules(), {})


def document(text, category):
    return Document("a", "a", category, text, "MIT", "here")


@pytest.mark.parametrize("name", HEURISTIC)
def test_a_text_just_inside_a_bound_passes_and_one_just_outside_does_not(name):
    heuristic = HEURISTIC[name]
    for category in heuristic.categories:
        for inside, outside in BORDERS[name]:
            assert heuristic.fault(document(inside, category)) is None, heuristic.measure(inside)
            assert heuristic.fault(document(outside, category)) == f"{heuristic.measure(outside):.4g}"


@pytest.mark.parametrize("name", HEURISTIC)
def test_texts_of_another_kind_pass(name):
    heuristic = HEURISTIC[name]
    others = [category for category in ("academic", "code", "math") if category not in heuristic.categories]
    assert len(others) == 2
    for category in others:
        assert heuristic.fault(document(BORDERS[name][0][1], category)) is None


@pytest.mark.parametrize("name", HEURISTIC)
def test_the_threshold_names_the_bounds_the_kind_of_text_and_the_origin(name):
    heuristic = HEURISTIC[name]
    assert "at least" in heuristic.threshold or "at most" in heuristic.threshold
    kind = "code" if "code" in heuristic.categories else "prose"
    assert heuristic.threshold.endswith(f"{kind} only ({heuristic.origin})")


def test_there_is_a_rule_for_each_heuristic_in_order():
    rules = quality_rules()
    assert [rule.name for rule in rules] == [f"quality: {name}" for name in HEURISTIC]
    assert [rule.threshold for rule in rules] == [heuristic.threshold for heuristic in HEURISTICS]
    assert rules[0].fault(document("one two", "wiki")) == "2"
    assert rules[-1].fault(document("import a", "code")) == "1"


def test_every_heuristic_is_for_prose_or_for_code():
    assert {heuristic.categories for heuristic in HEURISTICS} == {PROSE_RULES, CODE_RULES}
    assert not set(PROSE_RULES) & set(CODE_RULES)


@pytest.mark.parametrize("name", HEURISTIC)
@pytest.mark.parametrize("text", ["", "\n", " ", "\u00e9", "#"])
def test_a_nearly_empty_text_has_a_finite_measure(name, text):
    assert math.isfinite(HEURISTIC[name].measure(text))
