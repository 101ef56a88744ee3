"""An unusable source gives one sentence that names it, and no dataset."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2.stage0_pretrain import data_curation


def rows(num_rows: int) -> list[dict[str, str]]:
    return [
        {"text": f"Row {i} is a sentence of its own, long enough to be read as English prose."} for i in range(num_rows)
    ]


def missing(path):
    """Write no file."""


def empty_directory(path):
    path.mkdir()


def empty_file(path):
    path.with_suffix(".jsonl").write_text("")


def without_a_text_column(path):
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), path.with_suffix(".parquet"))


def truncated_parquet(path):
    pq.write_table(pa.Table.from_pylist(rows(100)), path.with_suffix(".parquet"))
    whole = path.with_suffix(".parquet").read_bytes()
    path.with_suffix(".parquet").write_bytes(whole[: len(whole) // 2])


def truncated_gzip(path):
    whole = gzip.compress("\n".join(map(json.dumps, rows(1000))).encode())
    path.with_suffix(".jsonl.gz").write_bytes(whole[: len(whole) // 2])


def only_invalid_utf8(path):
    path.with_suffix(".txt").write_bytes(b"\xff\xfe\xfa" * 100)


def too_small(path):
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows(1))))


def smaller_than_a_sequence(path):
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows(10))))


def unknown_suffix(path):
    path.with_suffix(".docx").write_bytes(b"PK")


@pytest.mark.parametrize(
    "source",
    [
        missing,
        empty_directory,
        empty_file,
        without_a_text_column,
        truncated_parquet,
        truncated_gzip,
        only_invalid_utf8,
        too_small,
        smaller_than_a_sequence,
        unknown_suffix,
    ],
    ids=lambda source: source.__name__,
)
def test_unusable_source_gives_one_sentence_and_no_dataset(tmp_path, source):
    source(tmp_path / "corpus")
    path = next(tmp_path.glob("corpus*"), tmp_path / "corpus")
    config = data_curation.Config(sources=(str(path),), output_dir=tmp_path / "output")
    with pytest.raises((ValueError, OSError)) as refused:
        data_curation.main(config)
    assert "\n" not in str(refused.value).strip()
    assert any(name in str(refused.value) for name in ("corpus", "crawl-high"))  # the file or its category
    assert not (tmp_path / "output").exists()
    assert not (tmp_path / "output.incomplete").exists()
