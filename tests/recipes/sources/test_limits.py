"""Sources that never end, or unpack to more than a machine holds, end in one sentence while memory stays bounded."""

import gzip
import json
import os
import socket
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.sources import reading
from nemotron.recipes.sources.conversations import read_conversations
from nemotron.recipes.sources.files import read_sources
from nemotron.recipes.sources.reading import (
    FREE_BYTES,
    MAX_DOCUMENT_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_LINE_BYTES,
    read_lines,
)

MIB = 1 << 20
READERS = [read_sources, read_conversations]


def refusal(read: Callable[..., Any], source: str) -> str:
    """The sentence of a reader that refuses a source, after checking that it took little memory."""
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    pa.default_memory_pool().release_unused()
    try:
        with pytest.raises((ValueError, OSError)) as error:
            read([source])
        assert tracemalloc.get_traced_memory()[1] < 8 * FREE_BYTES
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 2 * FREE_BYTES
    message = str(error.value)
    assert "\n" not in message
    assert Path(source).name in message
    return message


def messages(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]


# Pipes and devices ----------------------------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("make", [make_pipe, make_zeros, make_socket])
def test_what_is_not_a_regular_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[..., Any], scheme: str, suffix: str, make: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make(Path(f"a.{suffix}"))
    source = f"{scheme}{tmp_path}/a.{suffix}"
    assert (
        refusal(read, source)
        == f"{tmp_path}/a.{suffix} is not a regular file; copy what it holds to a file, and name that"
    )
    Path("b.jsonl").write_text(json.dumps({"text": "b", "messages": messages("b")}) + "\n")
    items, unreadable = read([f"{scheme}{tmp_path}"])
    assert len(items) == 1
    assert [one.reason for one in unreadable] == ["a pipe, socket or device"]


def test_a_pipe_behind_a_directory_hangs_no_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    program = "import sys; from nemotron.recipes.sources.files import read_sources; read_sources(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "ends in .txt, .jsonl, .jsonl.gz, .parquet; found" in done.stderr
    assert "which is not read: a pipe, socket or device" in done.stderr


# Lines and documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", READERS)
def test_a_line_without_an_end_is_refused_by_number(tmp_path: Path, read: Callable[..., Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n")
    os.truncate(path, 1 << 40)  # a sparse file of a terabyte of zeros takes no room
    assert refusal(read, str(path)) == (
        f"{path}: line 2 has more than 16,777,216 bytes; cut what is in it into several lines, or remove it"
    )


@pytest.mark.parametrize("read", READERS)
def test_a_compressed_line_without_an_end_is_refused_by_number(tmp_path: Path, read: Callable[..., Any]) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(40 * MIB), compresslevel=1))
    assert "a.jsonl.gz: line 1 has more than 16,777,216 bytes" in refusal(read, str(tmp_path / "a.jsonl.gz"))


def test_a_line_of_the_longest_length_is_read(tmp_path: Path) -> None:
    padding = " " * (MAX_LINE_BYTES - len('{"text": "a"}') - 1)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(
            f'{{"text": "a"{padding}}}\n' if name == "a.jsonl" else f'{{"text": "a"{padding} }}\n'
        )
    assert len(read_sources([str(tmp_path / "a.jsonl")])[0]) == 1
    assert "b.jsonl: line 1 has more than" in refusal(read_sources, str(tmp_path / "b.jsonl"))


@pytest.mark.parametrize("line", [b"\n", b"{}\n"])
def test_many_short_lines_that_unpack_from_little_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(reading, "FREE_BYTES", MIB)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(line * 20_000))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz unpacks to more than 1,048,576 bytes, 100 times its size; "):
        for _ in read_lines(str(path)):
            pass


def test_a_text_that_is_as_long_as_allowed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ü" * MAX_DOCUMENT_CHARACTERS, encoding="utf-8")
    assert len(read_sources([str(path)])[0][0].text) == MAX_DOCUMENT_CHARACTERS
    path.write_text("ü" * (MAX_DOCUMENT_CHARACTERS + 1), encoding="utf-8")
    assert refusal(read_sources, str(path)) == (
        f"{path} has more than 4,000,000 characters; cut it into several files, for example with split -l 500 "
        f"--additional-suffix=.txt"
    )
    os.truncate(path, 1 << 40)
    assert "has more than 4,000,000 characters" in refusal(read_sources, str(path))


def test_a_row_with_a_longer_text_is_unreadable(tmp_path: Path) -> None:
    long = "x" * (MAX_DOCUMENT_CHARACTERS + 1)
    rows = [{"text": one, "messages": messages(one)} for one in (long, long[:-1])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, unreadable = read_sources([str(tmp_path / "a.jsonl")])
    assert len(documents) == 1
    assert [one.reason for one in unreadable] == ["'text' has more than 4,000,000 characters; cut it"]
    conversations, unreadable = read_conversations([str(tmp_path / "a.jsonl")])
    assert len(conversations) == 1
    assert [one.reason for one in unreadable] == ["messages[1] has more than 4,000,000 characters; cut it"]


def test_a_thought_counts_like_a_text(tmp_path: Path) -> None:
    long = {"role": "assistant", "content": "4", "reasoning_content": "x" * (MAX_DOCUMENT_CHARACTERS + 1)}
    rows = [{"messages": [*messages("a"), long]}, {"messages": messages("a")}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one.reason for one in read_conversations([str(tmp_path / "a.jsonl")])[1]] == [
        "messages[2] has more than 4,000,000 characters; cut it"
    ]


def test_an_id_that_is_too_long_to_show_is_replaced_by_the_row(tmp_path: Path) -> None:
    ids = ["x" * MAX_ID_CHARACTERS, "x" * (MAX_ID_CHARACTERS + 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "a", "id": one}) + "\n" for one in ids))
    assert [one.id for one in read_sources([str(tmp_path / "a.jsonl")])[0]] == [ids[0], "a.jsonl#1"]


def test_a_file_of_too_many_unreadable_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "{\n" * 6)
    monkeypatch.setattr(reading, "MAX_UNREADABLE_ROWS", 5)
    message = refusal(read_sources, str(tmp_path / "a.jsonl"))
    assert "a.jsonl has more than 5 unreadable rows, the first is a.jsonl#1: line 2 is not JSON" in message
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "{\n" * 5)
    assert len(read_sources([str(tmp_path / "a.jsonl")])[1]) == 5


# Parquet --------------------------------------------------------------------------------------------------------------


def repeated(value: str, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), [value])


def test_a_parquet_of_one_value_many_times_is_refused(tmp_path: Path) -> None:
    """Half a kilobyte that unpacks to 8 GB."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": repeated("a" * (2 * MIB), 4_096)}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1_000
    assert refusal(read_sources, str(path)) == (
        f"{path} unpacks to more than {FREE_BYTES:,} bytes, 100 times its size; text does not, so look at what is in "
        f"it, and unpack it yourself if you want to use it"
    )


@pytest.mark.parametrize("per_row", [1, 4_096])
def test_conversations_of_one_value_many_times_are_refused(tmp_path: Path, per_row: int) -> None:
    """Nested, each row is small or one row is all of it."""
    content = repeated("a" * (2 * MIB), 4_096)
    both = pa.StructArray.from_arrays([repeated("user", 4_096), content], ["role", "content"])
    rows = pa.ListArray.from_arrays(pa.array(range(0, 4_097, per_row), pa.int32()), both)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": rows}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2_000
    message = refusal(read_conversations, str(path))
    assert ("row 0 unpacks to 8,589,9" if per_row > 1 else "unpacks to more than 67,108,864 bytes") in message


def test_a_parquet_whose_pages_unpack_to_too_much_is_refused_before_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.array(["a" * (65 * MIB)])
    pq.write_table(pa.table({"text": text}), path, compression="zstd", use_dictionary=False)
    del text
    assert "a.parquet unpacks to more than 67,108,864 bytes" in refusal(read_sources, str(path))


def test_a_parquet_with_a_row_that_is_too_long_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["short", os.urandom(9 * MIB).hex()]
    pq.write_table(pa.table({"text": texts}), path)
    message = refusal(read_sources, str(path))
    assert message.startswith(f"{path}: row 1 unpacks to 18,874,368 bytes, more than 16,777,216; cut what is in it")


def test_a_parquet_of_empty_rows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FREE_BYTES", MIB)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.nulls(20_000, pa.string())}), path)
    assert path.stat().st_size < 5_000
    assert "a.parquet unpacks to more than 1,048,576 bytes" in refusal(read_sources, str(path))


def test_a_row_group_of_too_many_nested_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_ROW_GROUP_VALUES", 3)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [messages("a"), messages("b")]}), path)
    assert "row group 0 has 4 values of messages.list.element.role, more than 3; write it with smaller" in refusal(
        read_conversations, str(path)
    )


@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_large_parquet_of_ordinary_text_is_read(tmp_path: Path, use_dictionary: bool, compression: str) -> None:
    """The dictionary of a column ends after a megabyte; what comes then is written out."""
    texts = [zlib.compress(str(number).encode()).hex() * 30 for number in range(5_000)]
    path = tmp_path / "a.parquet"
    table = pa.table({"text": texts, "messages": [messages(text) for text in texts], "license": ["MIT"] * len(texts)})
    pq.write_table(table, path, row_group_size=4_000, use_dictionary=use_dictionary, compression=compression)
    assert [one.text for one in read_sources([str(path)])[0]] == texts
    conversations = read_conversations([str(path)])[0]
    assert [one.messages[-1]["content"] for one in conversations] == [f"<think></think>{text}" for text in texts]
