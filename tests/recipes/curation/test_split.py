import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.split import held_out_modules

MANY = [(f"module{number}", "code") for number in range(1000)]


def held_out_or_none(modules, seed):
    try:
        return held_out_modules(modules, 0.1, seed)
    except ValueError:
        return None


@given(
    st.lists(st.tuples(st.integers(0, 30).map(str), st.sampled_from(["code", "academic"])), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_every_category_has_modules_on_both_sides_unless_the_corpus_is_too_small(modules, seed):
    by_category = {category: {m for m, c in modules if c == category} for _, category in modules}
    held_out = held_out_or_none(modules, seed)
    if held_out is None:
        assert min(map(len, by_category.values())) < 4
        return
    for members in by_category.values():
        assert members & held_out
        assert members - held_out


def test_about_the_share_asked_for_is_held_out():
    assert 80 <= len(held_out_modules(MANY, 0.1, 0)) <= 120


def test_document_order_does_not_change_the_split():
    assert held_out_modules(MANY[::-1], 0.05, 3) == held_out_modules(MANY, 0.05, 3)


def test_another_seed_holds_out_other_modules():
    assert held_out_modules(MANY, 0.1, 1) != held_out_modules(MANY, 0.1, 2)


def test_a_module_stays_on_its_side_when_others_are_added():
    assert held_out_modules(MANY[:500], 0.1, 0) == held_out_modules(MANY, 0.1, 0) & {m for m, _ in MANY[:500]}


def test_a_module_is_held_out_in_all_its_categories():
    modules = [*MANY, *((module, "academic") for module, _ in MANY)]
    assert held_out_modules(modules, 0.1, 0) == held_out_modules(MANY, 0.1, 0)


def test_a_category_with_a_single_module_is_an_error():
    with pytest.raises(
        ValueError, match=r"^the corpus is too small: after the filters, category 'math' has 1 module"
    ) as error:
        held_out_modules([*MANY, ("only", "math")], 0.1, 0)
    assert "\n" not in str(error.value)
