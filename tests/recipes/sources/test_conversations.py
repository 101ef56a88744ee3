"""Rows with the columns of NVIDIA's post-training datasets become conversations; unreadable rows are reported."""

import datetime
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources import listing, reading
from nemotron.recipes.sources.conversations import Conversation, read_conversations, row_conversation
from nemotron.recipes.sources.listing import REMOTE, SourceFile
from nemotron.recipes.sources.reading import Row

# The columns of nvidia/Nemotron-Post-Training-Dataset-v2, and the additional ones of -v1.
TEXT_COLUMNS = ["uuid", "license", "generator", "version", "category", "reasoning"]
MESSAGE_V2 = pa.struct([("role", pa.string()), ("content", pa.string())])
FUNCTION = pa.struct([("name", pa.string()), ("arguments", pa.string())])
CALL = pa.struct([("id", pa.string()), ("type", pa.string()), ("function", FUNCTION)])
MESSAGE_V1 = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(CALL))])
V2 = pa.schema([*((name, pa.string()) for name in TEXT_COLUMNS), ("messages", pa.list_(MESSAGE_V2))])
V1 = pa.schema([*((name, pa.string()) for name in [*TEXT_COLUMNS, "metadata"]), ("messages", pa.list_(MESSAGE_V1))])

TRACE = "<think>\nTwo and two.\n</think>\n\nFour"
ASKED = {"role": "user", "content": "2 + 2?"}
ADD = {"name": "add", "parameters": {"type": "object"}}


def row(name: str = "a", **changes: Any) -> dict[str, Any]:
    """A row of v2."""
    return {
        "uuid": name,
        "license": "CC-BY-4.0",
        "generator": "DeepSeek-R1-0528",
        "version": "2.0",
        "category": "math",
        "reasoning": "on",
        "messages": [ASKED, {"role": "assistant", "content": TRACE}],
        **changes,
    }


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = V2) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)
    else:
        content = b"".join(json.dumps(one).encode() + b"\n" for one in rows)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def read_one(path: Path, one: dict[str, Any], schema: pa.Schema = V2) -> Conversation:
    """The conversation in a file of one row."""
    [conversation], unreadable = read_conversations([write(path, [one], schema)])
    assert unreadable == []
    return conversation


SUFFIXES = ["jsonl", "jsonl.gz", "parquet"]


# The released columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_row_of_v2_becomes_a_conversation(tmp_path: Path, suffix: str, scheme: str) -> None:
    source = scheme + write(
        tmp_path / f"a.{suffix}", [row("a"), row("b", reasoning="off", category="chat", license=None)]
    )
    thinking, silent = read_conversations([source])[0]
    assert thinking == Conversation(
        id="a",
        category="math",
        reasoning=True,
        messages=({"role": "system", "content": "/think"}, ASKED, {"role": "assistant", "content": TRACE}),
        tools=(),
        licence="CC-BY-4.0",
        origin=source,
        num_added_messages=1,
    )
    assert (silent.id, silent.category, silent.reasoning, silent.licence) == ("b", "chat", False, "unknown")
    assert silent.messages[0] == {"role": "system", "content": "/no_think"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_of_v1_keeps_its_calls_and_tools(tmp_path: Path, suffix: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":2, "b": 2}'}}
    one = row(
        reasoning="off",
        category="tool_calling",
        metadata=json.dumps({"source": "x", "tools": [{"type": "function", "function": ADD}]}),
        messages=[
            {"role": "system", "content": "Use tools.", "tool_calls": None},
            {**ASKED, "tool_calls": []},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_calls": None},
            {"role": "assistant", "content": "Four", "tool_calls": None},
        ],
    )
    conversation = read_one(tmp_path / f"a.{suffix}", one, V1)
    assert conversation.tools == ({"type": "function", "function": ADD},)
    assert list(conversation.messages) == [
        {"role": "system", "content": "Use tools.\n/no_think"},
        ASKED,
        {
            "role": "assistant",
            "content": "<think></think>",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}],
        },
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "<think></think>Four"},
    ]


@pytest.mark.parametrize("metadata", [None, "", "{}", '{"tools": null}', '{"tools": []}', '{"tools": ""}', "[1]"])
def test_metadata_without_tools_gives_no_tools(tmp_path: Path, metadata: str | None) -> None:
    assert read_one(tmp_path / "a.parquet", row(metadata=metadata), V1).tools == ()


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [ADD]},
        {"tools": json.dumps([ADD])},
        {"metadata": {"tools": json.dumps([ADD])}},
        {"tools": [ADD], "metadata": {"tools": []}},
    ],
)
def test_tools_may_be_a_column_or_json_in_json(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert read_one(tmp_path / "a.jsonl", row(**columns)).tools == (ADD,)


def test_a_parquet_of_structs_gives_what_the_same_jsonl_gives(tmp_path: Path) -> None:
    """Parquet fills in a null for every key of a struct that a row lacks."""

    def calling(name: str, **arguments: Any) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
        }

    def tool_with(name: str, **properties: Any) -> dict[str, Any]:
        return {"name": name, "parameters": {"type": "object", "properties": properties}}

    weather = tool_with(
        "weather", city={"type": "string", "enum": ["Paris", None]}, days={"type": "integer", "minimum": 1}
    )
    stocks = tool_with("stocks", ticker={"type": "string"})
    rows = [
        row("a", messages=[ASKED, calling("weather", city="Paris"), calling("stocks", ticker="X", n=[1, None])]),
        row("b", tools=[weather, stocks], messages=[ASKED, calling("stocks")]),
        row("c", metadata={"tools": [weather], "page": 1}, messages=[ASKED, calling("weather", city="Rome")]),
    ]
    lines = write(tmp_path / "a.jsonl", rows)
    pq.write_table(
        pa.Table.from_pylist([{"tools": None, "metadata": None, **one} for one in rows]), tmp_path / "a.parquet"
    )
    expected = [(one.messages, one.tools) for one in read_conversations([lines])[0]]
    conversations, unreadable = read_conversations([str(tmp_path / "a.parquet")])
    assert unreadable == []
    assert [(one.messages, one.tools) for one in conversations] == expected
    assert expected[0][0][2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}


def test_a_map_in_a_parquet_is_an_object_and_keeps_its_nulls(tmp_path: Path) -> None:
    function = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    message = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(pa.struct([("function", function)])))]
    )
    call = {"function": {"name": "f", "arguments": [("city", "Paris"), ("day", None)]}}
    messages = [ASKED, {"role": "assistant", "content": "a", "tool_calls": [call]}]
    conversation = read_one(
        tmp_path / "a.parquet", {"messages": messages}, pa.schema([("messages", pa.list_(message))])
    )
    assert conversation.messages[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "day": None}


def test_structs_in_a_map_of_a_parquet_lose_their_padding(tmp_path: Path) -> None:
    place = pa.struct([("city", pa.string()), ("street", pa.string())])
    function = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), place))])
    message = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(pa.struct([("function", function)])))]
    )
    call = {"function": {"name": "f", "arguments": [("from", {"city": "Paris"}), ("to", None)]}}
    messages = [ASKED, {"role": "assistant", "content": "a", "tool_calls": [call]}]
    conversation = read_one(
        tmp_path / "a.parquet", {"messages": messages}, pa.schema([("messages", pa.list_(message))])
    )
    arguments = conversation.messages[2]["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"from": {"city": "Paris"}, "to": None}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_licence_under_another_name_is_stated(tmp_path: Path, suffix: str) -> None:
    schema = pa.schema([("Licenses", pa.list_(pa.string())), ("messages", pa.list_(MESSAGE_V2))])
    one = {"Licenses": ["GPL-3.0-only"], "messages": reply()}
    assert read_one(tmp_path / f"a.{suffix}", one, schema).licence == "GPL-3.0-only"


def test_arguments_and_tools_that_json_cannot_hold_are_reported(tmp_path: Path) -> None:
    day = datetime.date(2020, 1, 1)
    call = {"function": {"name": "f", "arguments": {"day": day}}}
    rows = [
        {"id": "a", "messages": [ASKED, {"role": "assistant", "content": "a", "tool_calls": [call]}]},
        {"id": "b", "messages": reply(), "tools": [{"name": "f", "default": day}]},
        {"id": "c", "messages": reply(), "tools": None},
    ]
    pq.write_table(pa.Table.from_pylist([{"tools": None, **one} for one in rows]), tmp_path / "a.parquet")
    conversations, unreadable = read_conversations([str(tmp_path / "a.parquet")])
    assert [one.id for one in conversations] == ["c"]
    assert [(one.id, one.reason) for one in unreadable] == [
        (
            "a",
            "messages[1] calls 'f' with arguments that JSON cannot hold: Object of type date is not JSON serializable",
        ),
        ("b", "'tools' is what JSON cannot hold: Object of type date is not JSON serializable"),
    ]


# Thinking -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasoning", "content", "expected"),
    [
        ("on", TRACE, TRACE),
        ("on", "Four", "Four"),
        ("on", "<think>\n\n</think>\n\nFour", "<think>\n\n</think>\n\nFour"),
        ("off", "Four", "<think></think>Four"),
        ("off", "\nFour", "<think></think>Four"),
        ("off", "<think></think>Four", "<think></think>Four"),
        ("off", "<think>\n\n</think>\n\nFour", "<think></think>Four"),
        ("off", TRACE, TRACE),
        ("on", "\n\n" + TRACE, "\n\n" + TRACE),
        ("on", "<think></think>Four", "<think></think>Four"),
        ("on", "<think>Two and two.", "<think>Two and two."),
        ("off", "The tag <think>x</think>", "<think></think>The tag <think>x</think>"),
    ],
)
def test_a_trace_is_kept_and_a_missing_one_is_marked_empty(
    tmp_path: Path, reasoning: str, content: str, expected: str
) -> None:
    messages = [ASKED, {"role": "assistant", "content": content}]
    conversation = read_one(tmp_path / "a.parquet", row(reasoning=reasoning, messages=messages))
    assert conversation.messages[1:] == (ASKED, {"role": "assistant", "content": expected})


@pytest.mark.parametrize("reasoning", ["on", "off"])
@pytest.mark.parametrize("between", ["", " ", " \n", "\r\n", "\t"])
@pytest.mark.parametrize("before", ["", " \n"])
def test_a_thought_begins_on_the_line_after_its_tag(tmp_path: Path, before: str, between: str, reasoning: str) -> None:
    content = TRACE.replace("<think>\n", f"{before}<think>{between}")
    messages = [ASKED, {"role": "assistant", "content": content}, {"role": "user", "content": content}]
    conversation = read_one(tmp_path / "a.jsonl", row(reasoning=reasoning, messages=messages))
    assert conversation.messages[2] == {"role": "assistant", "content": TRACE}
    assert conversation.messages[3] == messages[2]  # user messages are unchanged


@pytest.mark.parametrize(
    ("system", "reasoning", "expected"),
    [
        ("", "on", "/think"),
        (" \n", "off", "/no_think"),
        ("Be brief.", "on", "Be brief.\n/think"),
        ("Be brief. /think", "off", "Be brief. /think\n/no_think"),
    ],
)
def test_the_flag_is_at_the_end_of_the_system_text(tmp_path: Path, system: str, reasoning: str, expected: str) -> None:
    messages = [{"role": "system", "content": system}, *row()["messages"]]
    conversation = read_one(tmp_path / "a.parquet", row(reasoning=reasoning, messages=messages))
    assert conversation.messages[0] == {"role": "system", "content": expected}
    assert len(conversation.messages) == 3
    assert conversation.num_added_messages == 0


@pytest.mark.parametrize(
    ("contents", "reasoning"),
    [
        (["Four"], False),
        (["<think></think>Four"], False),
        ([TRACE], True),
        (["Four", TRACE], True),
        ([TRACE, "A"], True),
    ],
)
def test_reasoning_defaults_to_whether_a_reply_has_a_trace(
    tmp_path: Path, contents: list[str], reasoning: bool
) -> None:
    turns = [message for content in contents for message in (ASKED, {"role": "assistant", "content": content})]
    conversation = read_one(tmp_path / "a.parquet", row(reasoning=None, messages=turns))
    assert conversation.reasoning is reasoning
    assert conversation.messages[0]["content"] == ("/think" if reasoning else "/no_think")


def test_a_trace_in_a_user_message_is_ignored(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": TRACE}, {"role": "assistant", "content": "Four"}]
    assert not read_one(tmp_path / "a.jsonl", row(reasoning=None, messages=messages)).reasoning


def reply(**keys: Any) -> list[dict[str, Any]]:
    """The question and an answer to it with these keys."""
    return [ASKED, {"role": "assistant", "content": "Four", **keys}]


MESSAGE_V3 = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
V3 = pa.schema([("messages", pa.list_(MESSAGE_V3))])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reasoning_content_is_the_thought_before_the_content(tmp_path: Path, suffix: str) -> None:
    one = {"messages": reply(reasoning_content="Two and two.\n")}
    conversation = read_one(tmp_path / f"a.{suffix}", one, V3)
    assert conversation.reasoning
    assert conversation.messages == (
        {"role": "system", "content": "/think"},
        ASKED,
        {"role": "assistant", "content": TRACE},
    )


def test_reasoning_content_may_come_before_a_call(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages = reply(content=None, reasoning_content="Two.", tool_calls=[call])
    conversation = read_one(tmp_path / "a.jsonl", row(messages=messages))
    assert conversation.messages[2]["content"] == "<think>\nTwo.\n</think>\n\n"


@pytest.mark.parametrize("thought", [None, "", " \n"])
def test_an_empty_reasoning_content_is_not_a_thought(tmp_path: Path, thought: str | None) -> None:
    conversation = read_one(tmp_path / "a.jsonl", row(reasoning=None, messages=reply(reasoning_content=thought)))
    assert not conversation.reasoning
    assert conversation.messages[2] == {"role": "assistant", "content": "<think></think>Four"}


@pytest.mark.parametrize(("weight", "kept"), [(0, {"weight": 0}), (0.0, {"weight": 0}), (1, {}), (None, {})])
def test_only_the_weight_zero_is_kept(tmp_path: Path, weight: float | None, kept: dict[str, int]) -> None:
    messages = [*reply(weight=weight), *reply()]
    conversation = read_one(tmp_path / "a.jsonl", row(reasoning="off", messages=messages))
    assert conversation.messages[2] == {"role": "assistant", "content": "<think></think>Four", **kept}


def test_keys_that_say_nothing_are_ignored(tmp_path: Path) -> None:
    ignored = {"id": "m1", "name": "Ann", "refusal": None, "annotations": [], "audio": {}, "thinking": ""}
    messages = [{**ASKED, **ignored, "weight": 0}, {"role": "assistant", "content": TRACE, **ignored}]
    conversation = read_one(tmp_path / "a.jsonl", row(messages=messages))
    assert conversation.messages[1:] == (ASKED, {"role": "assistant", "content": TRACE})


# Names ----------------------------------------------------------------------------------------------------------------


def test_the_id_is_the_uuid_the_id_or_the_place_of_the_row(tmp_path: Path) -> None:
    rows = [row("a"), {**row(""), "id": "b"}, {**row(""), "id": 7}, row(""), row("\ud800"), row("a")]
    conversations, _unreadable = read_conversations([write(tmp_path / "data/x.jsonl", rows)])
    assert [one.id for one in conversations] == ["a", "b", "7", "x.jsonl#3", "x.jsonl#4", "a#2"]


def test_the_category_is_the_rows_else_the_users_else_chat(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [row(category="stem"), row(category=None)])
    assert [one.category for one in read_conversations([source])[0]] == ["stem", "chat"]
    named, _unreadable = read_conversations([f"code={source}"])
    assert [(one.category, one.origin) for one in named] == [("stem", source), ("code", source)]


def test_sources_take_turns_until_the_number_is_reached(tmp_path: Path) -> None:
    sources = [
        write(tmp_path / f"{name}.{suffix}", [row(f"{name}{number}") for number in range(count)])
        for name, suffix, count in (("a", "parquet", 9), ("b", "jsonl", 1), ("c", "jsonl.gz", 9))
    ]
    conversations, _unreadable = read_conversations(sources, num_conversations=6)
    assert [one.id for one in conversations] == ["a0", "a1", "a2", "b0", "c0", "c1"]
    assert len(read_conversations(sources)[0]) == 19


def test_directories_and_globs_are_read_and_each_file_once(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write(tmp_path / f"data/{suffix}/a.{suffix}", [row(suffix)])
    conversations, unreadable = read_conversations([str(tmp_path / "data"), f"{tmp_path}/data/*/*.jsonl"])
    assert ([one.id for one in conversations], unreadable) == (["jsonl.gz", "jsonl", "parquet"], [])


def test_a_file_with_two_categories_raises_a_value_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [row()])
    with pytest.raises(ValueError, match=r"a\.jsonl is both math and code; give it one category"):
        read_conversations([f"math={source}", f"code={source}"])


def test_no_more_rows_of_a_parquet_are_read_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Counting(pq.ParquetFile):
        def __init__(self, file: Any, **options: Any) -> None:
            super().__init__(file, **options)
            self.is_source = not isinstance(file, Path)  # but a file that curation wrote

        def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(*arguments, **options):
                sizes.extend([len(batch)] * self.is_source)
                yield batch

    monkeypatch.setattr(reading.pq, "ParquetFile", Counting)
    source = write(tmp_path / "a.parquet", [row(str(number)) for number in range(50)])
    assert [one.id for one in read_conversations([source], num_conversations=3)[0]] == ["0", "1", "2"]
    assert sum(sizes) == 3


def test_file_names_with_glob_characters_are_read(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        assert read_one(tmp_path / f"a[1]?.{suffix}", row("x")).id == "x"


# Unreadable rows ------------------------------------------------------------------------------------------------------

NO_CALL = "messages[0] has a tool call without a function's name"
MALFORMED = [
    ({"messages": None}, "it has no 'messages'"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": "2 + 2?"}, "'messages' is str, not a list"),
    ({"messages": {"role": "user"}}, "'messages' is dict, not a list"),
    ({"messages": [ASKED, None]}, "messages[1] is null, not an object"),
    ({"messages": ["2 + 2?"]}, "messages[0] is str, not an object"),
    (
        {"messages": [{"role": "human", "content": "a"}]},
        "messages[0] has the role 'human', not one of system, user, assistant, tool",
    ),
    ({"messages": [{"content": "a"}]}, "messages[0] has the role None, not one of system, user, assistant, tool"),
    ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "messages[1] has no content"),
    ({"messages": [{"role": "user", "content": None, "tool_calls": [1]}]}, "messages[0] has no content"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages[0] has list as content"),
    (
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        "messages[0] holds half a surrogate pair, which is not a character",
    ),
    ({"messages": [{**ASKED, "tool_calls": {"a": 1}}]}, "messages[0] has tool_calls that are dict, not a list"),
    ({"messages": [{**ASKED, "tool_calls": ["add"]}]}, NO_CALL),
    ({"messages": [{**ASKED, "tool_calls": [{"function": "add"}]}]}, NO_CALL),
    ({"messages": [{**ASKED, "tool_calls": [{"function": {"name": "", "arguments": "{}"}}]}]}, NO_CALL),
    (
        {"messages": [{**ASKED, "tool_calls": [{"function": {"name": "add", "arguments": "a=1"}}]}]},
        "messages[0] calls 'add' with arguments that are not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        {"messages": [{**ASKED, "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}]},
        "messages[0] calls 'add' with arguments that are not a JSON object",
    ),
    (
        {"messages": [{**ASKED, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": "\\ud83d"}'}}]}]},
        "messages[0] holds half a surrogate pair, which is not a character",
    ),
    (
        {"messages": [{**ASKED, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1, "a": 2}'}}]}]},
        "messages[0] calls 'add' with arguments that are JSON with the key 'a' twice in one object",
    ),
    (
        {"messages": reply(refusal="I cannot.")},
        "messages[1] has the key 'refusal', which is not read; move what it says into content, or remove it",
    ),
    (
        {"messages": reply(train=False)},
        "messages[1] has the key 'train', which is not read; move what it says into content, or remove it",
    ),
    (
        {"messages": [{**ASKED, "images": ["a.png"]}]},
        "messages[0] has the key 'images', which is not read; move what it says into content, or remove it",
    ),
    (
        {"messages": [{**ASKED, "reasoning_content": "Two."}]},
        "messages[0] has reasoning_content in a user message; only an assistant thinks",
    ),
    (
        {"messages": reply(tool_calls=[{"function": {"name": "add", "arguments": {}, "result": "4"}}])},
        "messages[1] calls 'add' with the key 'result', which is not read; remove it",
    ),
    ({"messages": reply(reasoning_content=["Two."])}, "messages[1] has list as reasoning_content"),
    (
        {"messages": reply(reasoning_content="\ud83d")},
        "messages[1] holds half a surrogate pair, which is not a character",
    ),
    (
        {"messages": reply(reasoning_content="Two.", content=TRACE)},
        "messages[1] has reasoning_content and a thinking tag in its content; keep one of them",
    ),
    ({"messages": reply(weight=0.5)}, "messages[1] has the weight 0.5, neither 0 nor 1"),
    ({"messages": reply(weight=2)}, "messages[1] has the weight 2, neither 0 nor 1"),
    ({"messages": reply(weight="0")}, "messages[1] has the weight '0', neither 0 nor 1"),
    ({"messages": reply(weight=0)}, "every assistant message has the weight 0, so there is nothing to learn"),
    (
        {"system_prompt": "Answer in French."},
        "it has the column 'system_prompt', which is not read; move what it says into a system message, or remove it",
    ),
    (
        {"System": ["Answer in French."]},
        "it has the column 'System', which is not read; move what it says into a system message, or remove it",
    ),
    ({"reasoning": "maybe"}, "'reasoning' is 'maybe', neither 'on' nor 'off'"),
    ({"reasoning": True}, "'reasoning' is True, neither 'on' nor 'off'"),
    ({"reasoning": ["on"]}, "'reasoning' is ['on'], neither 'on' nor 'off'"),
    ({"metadata": "tools"}, "'metadata' is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ({"metadata": '{"tools": "add"}'}, "'tools' is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ({"metadata": '{"tools": ["add"]}'}, "'tools' is not a list of objects"),
    ({"metadata": '{"a": {"b": 1, "b": 1}}'}, "'metadata' is JSON with the key 'b' twice in one object"),
    ({"tools": {"name": "add"}}, "'tools' is not a list of objects"),
    ({"tools": [{"name": "\udc00"}]}, "'tools' holds half a surrogate pair, which is not a character"),
]


@pytest.mark.parametrize(("changes", "reason"), MALFORMED)
def test_a_malformed_row_is_reported_with_its_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    conversations, unreadable = read_conversations([write(tmp_path / "a.jsonl", [row("good"), row("bad", **changes)])])
    assert [one.id for one in conversations] == ["good"]
    assert [(one.id, one.reason) for one in unreadable] == [("bad", reason)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": None}, "it has no 'messages'"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": [{"role": "human", "content": "a"}]}, "messages[0] has the role 'human'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0] has no content"),
        ({"messages": [None]}, "messages[0] is null, not an object"),
        ({"reasoning": "maybe"}, "'reasoning' is 'maybe'"),
    ],
)
def test_a_malformed_parquet_row_is_reported_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    source = write(tmp_path / "a.parquet", [row("good"), row("bad", **changes)])
    conversations, unreadable = read_conversations([source])
    assert [one.id for one in conversations] == ["good"]
    assert [one.id for one in unreadable] == ["bad"]
    assert unreadable[0].reason.startswith(reason)


def test_a_system_column_of_a_parquet_with_a_value_is_reported(tmp_path: Path) -> None:
    schema = V2.append(pa.field("system", pa.string()))
    rows = [row("good", system=None), row("empty", system=""), row("bad", system="Answer in French.")]
    conversations, unreadable = read_conversations([write(tmp_path / "a.parquet", rows, schema)])
    assert [one.id for one in conversations] == ["good", "empty"]
    assert [(one.id, one.reason[:26]) for one in unreadable] == [("bad", "it has the column 'system'")]


def test_json_that_is_nested_too_deeply_is_reported(tmp_path: Path) -> None:
    rows = [row("good"), row("bad", metadata="[" * 100_000)]
    _conversations, [bad] = read_conversations([write(tmp_path / "a.jsonl", rows)])
    assert (bad.id, bad.reason[:25]) == ("bad", "'metadata' is not JSON: m")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"messages": [{"role": "user", "content": "a"}], "messages": []}', "messages"),
        ('{"messages": [{"role": "assistant", "content": "first", "content": "second"}]}', "content"),
        ('{"messages": [{"role": "user", "content": "a"}], "category": "math", "category": null}', "category"),
    ],
)
def test_a_line_with_a_repeated_key_is_unreadable(tmp_path: Path, line: str, key: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row('good'))}\n{line}")
    conversations, unreadable = read_conversations([str(tmp_path / "a.jsonl")])
    assert [one.id for one in conversations] == ["good"]
    reason = f"line 2 is JSON with the key '{key}' twice in one object"
    assert [(one.id, one.reason) for one in unreadable] == [("a.jsonl#1", reason)]


def test_broken_lines_are_reported_and_the_others_read(tmp_path: Path) -> None:
    good = json.dumps(row("good")).encode()
    lines = [b"\xef\xbb\xbf" + good, b'{"messages": "\xff"}', b"", b"{", b"[1]", b"[" * 100_000, b"{}"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    conversations, unreadable = read_conversations([str(tmp_path / "a.jsonl")])
    assert [one.id for one in conversations] == ["good"]
    expected = {
        "a.jsonl#1": "line 2 is not UTF-8: invalid start byte at byte 14",
        "a.jsonl#2": "line 4 is not JSON: ",
        "a.jsonl#3": "line 5 is not a JSON object but list",
        "a.jsonl#4": "line 6 is not JSON: ",
        "a.jsonl#5": "it has no 'messages'",
    }
    assert [one.id for one in unreadable] == list(expected)
    for one in unreadable:
        assert one.reason.startswith(expected[one.id])


WORDS = st.sampled_from(["user", "assistant", "on", "off", "{}", "[]", "\ud800"])
KEYS = st.sampled_from(
    ["role", "content", "reasoning_content", "weight", "tool_calls", "function", "name", "arguments", "tools"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
CHANGES = st.dictionaries(st.sampled_from(["uuid", "messages", "reasoning", "metadata", "tools", "category"]), JSON)


@given(CHANGES, st.none() | JSON)
def test_any_row_is_a_conversation_or_reported(changes: dict[str, Any], message: Any) -> None:
    one = row(messages=[ASKED] if message is None else [ASKED, message])
    read = row_conversation(Row("name", {**one, **changes}), SourceFile("a.jsonl", "a.jsonl", "chat", "origin"))
    assert isinstance(read, Conversation) or (read.reason and "\n" not in read.reason)


def test_other_formats_in_a_directory_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "data/a.jsonl", [row()])
    (tmp_path / "data/b.txt").write_text("words")
    (tmp_path / "data/c.md").write_text("words")
    conversations, unreadable = read_conversations([str(tmp_path / "data")])
    assert len(conversations) == 1
    assert {(one.id, one.reason) for one in unreadable} == {
        ("data/b.txt", "plain text holds no conversations"),
        ("data/c.md", "not one of .txt, .jsonl, .jsonl.gz, .parquet"),
    }


# Errors ---------------------------------------------------------------------------------------------------------------


def test_the_error_for_a_source_without_conversations_has_the_first_reason(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "words"}, {"text": "more"}])
    sentence = r"a\.jsonl holds no conversation \(2 unreadable, the first is a\.jsonl#0: it has no 'messages'\); name"
    with pytest.raises(ValueError, match=sentence):
        read_conversations([source])


def test_the_error_for_a_parquet_without_messages_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": ["b"]}), tmp_path / "a.parquet")
    sentence = r"a\.parquet has no column 'messages', only id, text; name another source$"
    with pytest.raises(ValueError, match=sentence):
        read_conversations([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet"])
def test_a_truncated_file_raises_a_value_error(tmp_path: Path, suffix: str) -> None:
    path = Path(write(tmp_path / f"a.{suffix}", [row(str(number)) for number in range(50)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"is truncated or damaged \(.*\); get it again"):
        read_conversations([str(path)])


def test_a_parquet_with_damaged_pages_raises_a_value_error(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.parquet", [row(str(number)) for number in range(50)]))
    content = bytearray(path.read_bytes())
    content[2_000:8_000] = b"x" * 6_000  # between the header and the footer
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet is truncated or damaged|a\.parquet cannot be read"):
        read_conversations([str(path)])


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "data", "data/*.jsonl"])
def test_a_missing_source_raises_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_conversations([f"{tmp_path}/{name}"])


def test_no_sources_or_a_number_below_one_raise_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sources is empty; name at least one"):
        read_conversations([])
    with pytest.raises(ValueError, match="num_conversations=0 must be at least 1"):
        read_conversations([write(tmp_path / "a.jsonl", [row()])], num_conversations=0)


# URIs -----------------------------------------------------------------------------------------------------------------


def test_uris_are_read_through_daft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daft's functions are replaced by ones that read a local directory."""
    root = "hf://datasets/nvidia/Nemotron-Post-Training-Dataset-v2"
    write(tmp_path / "data/chat.parquet", [row("a")])
    write(tmp_path / "data/code.jsonl", [row("b")])
    real, calls = reading.daft, []

    class Border:
        exceptions = real.exceptions

        def from_glob_path(self, path: str, io_config: object) -> Any:
            calls.append(("list", path, io_config))
            return real.from_pydict({"path": [f"{root}/data/chat.parquet", f"{root}/data/code.jsonl"]})

        def File(self, path: str, io_config: object) -> Any:
            calls.append(("bytes", path, io_config))
            return real.File(path.replace(root, f"file://{tmp_path}"))

    for module in (listing, reading):
        monkeypatch.setattr(module, "daft", Border())
    conversations, _unreadable = read_conversations([root])
    assert [(one.id, one.origin) for one in conversations] == [("a", root), ("b", root)]
    assert calls[0] == ("list", f"{root}/**", REMOTE)
    assert sorted(calls[1:], key=lambda call: call[1]) == [  # files are read at the same time
        ("bytes", f"{root}/data/chat.parquet", REMOTE),
        ("bytes", f"{root}/data/code.jsonl", REMOTE),
    ]
