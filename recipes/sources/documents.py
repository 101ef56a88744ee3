"""What every source hands to curation: a `Document`, or an `Unreadable` with the reason why there is none.

Nothing is skipped silently: a reader of n things returns documents and unreadables that account for all n.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

UNKNOWN_LICENCE = "unknown"
COLUMN_TYPES = {"bucket": pa.int64(), "exported": pa.bool_(), "has_example": pa.bool_()}  # the others are strings
GROUP_CHARACTERS = 4_000_000  # our choice: texts of a row group, of which a reader holds one at a time
GROUP_ROWS = 10_000
FILE_CHARACTERS = 32_000_000  # our choice: texts of a file that one task reads
READ_ROWS = 256  # our choice: rows that are decoded at a time


@dataclass(frozen=True)
class Document:
    """One raw text with everything that curation needs to know about it."""

    id: str
    """Unique in its source and the same on every machine: "sympy/core/add.py::Add.flatten", "math/arithmetic/000123",
    the source's own id, or "<file>#<row>"."""
    module: str
    """What sampling and the train/validation split keep together: for a docstring its file, for a problem its block of
    twenty problems, otherwise the id itself."""
    category: str
    """In the blend: "academic" for docstrings, "code" for source, "math" for problems, else what the user names."""
    text: str
    licence: str
    """SPDX identifier, or the license as the source words it; `UNKNOWN_LICENCE` if the source states none."""
    origin: str
    """Where it comes from, for the attribution list: "sympy 1.14.0", a path, a URI, "procedural"."""
    has_example: bool | None = None
    """Whether this docstring had a worked example; None for a text that is not a docstring, or if it is unclear."""
    exported: bool | None = None
    """True if the documented object is exported, False if it is private; None if neither is certain."""
    bucket: int | None = None
    """Quality bucket from 0 to 19 that curation adds; None before that, and for documents that no scorer judges."""


@dataclass(frozen=True)
class Unreadable:
    """Something that a source could not read: a file, a row or a line."""

    id: str
    reason: str


SCHEMA = pa.schema([(field.name, COLUMN_TYPES.get(field.name, pa.string())) for field in fields(Document)])
"""The columns of documents in a file or dataframe."""


def documents_table(documents: Sequence[Document]) -> pa.Table:
    """One row per document, one column per field."""
    columns = {name: [getattr(document, name) for document in documents] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


class DocumentWriter:
    """Writes documents to a Parquet file, in row groups of about `GROUP_CHARACTERS`.

    with DocumentWriter(path) as writer:
        writer.add(document)
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.num_documents = 0
        self._file = pq.ParquetWriter(path, SCHEMA)
        self._group: list[Document] = []
        self._size = 0

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def add(self, document: Document) -> None:
        """Write one document."""
        self._group.append(document)
        self.num_documents += 1
        self._size += len(document.text)
        if self._size >= GROUP_CHARACTERS or len(self._group) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(documents_table(self._group))
        self._group, self._size = [], 0


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write a Parquet file of documents."""
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.add(document)


def write_document_files(directory: Path, documents: Iterable[Document]) -> list[Path]:
    """Write documents to as many numbered Parquet files as needed, each of about `FILE_CHARACTERS`."""
    paths: list[Path] = []
    remaining = iter(documents)
    for first in remaining:
        paths.append(directory / f"{len(paths):05d}.parquet")
        with DocumentWriter(paths[-1]) as writer:
            writer.add(first)
            num_characters = len(first.text)
            while num_characters < FILE_CHARACTERS and (document := next(remaining, None)):
                writer.add(document)
                num_characters += len(document.text)
    return paths


def read_documents(paths: Iterable[Path]) -> Iterator[Document]:
    """The documents of Parquet files, in the order of the files."""
    return (Document(*values) for values in read_values(paths, *SCHEMA.names))


def read_values(paths: Iterable[Path], *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of these columns of Parquet files, row by row, in the order of the files."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for piece in file.iter_batches(READ_ROWS, columns=list(columns)):
                yield from zip(*(piece.column(name).to_pylist() for name in columns), strict=True)
