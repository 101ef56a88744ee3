"""Files become documents, unreadable rows are reported, and broken files raise a one-line error."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources import listing, reading
from nemotron.recipes.sources.documents import Document
from nemotron.recipes.sources.files import read_sources, text_columns
from nemotron.recipes.sources.listing import REMOTE, SourceFile


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def write_lines(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Formats --------------------------------------------------------------------------------------------------------------


def write_txt(path: Path, rows: list[str]) -> str:
    for number, text in enumerate(rows):
        (path / f"{number}.txt").parent.mkdir(parents=True, exist_ok=True)
        (path / f"{number}.txt").write_text(text, encoding="utf-8")
    return str(path)


FORMATS: dict[str, Callable[[Path, list[str]], str]] = {
    "txt": write_txt,
    "jsonl": lambda path, texts: write_lines(path / "a.jsonl", [{"text": text} for text in texts]),
    "jsonl.gz": lambda path, texts: write_lines(path / "a.jsonl.gz", [{"text": text} for text in texts]),
    "parquet": lambda path, texts: write_parquet(path / "a.parquet", {"text": texts}, row_group_size=2),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("is_uri", [False, True])
def test_every_format_returns_its_texts_in_order(tmp_path: Path, suffix: str, is_uri: bool) -> None:
    texts = ["one\nline", "zwei ü \u2028", "三", "quatre 🎈", "five"]
    location = FORMATS[suffix](tmp_path / "data", texts)
    documents, unreadable = read_sources([f"wiki={'file://' if is_uri else ''}{location}"])
    assert [d.text for d in documents] == texts
    assert unreadable == []
    assert {(d.category, d.licence, d.has_example, d.exported) for d in documents} == {("wiki", "unknown", None, None)}
    assert len({d.id for d in documents}) == 5


def test_a_parquet_keeps_its_row_order_across_row_groups(tmp_path: Path) -> None:
    numbers = [str(number) for number in range(30_000)]
    location = write_parquet(tmp_path / "a.parquet", {"id": numbers, "text": numbers}, row_group_size=700)
    documents, _unreadable = read_sources([location])
    assert [d.text for d in documents] == numbers
    assert [d.id for d in read_sources([location], num_documents=1_500)[0]] == numbers[:1_500]


CHARACTERS = st.characters(exclude_categories=["Cs"])  # halves of surrogate pairs are not text


@given(st.lists(st.text(CHARACTERS, min_size=1).filter(str.strip), min_size=1, max_size=6))
def test_any_text_in_json_lines_is_read_unchanged(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    documents, unreadable = read_sources([write_lines(path, [{"text": text} for text in texts])])
    assert ([d.text for d in documents], unreadable) == (texts, [])


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwords")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "more"}\n')
    assert [d.text for d in read_sources([str(tmp_path)])[0]] == ["words", "more"]


@pytest.mark.parametrize("size", [1, 8_192, 1 << 20, 2 << 20, (2 << 20) + 1])
def test_a_uri_of_any_size_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_text("x" * size)
    assert [len(d.text) for d in read_sources([f"file://{tmp_path}/a.txt"])[0]] == [size]
    line = json.dumps({"text": "y" * (size - 13)}) + "\n" if size > 13 else '{"text":"y"}\n'
    (tmp_path / "b.jsonl").write_text(line)
    assert len(read_sources([f"file://{tmp_path}/b.jsonl"])[0]) == 1


# Columns --------------------------------------------------------------------------------------------------------------


def test_the_columns_of_nvidias_datasets_are_accepted(tmp_path: Path) -> None:
    # Nemotron-CC-v2 (id, text, sometimes language and metadata), Nemotron-CC-Math (id, text, metadata struct)
    source = write_parquet(
        tmp_path / "part_000000.parquet",
        {
            "metadata": [{"category": "4plus", "finemath_scores": 4.5, "models_used": ["x"]}] * 2,
            "id": ["6f1a", "6f1b"],
            "language": ["en", None],
            "text": ["a", "b"],
        },
    )
    documents, unreadable = read_sources([f"math={source}"])
    assert documents == [
        Document("6f1a", "6f1a", "math", "a", "unknown", source),
        Document("6f1b", "6f1b", "math", "b", "unknown", source),
    ]
    assert unreadable == []


@pytest.mark.parametrize("column", ["license", "licence"])
def test_a_licence_column_is_used(tmp_path: Path, column: str) -> None:
    source = write_lines(
        tmp_path / "a.jsonl", [{"text": "a", column: "MIT"}, {"text": "b", column: None}, {"text": "c"}]
    )
    assert [d.licence for d in read_sources([source])[0]] == ["MIT", "unknown", "unknown"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", ["license", "licence", "licenses", "licences"])
def test_a_licence_of_any_type_is_stated(tmp_path: Path, column: str, suffix: str) -> None:
    values = [["GPL-3.0-only"], ["MIT", "ISC"], [], None]
    rows = [{"text": "a", column: value} for value in values]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_lines(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    licences = [d.licence for d in read_sources([str(path)])[0]]
    assert licences == ["GPL-3.0-only", "ISC AND MIT", "unknown", "unknown"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        {"License": "GPL-3.0-only"},
        {"LICENSE": ["GPL-3.0-only"]},
        {"max_stars_repo_licenses": ["GPL-3.0-only"]},
        {"detected_licenses": ["GPL-3.0-only"], "license_type": "permissive"},
        {"license_type": "GPL-3.0-only"},
        {"spdx_license": "GPL-3.0-only"},
        {"metadata": {"license": "GPL-3.0-only", "page": 1}},
        {"metadata": {"License": ["GPL-3.0-only"]}},
        {"meta": {"licenses": ["GPL-3.0-only"]}},
        {"metadata": json.dumps({"license": "GPL-3.0-only"})},
    ],
)
def test_a_licence_is_stated_under_other_names_and_in_metadata(tmp_path: Path, columns: dict, suffix: str) -> None:
    rows = [{"text": "a", **columns}, {"text": "b"}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_lines(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert [d.licence for d in read_sources([str(path)])[0]] == ["GPL-3.0-only", "unknown"]


@pytest.mark.parametrize(
    ("columns", "licence"),
    [
        ({"license_type": "permissive"}, "permissive"),
        ({"license_type": "no_license"}, "no_license"),
        ({"license": "MIT", "metadata": {"license": "ISC"}}, "ISC AND MIT"),
        ({"license": "MIT", "metadata": '{"license": "GPL'}, "MIT AND not understood"),
        ({"metadata": '{"license": "MIT", "license": "GPL-3.0-only"}'}, "not understood"),
        ({"metadata": "a text about licenses"}, "unknown"),
        ({"metadata": {"page": 1}}, "unknown"),
        ({"metadata": ["license"]}, "unknown"),
        ({"metadata": "{" * 10_000 + '"license"'}, "not understood"),
        ({"license_type": "permissive", "license": "MIT"}, "MIT"),
        ({"metadata": None, "license_url": "here"}, "unknown"),
    ],
)
def test_what_other_columns_say_of_a_licence(tmp_path: Path, columns: dict, licence: str) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a", **columns}])
    assert [d.licence for d in read_sources([source])[0]] == [licence]


def test_metadata_of_a_parquet_without_a_licence_is_not_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "metadata": {"license": "MIT"}}, {"text": "b", "metadata": None}]
    other = pa.schema([("text", pa.string()), ("metadata", pa.struct([("page", pa.month_day_nano_interval())]))])
    file = SourceFile("a", "a", "", "a")
    assert text_columns(file, pa.Table.from_pylist(rows).schema, "text") == ["text", "metadata"]
    assert text_columns(file, other, "text") == ["text"]


def test_a_licence_in_a_map_of_a_parquet_is_stated(tmp_path: Path) -> None:
    for key, kind in (("license", pa.string()), (7, pa.int64())):
        schema = pa.schema([("text", pa.string()), ("metadata", pa.map_(kind, pa.string()))])
        pq.write_table(
            pa.Table.from_pylist([{"text": "a", "metadata": [(key, "MIT")]}], schema), tmp_path / f"{key}.parquet"
        )
    assert [d.licence for d in read_sources([str(tmp_path)])[0]] == ["unknown", "MIT"]


def test_all_licence_columns_bind(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a", "license": "MIT", "licenses": ["GPL-3.0-only", "MIT"]}])
    assert [d.licence for d in read_sources([source])[0]] == ["GPL-3.0-only AND MIT"]


def test_the_text_column_can_be_named(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"content": "a", "text": 1}])
    table = write_parquet(tmp_path / "b.parquet", {"content": ["b"], "text": [1]})
    assert [d.text for d in read_sources([lines, table], text_column="content")[0]] == ["a", "b"]


def test_the_text_column_may_be_the_id_column(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "b.parquet", {"id": ["b"]})
    assert [(d.id, d.text) for d in read_sources([table], text_column="id")[0]] == [("b.parquet#0", "b")]


def test_rows_without_an_id_are_named_after_file_and_row(tmp_path: Path) -> None:
    ids: list[dict[str, Any]] = [{}, {"id": None}, {"id": 7}, {"id": ""}, {"id": "x"}, {"id": True}, {"id": "\ud800"}]
    write_lines(tmp_path / "data/deep/a.jsonl", [{"text": "words", **name} for name in ids])
    names = [d.id for d in read_sources([str(tmp_path / "data")])[0]]
    file = "data/deep/a.jsonl"
    assert names == [f"{file}#0", f"{file}#1", "7", f"{file}#3", "x", f"{file}#5", f"{file}#6"]


def test_repeated_ids_become_unique(tmp_path: Path) -> None:
    rows = [{"text": text, "id": name} for text, name in zip("abcde", ["x", "x", "x#2", "y", "x"], strict=True)]
    documents, _unreadable = read_sources([write_lines(tmp_path / "a.jsonl", rows)])
    assert [(d.id, d.text) for d in documents] == [("x", "a"), ("x#2", "b"), ("x#2#2", "c"), ("y", "d"), ("x#3", "e")]
    assert all(d.module == d.id for d in documents)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz"])
def test_the_error_for_a_missing_text_column_lists_the_columns(tmp_path: Path, suffix: str) -> None:
    columns = {"repo": ["a/b"] * 3, "commit_id": ["0123456"] * 3, "rel_path": ["x.py"] * 3}
    path = tmp_path / f"meta.{suffix}"
    if suffix == "parquet":
        source = write_parquet(path, columns)
    else:
        source = write_lines(path, [{name: values[0] for name, values in columns.items()}] * 3)
    with pytest.raises(ValueError, match=r"no column 'text', only commit_id, rel_path, repo .* --text-column") as error:
        read_sources([source])
    assert str(path) in one_line(error)
    assert "without their text" in str(error.value)


def test_a_long_file_without_the_text_column_is_not_read_to_its_end(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"body": "x"}] * 100 + [{"text": "never reached"}])
    with pytest.raises(ValueError, match="only body"):
        read_sources([source], num_documents=5)


def test_rows_without_the_text_column_before_the_first_with_it_are_reported(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"n": 1}, {"text": "a"}, {"n": 2}])
    documents, unreadable = read_sources([source])
    assert ([d.id for d in documents], [u.id for u in unreadable]) == (["a.jsonl#1"], ["a.jsonl#0", "a.jsonl#2"])


def test_a_text_column_of_another_type_raises_a_value_error(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet", {"text": [[1, 2], [3]]})
    with pytest.raises(ValueError, match=r"column 'text' is list<element: int64>, not text; use --text-column"):
        read_sources([source])


UNUSUAL = {
    "string_view": pa.array(["a", "b"], pa.string_view()),
    "binary_view": pa.array([b"a", b"b"], pa.binary_view()),
    "time32": pa.array([1, 2], pa.time32("s")),
    "decimal256": pa.array([Decimal(1), Decimal(2)], pa.decimal256(50, 2)),
}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_columns_that_are_not_used_may_have_any_type_and_any_name(tmp_path: Path, scheme: str) -> None:
    columns = {"text": pa.array(["words", "more"]), **UNUSUAL}
    names = [*columns, "twice", "twice", "text.raw"]
    table = pa.table([*columns.values(), *[pa.array([1, 2])] * 3], names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    assert [d.text for d in read_sources([f"{scheme}{tmp_path}/a.parquet"])[0]] == ["words", "more"]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"], pa.string_view()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["a", "b"], pa.json_()),
    ],
    ids=lambda texts: str(texts.type),
)
def test_every_type_of_text_is_text(tmp_path: Path, texts: pa.Array) -> None:
    source = write_parquet(tmp_path / "a.parquet", {"text": texts})
    assert [d.text for d in read_sources([source])[0]] == ["a", "b"]


@pytest.mark.parametrize("name", [name for name in UNUSUAL if name != "string_view"])
def test_a_text_column_of_an_unusual_type_is_named_with_its_type(tmp_path: Path, name: str) -> None:
    source = write_parquet(tmp_path / "a.parquet", {"text": UNUSUAL[name]})
    with pytest.raises(ValueError, match=rf"column 'text' is {name}.*, not text; use --text-column"):
        read_sources([source])


def test_two_columns_of_a_used_name_raise_a_value_error(tmp_path: Path) -> None:
    for name in ("text", "id"):
        names = ["text", "id", name]
        pq.write_table(pa.table([pa.array(["a"])] * 3, names=names), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"a\.parquet has 2 columns named '{name}'; rename one of them"):
            read_sources([f"{tmp_path}/a.parquet"])


def test_a_parquet_with_text_that_is_not_utf8_raises_a_one_line_error(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xe9"]).buffers())
    source = write_parquet(tmp_path / "a.parquet", {"text": texts})
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read \(.*text: string.*utf-8.*\)") as error:
        read_sources([source])
    one_line(error)


# Unreadable rows ------------------------------------------------------------------------------------------------------


def test_broken_lines_are_reported_and_the_others_read(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text": "good"},
        b'{"text": "\xff"}\n',
        b'{"text": "open\n',
        b"\n",
        b"[1]\n",
        {"text": None},
        {"text": 5},
        {"text": " \n"},
        b'{"text": "\\ud83d"}\n',
        b'{"text": "x", "n": ' + b"9" * 5_000 + b"}\n",
        b"[" * 100_000 + b"\n",
        {"other": 1},
        b'{"text": "last line without an end"}',
    ]
    documents, unreadable = read_sources([write_lines(tmp_path / "a.jsonl", rows)])
    assert [d.text for d in documents] == ["good", "last line without an end"]
    reasons = {u.id.rpartition("#")[2]: u.reason for u in unreadable}
    expected = {
        "1": "line 2 is not UTF-8: invalid start byte at byte 10",
        "2": "line 3 is not JSON",
        "3": "line 5 is not a JSON object but list",
        "4": "'text' is null, not text",
        "5": "'text' is int, not text",
        "6": "'text' is empty",
        "7": "half a surrogate pair",
        "8": "line 10 is not JSON",
        "9": "line 11 is not JSON",
        "10": "line 12 has no 'text'",
    }
    assert set(reasons) == set(expected)
    for row, words in expected.items():
        assert words in reasons[row]


def test_invalid_utf8_in_a_text_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"bad \xe9 latin")
    (tmp_path / "c.txt").write_bytes(b"")
    documents, unreadable = read_sources([f"{tmp_path}/*.txt"])
    assert [d.id for d in documents] == ["a.txt"]
    assert [(u.id, u.reason) for u in unreadable] == [
        ("b.txt", "not UTF-8: invalid continuation byte at byte 4"),
        ("c.txt", "empty"),
    ]


def test_null_rows_of_a_parquet_are_reported(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "a.parquet", {"id": ["x", "y", "z"], "text": ["a", None, ""]})
    documents, unreadable = read_sources([source])
    assert [d.id for d in documents] == ["x"]
    assert [(u.id, u.reason) for u in unreadable] == [("y", "'text' is null, not text"), ("z", "'text' is empty")]


def test_files_of_other_formats_in_a_directory_are_reported(tmp_path: Path) -> None:
    for name in ("data/a.txt", "data/b.csv", "data/deep/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("words")
    documents, unreadable = read_sources([str(tmp_path / "data")])
    assert [d.id for d in documents] == ["data/a.txt"]
    assert [u.id for u in unreadable] == ["data/b.csv", "data/deep/README.md"]


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_every_line_of_any_bytes_is_a_document_or_reported(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + b"\n".join(lines) + b"\n")
    documents, unreadable = read_sources([str(path)])
    rows = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
    assert len(documents) + len(unreadable) == 1 + len(rows)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_truncated_parquet_raises_a_one_line_error(tmp_path: Path, keep: float, scheme: str) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", {"text": [str(n) for n in range(5_000)]}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"a\.parquet is truncated or damaged \(.*\); get it again") as error:
        read_sources([scheme + str(path)])
    one_line(error)


def test_a_parquet_with_damaged_pages_raises_a_one_line_error(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", {"text": [str(n) for n in range(50_000)]}, row_group_size=1_000))
    content = bytearray(path.read_bytes())
    content[50_000:70_000] = b"x" * 20_000
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged") as error:
        read_sources([str(path)])
    one_line(error)


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_truncated_gzip_raises_a_one_line_error(tmp_path: Path, keep: float, scheme: str) -> None:
    path = Path(write_lines(tmp_path / "a.jsonl.gz", [{"text": str(n * n)} for n in range(3_000)]))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is truncated or damaged \(.*\); get it again") as error:
        read_sources([scheme + str(path)])
    one_line(error)


LINES = '{"text": "one"}\n{"text": "zwei ü"}\n'.encode()


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("keep", range(1, len(LINES) + 1))
def test_json_lines_cut_anywhere_in_the_last_line_raise_a_one_line_error(
    tmp_path: Path, suffix: str, scheme: str, keep: int
) -> None:
    content = LINES[:keep]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    *_, last_line = content.splitlines(keepends=True)
    if last_line.rstrip().endswith(b"}"):
        documents, unreadable = read_sources([scheme + str(path)])
        assert (len(documents), unreadable) == (content.count(b"}"), [])
        return
    number = content.count(b"\n") + 1
    sentence = (
        rf"a\.{suffix} is truncated or damaged \(line {number}, the last, is not .*\); get it again, or remove the"
    )
    with pytest.raises(ValueError, match=sentence) as error:
        read_sources([scheme + str(path)])
    one_line(error)


def test_a_cut_line_that_is_not_reached_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES[:-5])
    assert len(read_sources([str(tmp_path / "a.jsonl")], num_documents=1)[0]) == 1


@pytest.mark.parametrize("damage", [b"no gzip at all", None])
def test_a_damaged_gzip_raises_a_one_line_error(tmp_path: Path, damage: bytes | None) -> None:
    path = Path(write_lines(tmp_path / "a.jsonl.gz", [{"text": str(n * n)} for n in range(3_000)]))
    content = bytearray(path.read_bytes())
    content[5_000:5_040] = bytes(40)
    path.write_bytes(damage or content)
    with pytest.raises(ValueError, match="truncated or damaged") as error:
        read_sources([str(path)])
    one_line(error)


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "data", "data/*.txt", "data/**/*.parquet"]
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_missing_source_raises_a_one_line_error(tmp_path: Path, name: str, scheme: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist|matches no file") as error:
        read_sources([f"{scheme}{tmp_path}/{name}"])
    assert name in one_line(error)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_an_empty_source_raises_a_one_line_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b""))
    if name.endswith(".parquet"):
        write_parquet(path, {"text": pa.array([], pa.string())})
    with pytest.raises(ValueError, match=r"holds no document \([01] unreadable.*name another source") as error:
        read_sources([str(path)])
    one_line(error)


def test_a_parquet_of_zero_bytes_raises_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match="truncated or damaged") as error:
        read_sources([str(tmp_path / "a.parquet")])
    one_line(error)


def test_a_source_without_readable_files_raises_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no file that ends in \.txt, .*name another source"):
        read_sources([str(tmp_path / "empty")])
    (tmp_path / "notes.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"ends in .*; found notes\.csv; name another source"):
        read_sources([str(tmp_path / "notes.csv")])


def test_the_error_for_a_source_of_unreadable_rows_has_the_first_reason(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [b"{\n", b"{{\n"])
    with pytest.raises(ValueError, match=r"no document \(2 unreadable, the first is a\.jsonl#0: line 1 is not JSON"):
        read_sources([source])


def test_one_empty_source_among_others_raises_a_value_error(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    bad = write_lines(tmp_path / "b.jsonl", [])
    with pytest.raises(ValueError, match=r"b\.jsonl holds no document"):
        read_sources([good, bad])


def test_a_file_without_read_permission_raises_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("secret")

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.txt"))

    monkeypatch.setattr(
        reading, "open", refuse, raising=False
    )  # root, as whom containers run tests, may read everything
    with pytest.raises(OSError, match=r"a\.txt cannot be read .*Permission denied.* check its permissions") as error:
        read_sources([str(tmp_path / "a.txt")])
    one_line(error)


@pytest.mark.parametrize(
    ("sources", "message"), [([], "sources is empty"), ([""], "names no location"), (["wiki="], "names no location")]
)
def test_a_source_without_a_location_raises_a_value_error(sources: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sources(sources)


@pytest.mark.parametrize("number", [0, -3])
def test_a_number_of_documents_below_one_raises_a_value_error(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_documents={number} must be at least 1"):
        read_sources(["a.txt"], num_documents=number)


# Sources, categories, order -------------------------------------------------------------------------------------------


def test_files_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "c.txt", "a/b/y.txt", "B.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    names = ["B.txt", "a/b/y.txt", "a/z.txt", "b.txt", "c.txt"]
    for location in (f"{tmp_path}/data", f"{tmp_path}/data/", f"{tmp_path}/data/**", f"file://{tmp_path}/data"):
        assert [d.text for d in read_sources([location])[0]] == names


def test_ids_do_not_depend_on_where_the_directory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = set()
    for place in ("one", "two/deeper"):
        write_lines(tmp_path / place / "data/x/a.jsonl", [{"text": "a"}])
        ids.add(read_sources([str(tmp_path / place / "data")])[0][0].id)
    monkeypatch.chdir(tmp_path / "one")
    ids.add(read_sources(["data"])[0][0].id)
    monkeypatch.chdir(tmp_path / "one/data")
    ids.add(read_sources(["."])[0][0].id)
    assert ids == {"data/x/a.jsonl#0"}


def test_ids_in_a_glob_begin_after_its_fixed_part(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/x/a.jsonl", [{"text": "a"}])
    for scheme in ("", "file://"):
        assert read_sources([f"{scheme}{tmp_path}/data/*/*.jsonl"])[0][0].id == "x/a.jsonl#0"


def test_file_names_with_glob_and_uri_characters_are_read(tmp_path: Path) -> None:
    for name in ("a[1]", "b*", "c?d", "e #%20 ü"):
        write_parquet(tmp_path / f"{name}.parquet", {"text": [name]})
        write_lines(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert sorted(d.text for d in read_sources([str(tmp_path)])[0]) == sorted(["a[1]", "b*", "c?d", "e #%20 ü"] * 2)


def test_a_file_named_twice_is_read_once_and_must_have_one_category(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    assert len(read_sources([source, source, f"{tmp_path}/*.jsonl"])[0]) == 1
    with pytest.raises(ValueError, match=r"a\.jsonl is both wiki and code; give it one category"):
        read_sources([f"wiki={source}", f"code={source}"])


def test_sources_take_turns_until_the_number_is_reached(tmp_path: Path) -> None:
    sources = [
        f"{category}={write_lines(tmp_path / f'{category}.jsonl', [{'text': f'{category}{n}'} for n in range(count)])}"
        for category, count in (("wiki", 50), ("code", 2), ("math", 50))
    ]
    documents, _unreadable = read_sources(sources, num_documents=10)
    assert [d.text for d in documents] == [
        "wiki0",
        "wiki1",
        "wiki2",
        "wiki3",
        "code0",
        "code1",
        "math0",
        "math1",
        "math2",
        "math3",
    ]
    assert len(read_sources(sources, num_documents=1_000)[0]) == 102
    assert read_sources(sources)[0] == read_sources(sources, num_documents=102)[0]


def test_unreadable_rows_count_toward_the_number(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [b"{\n", {"text": "a"}, {"text": "b"}])
    documents, unreadable = read_sources([source], num_documents=2)
    assert (len(documents), len(unreadable)) == (1, 1)


def test_the_origin_is_the_location_as_given(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    assert read_sources([f"wiki={tmp_path}/*.jsonl"])[0][0].origin == f"{tmp_path}/*.jsonl"


# URIs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["hf://datasets/nvidia/sample", "s3://bucket/corpus"])
def test_uris_are_read_through_daft_with_few_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    """Daft's functions are replaced by ones that read a local directory."""
    write_parquet(tmp_path / "b.parquet", {"text": ["b"]})
    write_lines(tmp_path / "x/a.jsonl.gz", [{"text": "a"}])
    calls: list[tuple[str, str, object]] = []

    class Border:
        exceptions = reading.daft.exceptions

        def from_glob_path(self, path: str, io_config: object) -> object:
            calls.append(("list", path, io_config))
            found = reading.daft_itself.from_glob_path(path.replace(root, str(tmp_path)))  # type: ignore[attr-defined]
            paths = [p.removeprefix("file://").replace(str(tmp_path), root) for p in found.to_pydict()["path"]]
            return reading.daft_itself.from_pydict({"path": sorted(paths, reverse=True)})  # type: ignore[attr-defined]

        def File(self, path: str, io_config: object) -> object:
            calls.append(("bytes", path, io_config))
            return reading.daft_itself.File(path.replace(root, f"file://{tmp_path}"))  # type: ignore[attr-defined]

    monkeypatch.setattr(reading, "daft_itself", reading.daft, raising=False)
    for module in (listing, reading):
        monkeypatch.setattr(module, "daft", Border())
    documents, unreadable = read_sources([f"wiki={root}"])
    assert [(d.id, d.text, d.origin) for d in documents] == [("b.parquet#0", "b", root), ("x/a.jsonl.gz#0", "a", root)]
    assert unreadable == []
    assert calls[0] == ("list", f"{root}/**", REMOTE)
    assert sorted(calls[1:], key=lambda call: call[1]) == [  # files are read at the same time
        ("bytes", f"{root}/b.parquet", REMOTE),
        ("bytes", f"{root}/x/a.jsonl.gz", REMOTE),
    ]
    calls.clear()
    assert [d.text for d in read_sources([f"{root}/b.parquet"])[0]] == ["b"]
    assert calls == [("bytes", f"{root}/b.parquet", REMOTE)]


@pytest.mark.parametrize("name", ["", "a.parquet", "a.jsonl"])
def test_a_uri_that_does_not_answer_raises_a_one_line_error_within_30_seconds(name: str) -> None:
    program = (
        "import sys; from nemotron.recipes.sources.files import read_sources\n"
        "try: read_sources([sys.argv[1]])\n"
        "except ValueError as error: print(error)"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program, f"s3://no-such-bucket/{name}"],
        env={
            **os.environ,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # nothing listens there
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - started < 30
    assert result.stdout.count("\n") == 1
    assert f"s3://no-such-bucket/{name} cannot be read" in result.stdout
    assert "check the address, the network and the credentials" in result.stdout
    assert result.stderr == ""
