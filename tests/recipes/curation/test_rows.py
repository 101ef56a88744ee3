import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nemotron.recipes.curation import rows
from nemotron.recipes.curation.rows import (
    TOKENS,
    Phase,
    planned_phase,
    read_chunks,
    read_column,
    read_rows,
    read_token_rows,
    write_files,
    write_rows,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "rows.parquet"


def write_in_groups(path, sizes):
    """Write a file with row groups of these sizes, and return its rows; row n has n modulo 4 tokens."""
    written = [{"category": str(n), "tokens": list(range(n, n + n % 4))} for n in range(sum(sizes))]
    schema = pa.schema([("category", pa.string()), ("tokens", TOKENS)])
    remaining = iter(written)
    with pq.ParquetWriter(path, schema) as writer:
        for size in sizes:
            writer.write_table(pa.Table.from_pylist([next(remaining) for _ in range(size)], schema=schema))
    return written


@given(
    sizes=st.lists(st.integers(0, 7), max_size=6),
    rows_per_batch=st.integers(1, 9),
    first_batch=st.integers(0, 6),
)
@settings(max_examples=60)
def test_batches_are_consecutive_rows_for_any_row_groups(path, sizes, rows_per_batch, first_batch):
    written = write_in_groups(path, sizes)
    expected = [written[start : start + rows_per_batch] for start in range(0, len(written), rows_per_batch)]
    batches = [batch.to_pylist() for batch in read_rows(path, rows_per_batch, first_batch)]
    assert batches == expected[first_batch:]


@given(
    files=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    rows_per_batch=st.integers(1, 9),
    first_batch=st.integers(0, 4),
)
@settings(max_examples=40)
def test_batches_go_on_from_file_to_file(path, files, rows_per_batch, first_batch):
    paths = [path.with_name(f"{number}.parquet") for number in range(len(files))]
    written = [row for each, sizes in zip(paths, files, strict=True) for row in write_in_groups(each, sizes)]
    expected = [written[start : start + rows_per_batch] for start in range(0, len(written), rows_per_batch)]
    assert [batch.to_pylist() for batch in read_rows(paths, rows_per_batch, first_batch)] == expected[first_batch:]
    assert [tokens for chunk in read_chunks(paths, "tokens") for tokens in chunk.to_pylist()] == [
        row["tokens"] for row in written
    ]


def test_the_files_of_a_phase_are_read_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SHARD_TOKENS", 4)
    phase = planned_phase("phase", 80, 1)
    write_files(phase.paths(tmp_path)[::-1], ({"number": n} for n in range(80)), 2, number=pa.int32())
    (table,) = read_rows(phase.paths(tmp_path), 80)
    assert phase.num_files == 40
    assert table["number"].to_pylist() == [n for start in range(78, -1, -2) for n in (start, start + 1)]


@pytest.mark.parametrize(("num_sequences", "sequence_length"), [(0, 3), (1, 3), (7, 3), (8, 3), (9, 3), (3, 100)])
def test_no_file_of_a_phase_has_more_tokens_than_a_shard_or_one_row(monkeypatch, num_sequences, sequence_length):
    """A column of lists holds 2**31 values at most, and so would a whole phase of a large run."""
    monkeypatch.setattr(rows, "SHARD_TOKENS", 16)
    phase = planned_phase("phase", num_sequences, sequence_length)
    per_file = rows.rows_per_shard(sequence_length)
    assert per_file == 1 or per_file * (sequence_length + 1) <= 16
    assert (phase.num_files - 1) * per_file <= num_sequences <= phase.num_files * per_file


def test_only_the_columns_asked_for_are_read_in_their_order(path):
    written = write_in_groups(path, [3, 4])
    (table,) = read_rows(path, 7, columns=["tokens", "category"])
    assert table.column_names == ["tokens", "category"]
    (table,) = read_rows(path, 7, columns=["tokens"])
    assert table.to_pylist() == [{"tokens": row["tokens"]} for row in written]


@pytest.mark.parametrize(("rows_per_batch", "first_batch"), [(3, 3), (4, 2), (8, 1)])
def test_row_groups_before_the_first_batch_are_not_decoded(path, monkeypatch, rows_per_batch, first_batch):
    write_in_groups(path, [4, 4, 4, 4])
    asked = []

    class Spy(pq.ParquetFile):
        def iter_batches(self, *arguments, row_groups, **options):
            asked.extend(row_groups)
            return super().iter_batches(*arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(rows.pq, "ParquetFile", Spy)
    assert sum(map(len, read_rows(path, rows_per_batch, first_batch))) == 16 - rows_per_batch * first_batch
    assert asked == [2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "rows_per_batch=0 must be at least 1"), ((1, -1), "first_batch=-1 must not be negative")],
)
def test_impossible_batches_are_refused(path, arguments, message):
    write_in_groups(path, [1])
    with pytest.raises(ValueError, match=message):
        next(read_rows(path, *arguments))


def test_written_rows_come_back_with_the_columns_asked_for(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ({"tokens": [n], "number": n, "unused": 0} for n in range(3)), tokens=TOKENS, number=pa.int32())
    table = pq.read_table(path)
    assert table.schema == pa.schema([("tokens", TOKENS), ("number", pa.int32())])
    assert table.to_pylist() == [{"tokens": [n], "number": n} for n in range(3)]


def test_a_row_group_has_at_most_10_000_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, ({"number": n} for n in range(25_000)), number=pa.int32())
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(index).num_rows for index in range(3)] == [10_000, 10_000, 5_000]


def test_no_rows_give_an_empty_file_with_its_columns(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, [], tokens=TOKENS)
    assert pq.read_schema(path).names == ["tokens"]
    assert list(read_rows(path, 2)) == []


@pytest.mark.parametrize("wrong", [{"num_sequences": -1}, {"sequence_length": 0}, {"num_files": 0}])
def test_a_phase_has_no_negative_size(wrong, tmp_path):
    fields = {"name": "phase1", "num_files": 2, "num_sequences": 0, "sequence_length": 1}
    assert [path.name for path in Phase(**fields).paths(tmp_path)] == ["00000.parquet", "00001.parquet"]
    with pytest.raises(ValidationError):
        Phase(**(fields | wrong))


def test_token_rows_are_arrays_in_file_order(path):
    written = write_in_groups(path, [3, 4])
    read = read_token_rows(path)
    assert [tokens.tolist() for tokens in read] == [row["tokens"] for row in written]
    assert {tokens.dtype for tokens in read} == {np.dtype(np.int32)}


def test_a_column_is_read_as_python_values_in_file_order(path):
    written = write_in_groups(path, [3, 4])
    assert read_column(path, "category") == [row["category"] for row in written]
    assert read_column(path, "tokens") == [row["tokens"] for row in written]


def test_a_row_without_a_column_is_refused_and_not_written_as_null(tmp_path):
    with pytest.raises(KeyError, match="category"):
        write_rows(tmp_path / "rows.parquet", [{"tokens": [1]}], tokens=TOKENS, category=pa.string())
