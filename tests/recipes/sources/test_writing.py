"""Documents of sources in files: their order, their ids, and what could not be read."""

import json
from pathlib import Path

import pytest

from nemotron.recipes.sources.documents import Document, Unreadable, read_documents
from nemotron.recipes.sources.reading import json_rows
from nemotron.recipes.sources.writing import Kind, write_items


def read_file(file, num_rows):
    """A row {"id": ...} is a document; any other is unreadable."""
    for row in json_rows(file):
        id = row.columns.get("id")
        yield Document(id, id, file.category, file.name, "MIT", file.source) if id else Unreadable(row.name, "no id")


NUMBERS = Kind("number", "none", read_file)


def source(path, *ids):
    path.write_text("".join(json.dumps({"id": id}) + "\n" for id in ids))
    return str(path)


@pytest.fixture
def sources(tmp_path):
    return [source(tmp_path / "b.jsonl", "1", None, "2"), source(tmp_path / "a.jsonl", "3", "1", "3")]


def test_every_file_of_the_sources_becomes_a_file_in_their_order(sources, tmp_path):
    paths, unreadable = write_items(NUMBERS, sources, tmp_path / "written", None)
    assert [[one.text for one in read_documents([path])] for path in paths] == [["b.jsonl"] * 2, ["a.jsonl"] * 3]
    assert unreadable == [Unreadable("b.jsonl#1", "no id")]
    assert sorted((tmp_path / "written").iterdir()) == paths


def test_a_repeated_id_gets_a_number_in_whichever_file_it_is(sources, tmp_path):
    paths, _ = write_items(NUMBERS, sources, tmp_path / "written", None)
    found = list(read_documents(paths))
    assert [one.id for one in found] == ["1", "2", "3", "1#2", "3#2"]
    assert [one.module for one in found] == [one.id for one in found]


@pytest.mark.parametrize(("number", "ids"), [(1, ["1"]), (2, ["1", "3"]), (5, ["1", "2", "3", "1#2"])])
def test_the_sources_take_turns_row_by_row(sources, tmp_path, number, ids):
    """An unreadable row is a row."""
    paths, _ = write_items(NUMBERS, sources, tmp_path / "written", number)
    assert [one.id for one in read_documents(paths)] == ids


def test_a_source_without_a_document_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl holds no number \(1 unreadable, the first is a\.jsonl#0: no id\)"):
        write_items(NUMBERS, [source(tmp_path / "a.jsonl", None)], Path(tmp_path / "written"), None)
