import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.split import digest_of, falls_into_share, held_out_modules

MANY = [(f"module{number}", "code") for number in range(1000)]


def held_out_or_refused(modules, seed):
    try:
        return held_out_modules(modules, 0.1, seed)
    except ValueError:
        return None


@given(
    st.lists(st.tuples(st.integers(0, 30).map(str), st.sampled_from(["code", "academic"])), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_every_category_has_modules_on_both_sides_or_the_corpus_is_refused(modules, seed):
    by_category = {category: {m for m, c in modules if c == category} for _, category in modules}
    held_out = held_out_or_refused(modules, seed)
    if held_out is None:
        assert min(map(len, by_category.values())) < 4
        return
    for members in by_category.values():
        assert members & held_out
        assert members - held_out


def test_the_share_is_about_what_was_asked_for():
    assert 80 <= len(held_out_modules(MANY, 0.1, 0)) <= 120


def test_the_order_of_the_documents_does_not_matter():
    assert held_out_modules(MANY[::-1], 0.05, 3) == held_out_modules(MANY, 0.05, 3)


def test_another_seed_holds_out_other_modules():
    assert held_out_modules(MANY, 0.1, 1) != held_out_modules(MANY, 0.1, 2)


def test_a_module_stays_on_its_side_when_others_are_added():
    assert held_out_modules(MANY[:500], 0.1, 0) == held_out_modules(MANY, 0.1, 0) & {m for m, _ in MANY[:500]}


def test_a_module_with_two_categories_is_held_out_with_both():
    modules = [*MANY, *((module, "academic") for module, _ in MANY)]
    assert held_out_modules(modules, 0.1, 0) == held_out_modules(MANY, 0.1, 0)


def test_a_category_from_one_module_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^the corpus is too small: category 'math' comes from 1 module") as error:
        held_out_modules([*MANY, ("only", "math")], 0.1, 0)
    assert "\n" not in str(error.value)


def test_the_digest_is_sha256_of_the_parts():
    # printf '1/b' | sha256sum
    assert digest_of(1, "b") == "daa2ba1a2c0a874a6e8e7bdf8d24144bb8194392df702ccbecb4ab927638e885"


def test_a_share_of_none_and_of_all():
    assert not falls_into_share(0.0, "a")
    assert falls_into_share(1.0, "a")
