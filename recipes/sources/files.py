"""Raw text from the user: files, directories, globs and URIs of .txt, .jsonl, .jsonl.gz and .parquet.

In: sources, each "location" or "category=location", as `listing.py` finds them. Out: documents, and a named reason for
each row that does not become one. A .txt file is one document. In the other formats each row is one. A row may have any
columns besides its text: `id` and those that state a license (`LICENCE_COLUMNS`, `METADATA_COLUMNS` of reading.py) are
used if present and the others are ignored, because NVIDIA's released datasets differ in them.

    python -c "from nemotron.recipes.sources.files import read_sources; print(read_sources(['wiki=notes.txt']))"
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from nemotron.recipes.sources.dataframes import Task, run_tasks
from nemotron.recipes.sources.documents import (
    UNKNOWN_LICENCE,
    Document,
    DocumentWriter,
    Unreadable,
    read_documents,
    read_values,
)
from nemotron.recipes.sources.listing import SourceFile
from nemotron.recipes.sources.reading import (
    MAX_DOCUMENT_CHARACTERS,
    MAX_LINE_BYTES,
    Row,
    files_of_sources,
    is_text,
    is_unicode,
    json_rows,
    licence_columns,
    nothing_in,
    parquet_rows,
    read_bytes,
    read_files,
    read_rows_of,
    row_licence,
    stated_id,
    take_turns,
    unique_ids,
)

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
    """Write the documents of all sources: in the order of the sources, within a source by path, within a file by row.

    Args:
        sources: each "location" or "category=location"; a file that several of them name is read once.
        directory: where the Parquet files go, with the columns of `Document`.
        text_column: the column that holds the text.
        num_documents: rows to read in total, including unreadable ones. The sources take turns row by row, so each
            contributes its first rows, as many as the others or as it has. None reads everything, and the files are
            read wherever Daft runs, at the same time.
    Returns:
        The files, in order, of documents with unique ids (a repeated one gets "#2"), and what could not be read.
    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if a source is empty, has no text column, is truncated or damaged, does not answer, or has a format
            that is not read here; if a file has two categories.
    """
    files, unreadable = files_of_sources(sources, "document", DEFAULT_CATEGORY, num_documents)
    if num_documents is None:
        paths, bad = _write_all(sources, files, directory, text_column)
    else:
        paths, bad = _write_first(sources, files, directory, text_column, num_documents)
    _make_ids_unique(paths)
    return paths, unreadable + bad


def _write_all(
    sources: Sequence[str], files: Sequence[Sequence[SourceFile]], directory: Path, text_column: str
) -> tuple[list[Path], list[Unreadable]]:
    """Every document, each file of the sources as a file."""
    known = [asdict(file) for members in files for file in members]
    paths = [directory / f"{number:05d}.parquet" for number in range(len(known))]
    tasks = [
        {"path": str(path), "file": file, "text_column": text_column} for path, file in zip(paths, known, strict=True)
    ]
    results = iter(run_tasks(_write_file, tasks))
    unreadable: list[Unreadable] = []
    for source, members in zip(sources, files, strict=True):
        done = list(islice(results, len(members)))
        bad = [Unreadable(*item) for result in done for item in result["unreadable"]]
        if members and not any(result["num_documents"] for result in done):
            raise nothing_in(source, "document", len(bad), bad[0] if bad else None)
        unreadable += bad
    return paths, unreadable


def _write_file(task: Task) -> Task:
    """Write the documents of one file of a source."""
    unreadable: list[tuple[str, str]] = []
    file, text_column = SourceFile(**task["file"]), task["text_column"]
    with DocumentWriter(Path(task["path"])) as writer:
        for row in read_rows_of(file, lambda file: file_documents(file, text_column, None)):
            if isinstance(row, Unreadable):
                unreadable.append((row.id, row.reason))
            else:
                writer.add(row)
    return {"num_documents": writer.num_documents, "unreadable": unreadable}


def _write_first(
    sources: Sequence[str], files: Sequence[Sequence[SourceFile]], directory: Path, text_column: str, number: int
) -> tuple[list[Path], list[Unreadable]]:
    """The first documents of each source, each source as a file."""

    def read_file(file: SourceFile) -> Iterator[Document | Unreadable]:
        return file_documents(file, text_column, number)

    streams = [read_files(*one, read_file, "document") for one in zip(sources, files, strict=True)]
    unreadable: list[list[Unreadable]] = [[] for _ in streams]
    paths = [directory / f"{index:05d}.parquet" for index in range(len(streams))]
    with ExitStack() as stack:
        writers = [stack.enter_context(DocumentWriter(path)) for path in paths]
        for index, row in take_turns(streams, number, "document"):
            if isinstance(row, Unreadable):
                unreadable[index].append(row)
            else:
                writers[index].add(row)
    return paths, list(chain.from_iterable(unreadable))


def _make_ids_unique(paths: Sequence[Path]) -> None:
    """Give each repeated id a number, and write the files again that have one."""
    ids = iter(unique_ids(id for (id,) in read_values(paths, "id")))
    for path in paths:
        new_ids = list(islice(ids, pq.read_metadata(path).num_rows))
        if all(old_id == id for (old_id,), id in zip(read_values([path], "id"), new_ids, strict=True)):
            continue
        renamed = path.with_suffix(".renamed")
        with DocumentWriter(renamed) as writer:
            for document, id in zip(read_documents([path]), new_ids, strict=True):
                writer.add(document if document.id == id else replace(document, id=id, module=id))
        renamed.replace(path)


def file_documents(file: SourceFile, text_column: str, num_rows: int | None) -> Iterator[Document | Unreadable]:
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
