"""Conversations from the user: files, directories, globs and URIs of .jsonl, .jsonl.gz and .parquet.

What goes in: sources, each "location" or "category=location", as `files.py` finds them. What comes out: conversations,
and a named reason for every row that is none. A row has the columns of nvidia/Nemotron-Post-Training-Dataset-v1 or -v2:

    messages    list of {role, content}, in v1 with tool_calls [{id, type, function {name, arguments: JSON}}]
    reasoning   "on" or "off"; where it is missing, a conversation with a thinking trace is "on" (our choice)
    uuid or id, category, license   used if they are there
    metadata    v1: JSON; its "tools" are those of the conversation. A column of this name is read as well.

    python -c "from nemotron.recipes.sources.conversations import *; print(read_conversations(['math=chats.jsonl']))"

The reasoning of a row becomes a control flag at the end of the system text, /think or /no_think; what is said without
thinking gets the empty trace "<think></think>", and a thought begins on the line after its tag. A flag in a later text
of the user still wins over it, as everywhere. Arguments of calls come out as objects. Whether a conversation can be
learnt is for the recipe to check.
Left out: the columns generator and version, the ids of calls, and conversations that do not fit into memory.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from nemotron.recipes.sources.dataframes import daft
from nemotron.recipes.sources.documents import Document, Unreadable
from nemotron.recipes.sources.files import (
    LICENCE_COLUMNS,
    REMOTE,
    SCHEME,
    SourceFile,
    files_of_source,
    is_unicode,
    lines_of,
    one_sentence,
    rows_in_turn,
    split_category,
    with_different_ids,
)

ROLES = ("system", "user", "assistant", "tool")
ID_COLUMNS = ("uuid", "id")
COLUMNS = (*ID_COLUMNS, *LICENCE_COLUMNS, "category", "reasoning", "metadata", "tools", "messages")
DEFAULT_CATEGORY = "chat"  # our choice, where neither the row nor the user names one
FLAGS = {"on": "/think", "off": "/no_think"}
NO_THINKING = "<think></think>"
TRACE = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)

Row = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One conversation, in the messages that chat templates take."""

    id: str
    """Different for each; the row's own, or "<file>#<row>"."""
    category: str
    """As the row says ("math", "code", "tool_calling", ...), else as the user says, else "chat"."""
    reasoning: bool
    """Whether the assistant thinks; the messages hold the same as a control flag."""
    messages: tuple[Row, ...]
    """{"role", "content"}, and "tool_calls" where there are any."""
    tools: tuple[Row, ...]
    """JSON schemas."""
    licence: str
    """In the words of the row, or "unknown"."""
    origin: str
    """The source as the user gave it, for the attribution list."""


def read_conversations(
    sources: Sequence[str], *, num_conversations: int | None = None
) -> tuple[list[Conversation], list[Unreadable]]:
    """Conversations of all sources: in the order of the sources, inside one by path, inside a file by row.

    Args:
        sources: each "location" or "category=location"; a file that several of them name is read once.
        num_conversations: rows to read in all, unreadable ones among them; None reads everything. The sources take
            turns row by row.
    Returns:
        Conversations with different ids (a repeated one gets "#2"), and what could not be read.
    Raises:
        FileNotFoundError: if a source is not there.
        ValueError: if a source holds no conversation, is truncated or damaged, does not answer, or has a format that is
            not read here.
    """
    if not sources:
        raise ValueError("sources is empty; name at least one file, directory, glob or URI")
    if num_conversations is not None and num_conversations < 1:
        raise ValueError(f"num_conversations={num_conversations} must be at least 1, or None for everything")
    unreadable: list[Unreadable] = []
    streams = []
    known: set[str] = set()
    for source in sources:
        files, others = files_of_source(source)
        unreadable += others
        streams.append(rows_of_files(source, [file for file in files if file.location not in known], num_conversations))
        known |= {file.location for file in files}
    in_turn = cast(Callable[..., list[Conversation | Unreadable]], rows_in_turn)  # whatever the rows are
    rows = in_turn(streams, num_conversations)
    conversations = [row for row in rows if isinstance(row, Conversation)]
    named = with_different_ids(Document(row.id, row.id, "", "", "", "") for row in conversations)
    different = [replace(row, id=document.id) for row, document in zip(conversations, named, strict=True)]
    return different, unreadable + [row for row in rows if isinstance(row, Unreadable)]


def rows_of_files(
    source: str, files: Sequence[SourceFile], num_rows: int | None
) -> Iterator[Conversation | Unreadable]:
    """The rows of one source's files, one after the other.

    Raises:
        ValueError: if there are files and no conversation in any of them, or one cannot be read to its end.
    """
    category, location = split_category(source)
    if location == source:  # the user named none
        category = DEFAULT_CATEGORY
    num_unreadable = num_conversations = 0
    first_reason = ""
    for file in files:
        if file.location.endswith(".parquet"):
            rows = parquet_rows(file, num_rows)
        elif file.location.endswith(".txt"):
            rows = iter([Unreadable(file.name, "plain text holds no conversations")])
        else:
            rows = json_rows(file)
        for index, row in enumerate(rows):
            read = row if isinstance(row, Unreadable) else row_read(row, f"{file.name}#{index}", category, location)
            if isinstance(read, Conversation):
                num_conversations += 1
            else:
                num_unreadable += 1
                first_reason = first_reason or f", the first is {read.id}: {read.reason}"
            yield read
    if files and not num_conversations:
        raise ValueError(
            f"{source} holds no conversation ({num_unreadable} unreadable{first_reason}); name another source"
        )


def json_rows(file: SourceFile) -> Iterator[Row | Unreadable]:
    """One row a line; blank lines are none."""
    index = -1
    for line_number, line in enumerate(lines_of(file.location), start=1):
        if not line.strip():
            continue
        index += 1
        try:
            row = json.loads(line.decode("utf-8-sig" if line_number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            reason = f"line {line_number} is not UTF-8: {error.reason} at byte {error.start}"
            yield Unreadable(f"{file.name}#{index}", reason)
            continue
        except (ValueError, RecursionError) as error:
            yield Unreadable(f"{file.name}#{index}", f"line {line_number} is not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield row
        else:
            reason = f"line {line_number} is no JSON object but {type(row).__name__}"
            yield Unreadable(f"{file.name}#{index}", reason)


def parquet_rows(file: SourceFile, num_rows: int | None) -> Iterator[Row | Unreadable]:
    """One row a row, `num_rows` at most; only the columns that are used are read."""
    location = file.location
    if not SCHEME.match(location):
        location = glob.escape(os.path.abspath(location))  # Daft takes every path for a glob
    with one_sentence(file.location):
        table = daft.read_parquet(location, io_config=REMOTE)
        if "messages" not in table.column_names:
            found = ", ".join(sorted(table.column_names)) or "none"
            raise ValueError(f"{file.location} has no column 'messages', only {found}; name another source")
        table = table.select(*(column for column in COLUMNS if column in table.column_names))
        batches = (table if num_rows is None else table.limit(num_rows)).to_arrow_iter()
    while True:
        with one_sentence(file.location):
            batch = next(batches, None)
        if batch is None:
            return
        yield from batch.to_pylist()


# One row --------------------------------------------------------------------------------------------------------------


def row_read(row: Row, name: str, category: str, origin: str) -> Conversation | Unreadable:
    """The conversation in one row, or what is wrong with it.

    Args:
        name: what the row is called if it has no id.
        category: where the row has none.
    """
    name = stated(row, ID_COLUMNS) or name
    try:
        messages = messages_of(row.get("messages"))
        reasoning = reasoning_of(row.get("reasoning"), messages)
        tools = tools_of(row)
    except ValueError as error:
        return Unreadable(name, str(error))
    return Conversation(
        name,
        stated(row, ("category",)) or category,
        reasoning == "on",
        flagged(messages, reasoning),
        tools,
        stated(row, LICENCE_COLUMNS) or "unknown",
        origin,
    )


def stated(row: Row, columns: Sequence[str]) -> str | None:
    """The first of the columns that holds text, or a number."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip() and is_unicode(value):
            return value
    return None


def messages_of(values: Any) -> list[Row]:
    """The messages, with nothing in them but role, content and calls.

    Raises:
        ValueError: which message is malformed, and how.
    """
    if values is None:
        raise ValueError("it has no 'messages'")
    if not isinstance(values, list):
        raise ValueError(f"'messages' is {type(values).__name__}, not a list")
    if not values:
        raise ValueError("'messages' is empty")
    messages = []
    for index, value in enumerate(values):
        name = f"messages[{index}]"
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {'null' if value is None else type(value).__name__}, not an object")
        role, content, calls = value.get("role"), value.get("content"), value.get("tool_calls") or []
        if role not in ROLES:
            raise ValueError(f"{name} has the role {role!r}, which is none of {', '.join(ROLES)}")
        if content is None and role == "assistant" and calls:
            content = ""
        if not isinstance(content, str):
            raise ValueError(f"{name} has {'no' if content is None else type(content).__name__ + ' as'} content")
        if not is_unicode(content):
            raise ValueError(f"{name} holds half a surrogate pair, which is no character")
        if not isinstance(calls, list):
            raise ValueError(f"{name} has tool_calls that are {type(calls).__name__}, not a list")
        message: Row = {"role": role, "content": content}
        if calls:
            message["tool_calls"] = [call_of(call, name) for call in calls]
        messages.append(message)
    return messages


def call_of(value: Any, name: str) -> Row:
    """A tool call, its arguments as an object.

    Raises:
        ValueError: if it has no name, or arguments that are no JSON object.
    """
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{name} has a tool call without a function's name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"{name} calls {function['name']!r} with arguments that are")
    if not isinstance(arguments, dict):
        raise ValueError(f"{name} calls {function['name']!r} with arguments that are no JSON object")
    call = {"name": function["name"], "arguments": arguments}
    if not is_unicode(json.dumps(call, ensure_ascii=False)):
        raise ValueError(f"{name} holds half a surrogate pair, which is no character")
    return {"type": "function", "function": call}


def reasoning_of(value: Any, messages: Sequence[Row]) -> str:
    """ "on" or "off": what the row says, else whether the assistant thinks in any of its turns.

    Raises:
        ValueError: if the row says something else.
    """
    if value is None:
        traces = (TRACE.match(message["content"]) for message in messages if message["role"] == "assistant")
        return "on" if any(trace and trace[1].strip() for trace in traces) else "off"
    if not isinstance(value, str) or value not in FLAGS:
        raise ValueError(f"'reasoning' is {value!r}, neither 'on' nor 'off'")
    return value


def tools_of(row: Row) -> tuple[Row, ...]:
    """The tools of a row: of its column, or of its metadata.

    Raises:
        ValueError: if they, or the metadata, are malformed.
    """
    tools = row.get("tools")
    metadata = row.get("metadata")
    if isinstance(metadata, str) and metadata.strip():
        metadata = parsed(metadata, "'metadata' is")
    if tools is None and isinstance(metadata, dict):
        tools = metadata.get("tools")
    if isinstance(tools, str):
        tools = parsed(tools, "'tools' is") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("'tools' is no list of objects")
    if not is_unicode(json.dumps(tools, ensure_ascii=False)):
        raise ValueError("'tools' holds half a surrogate pair, which is no character")
    return tuple(tools)


def parsed(text: str, subject: str) -> Any:
    """What JSON says.

    Raises:
        ValueError: if it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{subject} no JSON: {error}") from error


def flagged(messages: Sequence[Row], reasoning: str) -> tuple[Row, ...]:
    """The messages with the control flag in the system text, and the traces of all replies in one spelling."""
    first = messages[0]
    system = first["content"] if first["role"] == "system" else ""
    text = f"{system}\n{FLAGS[reasoning]}" if system.strip() else FLAGS[reasoning]
    rest = messages[1:] if first["role"] == "system" else messages
    rest = [
        {**message, "content": in_one_spelling(message["content"], reasoning)}
        if message["role"] == "assistant"
        else message
        for message in rest
    ]
    return ({"role": "system", "content": text}, *rest)


def in_one_spelling(content: str, reasoning: str) -> str:
    """A reply whose thought begins on the line after its tag, as in prompts; with "<think></think>" if off and none."""
    trace = TRACE.match(content)
    if trace and trace[1].strip():
        thought = content.lstrip().removeprefix("<think>")
        return content if thought.startswith("\n") else f"<think>\n{thought.lstrip()}"
    if reasoning == "on":
        return content
    return NO_THINKING + (content[trace.end() :] if trace else content.lstrip())
