"""Parquet files of token rows: how curation writes them and how training reads them.

In: rows as dictionaries. Out: a Parquet file, or several that are read one after the other (shards). They are read back
in batches of consecutive rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

Row = dict[str, Any]
TOKENS = pa.list_(pa.int32())
ROW_GROUP_ROWS = 10_000
PIECE_ROWS = 1_000  # our choice: rows that are decoded at a time where a file is only looked at
SHARD_TOKENS = 1 << 24
"""Our choice: the tokens of a shard are far from the 2**31 that a column of lists can hold."""
GROUP_TOKENS = 1 << 20
"""Our choice: a row group is encoded at a time; its tokens take 4 MB, with loss mask and segments about 20 MB."""


class Phase(BaseModel):
    """The sequences of one training phase."""

    name: str
    num_files: int = Field(gt=0)
    """Parquet files below the dataset's directory, <name>/00000.parquet and so on, with a row for each sequence."""
    num_sequences: int = Field(ge=0)
    sequence_length: int = Field(gt=0)
    """Predicted tokens of the longest row, which has one token more."""

    def paths(self, directory: Path) -> list[Path]:
        """The files, in training order.

        Args:
            directory: of the Dataset.
        """
        return [shard_path(directory, self.name, number) for number in range(self.num_files)]


def planned_phase(name: str, num_sequences: int, sequence_length: int) -> Phase:
    """A phase in as few files as possible; one without a row if there are no sequences."""
    num_files = max(1, -(-num_sequences // rows_per_shard(sequence_length)))
    return Phase(name=name, num_files=num_files, num_sequences=num_sequences, sequence_length=sequence_length)


def rows_per_shard(sequence_length: int) -> int:
    """How many rows of this length a file holds, at least one."""
    return max(1, SHARD_TOKENS // (sequence_length + 1))


def rows_per_group(sequence_length: int) -> int:
    """How many rows of this length a row group of a shard holds, at least one."""
    return min(ROW_GROUP_ROWS, max(1, GROUP_TOKENS // (sequence_length + 1)))


def shard_path(directory: Path, name: str, number: int) -> Path:
    """The file of a phase with this number."""
    return directory / name / f"{number:05d}.parquet"


def write_files(paths: Sequence[Path], rows: Iterable[Row], rows_per_file: int, **columns: pa.DataType) -> None:
    """`write_rows` to several files: to each `rows_per_file` rows in their order, to the last one all that are left."""
    remaining = iter(rows)
    for path in paths[:-1]:
        write_rows(path, islice(remaining, rows_per_file), **columns)
    write_rows(paths[-1], remaining, **columns)


def write_phase(directory: Path, name: str, rows: Sequence[Row], sequence_length: int, **columns: pa.DataType) -> Phase:
    """Write all rows of a phase, to the files that `planned_phase` gives it.

    Args:
        directory: of the Dataset.
    """
    phase = planned_phase(name, len(rows), sequence_length)
    write_files(phase.paths(directory), rows, rows_per_shard(sequence_length), **columns)
    return phase


def write_rows(path: Path, rows: Iterable[Row], **columns: pa.DataType) -> None:
    """Write these columns of the rows to one Parquet file, in row groups of `ROW_GROUP_ROWS`.

    Raises:
        KeyError: for a row without one of the columns.
    """
    schema = pa.schema(list(columns.items()))
    remaining = iter(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, ROW_GROUP_ROWS)):
            complete = [{name: row[name] for name in columns} for row in group]  # PyArrow would write null if missing
            writer.write_table(pa.Table.from_pylist(complete, schema=schema))


def read_rows(
    paths: Path | Sequence[Path], rows_per_batch: int, first_batch: int = 0, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read Parquet files in batches of consecutive rows, in the order of the files; a batch may span files.

    Rows are decoded one batch at a time, and row groups before `first_batch` are not read.

    Args:
        paths: one file, or several with the same columns.
        rows_per_batch: rows of each batch; only the last batch may have fewer.
        first_batch: number of the first batch to read, from 0; past the end of the files there are no batches.
        columns: names of the columns to read; None reads all of them.
    Raises:
        ValueError: if `rows_per_batch` is below 1 or `first_batch` is negative.
    """
    if rows_per_batch < 1:
        raise ValueError(f"rows_per_batch={rows_per_batch} must be at least 1")
    if first_batch < 0:
        raise ValueError(f"first_batch={first_batch} must not be negative")
    num_skipped = first_batch * rows_per_batch
    pending: list[pa.Table] = []
    for path in [paths] if isinstance(paths, Path) else paths:
        with pq.ParquetFile(path) as file:
            groups = list(range(file.num_row_groups))
            while groups and num_skipped >= file.metadata.row_group(groups[0]).num_rows:
                num_skipped -= file.metadata.row_group(groups.pop(0)).num_rows
            names = file.schema_arrow.names if columns is None else list(columns)
            for piece in file.iter_batches(rows_per_batch, row_groups=groups, columns=names):
                pending.append(pa.Table.from_batches([piece]).slice(num_skipped))
                num_skipped -= min(num_skipped, len(piece))
                while sum(map(len, pending)) >= rows_per_batch:
                    rows = pa.concat_tables(pending)
                    yield rows.slice(0, rows_per_batch)
                    pending = [rows.slice(rows_per_batch)]
    if sum(map(len, pending)):
        yield pa.concat_tables(pending)


def read_chunks(paths: Path | Sequence[Path], column: str) -> Iterator[pa.Array]:
    """A column of Parquet files in pieces, in the order of the files."""
    for path in [paths] if isinstance(paths, Path) else paths:
        with pq.ParquetFile(path) as file:
            for piece in file.iter_batches(PIECE_ROWS, columns=[column]):
                yield piece.column(0)


def row_counts(paths: Sequence[Path]) -> dict[str, int]:
    """Rows, tokens, and tokens that count in the loss, of files of rows."""
    counts = {"num_rows": 0, "num_tokens": 0, "num_in_loss": 0}
    for chunk in read_chunks(paths, "in_loss"):
        in_loss = chunk.flatten()
        counts["num_rows"] += len(chunk)
        counts["num_tokens"] += len(in_loss)
        counts["num_in_loss"] += in_loss.true_count
    return counts


def num_rows(paths: Iterable[Path]) -> int:
    """Rows of Parquet files, as they state."""
    return sum(pq.read_metadata(path).num_rows for path in paths)


def read_token_rows(path: Path) -> list[np.ndarray]:
    """The column `tokens` of a Parquet file, one array of token ids per row."""
    return [row.values.to_numpy() for row in pq.read_table(path, columns=["tokens"])["tokens"]]


def read_column(path: Path, name: str) -> list[Any]:
    """A column of a Parquet file as Python values."""
    return pq.read_table(path, columns=[name])[name].to_pylist()
