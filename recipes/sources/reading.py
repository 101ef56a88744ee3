"""What the readers of the user's files share: finding the files of a source, and their rows as dictionaries.

In: sources, each "location" or "category=location". Out: the rows of their .jsonl, .jsonl.gz and .parquet files, and a
named reason for each row that cannot be read. `files.py` makes documents of the rows, `conversations.py` makes
conversations. A location is a local path, a glob, or a URI that Daft can read (`hf://datasets/...`, `s3://...`,
`file://...`); a directory means every file below it. PyArrow reads .parquet files, and of them only the columns in use,
because Daft refuses a whole file if it does not support the type of one column.

A row that cannot be read is counted and named. A file that cannot be read to its end is an error, because a truncated
download would otherwise pass for a smaller corpus. Left out: other formats; files that do not fit into memory.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.sources.documents import UNKNOWN_LICENCE, Unreadable
from nemotron.recipes.sources.licences import column_licence

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
LICENCE_COLUMNS = ("license", "licence", "licenses", "licences")

BATCH_ROWS = 4_096  # our choice: rows of a .parquet file that are turned into Python objects at a time

CATEGORY = re.compile(r"([a-z0-9][a-z0-9+_-]*)=(.+)", re.DOTALL)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
GLOB_CHARACTER = re.compile(r"[*?\[]")

# After listing a URI has failed, Daft's threads still log, and an interpreter that exits during that crashes: measured
# in 6 of 10 runs without a pause, and in 0 of 10 with a pause of 0.3 s.
DAFT_SHUTDOWN_SECONDS = 0.3

# Our choice: a URI that does not answer is reported within half a minute.
REMOTE = daft.io.IOConfig(
    s3=daft.io.S3Config(num_tries=3, connect_timeout_ms=5_000, read_timeout_ms=30_000),
    http=daft.io.HTTPConfig(num_tries=3),
)

Item = TypeVar("Item")
"""What a row becomes: a Document or a Conversation."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    location: str
    """Local path or URI."""
    name: str
    """The path below the source's directory or its glob's fixed part; used in ids, so the same on every machine."""
    category: str
    source: str
    """The location as the user gave it, for the attribution list."""


@dataclass(frozen=True)
class Row:
    """One row of a .jsonl, .jsonl.gz or .parquet file."""

    name: str
    """"<file>#<row>": the id of a row that has no id column."""
    columns: dict[str, Any]
    line_number: int = 0
    """In a .jsonl file, from 1; 0 in a .parquet file."""


def read_items(
    sources: Sequence[str],
    read_file: Callable[[SourceFile], Iterator[Item | Unreadable]],
    *,
    kind: str,
    default_category: str,
    num_items: int | None,
) -> tuple[list[Item], list[Unreadable]]:
    """The items of all sources and what could not be read, in the order that `read_sources` describes.

    Args:
        read_file: the items of one file, one for each row.
        kind: "document" or "conversation", for messages.
        default_category: the category of files for which the user names none.
        num_items: rows to read in total, including unreadable ones; None reads everything.
    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if a source cannot be read to its end or holds no item, or a file has two categories.
    """
    if not sources:
        raise ValueError("sources is empty; name at least one file, directory, glob or URI")
    if num_items is not None and num_items < 1:
        raise ValueError(f"num_{kind}s={num_items} must be at least 1, or None for everything")
    unreadable: list[Unreadable] = []
    known: dict[str, SourceFile] = {}
    streams: list[Iterator[Item | Unreadable]] = []
    for source in sources:
        files, others = find_files(source, default_category)
        unreadable += others
        new_files = [file for file in files if file.location not in known]
        for file in files:
            first = known.setdefault(file.location, file)
            if first.category != file.category:
                raise ValueError(f"{file.location} is both {first.category} and {file.category}; give it one category")
        streams.append(read_files(source, new_files, read_file, kind))
    rows = take_turns(streams, num_items)
    unreadable += [row for row in rows if isinstance(row, Unreadable)]
    return [row for row in rows if not isinstance(row, Unreadable)], unreadable


def read_files(
    source: str, files: Sequence[SourceFile], read_file: Callable[[SourceFile], Iterator[Item | Unreadable]], kind: str
) -> Iterator[Item | Unreadable]:
    """The items of one source's files, one file after the other.

    Raises:
        ValueError: if there are files but none holds an item, or a file cannot be read to its end.
    """
    num_items = num_unreadable = 0
    first_reason = ""
    for file in files:
        for row in read_file(file):
            if isinstance(row, Unreadable):
                num_unreadable += 1
                first_reason = first_reason or f", the first is {row.id}: {row.reason}"
            else:
                num_items += 1
            yield row
    if files and not num_items:
        raise ValueError(f"{source} holds no {kind} ({num_unreadable} unreadable{first_reason}); name another source")


def take_turns(streams: Sequence[Iterator[Item]], num_items: int | None) -> list[Item]:
    """One item of each stream in turn until there are `num_items` or no more, then ordered by stream."""
    taken: list[list[Item]] = [[] for _ in streams]
    turns = list(range(len(streams)))
    while turns and (num_items is None or sum(map(len, taken)) < num_items):
        number = turns.pop(0)
        for item in itertools.islice(streams[number], 1):
            taken[number].append(item)
            turns.append(number)
    return list(itertools.chain.from_iterable(taken))


def unique_ids(ids: Iterable[str]) -> list[str]:
    """The ids, with "#2", "#3", ... appended to each repeated one."""
    used: dict[str, int] = {}
    for old_id in ids:
        new_id = old_id
        while new_id in used:
            used[old_id] += 1
            new_id = f"{old_id}#{used[old_id]}"
        used[new_id] = 1
    return list(used)


# Finding files --------------------------------------------------------------------------------------------------------


def find_files(source: str, default_category: str) -> tuple[list[SourceFile], list[Unreadable]]:
    """The files of one source that have a readable format, sorted by path, and those that have another format.

    Raises:
        FileNotFoundError: if the location does not exist.
        ValueError: if it holds no file of a readable format, or does not answer.
    """
    category, location = split_category(source)
    category = category or default_category
    found = sorted(list_uri(location) if SCHEME.match(location) else list_local(os.path.expanduser(location)))
    files = [SourceFile(path, name, category, location) for path, name in found if path.endswith(SUFFIXES)]
    reason = f"not one of {', '.join(SUFFIXES)}"
    others = [Unreadable(name, reason) for path, name in found if not path.endswith(SUFFIXES)]
    if not files:
        example = f"; found {others[0].id}" if others else ""
        raise ValueError(f"{location} holds no file that ends in {', '.join(SUFFIXES)}{example}; name another source")
    return files, others


def split_category(source: str) -> tuple[str | None, str]:
    """ "code=/data/*.jsonl" -> ("code", "/data/*.jsonl"); a path that exists is never split."""
    match = CATEGORY.fullmatch(source)
    if match and not os.path.lexists(source):
        return match.group(1), match.group(2)
    if not source or source.endswith("="):
        raise ValueError(f"source {source!r} names no location; write <category>=<path>, glob or URI")
    return None, source


def list_local(location: str) -> list[tuple[str, str]]:
    """(path, name in ids) of a file, of everything below a directory, or of what a glob matches.

    Symbolic links to directories are not followed.

    Raises:
        FileNotFoundError: if nothing exists there.
        OSError: if a directory cannot be listed.
    """

    def fail(error: OSError) -> None:
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
        for directory, _subdirectories, file_names in os.walk(top, onerror=fail):
            paths.update(os.path.join(directory, file_name) for file_name in file_names)
    parent = os.path.dirname(os.path.abspath(root)) if os.path.isdir(location) else os.path.abspath(root)
    return [(path, Path(os.path.relpath(os.path.abspath(path), parent)).as_posix()) for path in sorted(paths)]


def list_uri(location: str) -> list[tuple[str, str]]:
    """(URI, name in ids) of a file, of everything below a directory, or of what a glob matches, as Daft lists it.

    Raises:
        FileNotFoundError: if nothing exists there.
        ValueError: if the URI does not answer or refuses access.
    """
    if location.endswith(SUFFIXES) and not GLOB_CHARACTER.search(location):
        return [(location, location.rpartition("/")[2])]
    pattern = location if GLOB_CHARACTER.search(location) else f"{location.rstrip('/')}/**"
    with errors_naming(location):
        try:
            listed = daft.from_glob_path(pattern, io_config=REMOTE).select("path").to_pydict()["path"]
        except FileNotFoundError:
            listed = []
        except ValueError as error:
            if "MicroPartition" not in str(error):  # part of Daft's message for a glob without a match
                raise
            listed = []
    if not listed:
        raise FileNotFoundError(f"{location} matches no file; check the address")
    fixed = GLOB_CHARACTER.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    return [(uri, uri.removeprefix(fixed).lstrip("/")) for uri in sorted(listed)]


# Reading rows ---------------------------------------------------------------------------------------------------------


def json_rows(file: SourceFile) -> Iterator[Row | Unreadable]:
    """One row for each line of a .jsonl or .jsonl.gz file that is not blank.

    Raises:
        ValueError: if the last line has no line end and is not JSON, because the file was cut there.
    """
    index = -1
    for line_number, line in enumerate(read_lines(file.location), start=1):
        if not line.strip():
            continue
        index += 1
        name = f"{file.name}#{index}"
        try:
            columns = json.loads(line.decode("utf-8-sig" if line_number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            fault = f"JSON: {error}"
            if isinstance(error, UnicodeDecodeError):
                fault = f"UTF-8: {error.reason} at byte {error.start}"
            if not line.endswith(b"\n"):
                raise ValueError(
                    f"{file.location} is truncated or damaged (line {line_number}, the last, is not {fault}); get it "
                    f"again, or remove the line"
                ) from error
            yield Unreadable(name, f"line {line_number} is not {fault}")
            continue
        if isinstance(columns, dict):
            yield Row(name, columns, line_number)
        else:
            yield Unreadable(name, f"line {line_number} is not a JSON object but {type(columns).__name__}")


def parquet_rows(
    file: SourceFile, num_rows: int | None, choose_columns: Callable[[pa.Schema], Sequence[str]]
) -> Iterator[Row]:
    """The first `num_rows` rows of a .parquet file, or all of them; other columns than the chosen ones are not read.

    A struct gets a null for every key that its row lacks, so keys with a null are left out, as in the JSON that the row
    was made of. A null in a map, a list or a column stays.

    Args:
        choose_columns: the columns to read; raises ValueError if one that is needed is missing.
    Raises:
        ValueError: if two columns have the same chosen name, or a chosen column cannot be read.
    """
    index = 0
    with errors_naming(file.location), open_binary(file.location) as stream:
        with arrow_errors_naming(file.location, ""):
            parquet = pq.ParquetFile(stream, page_checksum_verification=True)
            schema = parquet.schema_arrow
        names = choose_columns(schema)
        for name in names:
            if schema.names.count(name) > 1:
                raise ValueError(
                    f"{file.location} has {schema.names.count(name)} columns named {name!r}; rename one of them"
                )
        types = {name: schema.field(name).type for name in names}
        used = ", ".join(f"{name}: {kind}" for name, kind in types.items())
        size = BATCH_ROWS if num_rows is None else min(num_rows, BATCH_ROWS)
        batches = parquet.iter_batches(size, columns=list(names))
        while num_rows is None or index < num_rows:
            with arrow_errors_naming(file.location, used):
                batch = next(batches, None)
                if batch is None:
                    return
                columns = [batch.column(name).to_pylist(maps_as_pydicts="strict") for name in names]
            for values in zip(*columns, strict=True):
                pairs = zip(types.items(), values, strict=True)
                yield Row(f"{file.name}#{index}", {name: without_padding(value, kind) for (name, kind), value in pairs})
                index += 1


def without_padding(value: Any, kind: pa.DataType) -> Any:
    """A value of this type without the keys that Parquet filled in with null, at every depth."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        fields = (kind.field(index) for index in range(kind.num_fields))
        return {one.name: without_padding(value[one.name], one.type) for one in fields if value[one.name] is not None}
    if pa.types.is_map(kind):
        return {key: without_padding(item, kind.item_type) for key, item in value.items()}
    if isinstance(value, list):
        return [without_padding(item, kind.value_type) for item in value]
    return value


@contextmanager
def arrow_errors_naming(location: str, used_columns: str) -> Iterator[None]:
    """Turns an error about the content of a .parquet file into one sentence that names the file and what was read."""
    try:
        yield
    except daft.exceptions.DaftCoreException:
        raise  # of the network, not of the content
    except (pa.ArrowException, ValueError, KeyError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, not of the content
        if isinstance(error, pa.ArrowInvalid | OSError):
            raise ValueError(f"{location} is truncated or damaged ({short_reason(error)}); get it again") from error
        columns = f"columns {used_columns}: " if used_columns else ""
        raise ValueError(f"{location} cannot be read ({columns}{short_reason(error)}); name another source") from error


def stated_text(row: Row, columns: Sequence[str]) -> str | None:
    """The first of the columns that holds text."""
    values = map(row.columns.get, columns)
    return next((value for value in values if isinstance(value, str) and value.strip() and is_unicode(value)), None)


def row_licence(row: Row) -> str:
    """The licenses that the row states, in its words, or `UNKNOWN_LICENCE` if it states none."""
    return column_licence([row.columns.get(column) for column in LICENCE_COLUMNS]) or UNKNOWN_LICENCE


def stated_id(row: Row, columns: Sequence[str]) -> str:
    """The first of the columns that holds text or a whole number, else the row's name."""
    for column in columns:
        value = row.columns.get(column)
        if type(value) is int:
            return str(value)
        if text := stated_text(row, [column]):
            return text
    return row.name


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8; JSON can hold halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Reading bytes --------------------------------------------------------------------------------------------------------


def read_bytes(location: str) -> bytes:
    """The content of a file."""
    with errors_naming(location), open_binary(location) as stream:
        return stream.read()


def read_lines(location: str) -> Iterator[bytes]:
    """The lines of a .jsonl or .jsonl.gz file."""
    with errors_naming(location), open_binary(location) as stream:
        yield from gzip.GzipFile(fileobj=stream) if location.endswith(".gz") else stream


@contextmanager
def open_binary(location: str) -> Iterator[BinaryIO]:
    """Opens a local path with Python's `open`, a URI with Daft."""
    if SCHEME.match(location):
        with daft.File(location, io_config=REMOTE).open() as stream:
            yield cast(BinaryIO, io.BufferedReader(UriReader(stream), buffer_size=1 << 20))
    else:
        with open(location, "rb") as local:
            yield local


class UriReader(io.RawIOBase):
    """The bytes of a URI. Daft's own stream raises an error at the end of a file, so this one never reads past it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.size = stream.size()
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = start + offset
        self.stream.seek(self.position)
        return self.position

    def readinto(self, buffer: Any) -> int:
        num_bytes = min(len(buffer), self.size - self.position)
        content = self.stream.read(num_bytes) if num_bytes > 0 else b""
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


@contextmanager
def errors_naming(location: str) -> Iterator[None]:
    """Turns any error about a file into one sentence that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location} does not exist; check the path or address") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{location} is truncated or damaged ({short_reason(error)}); get it again") from error
    except daft.exceptions.DaftCoreException as error:
        time.sleep(DAFT_SHUTDOWN_SECONDS)
        if "CorruptFile" in str(error):
            raise ValueError(f"{location} is truncated or damaged ({short_reason(error)}); get it again") from error
        raise ValueError(
            f"{location} cannot be read ({short_reason(error)}); check the address, the network and the credentials"
        ) from error
    except OSError as error:
        raise OSError(f"{location} cannot be read ({short_reason(error)}); check its permissions") from error


def short_reason(error: Exception) -> str:
    """The outermost and the innermost reason of an error, which Daft spreads over several lines."""
    lines = [re.sub(r"^\s*([0-9]+: |DaftError::\w+ ?)", "", line).strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith("Caused by")] or [type(error).__name__]
    return reasons[0] if reasons[0] == reasons[-1] else f"{reasons[0]}: {reasons[-1]}"
