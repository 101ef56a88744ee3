"""Conversations from the user: files, directories, globs and URIs of .jsonl, .jsonl.gz and .parquet.

In: sources, each "location" or "category=location", as `listing.py` finds them. Out: conversations, and a named reason
for each row that does not become one. A row has the columns of nvidia/Nemotron-Post-Training-Dataset-v1 or -v2:

    messages    list of {role, content}, in v1 with tool_calls [{id, type, function {name, arguments: JSON}}], in newer
                sets with reasoning_content, the thought before the content; "weight": 0 keeps a reply out of the loss
    reasoning   "on" or "off"; if missing, a conversation with a thinking trace is "on" (our choice)
    uuid or id, category, license   used if present; of a list of licenses, all apply. Other names of the
                column: `LICENCE_COLUMNS` of licences.py
    metadata    v1: JSON, whose "tools" are the conversation's tools. A column "tools" is read as well.

    python -c "from nemotron.recipes.sources.conversations import *; print(read_conversations(['math=chats.jsonl']))"

The reasoning of a row becomes a control flag at the end of the system text, /think or /no_think. A reply without
thinking gets the empty trace "<think></think>", and a thought begins on the line after its tag. A flag in a later user
message overrides the system text, as everywhere. Arguments of calls are returned as objects. A message with another key
that has a value makes its row unreadable, except for those in `IGNORED_KEYS`, and so does a key that occurs twice or a
value in one of `SYSTEM_COLUMNS`. The recipe checks whether it can train on a conversation. Left out: every other
column, such as generator, version and chat_template_kwargs; names, and the ids of messages and calls.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from nemotron.recipes.sources.documents import Document, Unreadable, read_documents, write_documents
from nemotron.recipes.sources.licences import licence_columns, row_licence
from nemotron.recipes.sources.listing import SourceFile
from nemotron.recipes.sources.reading import (
    MAX_DOCUMENT_CHARACTERS,
    Row,
    is_unicode,
    json_rows,
    parquet_rows,
    stated_id,
    stated_text,
)
from nemotron.recipes.sources.writing import Kind, write_items
from nemotron.strict import RepeatedKey, load_json

ROLES = ("system", "user", "assistant", "tool")
ID_COLUMNS = ("uuid", "id")
COLUMNS = (*ID_COLUMNS, "category", "reasoning", "metadata", "tools", "messages")
SYSTEM_COLUMNS = {"system", "system_prompt", "system_message", "system_instruction", "system_instructions"}
"""Columns, in upper or lower case, that say what a system message should; a row that has a value there is refused."""
DEFAULT_CATEGORY = "chat"  # our choice, if neither the row nor the user names one
FLAGS = {"on": "/think", "off": "/no_think"}
THINKING = "<think>\n{}\n</think>\n\n{}"
NO_THINKING = "<think></think>"
TRACE = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)

READ_KEYS = {"role", "content", "reasoning_content", "tool_calls", "weight"}
IGNORED_KEYS = {"id", "name", "tool_call_id", "timestamp", "model"}
"""Keys of a message that say who wrote it and when, not what it says."""

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One conversation, with messages in the format of chat templates."""

    id: str
    """Unique; the row's own id, or "<file>#<row>"."""
    category: str
    """The row's ("math", "code", "tool_calling", ...), else the one that the user names, else "chat"."""
    reasoning: bool
    """Whether the assistant thinks; the messages say the same with a control flag."""
    messages: tuple[Message, ...]
    """{"role", "content"}, "tool_calls" if there are any, and "weight": 0 on a reply that is kept out of the loss."""
    tools: tuple[Tool, ...]
    """JSON schemas."""
    licence: str
    """As the row words it, or `UNKNOWN_LICENCE`."""
    origin: str
    """The source as the user gave it, for the attribution list."""
    num_added_messages: int = 0
    """Messages at the start that the row does not have: 1 for a system message that holds only the control flag."""


def read_conversations(
    sources: Sequence[str], *, num_conversations: int | None = None
) -> tuple[list[Conversation], list[Unreadable]]:
    """`write_conversations`, for conversations that fit into memory."""
    with TemporaryDirectory() as directory:
        paths, unreadable = write_conversations(sources, Path(directory), num_conversations=num_conversations)
        return list(stored_conversations(paths)), unreadable


def write_conversations(
    sources: Sequence[str], directory: Path, *, num_conversations: int | None = None
) -> tuple[list[Path], list[Unreadable]]:
    """Write the conversations of all sources, for `stored_conversations`; see `write_items`."""
    return write_items(
        Kind("conversation", DEFAULT_CATEGORY, file_conversations), sources, directory, num_conversations
    )


def store_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write one file of conversations, for `stored_conversations`."""
    write_documents(path, map(conversation_document, conversations))


def stored_conversations(paths: Iterable[Path]) -> Iterator[Conversation]:
    """The conversations of Parquet files, in the order of the files."""
    return map(document_conversation, read_documents(paths))


def first_of_categories(paths: Iterable[Path]) -> list[Conversation]:
    """The first conversation of each category in Parquet files, by the names of the categories."""
    first: dict[str, Document] = {}
    for document in read_documents(paths):
        first.setdefault(document.category, document)
    return [document_conversation(first[category]) for category in sorted(first)]


def conversation_document(conversation: Conversation) -> Document:
    """A conversation as it is kept in files: its text is JSON."""
    one = conversation
    text = json.dumps([one.reasoning, one.messages, one.tools, one.num_added_messages], ensure_ascii=False)
    return Document(one.id, one.id, one.category, text, one.licence, one.origin)


def document_conversation(document: Document) -> Conversation:
    """The conversation that `conversation_document` was given."""
    reasoning, messages, tools, num_added = json.loads(document.text)
    one = document
    return Conversation(
        one.id, one.category, reasoning, tuple(messages), tuple(tools), one.licence, one.origin, num_added
    )


def file_conversations(file: SourceFile, num_rows: int | None) -> Iterator[Document | Unreadable]:
    """The conversations of one file as documents, at most `num_rows` of a .parquet file."""
    if file.location.endswith(".txt"):
        yield Unreadable(file.name, "plain text holds no conversations")
        return
    rows: Iterator[Row | Unreadable]
    if file.location.endswith(".parquet"):
        rows = parquet_rows(file, num_rows, lambda schema: conversation_columns(file, schema))
    else:
        rows = json_rows(file)
    for row in rows:
        found = row if isinstance(row, Unreadable) else row_conversation(row, file)
        yield found if isinstance(found, Unreadable) else conversation_document(found)


def conversation_columns(file: SourceFile, schema: pa.Schema) -> list[str]:
    """The columns of a .parquet file that conversations need.

    Raises:
        ValueError: if there is no column 'messages'.
    """
    names = schema.names
    if "messages" not in names:
        found = ", ".join(sorted(names)) or "none"
        raise ValueError(f"{file.location} has no column 'messages', only {found}; name another source")
    wanted = {*COLUMNS, *filter(is_system_column, names), *licence_columns(schema)}
    return [name for name in dict.fromkeys(names) if name in wanted]


# One row --------------------------------------------------------------------------------------------------------------


def row_conversation(row: Row, file: SourceFile) -> Conversation | Unreadable:
    """The conversation in one row, or what is wrong with it."""
    name = stated_id(row, ID_COLUMNS)
    try:
        if column := next((name for name, value in row.columns.items() if is_system_column(name) and value), None):
            raise ValueError(
                f"it has the column {column!r}, which is not read; move what it says into a system message, or "
                f"remove it"
            )
        messages = parse_messages(row.columns.get("messages"))
        reasoning = parse_reasoning(row.columns.get("reasoning"), messages)
        tools = parse_tools(row.columns.get("tools"), row.columns.get("metadata"))
    except ValueError as error:
        return Unreadable(name, str(error))
    return Conversation(
        name,
        stated_text(row, ["category"]) or file.category,
        reasoning == "on",
        with_control_flag(messages, reasoning),
        tools,
        row_licence(row),
        file.source,
        num_added_messages=0 if messages[0]["role"] == "system" else 1,
    )


def is_system_column(name: str) -> bool:
    """Whether a column is one of `SYSTEM_COLUMNS`."""
    return name.casefold() in SYSTEM_COLUMNS


def parse_messages(values: Any) -> list[Message]:
    """The messages, reduced to role, content with the thought, calls, and a weight of 0.

    Raises:
        ValueError: if a message is malformed or has a key that is not read; says which one and how.
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
            raise ValueError(f"{name} has the role {role!r}, not one of {', '.join(ROLES)}")
        if content is None and role == "assistant" and calls:
            content = ""
        if not isinstance(content, str):
            raise ValueError(f"{name} has {'no' if content is None else type(content).__name__ + ' as'} content")
        if not is_unicode(content):
            raise ValueError(f"{name} holds half a surrogate pair, which is not a character")
        if not isinstance(calls, list):
            raise ValueError(f"{name} has tool_calls that are {type(calls).__name__}, not a list")
        if key := unread_key(value, READ_KEYS | IGNORED_KEYS):
            raise ValueError(
                f"{name} has the key {key!r}, which is not read; move what it says into content, or remove it"
            )
        content = with_thought(content, value.get("reasoning_content"), role, name)
        if len(content) > MAX_DOCUMENT_CHARACTERS:
            raise ValueError(f"{name} has more than {MAX_DOCUMENT_CHARACTERS:,} characters; cut it")
        message: Message = {"role": role, "content": content}
        if calls:
            message["tool_calls"] = [parse_call(call, name) for call in calls]
        weight = value.get("weight")
        if role == "assistant" and weight is not None:
            if not isinstance(weight, int | float) or weight not in (0, 1):
                raise ValueError(f"{name} has the weight {weight!r}, neither 0 nor 1")
            if not weight:
                message["weight"] = 0
        messages.append(message)
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    if weights and not any(weights):
        raise ValueError("every assistant message has the weight 0, so there is nothing to learn")
    return messages


def with_thought(content: str, thought: Any, role: str, name: str) -> str:
    """The content after its thought, which newer datasets keep in 'reasoning_content'.

    Raises:
        ValueError: if the thought is not text, is not an assistant's, or is not the only one.
    """
    if thought is None or (isinstance(thought, str) and not thought.strip()):
        return content
    if role != "assistant":
        raise ValueError(f"{name} has reasoning_content in a {role} message; only an assistant thinks")
    if not isinstance(thought, str):
        raise ValueError(f"{name} has {type(thought).__name__} as reasoning_content")
    if not is_unicode(thought):
        raise ValueError(f"{name} holds half a surrogate pair, which is not a character")
    if "<think>" in content or "</think>" in content:
        raise ValueError(f"{name} has reasoning_content and a thinking tag in its content; keep one of them")
    return THINKING.format(thought.strip(), content.strip())


def unread_key(value: dict[str, Any], known: Set[str]) -> str | None:
    """The first key that is not known and has a value."""
    empty: tuple[Any, ...] = (None, "", [], {})
    return next((ascii(key)[1:-1] for key in value if key not in known and value[key] not in empty), None)


def parse_call(value: Any, name: str) -> dict[str, Any]:
    """A tool call, with its arguments as an object.

    Raises:
        ValueError: if it has no name, or its arguments are not a JSON object.
    """
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{name} has a tool call without a function's name")
    if key := unread_key(value, {"id", "type", "index", "function"}) or unread_key(function, {"name", "arguments"}):
        raise ValueError(f"{name} calls {function['name']!r} with the key {key!r}, which is not read; remove it")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{name} calls {function['name']!r} with arguments that are")
    if not isinstance(arguments, dict):
        raise ValueError(f"{name} calls {function['name']!r} with arguments that are not a JSON object")
    call = {"name": function["name"], "arguments": arguments}
    if not is_unicode(to_json(call, f"{name} calls {function['name']!r} with arguments that")):
        raise ValueError(f"{name} holds half a surrogate pair, which is not a character")
    return {"type": "function", "function": call}


def parse_reasoning(value: Any, messages: Sequence[Message]) -> str:
    """ "on" or "off": the row's value, else whether the assistant thinks in any of its turns.

    Raises:
        ValueError: if the row has another value.
    """
    if value is None:
        traces = (TRACE.match(message["content"]) for message in messages if message["role"] == "assistant")
        return "on" if any(trace and trace[1].strip() for trace in traces) else "off"
    if not isinstance(value, str) or value not in FLAGS:
        raise ValueError(f"'reasoning' is {value!r}, neither 'on' nor 'off'")
    return value


def parse_tools(tools: Any, metadata: Any) -> tuple[Tool, ...]:
    """The tools in the column 'tools', else those in the metadata.

    Raises:
        ValueError: if the tools or the metadata are malformed.
    """
    if isinstance(metadata, str) and metadata.strip():
        metadata = parse_json(metadata, "'metadata' is")
    if tools is None and isinstance(metadata, dict):
        tools = metadata.get("tools")
    if isinstance(tools, str):
        tools = parse_json(tools, "'tools' is") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("'tools' is not a list of objects")
    if not is_unicode(to_json(tools, "'tools' is what")):
        raise ValueError("'tools' holds half a surrogate pair, which is not a character")
    return tuple(tools)


def parse_json(text: str, subject: str) -> Any:
    """The value of a JSON text.

    Args:
        subject: the start of the error message, such as "'tools' is".
    Raises:
        ValueError: if the text is not JSON, or an object in it holds a key twice.
    """
    try:
        return load_json(text)
    except RepeatedKey as error:
        raise ValueError(f"{subject} {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{subject} not JSON: {error}") from error


def to_json(value: Any, subject: str) -> str:
    """The JSON text of a value; a .parquet file can hold dates, bytes and decimals, which JSON cannot.

    Args:
        subject: the start of the error message, such as "'tools' is what".
    Raises:
        ValueError: if JSON cannot hold the value.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{subject} JSON cannot hold: {error}") from error


def with_control_flag(messages: Sequence[Message], reasoning: str) -> tuple[Message, ...]:
    """The messages with the control flag in the system text and the replies normalized."""
    first = messages[0]
    system = first["content"] if first["role"] == "system" else ""
    text = f"{system}\n{FLAGS[reasoning]}" if system.strip() else FLAGS[reasoning]
    rest = messages[1:] if first["role"] == "system" else messages
    rest = [
        {**message, "content": normalize_reply(message["content"], reasoning)}
        if message["role"] == "assistant"
        else message
        for message in rest
    ]
    return ({"role": "system", "content": text}, *rest)


def normalize_reply(content: str, reasoning: str) -> str:
    """The reply with its thought on the line after the tag, as in prompts; if off, "<think></think>" for no thought."""
    trace = TRACE.match(content)
    if trace and trace[1].strip():
        thought = content.lstrip().removeprefix("<think>")
        return content if thought.startswith("\n") else f"<think>\n{thought.lstrip()}"
    if reasoning == "on":
        return content
    return NO_THINKING + (content[trace.end() :] if trace else content.lstrip())
