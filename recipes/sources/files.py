"""Raw text from the user: files, directories, globs and URIs of .txt, .jsonl, .jsonl.gz and .parquet.

In: sources, each "location" or "category=location", as `listing.py` finds them. Out: documents, and a named reason for
each row that does not become one. A .txt file is one document. In the other formats each row is one. A row may have any
columns besides its text: `id` and those that state a license (`LICENCE_COLUMNS`, `METADATA_COLUMNS` of licences.py) are
used if present and the others are ignored, because NVIDIA's released datasets differ in them.

    python -c "from nemotron.recipes.sources.files import read_sources; print(read_sources(['wiki=notes.txt']))"
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from nemotron.recipes.sources.documents import UNKNOWN_LICENCE, Document, Unreadable, read_documents
from nemotron.recipes.sources.licences import licence_columns, row_licence
from nemotron.recipes.sources.listing import SourceFile
from nemotron.recipes.sources.reading import (
    MAX_DOCUMENT_CHARACTERS,
    MAX_LINE_BYTES,
    Row,
    is_text,
    is_unicode,
    json_rows,
    parquet_rows,
    read_bytes,
    stated_id,
)
from nemotron.recipes.sources.writing import Kind, write_items

DEFAULT_CATEGORY = "crawl-high"  # our choice: text that somebody picked counts as good web text
ID_COLUMN = "id"
ROWS_WITHOUT_TEXT = 100  # our choice: a .jsonl file whose first hundred rows lack the text column does not have it


def read_sources(
    sources: Sequence[str], *, text_column: str = "text", num_documents: int | None = None
) -> tuple[list[Document], list[Unreadable]]:
    """`write_sources`, for texts that fit into memory."""
    with TemporaryDirectory() as directory:
        paths, unreadable = write_sources(
            sources, Path(directory), text_column=text_column, num_documents=num_documents
        )
        return list(read_documents(paths)), unreadable


def write_sources(
    sources: Sequence[str], directory: Path, *, text_column: str = "text", num_documents: int | None = None
) -> tuple[list[Path], list[Unreadable]]:
    """Write the documents of all sources; see `write_items`.

    Args:
        text_column: the column that holds the text.
    Raises:
        ValueError: also if a source has no text column.
    """
    read_file = partial(file_documents, text_column=text_column)
    return write_items(Kind("document", DEFAULT_CATEGORY, read_file), sources, directory, num_documents)


def file_documents(file: SourceFile, num_rows: int | None, *, text_column: str) -> Iterator[Document | Unreadable]:
    """The documents of one file, at most `num_rows` of a .parquet file."""
    if file.location.endswith(".txt"):
        yield text_document(file)
        return
    rows: Iterator[Row | Unreadable]
    if file.location.endswith(".parquet"):
        rows = parquet_rows(file, num_rows, lambda schema: text_columns(file, schema, text_column))
    else:
        rows = rows_with_text(file, json_rows(file), text_column)
    for row in rows:
        yield row if isinstance(row, Unreadable) else row_document(row, file, text_column)


def text_document(file: SourceFile) -> Document | Unreadable:
    """The whole file as one document.

    Raises:
        ValueError: if it has more than `MAX_DOCUMENT_CHARACTERS`.
    """
    try:
        content = read_bytes(file.location, MAX_LINE_BYTES + 1)
        text = content.decode("utf-8-sig") if len(content) <= MAX_LINE_BYTES else ""
    except UnicodeDecodeError as error:
        return Unreadable(file.name, f"not UTF-8: {error.reason} at byte {error.start}")
    if len(content) > MAX_LINE_BYTES or len(text) > MAX_DOCUMENT_CHARACTERS:
        raise ValueError(
            f"{file.location} has more than {MAX_DOCUMENT_CHARACTERS:,} characters; cut it into several files, for "
            f"example with split -l 500 --additional-suffix=.txt"
        )
    if not text.strip():
        return Unreadable(file.name, "empty")
    return Document(file.name, file.name, file.category, text, UNKNOWN_LICENCE, file.source)


def row_document(row: Row, file: SourceFile, text_column: str) -> Document | Unreadable:
    """The document in one row, or what is wrong with it."""
    name = row.name if text_column == ID_COLUMN else stated_id(row, [ID_COLUMN])
    text = row.columns[text_column]
    if not isinstance(text, str):
        return Unreadable(name, f"{text_column!r} is {'null' if text is None else type(text).__name__}, not text")
    if not text.strip():
        return Unreadable(name, f"{text_column!r} is empty")
    if not is_unicode(text):
        return Unreadable(name, f"{text_column!r} holds half a surrogate pair, which is not a character")
    if len(text) > MAX_DOCUMENT_CHARACTERS:
        return Unreadable(name, f"{text_column!r} has more than {MAX_DOCUMENT_CHARACTERS:,} characters; cut it")
    return Document(name, name, file.category, text, row_licence(row), file.source)


# The text column ------------------------------------------------------------------------------------------------------


def text_columns(file: SourceFile, schema: pa.Schema, text_column: str) -> list[str]:
    """The columns of a .parquet file that documents need.

    Raises:
        ValueError: if the text column is missing or does not hold text.
    """
    names = schema.names
    if text_column not in names:
        raise missing_column(file, names, text_column)
    kind = schema.types[names.index(text_column)]
    if not is_text(kind):
        raise ValueError(f"{file.location}: column {text_column!r} is {kind}, not text; use --text-column")
    others = [*(name for name in names if name == ID_COLUMN), *licence_columns(schema)]
    return [text_column, *(name for name in others if name != text_column)]


def rows_with_text(file: SourceFile, rows: Iterator[Row | Unreadable], text_column: str) -> Iterator[Row | Unreadable]:
    """The rows of a .jsonl file, with an `Unreadable` for each row without the text column.

    Raises:
        ValueError: if every row lacks the column, or each of the first `ROWS_WITHOUT_TEXT` rows does.
    """
    waiting: list[Unreadable] = []  # rows without the column, until one with it shows that the file has it
    columns: set[str] = set()
    is_found = False
    for row in rows:
        if isinstance(row, Unreadable):
            yield row
        elif text_column in row.columns:
            is_found = True
            yield from waiting
            waiting.clear()
            yield row
        elif is_found:
            yield Unreadable(row.name, f"line {row.line_number} has no {text_column!r}")
        else:
            columns |= row.columns.keys()
            waiting.append(Unreadable(row.name, f"line {row.line_number} has no {text_column!r}"))
            if len(waiting) == ROWS_WITHOUT_TEXT:
                break
    if waiting:
        raise missing_column(file, columns, text_column)


def missing_column(file: SourceFile, columns: Iterable[str], text_column: str) -> ValueError:
    """The error for a file without the text column; it lists the columns that the file has."""
    found = sorted(columns)
    hint = " (its rows name files in repositories, without their text)" if {"repo", "rel_path"} <= {*found} else ""
    return ValueError(
        f"{file.location} has no column {text_column!r}, only {', '.join(found) or 'none'}{hint}; name the column that "
        f"holds the text with --text-column, or another source"
    )
