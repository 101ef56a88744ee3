"""Thousands of generated inputs: each is read, or refused in one sentence, by the readers and by the pipe.

300 by default; NEMOTRON_GENERATED_INPUTS=5000 makes 5,000. A failure shows the seed that makes the input again.
"""

import datetime
import decimal
import gzip
import io
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.pipe import piped_artifact
from nemotron.recipes.curation.rules import report_unreadable
from nemotron.recipes.sources.conversations import read_conversations, row_conversation
from nemotron.recipes.sources.files import read_sources, row_document
from nemotron.recipes.sources.listing import SourceFile
from nemotron.recipes.sources.reading import Row
from nemotron.strict import one_sentence
from nemotron.terminal import printable

NUM_INPUTS = int(os.environ.get("NEMOTRON_GENERATED_INPUTS", "300"))
NUM_CHUNKS = 10  # tests of each kind, so that a failure is near its input
FILE = SourceFile("a.jsonl", "a.jsonl", "chat", "a.jsonl")

TEXTS = [
    "", " ", "text", "on", "off", "user", "assistant", "tool", "system", "MIT", "math", "<think>", "</think>\n", "{}",
    "[1]",
    "\x1b]0;X\x07", "\u202e", "\ud800", "a\nb", "ü" * 40, "[red]", '{"tools": [{}]}', "\x00", "9" * 5_000, "/think",
]  # fmt: skip
KEYS = ["text", "id", "uuid", "license", "licenses", "licence", "category", "reasoning", "metadata", "tools",
        "messages", "role", "content", "tool_calls", "reasoning_content", "weight", "function", "name", "arguments", "",
        "\x1b[2J",
        "type", "path", "digest", "dataset", "\ud800", "text\n"]  # fmt: skip


def scalar(draw: random.Random) -> Any:
    return draw.choice([None, True, 0, 1, -1, 10**400, 0.5, 1e308, float("nan"), *draw.choices(TEXTS, k=8)])


def value(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON value, more often one with the keys that the readers look for."""
    kind = draw.random()
    if depth == 0 or kind < 0.4:
        return scalar(draw)
    if kind < 0.6:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): value(draw, depth - 1) for _ in range(draw.randrange(5))}


def message(draw: random.Random) -> Any:
    """A message that is nearly right."""
    one = {"role": draw.choice(["user", "assistant", "tool", "system"]), "content": draw.choice(TEXTS)}
    if draw.random() < 0.3:
        function = {"name": "add", "arguments": value(draw, 2)}
        one["tool_calls"] = [{"type": "function", "function": function}]
    if draw.random() < 0.4:
        one[draw.choice(KEYS)] = value(draw, 2)
    return one if draw.random() < 0.9 else value(draw, 2)


def row(draw: random.Random) -> Any:
    if draw.random() < 0.1:
        return value(draw)
    one: dict[str, Any] = {"text": draw.choice(TEXTS), "messages": [message(draw) for _ in range(draw.randrange(4))]}
    for _ in range(draw.randrange(5)):
        one[draw.choice(KEYS)] = value(draw)
    return one


def json_lines(draw: random.Random) -> bytes:
    """Rows, damaged now and then."""
    content = b"".join(json.dumps(row(draw)).encode() + b"\n" for _ in range(draw.randrange(1, 5)))
    return damaged(draw, content)


def damaged(draw: random.Random, content: bytes) -> bytes:
    damage = bytearray(content)
    kind = draw.random()
    if kind < 0.2:
        return bytes(damage[: draw.randrange(len(damage) + 1)])
    if kind < 0.4 and damage:
        for _ in range(draw.randrange(1, 4)):
            damage[draw.randrange(len(damage))] = draw.randrange(256)
    if kind > 0.9:
        damage += draw.choice([b"[" * 100_000, b"\xff\xfe", b'{"a":' * 50_000, b"\r", b"null", b"\x00" * 9])
    return bytes(damage)


LEAVES: list[tuple[pa.DataType, Callable[[random.Random], Any]]] = [
    *((kind, lambda draw: draw.choice([one for one in TEXTS if "\ud800" not in one]))
      for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((kind, lambda draw: draw.choice([b"", b"\xff", b"text"])) for kind in (pa.binary(), pa.large_binary())),
    (pa.binary(3), lambda draw: b"abc"),
    *((kind, lambda draw: draw.choice([0, 1, 5])) for kind in
      (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64())),
    (pa.float16(), lambda draw: 0.5),
    (pa.bool_(), lambda draw: True),
    (pa.null(), lambda draw: None),
    (pa.date32(), lambda draw: datetime.date(2024, 1, 1)),
    (pa.timestamp("ns", "UTC"), lambda draw: datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)),
    (pa.timestamp("us"), lambda draw: datetime.datetime(2024, 1, 1)),
    (pa.time32("ms"), lambda draw: datetime.time(1)),
    (pa.time64("us"), lambda draw: datetime.time(1)),
    (pa.duration("ms"), lambda draw: datetime.timedelta(1)),
    (pa.decimal128(5, 2), lambda draw: decimal.Decimal("1.50")),
    (pa.decimal256(40, 2), lambda draw: decimal.Decimal("1.50")),
]  # fmt: skip


def arrow_type(draw: random.Random, depth: int) -> tuple[pa.DataType, Callable[[random.Random], Any]]:
    """A type of Arrow, nested or not, and what makes its values."""
    kind = draw.random()
    if depth == 0 or kind < 0.6:
        return draw.choice(LEAVES)
    inner, make = arrow_type(draw, depth - 1)
    if kind < 0.75:
        return draw.choice([pa.list_, pa.large_list])(inner), lambda draw: [
            make(draw) for _ in range(draw.randrange(3))
        ]
    if kind < 0.8:
        return pa.map_(pa.string(), inner), lambda draw: [(key, make(draw)) for key in draw.sample("abc", 2)]
    if kind < 0.85:
        return pa.list_(inner, 2), lambda draw: [make(draw), make(draw)]
    names = draw.sample([key for key in KEYS if "\ud800" not in key], draw.randrange(1, 4))
    fields = {name: arrow_type(draw, depth - 1) for name in names}
    return (
        pa.struct([(name, one) for name, (one, _) in fields.items()]),
        lambda draw: {name: make(draw) for name, (_, make) in fields.items()},
    )


def right_messages(draw: random.Random) -> list[dict[str, str]]:
    return [{"role": role, "content": draw.choice(["a", "b" * 50])} for role in ("user", "assistant")]


RIGHT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def parquet_table(draw: random.Random) -> pa.Table:
    num_rows = draw.randrange(6)
    columns, fields = [], []
    others = [key for key in KEYS if "\ud800" not in key]
    for name in [*draw.sample(others, draw.randrange(4)), "text", "messages"]:
        kind, make = arrow_type(draw, 3)
        if draw.random() < 0.4 and name in ("text", "messages"):
            kind, make = (RIGHT, right_messages) if name == "messages" else LEAVES[draw.randrange(3)]
        values = [make(draw) if draw.random() < 0.9 else None for _ in range(num_rows)]
        column = pa.array(values, kind)
        if draw.random() < 0.1 and pa.types.is_string(kind):
            column = column.dictionary_encode()
        columns.append(column)
        fields.append(pa.field(name, column.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def parquet_bytes(draw: random.Random) -> bytes:
    sink = io.BytesIO()
    try:
        pq.write_table(
            parquet_table(draw), sink, row_group_size=draw.choice([1, 2, 9]), use_dictionary=draw.random() < 0.7,
            compression=draw.choice(["snappy", "zstd", "none"]), store_schema=draw.random() < 0.7,
            data_page_version=draw.choice(["1.0", "2.0"]),
        )  # fmt: skip
    except pa.ArrowNotImplementedError:  # a type that Parquet does not have
        return b""
    return damaged(draw, sink.getvalue()) if draw.random() < 0.4 else sink.getvalue()


def check_read(read: Callable[[], Any]) -> bool:
    """Whether it was read; fails unless it was, or was refused in one sentence."""
    try:
        read()
    except UnicodeError as error:
        raise AssertionError("an error of Python's, which names no file") from error
    except (ValueError, OSError) as error:
        sentence = one_sentence(error)
    else:
        return True
    assert sentence == printable(sentence)
    return False


def check_items(items: list[Any], unreadable: list[Any]) -> None:
    """What was read can be recorded: in JSON, in Parquet, in a report."""
    for one in report_unreadable(unreadable):
        one.model_dump_json()
    for one in items:
        for text in (one.id, one.category, one.licence, one.origin, getattr(one, "text", "")):
            text.encode()
        for said in getattr(one, "messages", ()):
            json.dumps(said, ensure_ascii=False).encode()


def check_row(draw: random.Random, _directory: Path) -> bool:
    columns = row(draw)
    if not isinstance(columns, dict):
        columns = {"text": columns}
    one = Row("a.jsonl#0", columns, 1)
    return check_read(lambda: row_conversation(one, FILE)) and (
        "text" not in columns or check_read(lambda: row_document(one, FILE, "text"))
    )


def check_file(name: str, content: bytes, directory: Path) -> bool:
    path = directory / name
    path.write_bytes(content)
    documents = check_read(lambda: check_items(*read_sources([str(path)])))
    conversations = check_read(lambda: check_items(*read_conversations([str(path)])))
    return documents or conversations


def check_json_lines(draw: random.Random, directory: Path) -> bool:
    content = json_lines(draw)
    if draw.random() < 0.2:
        return check_file("a.jsonl.gz", damaged(draw, gzip.compress(content)), directory)
    return check_file("a.jsonl", content, directory)


def check_parquet(draw: random.Random, directory: Path) -> bool:
    return check_file("a.parquet", parquet_bytes(draw), directory)


def check_pipe(draw: random.Random, directory: Path) -> bool:
    entry: Any = {"type": "dataset", "path": str(directory), "digest": "0" * 64}
    if draw.random() < 0.6:
        entry[draw.choice(["type", "path", "digest", "other"])] = value(draw, 2)
    line = json.dumps({"dataset": entry} if draw.random() < 0.8 else value(draw)).encode() + b"\n"
    sys.stdin = io.TextIOWrapper(io.BytesIO(damaged(draw, line)))
    return check_read(lambda: piped_artifact("dataset"))


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
@pytest.mark.parametrize("check", [check_row, check_json_lines, check_parquet, check_pipe])
def test_every_generated_input_is_read_or_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[random.Random, Path], bool], chunk: int
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # check_pipe replaces it
    num_examples = max(1, NUM_INPUTS // (4 * NUM_CHUNKS))
    num_read = 0
    for number in range(num_examples):
        seed = f"{check.__name__} {chunk * num_examples + number}"
        try:
            num_read += check(random.Random(seed), tmp_path)
        except Exception as error:
            error.add_note(f"seed = {seed!r}")
            raise
    assert num_read or num_examples < 30, "the generator makes nothing that can be read"
