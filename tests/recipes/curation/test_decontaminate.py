import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.decontaminate import (
    OVERLAP_WORDS,
    decontamination_rule,
    evaluation_runs,
    first_overlap,
    without_imports,
    words_of,
)
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources import Document

QUESTION = "If a train leaves at nine and drives for two hours how far does it get at sixty"
WORDS = words_of(QUESTION)
RUNS = {"problems": evaluation_runs([QUESTION])}


def test_thirteen_shared_words_in_a_row_are_an_overlap():
    shared = " ".join(WORDS[2:15])
    assert first_overlap(f"Before it {shared} after it", RUNS) == f"problems: {shared}"


def test_twelve_shared_words_in_a_row_are_not_an_overlap():
    assert len(WORDS) == 18
    assert first_overlap(f"Before it {' '.join(WORDS[2:14])} after it", RUNS) is None
    assert first_overlap(f"{' '.join(WORDS[:12])} other {' '.join(WORDS[6:])}", RUNS) is None


def test_case_punctuation_and_layout_do_not_hide_an_overlap():
    hidden = ",\n  ".join(word.upper() for word in WORDS[:13]) + "!"
    assert first_overlap(hidden, RUNS) is not None


def test_the_same_words_in_another_order_are_not_an_overlap():
    runs = {"set": evaluation_runs([" ".join(WORDS[:13])])}
    assert first_overlap(" ".join(WORDS[:13]), runs) is not None
    for shift in range(1, 13):
        assert first_overlap(" ".join(WORDS[shift:13] + WORDS[:shift]), runs) is None
    assert first_overlap(" ".join([WORDS[1], WORDS[0], *WORDS[2:13]]), runs) is None


def test_different_runs_of_few_words_have_different_hashes():
    draw = random.Random(0)
    words = ["abcd"[int(draw.random() * 4)] for _ in range(20_000)]
    runs = {tuple(words[start : start + OVERLAP_WORDS]) for start in range(len(words) - OVERLAP_WORDS + 1)}
    assert len(evaluation_runs([" ".join(words)])) == len(runs)


def test_an_overlap_at_the_end_of_a_text_is_found():
    assert first_overlap("x " + " ".join(WORDS[-13:]), RUNS) is not None


@given(
    st.lists(st.sampled_from("ab"), max_size=40).map(" ".join),
    st.lists(st.lists(st.sampled_from("ab"), max_size=40).map(" ".join), max_size=3),
)
def test_first_overlap_equals_comparing_all_runs_of_words(text, evaluation):
    def runs(value):
        words = value.split()
        return {tuple(words[i : i + OVERLAP_WORDS]) for i in range(len(words) - OVERLAP_WORDS + 1)}

    expected = bool(runs(text) & set().union(*map(runs, evaluation)))
    assert (first_overlap(text, {"set": evaluation_runs(evaluation)}) is not None) == expected


def test_first_overlap_names_the_first_set_with_an_overlap():
    runs = {"empty": evaluation_runs([]), "other": evaluation_runs(["word " * 20]), **RUNS}
    assert first_overlap(QUESTION, runs).startswith("problems: if a train")


def test_the_rule_drops_the_document_and_its_threshold_names_all_sets():
    texts = {"a": f"{QUESTION} miles", "b": "nothing of that kind", "c": "short"}
    documents = [Document(id, id, "wiki", text, "MIT", "here") for id, text in texts.items()]
    reports = {}
    kept = apply_to_list(documents, [decontamination_rule({"problems": [QUESTION], "tests": []})], reports)
    assert [document.id for document in kept] == ["b", "c"]
    report = reports["decontamination"]
    assert "problems, tests" in report.threshold
    assert report.examples[0].value == "problems: " + " ".join(WORDS[:13])


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("import os\nx = 1\n", "\nx = 1\n"),
        ("from a.b import (c,\n    d)\nx = 1\n", "\nx = 1\n"),
        ("from a import b, \\\n    c\nx = 1\n", "\nx = 1\n"),
        ("    from a import b\n    x = 1\n", "\n    x = 1\n"),
        ("x = 'import this'\n", "x = 'import this'\n"),
        ("important = 1\nfromage = 2\n", "important = 1\nfromage = 2\n"),
    ],
)
def test_without_imports_removes_only_import_statements(source, left):
    assert without_imports(source) == left
