import pytest

from nemotron.recipes.curation.licence import ALLOWED_LICENCES, is_allowed, licence_rule
from nemotron.recipes.curation.rules import apply_to_list
from nemotron.recipes.sources import Document


@pytest.mark.parametrize("licence", [*ALLOWED_LICENCES, "unknown", "BSD-3-Clause AND MIT", "GPL-3.0-only OR MIT"])
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
        "",
        "mit",
    ],
)
def test_copyleft_unlisted_and_misspelled_licences_are_not_allowed(licence):
    assert not is_allowed(licence)


def test_the_report_names_the_licence_that_failed():
    licences = {"a": "MIT", "b": "GPL-3.0-only"}
    documents = [Document(id, id, "wiki", "text", licence, "here") for id, licence in licences.items()]
    reports = {}
    assert apply_to_list(documents, [licence_rule()], reports) == documents[:1]
    assert [(example.id, example.value) for example in reports["licence"].examples] == [("b", "GPL-3.0-only")]
