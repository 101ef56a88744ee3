"""Rows with the columns of HelpSteer3 become pairs; the others are named."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.sources.documents import Unreadable
from nemotron.recipes.sources.preferences import Preference, read_preferences

ROW = {
    "domain": "general",
    "language": "english",
    "context": [
        {"role": "user", "content": "Hi  there"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is\n4 + 5?"},
    ],
    "response1": "It is 8.",
    "response2": "It is 9.",
    "overall_preference": 2,
    "individual_preference": [
        {"score": 2, "reasoning": "@Response 2 is right.", "feedback1": "Wrong.", "feedback2": "Right."},
        {"score": 3, "reasoning": "Only 2 is right.", "feedback1": "No.", "feedback2": "Yes."},
    ],
}
"""All columns of nvidia/HelpSteer3, subset preference, and no others."""


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        content = b"".join(json.dumps(one).encode() + b"\n" for one in rows)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def reason_of(tmp_path, **changes):
    """Why a row with these changes is not read; a good row beside it is."""
    rows = [{**ROW, **changes}, {**ROW, "id": "good"}]
    pairs, [unreadable] = read_preferences([write(tmp_path / "a.jsonl", rows)])
    assert [one.id for one in pairs] == ["good"]
    return unreadable.reason


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_row_becomes_a_pair(tmp_path, suffix):
    source = write(tmp_path / f"a.{suffix}", [ROW])
    [pair], unreadable = read_preferences([source])
    assert unreadable == []
    assert (pair.responses, pair.label, pair.noisy, pair.language) == (("It is 8.", "It is 9."), 2, False, "english")
    assert (pair.chosen, pair.rejected) == ("It is 9.", "It is 8.")
    assert [message["role"] for message in pair.exercise.messages] == ["user", "assistant", "user"]
    assert pair.exercise.canonical == "hi there | what is 4 + 5?"
    assert json.loads(pair.exercise.details) == {"licence": "unknown", "origin": source}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_licence_under_another_name_is_stated(tmp_path, suffix):
    [pair], _ = read_preferences([write(tmp_path / f"a.{suffix}", [{**ROW, "License": "CC-BY-4.0"}])])
    assert json.loads(pair.exercise.details)["licence"] == "CC-BY-4.0"


@pytest.mark.parametrize("label", [-3, -2, -1, 0, 1, 2, 3])
def test_a_negative_label_prefers_the_first_response(tmp_path, label):
    [pair], _ = read_preferences([write(tmp_path / "a.jsonl", [{**ROW, "overall_preference": label}])])
    assert pair.label == label
    assert pair.chosen == ("It is 9." if label > 0 else "It is 8.")
    assert {pair.chosen, pair.rejected} == {*pair.responses}


@pytest.mark.parametrize(
    ("changes", "language"),
    [
        ({"language": "chinese", "domain": "multilingual"}, "chinese"),
        ({"language": "python", "domain": "code"}, "english"),
        ({"language": None, "domain": None}, "english"),
        ({"language": "English"}, "english"),
    ],
)
def test_the_language_is_that_of_the_context(tmp_path, changes, language):
    [pair], _ = read_preferences([write(tmp_path / "a.jsonl", [{**ROW, **changes}])])
    assert pair.language == language


def test_a_context_may_be_json_in_a_text(tmp_path):
    [pair], _ = read_preferences([write(tmp_path / "a.jsonl", [{**ROW, "context": json.dumps(ROW["context"])}])])
    assert len(pair.exercise.messages) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": None}, "it has no 'context'"),
        ({"context": []}, "'messages' is empty"),
        ({"context": "no JSON"}, "'context' is not JSON"),
        ({"context": ROW["context"][:2]}, "its context ends with the assistant's message, not the user's"),
        ({"context": [{"role": "user", "content": " "}]}, "the last message of its context is empty"),
        ({"response1": None}, "'response1' is missing"),
        ({"response2": 7}, "'response2' is int, not text"),
        ({"response2": "\ud800"}, "'response2' holds half a surrogate pair"),
        ({"overall_preference": None}, "'overall_preference' is None, not a whole number from -3 to 3"),
        ({"overall_preference": 4}, "'overall_preference' is 4, not a whole number from -3 to 3"),
        ({"overall_preference": 0.5}, "'overall_preference' is 0.5"),
        ({"overall_preference": float("nan")}, "'overall_preference' is nan"),
        ({"overall_preference": True}, "'overall_preference' is True"),
        ({"overall_preference": "2"}, "'overall_preference' is '2'"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, changes, reason):
    assert reason_of(tmp_path, **changes).startswith(reason)


@pytest.mark.parametrize("label", ["x" * 5000, 10**400, ["deep"] * 1000], ids=["text", "number", "list"])
def test_a_long_label_is_cut_in_the_sentence(tmp_path, label):
    reason = reason_of(tmp_path, overall_preference=label)
    assert reason.endswith("..., not a whole number from -3 to 3")
    assert len(reason) < 150


def test_a_whole_number_may_be_written_as_a_float(tmp_path):
    [pair], _ = read_preferences([write(tmp_path / "a.jsonl", [{**ROW, "overall_preference": -1.0}])])
    assert (pair.label, type(pair.label)) == (-1, int)


def test_ids_are_unique(tmp_path):
    pairs, _ = read_preferences([write(tmp_path / "a.jsonl", [{**ROW, "id": "x"}, {**ROW, "id": "x"}])])
    assert [pair.id for pair in pairs] == ["x", "x#2"]


def test_a_file_without_a_needed_column_is_refused(tmp_path):
    rows = [{name: value for name, value in ROW.items() if name != "response2"}]
    with pytest.raises(ValueError, match=r"has no column 'response2', only context, domain, .*; name another source"):
        read_preferences([write(tmp_path / "a.parquet", rows)])


def test_plain_text_holds_no_pairs(tmp_path):
    (tmp_path / "a.txt").write_text("Hello.")
    with pytest.raises(ValueError, match="plain text holds no pairs of replies"):
        read_preferences([str(tmp_path / "a.txt")])


def test_a_category_is_refused(tmp_path):
    source = write(tmp_path / "a.jsonl", [ROW])
    with pytest.raises(ValueError, match=f"has the category 'math', but pairs have none; write {source}"):
        read_preferences([f"math={source}"])


def test_fewer_pairs_are_read_if_fewer_are_wanted(tmp_path):
    source = write(tmp_path / "a.jsonl", [{**ROW, "id": str(number)} for number in range(5)])
    pairs, _ = read_preferences([source], num_pairs=2)
    assert [pair.id for pair in pairs] == ["0", "1"]


def test_what_is_read_is_a_preference_or_unreadable(tmp_path):
    pairs, unreadable = read_preferences([write(tmp_path / "a.jsonl", [ROW, {}])])
    assert [type(one) for one in (*pairs, *unreadable)] == [Preference, Unreadable]
