"""Raw text from the user: files, directories, globs and URIs of .txt, .jsonl, .jsonl.gz and .parquet.

What goes in: sources, each "location" or "category=location". What comes out: documents, and a named reason for every
row that is none. A location is a local path, a glob, or a URI that Daft can read (`hf://datasets/...`, `s3://...`,
`file://...`); a directory stands for everything below it. A .txt file is one document. In the other formats every row
is one, and may have any columns besides its text: `id` and `license` are used if they are there and the rest is
ignored, because NVIDIA's released datasets differ in them.

    python -c "from nemotron.recipes.sources.files import read_sources; print(read_sources(['wiki=notes.txt']))"

A row that cannot be read is counted and named. A file that cannot be read to its end is an error: a truncated download
would otherwise be a smaller corpus. Left out: other formats; corpora that do not fit into memory.
"""

import glob
import gzip
import io
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.sources.documents import Document, Unreadable

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
DEFAULT_CATEGORY = "crawl-high"  # our choice: text that somebody picked counts as good web text
ID_COLUMN = "id"
LICENCE_COLUMNS = ("license", "licence")
ROWS_WITHOUT_TEXT = 100  # our choice: a .jsonl file whose first hundred rows lack the text column has no such column

CATEGORY = re.compile(r"([a-z0-9][a-z0-9+_-]*)=(.+)", re.DOTALL)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
GLOB_CHARACTER = re.compile(r"[*?\[]")

# When listing an address fails, Daft's threads still log after the error is raised, and an interpreter that ends in the
# middle of that crashes: measured 6 times of 10, and 0 of 10 after 0.3 s.
DAFT_FAREWELL_SECONDS = 0.3

# Our choice: an address that does not answer is reported within half a minute.
REMOTE = daft.io.IOConfig(
    s3=daft.io.S3Config(num_tries=3, connect_timeout_ms=5_000, read_timeout_ms=30_000),
    http=daft.io.HTTPConfig(num_tries=3),
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    location: str
    """Local path or URI."""
    name: str
    """Its name in ids: the path from the source's directory or the fixed part of its glob on, the same everywhere."""
    category: str
    source: str
    """The location as the user gave it: where the text comes from, for the attribution list."""


def read_sources(
    sources: Sequence[str], *, text_column: str = "text", num_documents: int | None = None
) -> tuple[list[Document], list[Unreadable]]:
    """Documents of all sources: in the order of the sources, inside one by path, inside a file by row.

    Args:
        sources: each "location" or "category=location"; a file that several of them name is read once.
        text_column: the column that holds the text.
        num_documents: rows to read in all, unreadable ones among them; None reads everything. The sources take turns
            row by row, so each gives its first rows, as many as the others do or as it has.
    Returns:
        Documents with different ids (a repeated one gets "#2"), and what could not be read.
    Raises:
        FileNotFoundError: if a source is not there.
        ValueError: if a source is empty, has no text column, is truncated or damaged, does not answer, or has a format
            that is not read here.
    """
    if not sources:
        raise ValueError("sources is empty; name at least one file, directory, glob or URI")
    if num_documents is not None and num_documents < 1:
        raise ValueError(f"num_documents={num_documents} must be at least 1, or None for everything")
    unreadable: list[Unreadable] = []
    files_by_location: dict[str, SourceFile] = {}
    streams: list[Iterator[Document | Unreadable]] = []
    for source in sources:
        files, others = files_of_source(source)
        unreadable += others
        new_files = [file for file in files if file.location not in files_by_location]
        for file in files:
            known = files_by_location.setdefault(file.location, file)
            if known.category != file.category:
                raise ValueError(f"{file.location} is both {known.category} and {file.category}; give it one category")
        streams.append(rows_of_files(source, new_files, text_column, num_documents))
    rows = rows_in_turn(streams, num_documents)
    documents = with_different_ids(row for row in rows if isinstance(row, Document))
    return documents, unreadable + [row for row in rows if isinstance(row, Unreadable)]


def rows_in_turn(
    streams: Sequence[Iterator[Document | Unreadable]], num_rows: int | None
) -> list[Document | Unreadable]:
    """One row of each stream in turn until there are `num_rows` or no more, then ordered by stream."""
    taken: list[list[Document | Unreadable]] = [[] for _ in streams]
    running = list(range(len(streams)))
    count = 0
    while running:
        for number in list(running):
            if count == num_rows:
                return list(itertools.chain.from_iterable(taken))
            row = next(streams[number], None)
            if row is None:
                running.remove(number)
            else:
                taken[number].append(row)
                count += 1
    return list(itertools.chain.from_iterable(taken))


def with_different_ids(documents: Iterable[Document]) -> list[Document]:
    """The documents, every repeated id with "#2", "#3", ... after it; the module, which is named by the id, as well."""
    used: dict[str, int] = {}
    different = []
    for document in documents:
        new_id = document.id
        while new_id in used:
            used[document.id] += 1
            new_id = f"{document.id}#{used[document.id]}"
        used[new_id] = 1
        different.append(document if new_id == document.id else replace(document, id=new_id, module=new_id))
    return different


# Finding files --------------------------------------------------------------------------------------------------------


def files_of_source(source: str) -> tuple[list[SourceFile], list[Unreadable]]:
    """The readable files of one source, sorted by path, and those below its directories that have another format.

    Raises:
        FileNotFoundError: if the location is not there.
        ValueError: if it is a file of another format, holds no file, or does not answer.
    """
    category, location = split_category(source)
    named = list_uri(location) if SCHEME.match(location) else list_local(os.path.expanduser(location))
    files = [SourceFile(path, name, category, location) for path, name in sorted(named) if path.endswith(SUFFIXES)]
    others = [
        Unreadable(name, f"not one of {', '.join(SUFFIXES)}")
        for path, name in sorted(named)
        if not path.endswith(SUFFIXES)
    ]
    if not files:
        found = f"; found {others[0].id}" if others else ""
        raise ValueError(f"{location} holds no file that ends in {', '.join(SUFFIXES)}{found}; name another source")
    return files, others


def split_category(source: str) -> tuple[str, str]:
    """ "code=/data/*.jsonl" -> ("code", "/data/*.jsonl"); a path that exists is never split."""
    match = CATEGORY.fullmatch(source)
    if match and not os.path.lexists(source):
        return match.group(1), match.group(2)
    if not source or source.endswith("="):
        raise ValueError(f"source {source!r} names no location; write <category>=<path>, glob or URI")
    return DEFAULT_CATEGORY, source


def list_local(location: str) -> list[tuple[str, str]]:
    """(path, name in ids) of a file, of everything below a directory, or of what a glob matches.

    Links to directories below are not followed.

    Raises:
        FileNotFoundError: if there is nothing.
        OSError: if a directory may not be read.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions") from error

    if os.path.isfile(location):
        return [(location, os.path.basename(location))]
    if os.path.isdir(location):
        root, tops = location, [location]
    else:
        fixed = GLOB_CHARACTER.split(location, maxsplit=1)[0]
        root, tops = os.path.dirname(fixed), sorted(glob.glob(location, recursive=True))
        if not tops:
            raise FileNotFoundError(f"{location} does not exist; name a file, directory, glob or URI that does")
    paths = set()
    for top in tops:
        if not os.path.isdir(top):
            paths.add(top)
            continue
        for directory, _subdirectories, file_names in os.walk(top, onerror=refuse):
            paths.update(os.path.join(directory, file_name) for file_name in file_names)
    parent = os.path.dirname(os.path.abspath(root)) if os.path.isdir(location) else os.path.abspath(root)
    return [(path, Path(os.path.relpath(os.path.abspath(path), parent)).as_posix()) for path in sorted(paths)]


def list_uri(location: str) -> list[tuple[str, str]]:
    """(URI, name in ids) of a file, of everything below a directory, or of what a glob matches, as Daft lists it.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if the address does not answer or refuses.
    """
    if location.endswith(SUFFIXES) and not GLOB_CHARACTER.search(location):
        return [(location, location.rpartition("/")[2])]
    pattern = location if GLOB_CHARACTER.search(location) else f"{location.rstrip('/')}/**"
    with one_sentence(location):
        try:
            listed = daft.from_glob_path(pattern, io_config=REMOTE).select("path").to_pydict()["path"]
        except FileNotFoundError:
            listed = []
        except ValueError as error:
            if "MicroPartition" not in str(error):  # Daft's words for a glob without a match
                raise
            listed = []
    if not listed:
        raise FileNotFoundError(f"{location} matches no file; check the address")
    fixed = GLOB_CHARACTER.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    return [(uri, uri.removeprefix(fixed).lstrip("/")) for uri in sorted(listed)]


# Reading rows ---------------------------------------------------------------------------------------------------------


def rows_of_files(
    source: str, files: Sequence[SourceFile], text_column: str, num_rows: int | None
) -> Iterator[Document | Unreadable]:
    """The rows of one source's files, one after the other.

    Raises:
        ValueError: if there are files and no document in any of them, or one cannot be read to its end.
    """
    num_unreadable = num_documents = 0
    first_reason = ""
    for file in files:
        if file.location.endswith(".parquet"):
            rows = parquet_rows(file, text_column, num_rows)
        elif file.location.endswith(".txt"):
            rows = text_rows(file)
        else:
            rows = json_rows(file, text_column)
        for row in rows:
            if isinstance(row, Document):
                num_documents += 1
            else:
                num_unreadable += 1
                first_reason = first_reason or f", the first is {row.id}: {row.reason}"
            yield row
    if files and not num_documents:
        raise ValueError(f"{source} holds no document ({num_unreadable} unreadable{first_reason}); name another source")


def text_rows(file: SourceFile) -> Iterator[Document | Unreadable]:
    """The whole file as one document."""
    with one_sentence(file.location), open_binary(file.location) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Unreadable(file.name, f"not UTF-8: {error.reason} at byte {error.start}")
        return
    if not text.strip():
        yield Unreadable(file.name, "empty")
        return
    yield Document(file.name, file.name, file.category, text, "unknown", file.source)


def json_rows(file: SourceFile, text_column: str) -> Iterator[Document | Unreadable]:
    """One row a line; blank lines are none."""
    waiting: list[Unreadable] = []  # rows without the column, until one with it shows that the file has it
    columns: set[str] = set()
    is_found = False
    index = -1
    for line_number, line in enumerate(lines_of(file.location), start=1):
        if not line.strip():
            continue
        index += 1
        name = f"{file.name}#{index}"
        try:
            row = json.loads(line.decode("utf-8-sig" if line_number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield Unreadable(name, f"line {line_number} is not UTF-8: {error.reason} at byte {error.start}")
            continue
        except (ValueError, RecursionError) as error:
            yield Unreadable(name, f"line {line_number} is not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield Unreadable(name, f"line {line_number} is no JSON object but {type(row).__name__}")
        elif text_column in row:
            is_found = True
            yield from waiting
            waiting.clear()
            yield row_read(file, index, row, text_column)
        elif is_found:
            yield Unreadable(name, f"line {line_number} has no {text_column!r}")
        else:
            columns |= row.keys()
            waiting.append(Unreadable(name, f"line {line_number} has no {text_column!r}"))
            if len(waiting) == ROWS_WITHOUT_TEXT:
                break
    if waiting:
        refuse_columns(file, columns, text_column)


def parquet_rows(file: SourceFile, text_column: str, num_rows: int | None) -> Iterator[Document | Unreadable]:
    """One row a row, `num_rows` at most; only the columns that are used are read."""
    location = file.location
    if not SCHEME.match(location):
        location = glob.escape(os.path.abspath(location))  # Daft takes every path for a glob
    with one_sentence(file.location):
        table = daft.read_parquet(location, io_config=REMOTE)
        if text_column not in table.column_names:
            refuse_columns(file, table.column_names, text_column)
        if not table.schema()[text_column].dtype.is_string():
            dtype = table.schema()[text_column].dtype
            raise ValueError(f"{file.location}: column {text_column!r} is {dtype}, not text; use --text-column")
        columns = [name for name in (ID_COLUMN, *LICENCE_COLUMNS) if name in table.column_names and name != text_column]
        table = table.select(text_column, *columns)
        batches = (table if num_rows is None else table.limit(num_rows)).to_arrow_iter()
    index = 0
    while True:
        with one_sentence(file.location):
            batch = next(batches, None)
        if batch is None:
            return
        for row in batch.to_pylist():
            yield row_read(file, index, row, text_column)
            index += 1


def row_read(file: SourceFile, index: int, row: dict[str, Any], text_column: str) -> Document | Unreadable:
    """The document in one row, or what is wrong with it."""
    identifier = row.get(ID_COLUMN) if text_column != ID_COLUMN else None
    name = f"{file.name}#{index}"
    if isinstance(identifier, str) and identifier.strip() and is_unicode(identifier):
        name = identifier
    elif isinstance(identifier, int) and not isinstance(identifier, bool):
        name = str(identifier)
    text = row[text_column]
    if not isinstance(text, str):
        return Unreadable(name, f"{text_column!r} is {'null' if text is None else type(text).__name__}, not text")
    if not text.strip():
        return Unreadable(name, f"{text_column!r} is empty")
    if not is_unicode(text):
        return Unreadable(name, f"{text_column!r} holds half a surrogate pair, which is no character")
    stated = (row.get(column) for column in LICENCE_COLUMNS)
    licence = next(
        (value for value in stated if isinstance(value, str) and value.strip() and is_unicode(value)), "unknown"
    )
    return Document(name, name, file.category, text, licence, file.source)


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8; JSON can hold halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_columns(file: SourceFile, columns: Iterable[str], text_column: str) -> None:
    """Says that a file has no text and what it has instead."""
    found = sorted(columns)
    hint = " (its rows name files in repositories, without their text)" if {"repo", "rel_path"} <= {*found} else ""
    raise ValueError(
        f"{file.location} has no column {text_column!r}, only {', '.join(found) or 'none'}{hint}; name the column that "
        f"holds the text with --text-column, or another source"
    )


# Reading bytes --------------------------------------------------------------------------------------------------------


def lines_of(location: str) -> Iterator[bytes]:
    """The lines of a .jsonl or .jsonl.gz file."""
    with one_sentence(location), open_binary(location) as stream:
        yield from gzip.GzipFile(fileobj=stream) if location.endswith(".gz") else stream


@contextmanager
def open_binary(location: str) -> Iterator[BinaryIO]:
    """A file's bytes: a local path as Python opens it, a URI through Daft."""
    if SCHEME.match(location):
        with daft.File(location, io_config=REMOTE).open() as stream:
            yield cast(BinaryIO, io.BufferedReader(UriReader(stream), buffer_size=1 << 20))
    else:
        with open(location, "rb") as local:
            yield local


class UriReader(io.RawIOBase):
    """Bytes behind a URI. Daft's own stream refuses to read at the end of a file, so this one knows where that is."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.num_left = stream.size()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(min(len(buffer), self.num_left)) if self.num_left else b""
        buffer[: len(content)] = content
        self.num_left -= len(content)
        return len(content)


@contextmanager
def one_sentence(location: str) -> Iterator[None]:
    """Turns what goes wrong with a file into one sentence that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location} does not exist; check the path or address") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{location} is truncated or damaged ({reason_of(error)}); get it again") from error
    except daft.exceptions.DaftCoreException as error:
        time.sleep(DAFT_FAREWELL_SECONDS)
        if "CorruptFile" in str(error):
            raise ValueError(f"{location} is truncated or damaged ({reason_of(error)}); get it again") from error
        raise ValueError(
            f"{location} cannot be read ({reason_of(error)}); check the address, the network and the credentials"
        ) from error
    except OSError as error:
        raise OSError(f"{location} cannot be read ({reason_of(error)}); check that it may be read") from error


def reason_of(error: Exception) -> str:
    """The outermost and the innermost reason of an error that Daft wrote over several lines."""
    lines = [re.sub(r"^\s*([0-9]+: |DaftError::\w+ ?)", "", line).strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Caused by")] or [type(error).__name__]
    return told[0] if told[0] == told[-1] else f"{told[0]}: {told[-1]}"
