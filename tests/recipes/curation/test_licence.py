import pytest

from nemotron.recipes.curation.filters import apply_filter
from nemotron.recipes.curation.licence import ALLOWED_LICENCES, is_allowed, licence_filter
from nemotron.recipes.sources.dataframes import daft


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
def test_copyleft_other_and_misspelt_licences_are_not_allowed(licence):
    assert not is_allowed(licence)


def test_the_filter_names_the_licence_that_failed():
    frame = daft.from_pydict({"id": ["a", "b"], "licence": ["MIT", "GPL-3.0-only"]})
    reports = {}
    assert apply_filter(frame, licence_filter(), reports).to_pydict()["id"] == ["a"]
    assert [(example.id, example.value) for example in reports["licence"].examples] == [("b", "GPL-3.0-only")]
