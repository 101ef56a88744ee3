"""Parquet files of token rows: how curation writes them and how training reads them.

In: rows as dictionaries. Out: a Parquet file, which is read back in batches of consecutive rows.
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


class Phase(BaseModel):
    """The sequences of one training phase."""

    name: str
    file: str
    """Name of the Parquet file inside the dataset's directory; one row per sequence, in training order."""
    num_sequences: int = Field(ge=0)
    sequence_length: int = Field(gt=0)
    """Predicted tokens of the longest row, which has one token more."""


def write_rows(path: Path, rows: Iterable[Row], **columns: pa.DataType) -> None:
    """Write these columns of the rows to one Parquet file, in row groups of `ROW_GROUP_ROWS`.

    Raises:
        KeyError: for a row without one of the columns.
    """
    schema = pa.schema(list(columns.items()))
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, ROW_GROUP_ROWS)):
            complete = [{name: row[name] for name in columns} for row in group]  # PyArrow would write null if missing
            writer.write_table(pa.Table.from_pylist(complete, schema=schema))


def read_rows(
    path: Path, rows_per_batch: int, first_batch: int = 0, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read a Parquet file in batches of consecutive rows, in file order; a batch may span row groups.

    Rows are decoded one batch at a time, and row groups before `first_batch` are not read.

    Args:
        rows_per_batch: rows of each batch; only the last batch may have fewer.
        first_batch: number of the first batch to read, from 0; past the end of the file there are no batches.
        columns: names of the columns to read; None reads all of them.
    Raises:
        ValueError: if `rows_per_batch` is below 1 or `first_batch` is negative.
    """
    if rows_per_batch < 1:
        raise ValueError(f"rows_per_batch={rows_per_batch} must be at least 1")
    if first_batch < 0:
        raise ValueError(f"first_batch={first_batch} must not be negative")
    num_skipped = first_batch * rows_per_batch
    with pq.ParquetFile(path) as file:
        groups = list(range(file.num_row_groups))
        while groups and num_skipped >= file.metadata.row_group(groups[0]).num_rows:
            num_skipped -= file.metadata.row_group(groups.pop(0)).num_rows
        names = file.schema_arrow.names if columns is None else list(columns)
        pending = file.schema_arrow.empty_table().select(names)
        for piece in file.iter_batches(rows_per_batch, row_groups=groups, columns=names):
            rows = pa.Table.from_batches([piece]).slice(num_skipped)
            num_skipped -= min(num_skipped, len(piece))
            pending = pa.concat_tables([pending, rows])
            while len(pending) >= rows_per_batch:
                yield pending.slice(0, rows_per_batch)
                pending = pending.slice(rows_per_batch)
        if len(pending):
            yield pending


def read_token_rows(path: Path) -> list[np.ndarray]:
    """The column `tokens` of a Parquet file, one array of token ids per row."""
    return [row.values.to_numpy() for row in pq.read_table(path, columns=["tokens"])["tokens"]]


def read_column(path: Path, name: str) -> list[Any]:
    """A column of a Parquet file as Python values."""
    return pq.read_table(path, columns=[name])[name].to_pylist()
