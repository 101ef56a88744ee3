"""Strict JSON and one-sentence errors, shared by everything that reads a file or a pipe.

In: JSON text from a file or a pipe; exceptions. Out: parsed values, or a ValueError in one sentence that names the
source, what is wrong and what to do next.
"""

import errno
import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemotron.terminal import printable

MAX_SENTENCE_CHARACTERS = 2000  # our choice: longer than any path, short enough to read
MAX_VALUE_CHARACTERS = 80  # our choice: a value inside a sentence
MAX_JSON_DEPTH = 100  # our choice: nested lists and objects; what we write has fewer than 20
MAX_JSON_BYTES = 16 << 20  # our choice: enough for the metadata of 100,000 files


class _Refused(ValueError):
    """A value that Python's parser accepts and strict JSON does not; the message is already a whole sentence."""


class RepeatedKey(ValueError):
    """An object of JSON that holds a key twice, of which Python's parser keeps the last value without a word."""

    def __init__(self, key: str) -> None:
        super().__init__(f"JSON with the key {short(key)} twice in one object")
        self.key = key


def load_json(text: str, **options: Any) -> Any:
    """The value of a JSON text of somebody else.

    Args:
        options: for `json.loads`.
    Raises:
        RepeatedKey: if an object holds a key twice.
        ValueError, RecursionError: if the text is not JSON, or nested too deeply.
    """

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            raise RepeatedKey(next(key for key in keys if keys.count(key) > 1))
        return values

    return json.loads(text, object_pairs_hook=unique_keys, **options)


def parse_json(text: str | bytes, source: str, *, advice: str = "write it again", allow_infinity: bool = False) -> Any:
    """Parse exactly one JSON value: UTF-8, no duplicate keys, no NaN or infinity, not too deep, nothing after it.

    Args:
        source: names the text in errors: a file, or "stdin".
        advice: what to do about damaged text; the end of the sentence.
        allow_infinity: accept Infinity and -Infinity, which Python writes into the JSON of published checkpoints.
    Raises:
        ValueError: in one sentence that begins with `source`.
    """

    def constant(name: str) -> float:
        if allow_infinity and name != "NaN":
            return float(name)
        raise _Refused(f"{source} holds {name}, which is not a number in JSON; find the code that computed it")

    def finite(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise _Refused(f"{source} holds {digits}, which is too large for a float; find the code that computed it")
        return number

    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = load_json(text, parse_constant=constant, parse_float=finite)
    except RepeatedKey as error:
        raise ValueError(f"{source} holds the key {json.dumps(error.key)} twice; {advice}") from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON ({one_sentence(error)}); {advice}") from None
    if is_too_deep(value):
        raise ValueError(f"{source} has more than {MAX_JSON_DEPTH} nested lists and objects; {advice}")
    return value


def is_too_deep(value: Any) -> bool:
    """Whether more than MAX_JSON_DEPTH lists and objects are nested in a value of JSON.

    Deeper values would overflow the stack of whoever compares, prints or writes them.
    """
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def parse_json_object(
    text: str | bytes, source: str, *, advice: str = "write it again", allow_infinity: bool = False
) -> dict[str, Any]:
    """Parse exactly one JSON object; otherwise as `parse_json`.

    Raises:
        ValueError: also if the value is not an object.
    """
    value = parse_json(text, source, advice=advice, allow_infinity=allow_infinity)
    if not isinstance(value, dict):
        raise ValueError(f"{source} must hold a JSON object, not {short(value)}; {advice}")
    return value


def read_file(path: Path, *, advice: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file, of which no more than `max_bytes` are read; a link to one is followed.

    Raises:
        ValueError: if it is missing, larger, or a device, pipe or directory, which might never end.
        OSError: if it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}; {advice}")
    with open(path, "rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} has more than the {max_bytes:,} bytes that are read of such a file; {advice}")
    return content


MAX_DEPTH = 20  # our choice: nested lists and dicts in a recorded value


def check_exact(value: object, place: str, depth: int = 0) -> None:
    """Raise ValueError for what JSON changes or rejects: NaN, infinities, tuples, numpy numbers, keys that are not str.

    Args:
        place: where the value is recorded; the start of the sentence.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{place} has more than {MAX_DEPTH} nested lists and dicts; record flatter values")
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:
                raise ValueError(f"{place} has the key {key!r}, which is not a string; convert it to one")
            check_exact(inner, f"{place}, {json.dumps(key)}", depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_exact(inner, f"{place}, value {index}", depth + 1)
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}, which is not equal to any number; find what computed it")
    elif value is not None and type(value) not in (str, int, bool):
        raise ValueError(
            f"{place} has type {type(value).__name__}; a ladder holds str, int, float, bool, None, lists and dicts"
        )


_FREE_SPACE = "free some space and run the step again"
_CHANGE_PERMISSIONS = "change its permissions or choose another place"
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EACCES: _CHANGE_PERMISSIONS,
    errno.EPERM: _CHANGE_PERMISSIONS,
    errno.EROFS: _CHANGE_PERMISSIONS,
}


def one_sentence(error: BaseException) -> str:
    """An exception's message on one line, with advice for a full disk or missing permissions, fit for a terminal.

    A pydantic error names each field with the value found; an error that a validator raises about the object as a
    whole keeps its own words.
    """
    if isinstance(error, ValidationError):
        text = _validation_sentence(error)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        text += f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    else:
        text = str(error) or type(error).__name__
    text = printable(re.sub(r"[ \t\n]+", " ", text).strip(" "))  # other white space is part of a name, and shown
    return text if len(text) <= MAX_SENTENCE_CHARACTERS else f"{text[:MAX_SENTENCE_CHARACTERS]}..."


def _validation_sentence(error: ValidationError) -> str:
    own_words: list[str] = []
    messages: dict[tuple[str, str], list[str]] = {}  # (field, value found) -> what is wrong, once for each alternative
    said_of: dict[tuple[Any, str], set[str]] = {}
    for detail in error.errors(include_url=False):
        said_of.setdefault((detail["loc"][:1], short(detail["input"])), set()).add(detail["msg"])
    for detail in error.errors(include_url=False):
        raised = detail["type"] == "value_error"  # by a validator of ours; pydantic prefixes it with "Value error, "
        message = str(detail["ctx"]["error"]) if raised else detail["msg"]
        if raised and not detail["loc"]:
            own_words.append(message)
            continue
        found = short(detail["input"])
        # A field with several types has one error for each of them; a list with equal bad elements has the
        # same error twice.
        is_union = len(said_of[detail["loc"][:1], found]) > 1
        name = ".".join(map(str, detail["loc"][:1] if is_union else detail["loc"])) or "value"
        messages.setdefault((name, found), []).append(message)
    fields = [f"{name}={found}: {' or '.join(said)}" for (name, found), said in messages.items()]
    if fields:
        fields[0] = f"{error.title}: {fields[0]}"
    return "; ".join(own_words + fields)


def short(value: object) -> str:
    """The repr of a value, cut to fit into a sentence."""
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 3]}..."
