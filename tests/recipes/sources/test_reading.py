"""The parts that readers of documents and conversations share."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources import reading
from nemotron.recipes.sources.reading import (
    Row,
    UriReader,
    stated_id,
    stated_text,
    take_turns,
    unique_ids,
)


def test_a_uri_is_never_read_beyond_its_end() -> None:
    class Strict(io.BytesIO):
        """Like some of Daft's streams: a read that starts at the end or goes beyond it is an invalid range."""

        def size(self) -> int:
            return len(self.getvalue())

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 < size <= self.size() - self.tell()
            return super().read(size)

    content = bytes(range(256)) * 40
    reader = io.BufferedReader(UriReader(Strict(content)), buffer_size=1_000)
    assert reader.read(10) + reader.read() + reader.read(5) == content


@pytest.mark.parametrize("is_network", [True, False])
def test_an_error_of_the_network_is_not_taken_for_one_of_the_content(is_network: bool) -> None:
    error = reading.daft.exceptions.DaftCoreException("no answer") if is_network else KeyError("twice")
    expected = (type(error), "no answer") if is_network else (ValueError, r"^a\.parquet cannot be read \(columns id: ")
    with pytest.raises(expected[0], match=expected[1]), reading.arrow_errors_naming("a.parquet", "id: string"):
        raise error


@given(st.lists(st.sampled_from(["a", "a#2", "a#2#2", "a#3", "b"])))
def test_repeated_ids_become_unique_and_the_first_one_stays(ids: list[str]) -> None:
    unique = unique_ids(ids)
    assert len(set(unique)) == len(ids)
    assert all(new_id.startswith(old_id) for new_id, old_id in zip(unique, ids, strict=True))
    assert unique[:1] == ids[:1]


@pytest.mark.parametrize(
    ("num_items", "expected"),
    [
        (None, ["a0", "a1", "a2", "b0", "c0", "c1"]),
        (9, ["a0", "a1", "a2", "b0", "c0", "c1"]),
        (5, ["a0", "a1", "b0", "c0", "c1"]),
        (2, ["a0", "b0"]),
    ],
)
def test_streams_take_turns_until_the_number_is_reached(num_items: int | None, expected: list[str]) -> None:
    streams = [iter(["a0", "a1", "a2"]), iter(["b0"]), iter(["c0", "c1"])]
    turns = list(take_turns(streams, num_items, "document"))
    assert sorted(row for _, row in turns) == expected
    assert all(row[0] == "abc"[stream] for stream, row in turns)


def test_no_stream_is_read_beyond_the_number() -> None:
    streams = [iter(["a0", "a1"]), iter(["b0"])]
    assert list(take_turns(streams, 2, "document")) == [(0, "a0"), (1, "b0")]
    assert [next(stream, None) for stream in streams] == ["a1", None]


@pytest.mark.parametrize(
    ("columns", "text", "row_id"),
    [
        ({"a": "x", "b": "y"}, "x", "x"),
        ({"a": None, "b": "y"}, "y", "y"),
        ({"a": " ", "b": "\ud800"}, None, "file#0"),
        ({"a": 7, "b": "y"}, "y", "7"),
        ({"a": True}, None, "file#0"),
        ({}, None, "file#0"),
    ],
)
def test_the_first_column_with_a_value_is_used(columns: dict, text: str | None, row_id: str) -> None:
    row = Row("file#0", columns)
    assert stated_text(row, ["a", "b"]) == text
    assert stated_id(row, ["a", "b"]) == row_id
