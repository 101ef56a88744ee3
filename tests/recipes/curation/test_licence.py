from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.licence import ALLOWED_LICENCES, attribution_of, is_allowed, licence_rule
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.families import FAMILIES


@pytest.mark.parametrize(
    "licence",
    [
        *ALLOWED_LICENCES,
        "unknown",
        "BSD-3-Clause AND MIT",
        "GPL-3.0-only OR MIT",
        "mit",
        "apache-2.0",
        "mit or gpl-3.0-only",
        " (MIT) ",
        "MIT AND (GPL-3.0-only OR Apache-2.0)",
        "GPL-3.0-only AND ISC OR MIT",
        "GPL OR MIT",
        "Apache-2.0 WITH LLVM-exception",
        "Apache-2.0+",
        "mit+",
        "PSF-2.0 AND (0BSD AND (Zlib OR BSL-1.0))",
    ],
)
def test_permissive_and_unstated_licences_are_allowed(licence):
    assert is_allowed(licence)


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-only",
        "CC-BY-SA-3.0",
        "CC-BY-NC-4.0",
        "MIT AND GPL-3.0-only",
        "LGPL-2.1-only OR GPL-2.0-only",
        "(MIT OR Apache-2.0) AND GPL-3.0-only",
        "GPL AND (MIT OR Apache-2.0)",
        "MIT AND (GPL-3.0-only OR LGPL-2.1-only)",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "MIT WITH Commons-Clause",
        "GPL-3.0+",
        "unknown OR GPL-3.0-only",
        "MIT AND unknown",
        "",
        " ",
        "Mitt",
        "MIT Licence, but not for companies",
        "not MIT",
        "MIT AND",
        "(MIT",
        "MIT OR OR ISC",
        "NONE",
        "other",
        '["GPL-3.0-only"]',
        "MIT\x00",
        "(" * 10_000 + "MIT",
    ],
)
def test_copyleft_unlisted_and_misunderstood_licences_are_not_allowed(licence):
    assert not is_allowed(licence)


IDS = ["MIT", "isc", "GPL-3.0-only", "Nobody-1.0"]
EXPRESSIONS = st.recursive(
    st.sampled_from(IDS),
    lambda inner: st.tuples(st.sampled_from(["AND", "OR", "and", "or"]), inner, inner),
    max_leaves=6,
)


def written(expression):
    return (
        expression
        if isinstance(expression, str)
        else "({1} {0} {2})".format(expression[0], *map(written, expression[1:]))
    )


def evaluated(expression):
    if isinstance(expression, str):
        return expression in IDS[:2]
    combine = all if expression[0].upper() == "AND" else any
    return combine(map(evaluated, expression[1:]))


@given(EXPRESSIONS)
def test_an_expression_is_evaluated_as_it_is_bracketed(expression):
    assert is_allowed(written(expression)) == evaluated(expression)


@given(st.text())
def test_any_text_is_judged(text):
    assert is_allowed(text) in (True, False)


def test_the_report_names_the_licence_that_failed():
    licences = {"a": "MIT", "b": "GPL-3.0-only"}
    documents = [Document(id, id, "wiki", "text", licence, "here") for id, licence in licences.items()]
    reports = {}
    assert apply_to_list(documents, [licence_rule()], reports) == documents[:1]
    assert [(example.id, example.value) for example in reports["licence"].examples] == [("b", "GPL-3.0-only")]


def test_documents_and_exercises_are_counted_by_origin_and_licence():
    documents = [Document(id, id, "wiki", "text", "MIT", "here") for id in "ab"]
    theirs = replace(
        user_exercise("ifeval", "q", "", "a", "q"), details='{"licence": "CC0-1.0", "origin": "mine.jsonl"}'
    )
    ours = [one for family in FAMILIES.values() for one in family.generate_exercises(1, 7, split="train")]
    found = attribution_of([*documents, theirs, *ours])
    assert [(one.origin, one.licence, one.num_documents) for one in found] == [
        ("here", "MIT", 2),
        ("mine.jsonl", "CC0-1.0", 1),
        ("procedural", "Apache-2.0", len(FAMILIES)),
    ]
