"""What every source hands to curation."""

import dataclasses

import pytest

from nemotron.recipes.sources import Document, Unreadable
from nemotron.recipes.sources.documents import UNKNOWN_LICENCE


def test_a_document_needs_everything_but_labels_and_bucket():
    document = Document("a", "m", "code", "text", UNKNOWN_LICENCE, "notes.txt")
    optional = {item.name for item in dataclasses.fields(Document) if item.default is None}
    assert optional == {"has_example", "exported", "bucket"}
    assert all(getattr(document, name) is None for name in optional)


@pytest.mark.parametrize("item", [Document("a", "m", "code", "text", "MIT", "x"), Unreadable("a", "empty")])
def test_what_a_source_found_cannot_be_changed(item):
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.id = "b"
