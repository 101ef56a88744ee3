"""Strict JSON and one-sentence errors."""

import json
import math
import os
import threading
from dataclasses import field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from nemotron.strict import (
    MAX_DEPTH,
    MAX_SENTENCE_CHARACTERS,
    check_exact,
    one_sentence,
    parse_json,
    parse_json_object,
    read_file,
    short,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


# --- JSON


@given(json_values)
def test_any_json_value_parses_to_itself(value: Any):
    text = json.dumps(value)
    assert parse_json(text, "x") == parse_json(text.encode(), "x") == value


@given(st.binary(max_size=100) | st.text(max_size=100))
def test_any_text_parses_or_is_refused_in_one_sentence(text: str | bytes):
    sentence = "the file is fine"
    try:
        parse_json(text, "the file")
    except ValueError as error:
        sentence = str(error)
    assert sentence.startswith("the file ")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"is not valid JSON \(Expecting value.*\); write it again$"),
        ("{} {}", r"is not valid JSON \(Extra data.*\); write it again$"),
        ("\ufeff{}", r"is not valid JSON \(.*BOM.*\); write it again$"),
        (b"\xff", r"is not valid JSON \('utf-8' codec.*\); write it again$"),
        ("[" * 100_000, r"is not valid JSON \(.*(recursion|overflow).*\); write it again$"),
        ("9" * 5000, r"is not valid JSON \(Exceeds the limit.*\); write it again$"),
        ('[{"a": 1, "b": 2, "a": 3}]', 'holds the key "a" twice; write it again$'),
        ('{"\\ud800\\n": 1, "\\ud800\\n": 1}', r'holds the key "\\ud800\\n" twice; write it again$'),
        ("[NaN]", "holds NaN, which is not a number in JSON; find the code that computed it$"),
        ("[-Infinity]", "holds -Infinity, which is not a number in JSON; find the code"),
        ("[" * 102 + "]" * 102, "has more than 100 nested lists and objects; write it again$"),
        ('{"a":' * 101 + "1" + "}" * 101, "has more than 100 nested lists and objects; write it again$"),
        ("[1e999]", "holds 1e999, which is too large for a float; find the code"),
    ],
)
def test_text_that_is_not_strict_json_is_refused(text: str | bytes, sentence: str):
    with pytest.raises(ValueError, match=f"^the file {sentence}"):
        parse_json(text, "the file")


def test_the_advice_ends_the_sentence():
    with pytest.raises(ValueError, match=r"; run the step again$"):
        parse_json("{", "the file", advice="run the step again")
    with pytest.raises(ValueError, match=r"; run the step again$"):
        parse_json_object("[]", "the file", advice="run the step again")


def test_infinity_is_accepted_only_on_request():
    assert parse_json("[0.0, Infinity, -Infinity]", "x", allow_infinity=True) == [0.0, math.inf, -math.inf]
    assert parse_json_object('{"a": Infinity}', "x", allow_infinity=True) == {"a": math.inf}
    with pytest.raises(ValueError, match="holds NaN"):
        parse_json("[NaN]", "x", allow_infinity=True)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"'])
def test_a_value_that_is_not_an_object_is_refused_where_an_object_is_needed(text: str):
    assert parse_json(text, "the file") == json.loads(text)
    with pytest.raises(ValueError, match=r"^the file must hold a JSON object, not .*; write it again$"):
        parse_json_object(text, "the file")


def test_a_hundred_nested_lists_are_read():
    assert parse_json("[" * 100 + "]" * 100, "x") == json.loads("[" * 100 + "]" * 100)
    assert parse_json('{"a":' * 100 + "1" + "}" * 100, "x") == json.loads('{"a":' * 100 + "1" + "}" * 100)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(file)
    assert read_file(file, advice="", max_bytes=5) == read_file(tmp_path / "link", advice="") == b"12345"
    with pytest.raises(ValueError, match=r"/file has more than the 4 bytes that are read of such a file; cut it$"):
        read_file(file, advice="cut it", max_bytes=4)


def test_what_might_never_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    end = threading.Timer(1, os.close, (os.open(tmp_path / "pipe", os.O_RDWR),))  # of what reads it all the same
    end.start()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(ValueError, match=r"is not a regular file; fetch it$"):
            read_file(tmp_path / name, advice="fetch it")
    end.join()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("nothing", "dangling"):
        with pytest.raises(ValueError, match=rf"/{name} does not exist; fetch it$"):
            read_file(tmp_path / name, advice="fetch it")


# --- errors


class Rate(BaseModel):
    peak: float = Field(gt=0)

    @field_validator("peak")
    @classmethod
    def _check_peak(cls, peak: float) -> float:
        if peak > 1:
            raise ValueError(f"peak={peak} is above 1; pick a smaller one")
        return peak


@dataclass
class Config:
    batch: int = 8
    micro_batch: int = 4
    rate: Rate = field(default_factory=lambda: Rate(peak=0.1))

    @model_validator(mode="after")
    def _check_batches(self) -> "Config":
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} does not divide\nbatch={self.batch}; pick a divisor")
        return self


def sentence_of(**values: Any) -> str:
    with pytest.raises(ValidationError) as error:
        Config(**values)
    return one_sentence(error.value)


def test_an_error_about_the_whole_object_keeps_its_own_words():
    assert sentence_of(micro_batch=3) == "micro_batch=3 does not divide batch=8; pick a divisor"


def test_an_error_about_a_field_names_the_class_the_field_and_the_value():
    assert sentence_of(batch="many", rate={"peak": -1}) == (
        "Config: batch='many': Input should be a valid integer, unable to parse string as an integer; "
        "rate.peak=-1: Input should be greater than 0"
    )


def test_a_field_with_several_types_is_named_once_with_what_each_of_them_allows():
    class Size(BaseModel):
        rows: PositiveInt | Literal["all"]
        other: int

    with pytest.raises(ValidationError) as refused:
        Size(rows=0, other="x")
    sentence = one_sentence(refused.value)
    assert sentence.startswith("Size: rows=0: Input should be greater than 0 or Input should be 'all'; other='x': ")
    assert "constrained" not in sentence


def test_equal_bad_elements_of_a_list_are_named_with_their_places():
    class Sizes(BaseModel):
        rows: list[int]

    with pytest.raises(ValidationError) as refused:
        Sizes(rows=["x", 1, "x"])
    sentence = one_sentence(refused.value)
    assert sentence.startswith("Sizes: rows.0='x': Input should be a valid integer")
    assert "rows.2='x': Input should be a valid integer" in sentence


def test_an_error_of_a_field_validator_keeps_the_field_and_its_own_words():
    assert sentence_of(rate={"peak": 2}) == "Config: rate.peak=2: peak=2.0 is above 1; pick a smaller one"


def test_an_input_that_is_not_an_object_is_shown_without_a_field_name():
    with pytest.raises(ValidationError) as error:
        Rate.model_validate("peak")
    assert one_sentence(error.value).startswith("Rate: value='peak': Input should be a valid dictionary")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("one\n  two"), "one two"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file", "/a/b"), "/a/b: No such file"),
        (OSError(28, "No space left", "/a"), "/a: No space left; free some space and run the step again"),
        (PermissionError(13, "Denied", "/a"), "/a: Denied; change its permissions or choose another place"),
        (OSError("a library's words"), "a library's words"),
        (ValueError("x" * 3000), "x" * MAX_SENTENCE_CHARACTERS + "..."),
    ],
)
def test_an_exception_becomes_one_sentence(error: BaseException, sentence: str):
    assert one_sentence(error) == sentence


def test_a_long_value_is_cut_to_80_characters():
    assert short("a") == "'a'"
    assert short("a" * 78) == repr("a" * 78)
    assert short("a" * 79) == "'" + "a" * 76 + "..."


def test_a_sentence_is_cut_after_2000_characters():
    assert one_sentence(ValueError("a" * MAX_SENTENCE_CHARACTERS)) == "a" * MAX_SENTENCE_CHARACTERS
    assert one_sentence(ValueError("a" * (MAX_SENTENCE_CHARACTERS + 1))) == "a" * MAX_SENTENCE_CHARACTERS + "..."


def test_a_recorded_value_may_have_twenty_levels_and_no_more():
    def nested(levels: int) -> list:
        return [nested(levels - 1)] if levels else []

    check_exact(nested(MAX_DEPTH), "x")
    with pytest.raises(ValueError, match="has more than 20 nested lists and dicts; record flatter values"):
        check_exact(nested(MAX_DEPTH + 1), "x")
