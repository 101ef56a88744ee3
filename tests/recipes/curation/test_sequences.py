"""The files of a phase against rows that are read one by one; with small limits, so that there are several."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation import packing, rows, sequences
from nemotron.recipes.curation.packing import TokenFiles, TokenStream, slices_of, write_token_rows, write_tokens
from nemotron.recipes.curation.rows import planned_phase
from nemotron.recipes.curation.sequences import write_sequences

LENGTH = 4
ORDER = ["a", "b", "made", "a", "a", "b", "made", "b", "a", "b", "b", "a", "made"]
TEXT = {"a": np.arange(100, 123, dtype=np.int32), "b": np.arange(200, 209, dtype=np.int32)}
MADE = [[300 + 10 * number + place for place in range(LENGTH + 1)] for number in range(3)]


def files_of(directory, tokens, size):
    """The tokens in files of this size."""
    parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    paths = [directory / f"{number}.parquet" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        write_tokens(path, [part])
    return TokenFiles(paths, [len(part) for part in parts])


@pytest.fixture
def streams(tmp_path):
    return {name: TokenStream(files_of(tmp_path / name, tokens, 5)) for name, tokens in TEXT.items()}


def expected_rows(first=0):
    """The rows of two phases with this order, read one after the other."""
    read = {name: TokenStream(tokens) for name, tokens in TEXT.items()}
    made = iter([*MADE, *MADE])
    found = [next(made) if name == "made" else read[name].next_row(LENGTH).tolist() for name in ORDER * 2]
    return found[first * len(ORDER) :][: len(ORDER)]


@pytest.mark.parametrize(
    ("shard_tokens", "group_tokens"), [(1, 1), (10, 1 << 20), (25, 10), (1 << 24, 20), (1 << 24, 1 << 20)]
)
def test_rows_are_the_same_in_any_number_of_files_and_groups_and_the_next_phase_reads_on(
    tmp_path, streams, monkeypatch, shard_tokens, group_tokens
):
    monkeypatch.setattr(rows, "SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr(rows, "GROUP_TOKENS", group_tokens)
    made = {"made": write_token_rows(tmp_path / "made", MADE)}
    for number, name in enumerate(("one", "two")):
        phase = planned_phase(name, len(ORDER), LENGTH)
        write_sequences(tmp_path, phase, ORDER, streams, made)
        tables = [pq.read_table(path) for path in phase.paths(tmp_path)]
        assert [row["tokens"] for table in tables for row in table.to_pylist()] == expected_rows(number)
        assert [row["category"] for table in tables for row in table.to_pylist()] == ORDER
        assert max(len(table) for table in tables) == min(max(1, shard_tokens // (LENGTH + 1)), len(ORDER))
        assert tables[0].schema.field("tokens").type == rows.TOKENS
        first = pq.read_metadata(phase.paths(tmp_path)[0])
        assert first.row_group(0).num_rows == min(max(1, group_tokens // (LENGTH + 1)), first.num_rows)


def test_files_can_be_made_in_any_order(tmp_path, streams, monkeypatch):
    monkeypatch.setattr(rows, "SHARD_TOKENS", 10)
    monkeypatch.setattr(sequences, "run_tasks", lambda function, tasks: [function(task) for task in tasks[::-1]])
    phase = planned_phase("phase", len(ORDER), LENGTH)
    write_sequences(tmp_path, phase, ORDER, streams, {"made": write_token_rows(tmp_path / "made", MADE)})
    tables = [pq.read_table(path) for path in phase.paths(tmp_path)]
    assert [tokens for table in tables for tokens in table["tokens"].to_pylist()] == expected_rows()


def test_a_phase_without_rows_has_an_empty_file(tmp_path, streams):
    phase = planned_phase("phase", 0, LENGTH)
    write_sequences(tmp_path, phase, [], streams, {})
    (path,) = phase.paths(tmp_path)
    assert pq.read_metadata(path).num_rows == 0
    assert pq.read_schema(path).names == ["category", "tokens"]


@given(start=st.integers(0, 60), number=st.integers(0, 60), total=st.integers(1, 20))
def test_slices_hold_the_next_tokens_and_begin_again_at_the_end(start, number, total):
    found = [place for first, stop in slices_of(start, number, total) for place in range(first, stop)]
    assert found == [place % total for place in range(start, start + number)]


@given(size=st.integers(1, 9), start=st.integers(0, 30), stop=st.integers(0, 30), group=st.integers(1, 4))
@settings(max_examples=40)
def test_any_part_of_token_files_is_the_same_part_of_the_tokens(tmp_path_factory, size, start, stop, group):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TOKENS_PER_GROUP", group)
        patch.setattr(packing, "MAX_CACHED_GROUPS", 2)
        files = files_of(tmp_path_factory.mktemp("tokens"), TEXT["a"], size)
        assert len(files) == len(TEXT["a"])
        for _ in range(2):  # from the file, and again
            assert files[start:stop].tolist() == TEXT["a"][start:stop].tolist()
