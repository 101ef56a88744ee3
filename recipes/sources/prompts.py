"""Prompts with checkable instructions from the user: files, directories, globs and URIs of .jsonl, .jsonl.gz, .parquet.

In: sources, as `reading.py` finds them. Out: exercises of the family "ifeval" (exercises/ifeval.py), and a named reason
for each row that does not become one. A row has the columns of NVIDIA's released sets for reinforcement learning:

    the prompt         responses_create_params {input: text or list of {role, content}}, as in NeMo Gym and
                       nvidia/Nemotron-RL-instruction_following; or input, as in nvidia/Llama-Nemotron-Post-Training-
                       Dataset; or prompt, as in google/IFEval. The first of them that a row has is used.
    the instructions   instruction_id_list, and kwargs, a list of as many objects or nulls. They are columns, or in
                       verifier_metadata (newer files of NeMo Gym); or args {instruction_id_list, instruction_kwargs}
    id, uuid or key    used if present, and the same license columns as in conversations

    python -c "from nemotron.recipes.sources.prompts import *; print(read_prompts(['prompts.jsonl']))"

All but the ids may be JSON in a text as well. A null among the arguments is left out, because Parquet gives every row
all of them. The names were checked in NeMo Gym's README and in google-research's input_data.jsonl, whose rows are those
of IFEval; those of the Llama-Nemotron set come from a reader of it, and no file of NVIDIA was read. The README shows
that nvidia/Nemotron-RL-instruction_following has more instructions than IFEval's, such as "paragraphs:paragraphs"; a
row with one of those is unreadable, because a reward must check everything that its prompt asks for.

Left out: every other column, such as grading_mode and system_prompt; prompts with tools; the verifiers of other sets.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from nemotron.recipes.sources.conversations import Message, parse_json, parse_messages
from nemotron.recipes.sources.documents import Unreadable
from nemotron.recipes.sources.exercises.exercise import DIFFICULTIES, Exercise
from nemotron.recipes.sources.exercises.ifeval import FAMILY, fault
from nemotron.recipes.sources.licences import licence_columns, row_licence
from nemotron.recipes.sources.listing import split_category
from nemotron.recipes.sources.reading import (
    Row,
    SourceFile,
    json_rows,
    parquet_rows,
    read_items,
    stated_id,
    with_unique_ids,
)

ID_COLUMNS = ("id", "uuid", "key")
PROMPT_COLUMNS = ("responses_create_params", "input", "prompt")
INSTRUCTION_COLUMNS = ("instruction_id_list", "verifier_metadata", "args")
COLUMNS = (*ID_COLUMNS, *PROMPT_COLUMNS, *INSTRUCTION_COLUMNS, "kwargs")


def read_prompts(sources: Sequence[str], *, num_prompts: int | None = None) -> tuple[list[Exercise], list[Unreadable]]:
    """Exercises of all sources: in the order of the sources, within a source by path, within a file by row.

    An exercise has no answer, because rows do not include one. Its canonical form is what the user says, without layout
    and case. Its difficulty is the number of its instructions, at most 4. Its details are JSON with "instructions", and
    with "licence" and "origin" as `Conversation` has them.

    Args:
        num_prompts: rows to read in total, including unreadable ones; None reads everything. The sources take turns
            row by row.
    Returns:
        Exercises with unique ids (a repeated one gets "#2"), and what could not be read.
    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if a source holds no prompt, is truncated or damaged, does not answer, or has a format that is not
            read here; if a source has a category, which prompts do not have.
    """
    for source in sources:
        category, location = split_category(source)
        if category:
            raise ValueError(
                f"source {source!r} has the category {category!r}, but prompts have none; write {location}"
            )

    def read_file(file: SourceFile) -> Iterator[Exercise | Unreadable]:
        return file_prompts(file, num_prompts)

    exercises, unreadable = read_items(
        sources, read_file, kind="prompt", default_category=FAMILY, num_items=num_prompts
    )
    return with_unique_ids(exercises), unreadable


def file_prompts(file: SourceFile, num_rows: int | None) -> Iterator[Exercise | Unreadable]:
    """The prompts of one file, at most `num_rows` of a .parquet file."""
    if file.location.endswith(".txt"):
        yield Unreadable(file.name, "plain text holds no prompts with instructions")
        return
    rows: Iterator[Row | Unreadable]
    if file.location.endswith(".parquet"):
        rows = parquet_rows(file, num_rows, lambda schema: prompt_columns(file, schema))
    else:
        rows = json_rows(file)
    for row in rows:
        yield row if isinstance(row, Unreadable) else row_exercise(row, file)


def prompt_columns(file: SourceFile, schema: pa.Schema) -> list[str]:
    """The columns of a .parquet file that prompts need.

    Raises:
        ValueError: if no column has a prompt, or none has instructions.
    """
    for needed in (PROMPT_COLUMNS, INSTRUCTION_COLUMNS):
        if not set(needed) & set(schema.names):
            found = ", ".join(sorted(schema.names)) or "none"
            raise ValueError(f"{file.location} has no column {' or '.join(needed)}, only {found}; name another source")
    wanted = {*COLUMNS, *licence_columns(schema)}
    return [name for name in dict.fromkeys(schema.names) if name in wanted]


# One row --------------------------------------------------------------------------------------------------------------


def row_exercise(row: Row, file: SourceFile) -> Exercise | Unreadable:
    """The exercise in one row, or what is wrong with it."""
    name = stated_id(row, ID_COLUMNS)
    try:
        messages = row_messages(row.columns)
        instructions = row_instructions(row.columns)
    except ValueError as error:
        return Unreadable(name, str(error))
    asked = " | ".join(message["content"] for message in messages if message["role"] == "user")
    details = {"instructions": instructions, "licence": row_licence(row), "origin": file.source}
    return Exercise(
        name,
        FAMILY,
        tuple(messages),
        tools=(),
        reasoning="",
        answer="",
        canonical=" ".join(asked.split()).casefold(),
        details=json.dumps(details),
        difficulty=min(len(instructions), DIFFICULTIES[-1]),
    )


def row_messages(columns: dict[str, Any]) -> list[Message]:
    """The messages of the first prompt column that has a value; they end with the user's.

    Raises:
        ValueError: if there is none, it is malformed or empty, or it has tools.
    """
    column = next((name for name in PROMPT_COLUMNS if columns.get(name) is not None), None)
    if column is None:
        raise ValueError(f"it has none of {', '.join(PROMPT_COLUMNS)}")
    value = columns[column]
    if column == "responses_create_params":
        value = parsed(value, column)
        if not isinstance(value, dict) or value.get("input") is None:
            raise ValueError(f"{column!r} has no 'input'")
        for key in ("tools", "instructions"):
            if value.get(key):
                raise ValueError(f"{column!r} has {key!r}, which are not read here")
        value = value["input"]
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column!r} is neither text nor a list of messages")
    messages = parse_messages([without_type(item) for item in value])
    if messages[-1]["role"] != "user":
        raise ValueError(f"its last message is the {messages[-1]['role']}'s, not the user's")
    if not messages[-1]["content"].strip():
        raise ValueError("its last message is empty")
    return messages


def without_type(item: Any) -> Any:
    """The message without the "type": "message" that an item of OpenAI's Responses API may have."""
    if isinstance(item, dict) and item.get("type") == "message":
        return {key: value for key, value in item.items() if key != "type"}
    return item


def row_instructions(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's instructions, each {"id", "kwargs"} without a `fault`.

    Raises:
        ValueError: if there is none, or one that cannot be checked.
    """
    holder = columns
    for column in ("verifier_metadata", "args"):
        nested = parsed(columns.get(column), column) if holder.get("instruction_id_list") is None else None
        holder = nested if isinstance(nested, dict) else holder
    key = "instruction_kwargs" if "instruction_kwargs" in holder else "kwargs"
    ids, arguments = (parsed(holder.get(name), name) for name in ("instruction_id_list", key))
    if not ids:
        raise ValueError("it has no instruction that a rule can check")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise ValueError("'instruction_id_list' is not a list of texts")
    if not isinstance(arguments, list) or len(arguments) != len(ids):
        raise ValueError(f"{key!r} is not a list of {len(ids)} objects, one for each instruction")
    instructions = []
    for number, name in enumerate(ids):
        values = parsed(arguments[number], f"{key}[{number}]") or {}
        if not isinstance(values, dict):
            raise ValueError(f"{key}[{number}] is {type(values).__name__}, not an object")
        kwargs = {argument: value for argument, value in values.items() if value is not None}
        if reason := fault(name, kwargs):
            raise ValueError(reason)
        instructions.append({"id": name, "kwargs": kwargs})
    return instructions


def parsed(value: Any, name: str) -> Any:
    """The value, parsed if it is a text of JSON; None for an empty text.

    Raises:
        ValueError: if it is another text.
    """
    if not isinstance(value, str):
        return value
    return parse_json(value, f"{name!r} is") if value.strip() else None
