"""What the readers of the user's files share: the rows of the files of a source, as dictionaries.

In: sources, each "location" or "category=location", whose files `listing.py` finds. Out: the rows of their .jsonl,
.jsonl.gz and .parquet files, and a named reason for each row that cannot be read. `files.py` makes documents of the
rows, `conversations.py` makes conversations, and `writing.py` writes both to files. PyArrow reads .parquet files, and
of them only the columns in use, because Daft refuses a whole file if it does not support the type of one column.

A file that cannot be read to its end is an error, because a truncated download would otherwise pass for a smaller
corpus. So is one that exceeds the limits below, which are far beyond any text that curation keeps and bound the memory
that a file can take. Left out: other formats; prompts and pairs that do not fit into memory.
"""

import gzip
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.sources.documents import Unreadable
from nemotron.recipes.sources.listing import (
    FILE_SCHEME,
    REMOTE,
    SCHEME,
    SourceFile,
    check_regular,
    errors_naming,
    find_files,
    short_reason,
)
from nemotron.strict import RepeatedKey, load_json

BATCH_ROWS = 4_096  # our choice: rows of a .parquet file that are decoded at a time

# Our choice, all of them: curation drops a text of more than 100,000 words, which is about 600 kB.
MAX_DOCUMENT_CHARACTERS = 4_000_000  # of a text, a message or a whole .txt file
MAX_LINE_BYTES = 16 << 20  # of a row: a line of a .jsonl file, or the decoded values of a row of a .parquet file
MAX_ID_CHARACTERS = 1_000  # a longer id is replaced by the name of the row; ids are shown and recorded
MAX_EXPANSION = 100  # unpacked bytes per byte of a .jsonl.gz or .parquet file; text has 3 to 10
FREE_BYTES = 64 << 20  # unpacked bytes that a file may have whatever its size
ROW_BYTES = 64  # what a row counts in addition to its content, because empty rows take memory too
MAX_UNREADABLE_ROWS = 1_000_000  # of a file
MAX_ROW_GROUP_VALUES = 50_000_000  # of a repeated column in a row group of a .parquet file

Item = TypeVar("Item")
Identified = TypeVar("Identified", bound=Any)  # a dataclass with an id
"""What a row becomes: a Document or a Conversation."""


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
        ValueError: if a source cannot be read to its end or holds no item, if no row within the limit can be read, or
            a file has two categories.
    """
    files, unreadable = files_of_sources(sources, kind, default_category, num_items)
    streams = [read_files(source, members, read_file, kind) for source, members in zip(sources, files, strict=True)]
    taken: list[list[Item]] = [[] for _ in streams]
    bad: list[list[Unreadable]] = [[] for _ in streams]
    for number, row in take_turns(streams, num_items, kind):
        if isinstance(row, Unreadable):
            bad[number].append(row)
        else:
            taken[number].append(row)
    unreadable += itertools.chain.from_iterable(bad)
    return list(itertools.chain.from_iterable(taken)), unreadable


def files_of_sources(
    sources: Sequence[str], kind: str, default_category: str, num_items: int | None
) -> tuple[list[list[SourceFile]], list[Unreadable]]:
    """The files of each source, without those of a source before it, and what else is there.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if there is no source, a source holds no file of a readable format, or a file has two categories;
            if `num_items` is below 1.
    """
    if not sources:
        raise ValueError("sources is empty; name at least one file, directory, glob or URI")
    if num_items is not None and num_items < 1:
        raise ValueError(f"num_{kind}s={num_items} must be at least 1, or None for everything")
    unreadable: list[Unreadable] = []
    known: dict[str, SourceFile] = {}
    found: list[list[SourceFile]] = []
    for source in sources:
        files, others = find_files(source, default_category)
        unreadable += others
        found.append([file for file in files if file.identity not in known])
        for file in files:
            first = known.setdefault(file.identity, file)
            if first.category != file.category:
                raise ValueError(f"{file.location} is both {first.category} and {file.category}; give it one category")
    return found, unreadable


def read_files(
    source: str, files: Sequence[SourceFile], read_file: Callable[[SourceFile], Iterator[Item | Unreadable]], kind: str
) -> Iterator[Item | Unreadable]:
    """The items of one source's files, one file after the other.

    Raises:
        ValueError: if there are files but none holds an item, a file cannot be read to its end, or a file has more than
            `MAX_UNREADABLE_ROWS` rows that cannot be read.
    """
    num_items = num_unreadable = 0
    first: Unreadable | None = None
    for file in files:
        for row in read_rows_of(file, read_file):
            if isinstance(row, Unreadable):
                num_unreadable += 1
                first = first or row
            else:
                num_items += 1
            yield row
    if files and not num_items:
        raise nothing_in(source, kind, num_unreadable, first)


def nothing_in(source: str, kind: str, num_unreadable: int, first: Unreadable | None) -> ValueError:
    """The error for a source that was read to its end and holds no item."""
    return ValueError(f"{source} holds no {kind} ({num_unreadable} unreadable{_first(first)}); name another source")


def _first(first: Unreadable | None) -> str:
    """Part of a message."""
    return f", the first is {first.id}: {first.reason}" if first else ""


def read_rows_of(
    file: SourceFile, read_file: Callable[[SourceFile], Iterator[Item | Unreadable]]
) -> Iterator[Item | Unreadable]:
    """The items of one file.

    Raises:
        ValueError: if it cannot be read to its end, or has more than `MAX_UNREADABLE_ROWS` rows that cannot be read.
    """
    num_unreadable = 0
    first: Unreadable | None = None
    for row in read_file(file):
        if isinstance(row, Unreadable):
            num_unreadable += 1
            first = first or row
            if num_unreadable > MAX_UNREADABLE_ROWS:
                raise ValueError(
                    f"{file.location} has more than {MAX_UNREADABLE_ROWS:,} unreadable rows{_first(first)}; mend or "
                    f"remove the file"
                )
        yield row


def take_turns(
    streams: Sequence[Iterator[Item | Unreadable]], num_items: int | None, kind: str
) -> Iterator[tuple[int, Item | Unreadable]]:
    """One row of each stream in turn, with the number of its stream, until there are `num_items` or no more.

    Raises:
        ValueError: at the end, if there are rows and none can be read.
    """
    turns = list(range(len(streams)))
    num_rows, is_readable = 0, False
    first: Unreadable | None = None
    while turns and (num_items is None or num_rows < num_items):
        number = turns.pop(0)
        for row in itertools.islice(streams[number], 1):
            num_rows += 1
            first, is_readable = (first or row, is_readable) if isinstance(row, Unreadable) else (first, True)
            yield number, row
            turns.append(number)
    if first and not is_readable:  # a source that was read to its end would have said so
        raise ValueError(
            f"the first {num_rows:,} rows of the sources hold no {kind}{_first(first)}; read more rows, or name other "
            f"sources"
        )


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


def with_unique_ids(items: Sequence[Identified]) -> list[Identified]:
    """The items, with `unique_ids` in their field `id`."""
    ids = unique_ids(item.id for item in items)
    return [item if item.id == id else replace(item, id=id) for item, id in zip(items, ids, strict=True)]


# Reading rows ---------------------------------------------------------------------------------------------------------


def json_rows(file: SourceFile) -> Iterator[Row | Unreadable]:
    """One row for each line of a .jsonl or .jsonl.gz file that is not blank.

    Raises:
        ValueError: if the last line has no line end and is not JSON, because the file was cut there; for a line of more
            than `MAX_LINE_BYTES`, or a file that unpacks to more than `MAX_EXPANSION` times its size.
    """
    index = -1
    for line_number, line in enumerate(read_lines(file.location), start=1):
        if not line.strip():
            continue
        index += 1
        name = f"{file.name}#{index}"
        try:
            columns = load_json(line.decode("utf-8-sig" if line_number == 1 else "utf-8"))
        except RepeatedKey as error:
            yield Unreadable(name, f"line {line_number} is {error}")
            continue
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
        ValueError: if two columns have the same chosen name, a chosen column cannot be read, or a row or the whole file
            unpacks to too much.
    """
    index = 0
    with errors_naming(file.location), open_binary(file.location) as stream:
        unpacked = Unpacked(file.location, stream.seek(0, os.SEEK_END))
        with arrow_errors_naming(file.location, ""):
            parquet = pq.ParquetFile(stream)
            schema = parquet.schema_arrow
        names = choose_columns(schema)
        for name in names:
            if schema.names.count(name) > 1:
                raise ValueError(
                    f"{file.location} has {schema.names.count(name)} columns named {name!r}; rename one of them"
                )
        types = {name: schema.field(name).type for name in names}
        used = ", ".join(f"{name}: {kind}" for name, kind in types.items())
        texts, longest = check_row_groups(file.location, parquet, names)
        with arrow_errors_naming(file.location, used):
            # A value that is repeated stays one value in memory until its size has been looked at.
            parquet = pq.ParquetFile(
                stream, metadata=parquet.metadata, read_dictionary=texts, page_checksum_verification=True
            )
        # Each row group by itself: a batch across two of them would have two dictionaries, which Arrow cannot nest.
        for group in range(parquet.num_row_groups):
            num_left = BATCH_ROWS if num_rows is None else num_rows - index
            size = max(1, min(BATCH_ROWS, num_left, FREE_BYTES // longest))
            batches = parquet.iter_batches(size, row_groups=[group], columns=list(names))
            while num_rows is None or index < num_rows:
                with arrow_errors_naming(file.location, used):
                    batch = next(batches, None)
                if batch is None:
                    break
                for part in parts_of_bounded_size(file, batch, index):
                    unpacked.add(decoded_bytes(part), len(part))
                    with arrow_errors_naming(file.location, used):
                        columns = [part.column(name).to_pylist(maps_as_pydicts="strict") for name in names]
                    for values in zip(*columns, strict=True):
                        pairs = zip(types.items(), values, strict=True)
                        row = {name: without_padding(value, kind) for (name, kind), value in pairs}
                        yield Row(f"{file.name}#{index}", row)
                        index += 1


def check_row_groups(location: str, parquet: pq.ParquetFile, names: Sequence[str]) -> tuple[list[str], int]:
    """The paths of the columns of text below these columns, and the bytes of the longest value of a fixed size.

    Raises:
        ValueError: if a row group unpacks to too much, as the file itself describes it.
    """
    leaves = {number: parquet.schema.column(number) for number in range(parquet.metadata.num_columns)}
    leaves = {number: leaf for number, leaf in leaves.items() if leaf.path.split(".")[0] in names}
    for group in range(parquet.metadata.num_row_groups):
        for number, leaf in leaves.items():
            chunk = parquet.metadata.row_group(group).column(number)
            if leaf.max_repetition_level and chunk.num_values > MAX_ROW_GROUP_VALUES:
                raise ValueError(
                    f"{location}: row group {group} has {chunk.num_values:,} values of {leaf.path}, more than "
                    f"{MAX_ROW_GROUP_VALUES:,}; write it with smaller row groups"
                )
            Unpacked(location, chunk.total_compressed_size).add(chunk.total_uncompressed_size, num_rows=0)
    kinds = ("STRING", "JSON", "ENUM", "NONE")
    texts = [
        one.path for one in leaves.values() if one.physical_type == "BYTE_ARRAY" and one.logical_type.type in kinds
    ]
    return texts, max([8, *(leaf.length or 0 for leaf in leaves.values())])


def parts_of_bounded_size(file: SourceFile, batch: pa.RecordBatch, index: int) -> Iterator[pa.RecordBatch]:
    """The batch in parts of at most `MAX_LINE_BYTES` of decoded values.

    Raises:
        ValueError: if a single row has more.
    """
    if decoded_bytes(batch) <= MAX_LINE_BYTES:
        yield batch
    elif len(batch) > 1:
        half = len(batch) // 2
        yield from parts_of_bounded_size(file, batch.slice(0, half), index)
        yield from parts_of_bounded_size(file, batch.slice(half), index + half)
    else:
        raise ValueError(
            f"{file.location}: row {index} unpacks to {decoded_bytes(batch):,} bytes, more than {MAX_LINE_BYTES:,}; "
            f"cut what is in it into several rows, or remove it"
        )


def decoded_bytes(values: pa.RecordBatch | pa.Array) -> int:
    """Bytes of a batch or array when every value is written out, also one that is stored once and repeated."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(decoded_bytes, values.columns))
    if isinstance(values, pa.ExtensionArray):
        return decoded_bytes(values.storage)
    if pa.types.is_dictionary(values.type):
        if not (pa.types.is_string(values.type.value_type) or pa.types.is_large_string(values.type.value_type)):
            return values.nbytes
        lengths = pc.binary_length(values.dictionary).cast(pa.int64())
        return pc.sum(lengths.take(values.indices)).as_py() or 0
    if pa.types.is_struct(values.type):
        return sum(map(decoded_bytes, values.flatten()))
    if pa.types.is_map(values.type):
        start, end = (values.offsets[end].as_py() for end in (0, len(values)))
        return sum(decoded_bytes(part.slice(start, end - start)) for part in (values.keys, values.items))
    if pa.types.is_nested(values.type):
        return 8 * len(values) + decoded_bytes(values.flatten())
    return values.nbytes


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


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, in any of Arrow's layouts."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def stated_id(row: Row, columns: Sequence[str]) -> str:
    """The first of the columns that holds a short text or a whole number, else the row's name."""
    for column in columns:
        value = row.columns.get(column)
        if type(value) is int and abs(value) < 10**MAX_ID_CHARACTERS:
            return str(value)
        if (text := stated_text(row, [column])) and len(text) <= MAX_ID_CHARACTERS:
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


def read_bytes(location: str, max_bytes: int) -> bytes:
    """The first bytes of a file, at most `max_bytes`."""
    with errors_naming(location), open_binary(location) as stream:
        return stream.read(max_bytes)


def read_lines(location: str) -> Iterator[bytes]:
    """The lines of a .jsonl or .jsonl.gz file.

    Raises:
        ValueError: for a line of more than `MAX_LINE_BYTES`, or a file that unpacks to too much.
    """
    with errors_naming(location), open_binary(location) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        unpacked = Unpacked(location, size)
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if location.endswith(".gz") else stream
        for number in itertools.count(1):
            line = lines.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{location}: line {number} has more than {MAX_LINE_BYTES:,} bytes; cut what is in it into "
                    f"several lines, or remove it"
                )
            if lines is not stream:
                unpacked.add(len(line), num_rows=1)
            yield line


class Unpacked:
    """What has been unpacked of a file, against its limit.

    Args:
        location: the file, for the error.
        size: its bytes as they are stored.
    """

    def __init__(self, location: str, size: int) -> None:
        self.location = location
        self.limit = max(FREE_BYTES, MAX_EXPANSION * size)
        self.num_bytes = 0

    def add(self, num_bytes: int, num_rows: int) -> None:
        """Count more of it.

        Raises:
            ValueError: beyond the limit.
        """
        self.num_bytes += num_bytes + ROW_BYTES * num_rows
        if self.num_bytes > self.limit:
            raise ValueError(
                f"{self.location} unpacks to more than {self.limit:,} bytes, {MAX_EXPANSION} times its size; text does "
                f"not, so look at what is in it, and unpack it yourself if you want to use it"
            )


@contextmanager
def open_binary(location: str) -> Iterator[BinaryIO]:
    """Opens a local path with Python's `open`, a URI with Daft.

    Raises:
        ValueError: for a device, a pipe or a socket.
    """
    if not SCHEME.match(location) or location.startswith(FILE_SCHEME):
        check_regular(location.removeprefix(FILE_SCHEME))
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
