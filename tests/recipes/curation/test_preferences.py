"""Which pairs are dropped, and what the label of a pair says."""

import pytest

from nemotron.recipes.curation.preferences import label_of, preference_rules
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.preferences import Preference


def pair(id="a", responses=("one", "other"), label=1, **given):
    return Preference(id, user_exercise("preference", "Hi", "", "", "hi"), responses, label, **given)


def faults(one, length=10, capacity=10):
    return {rule.name: rule.fault(one) for rule in preference_rules({one.id: length}, capacity) if rule.fault(one)}


def test_a_good_pair_stays():
    assert faults(pair()) == {}


@pytest.mark.parametrize(
    ("one", "name", "fault"),
    [
        (pair(language="chinese"), "language", "its language is chinese"),
        (pair(responses=("the same", " the\nsame")), "equal replies", "chosen and rejected are the same text"),
        (pair(label=0), "no preference", "both replies are equally good"),
        (pair(label=0, fault="KeyError: 'value'"), "no preference", "the rubric failed: KeyError: 'value'"),
    ],
)
def test_a_useless_pair_is_dropped_with_its_fault(one, name, fault):
    assert faults(one) == {name: fault}


def test_replies_that_differ_in_case_differ():
    assert faults(pair(responses=("Yes", "yes"))) == {}


def test_a_pair_may_be_as_long_as_the_limit():
    assert faults(pair(), length=11, capacity=11) == {}
    assert faults(pair(), length=11, capacity=10) == {"length": "11 tokens"}


def test_only_equal_pairs_are_one_sentence_that_says_what_to_do():
    pairs = [pair("a", ("x", "x")), pair("b", ("y", "y "))]
    with pytest.raises(
        ValueError, match=r"^the filter 'equal replies' leaves none of 2 items, for example a .*collect"
    ):
        apply_to_list(pairs, preference_rules({"a": 1, "b": 1}, 10), {})


@pytest.mark.parametrize(
    ("difference", "label"),
    [(0.0, 0), (0.05, 1), (0.15, 1), (0.16, 2), (0.35, 2), (0.36, 3), (1.0, 3), (-0.05, -1), (-0.2, -2), (-1.0, -3)],
)
def test_the_label_grows_with_the_difference(difference, label):
    assert label_of(difference) == label


def test_equal_differences_have_equal_labels_although_floats_round():
    assert 0.8 - 0.45 > 0.9 - 0.55
    assert label_of(0.8 - 0.45) == label_of(0.9 - 0.55) == 2
