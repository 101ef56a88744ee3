import math

import pytest

from nemotron.recipes.curation.filters import CODE, PROSE, apply_filter
from nemotron.recipes.curation.quality import RULES, bounds, quality_filters
from nemotron.recipes.sources.dataframes import daft

RULE = {rule.name: rule for rule in RULES}

# rule -> (a text just inside of each bound, a text just outside of it)
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


@pytest.mark.parametrize("name", RULE)
def test_each_rule_keeps_a_text_just_inside_its_bound_and_drops_one_just_outside(name):
    for inside, outside in BORDERS[name]:
        assert RULE[name].passes(inside), RULE[name].measure(inside)
        assert not RULE[name].passes(outside), RULE[name].measure(outside)


@pytest.mark.parametrize("name", RULE)
def test_each_rule_says_its_bound_and_where_it_comes_from(name):
    words = bounds(RULE[name])
    assert "at least" in words or "at most" in words
    assert words.endswith(f"({RULE[name].origin})")


@pytest.mark.parametrize("name", RULE)
def test_the_filter_of_a_rule_applies_to_its_kind_of_text_alone(name):
    rule = RULE[name]
    outside = BORDERS[name][0][1]
    inside = BORDERS[name][0][0]
    others = [category for category in ("academic", "code", "math") if category not in rule.categories]
    categories = [rule.categories[0], rule.categories[0], *others]
    frame = daft.from_pydict(
        {
            "id": [str(number) for number in range(len(categories))],
            "text": [inside] + [outside] * (len(categories) - 1),
            "category": categories,
        }
    )
    reports = {}
    filter_of_rule = quality_filters()[list(RULE).index(name)]
    kept = apply_filter(frame, filter_of_rule, reports)
    assert sorted(kept.to_pydict()["id"]) == ["0", *(str(number) for number in range(2, len(categories)))]
    assert reports[f"quality: {name}"].examples[0].id == "1"


def test_every_rule_is_for_prose_or_for_code():
    assert {rule.categories for rule in RULES} == {PROSE, CODE}
    assert not set(PROSE) & set(CODE)


@pytest.mark.parametrize("name", RULE)
@pytest.mark.parametrize("text", ["", "\n", " ", "\u00e9", "#"])
def test_a_nearly_empty_text_is_measured_as_a_finite_number(name, text):
    assert math.isfinite(RULE[name].measure(text))
