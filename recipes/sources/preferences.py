"""Preferences between two replies, from the user: files, directories, globs and URIs of .jsonl, .jsonl.gz, .parquet.

In: sources, as `reading.py` finds them. Out: pairs of replies to one context with a label, and a named reason for each
row that does not become one. A row has the columns of nvidia/HelpSteer3, subset "preference":

    context                 list of {role, content}, of which the last is the user's
    response1, response2    two replies
    overall_preference      -3 (response1 is much better) to 3 (response2 is much better)
    language                "english", "chinese", ..., or a programming language; used if present
    domain                  general, stem, code or multilingual; used if present
    individual_preference   what each annotator thought, as a list of objects; not read
    id, uuid or key         used if present, and the same license columns as in conversations

    python -c "from nemotron.recipes.sources.preferences import *; print(read_preferences(['pairs.jsonl']))"

The names are those of the data set's card. The context may be JSON in a text as well. Left out: every other column,
such as system_prompt.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nemotron.recipes.sources.conversations import parse_json, parse_messages
from nemotron.recipes.sources.documents import Unreadable
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.licences import licence_columns, row_licence
from nemotron.recipes.sources.listing import split_category
from nemotron.recipes.sources.reading import (
    Row,
    SourceFile,
    is_unicode,
    json_rows,
    parquet_rows,
    read_items,
    stated_id,
    stated_text,
    with_unique_ids,
)
from nemotron.strict import short

FAMILY = "preference"  # of exercises that are a user's contexts
ID_COLUMNS = ("id", "uuid", "key")
NEEDED = ("context", "response1", "response2", "overall_preference")
COLUMNS = (*ID_COLUMNS, *NEEDED, "language", "domain")
ENGLISH = "english"
CODE = "code"  # the domain
STRONGEST = 3


@dataclass(frozen=True)
class Preference:
    """Two replies to one context, and which of them is better."""

    id: str
    """Unique; the row's own id, or "<file>#<row>"."""
    exercise: Exercise
    """The context; the rubric's answer in its details, if it is generated."""
    responses: tuple[str, str]
    label: int
    """From -3, the first is much better, to 3, the second is much better; 0 if they are equally good."""
    noisy: bool = False
    """Whether the label was turned around on purpose."""
    language: str = ENGLISH
    """Of the context, as the row says it."""
    fault: str = ""
    """What went wrong in the rubric that should label the pair, if something did; the label is then 0."""

    @property
    def chosen(self) -> str:
        """The better reply by the label."""
        return self.responses[self.label > 0]

    @property
    def rejected(self) -> str:
        """The worse reply by the label."""
        return self.responses[self.label <= 0]


def read_preferences(
    sources: Sequence[str], *, num_pairs: int | None = None
) -> tuple[list[Preference], list[Unreadable]]:
    """Pairs of all sources: in the order of the sources, within a source by path, within a file by row.

    The canonical form of a context is what the user says, without layout and case.

    Args:
        num_pairs: rows to read in total, including unreadable ones; None reads everything. The sources take turns row
            by row.
    Returns:
        Pairs with unique ids (a repeated one gets "#2"), and what could not be read.
    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if a source holds no pair, is truncated or damaged, does not answer, or has a format that is not
            read here; if a source has a category, which pairs do not have.
    """
    for source in sources:
        category, location = split_category(source)
        if category:
            raise ValueError(f"source {source!r} has the category {category!r}, but pairs have none; write {location}")

    def read_file(file: SourceFile) -> Iterator[Preference | Unreadable]:
        return file_preferences(file, num_pairs)

    pairs, unreadable = read_items(sources, read_file, kind="pair", default_category=FAMILY, num_items=num_pairs)
    return with_unique_ids(pairs), unreadable


def file_preferences(file: SourceFile, num_rows: int | None) -> Iterator[Preference | Unreadable]:
    """The pairs of one file, at most `num_rows` of a .parquet file."""
    if file.location.endswith(".txt"):
        yield Unreadable(file.name, "plain text holds no pairs of replies")
        return
    rows: Iterator[Row | Unreadable]
    if file.location.endswith(".parquet"):
        rows = parquet_rows(file, num_rows, lambda schema: preference_columns(file, schema))
    else:
        rows = json_rows(file)
    for row in rows:
        yield row if isinstance(row, Unreadable) else row_preference(row, file)


def preference_columns(file: SourceFile, schema: pa.Schema) -> list[str]:
    """The columns of a .parquet file that pairs need.

    Raises:
        ValueError: if one of them is missing.
    """
    if missing := [name for name in NEEDED if name not in schema.names]:
        found = ", ".join(sorted(schema.names)) or "none"
        raise ValueError(f"{file.location} has no column {missing[0]!r}, only {found}; name another source")
    wanted = {*COLUMNS, *licence_columns(schema)}
    return [name for name in dict.fromkeys(schema.names) if name in wanted]


# One row --------------------------------------------------------------------------------------------------------------


def row_preference(row: Row, file: SourceFile) -> Preference | Unreadable:
    """The pair in one row, or what is wrong with it."""
    name = stated_id(row, ID_COLUMNS)
    columns = row.columns
    try:
        context = columns.get("context")
        context = parse_json(context, "'context' is") if isinstance(context, str) else context
        if context is None:
            raise ValueError("it has no 'context'")
        messages = tuple(parse_messages(context))
        if messages[-1]["role"] != "user":
            raise ValueError(f"its context ends with the {messages[-1]['role']}'s message, not the user's")
        if not messages[-1]["content"].strip():
            raise ValueError("the last message of its context is empty")
        responses = (parse_response(columns, "response1"), parse_response(columns, "response2"))
        label = parse_label(columns.get("overall_preference"))
    except ValueError as error:
        return Unreadable(name, str(error))
    asked = " | ".join(message["content"] for message in messages if message["role"] == "user")
    details = json.dumps({"licence": row_licence(row), "origin": file.source})
    canonical = " ".join(asked.split()).casefold()
    exercise = Exercise(name, FAMILY, messages, (), "", "", canonical, details)
    return Preference(name, exercise, responses, label, language=language_of(row))


def language_of(row: Row) -> str:
    """The language of a row's context: what it says, if it is not a programming language, else English."""
    if (stated_text(row, ["domain"]) or "").casefold() == CODE:  # there the column names a language of programming
        return ENGLISH
    return (stated_text(row, ["language"]) or ENGLISH).casefold()


def parse_response(columns: dict[str, Any], name: str) -> str:
    """The reply in a column.

    Raises:
        ValueError: if it is not text that can be encoded.
    """
    value = columns.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {'missing' if value is None else type(value).__name__ + ', not text'}")
    if not is_unicode(value):
        raise ValueError(f"{name!r} holds half a surrogate pair, which is not a character")
    return value


def parse_label(value: Any) -> int:
    """The overall preference.

    Raises:
        ValueError: if it is not a whole number from -3 to 3.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(-STRONGEST, STRONGEST + 1):
        raise ValueError(f"'overall_preference' is {short(value)}, not a whole number from -{STRONGEST} to {STRONGEST}")
    return int(value)
