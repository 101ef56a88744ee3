"""The checks that all chat formats share, one sentence for each mistake."""

import re
from typing import Any

import pytest

from nemotron.recipes.chat.messages import (
    check_messages,
    check_order_and_tools,
    is_json_object,
    to_json,
    tool_schema,
)

ADD = {"name": "add", "parameters": {"type": "object", "properties": {}}}
FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Hi", *calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


def tool(content: Any = "3") -> dict[str, Any]:
    return {"role": "tool", "content": content}


def call(name: Any = "add", arguments: Any = None) -> dict[str, Any]:
    arguments = {"a": 1, "b": 2} if arguments is None else arguments
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_good_conversations_pass() -> None:
    calls = assistant("Let me see.", call(), call("find", "{}"))
    for messages in ([user()], [system(""), user(), calls, tool("3"), tool("")], [user(), assistant(None, call())]):
        check_messages(messages, [ADD, FIND])
        check_order_and_tools(messages, [ADD, FIND])


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages is empty or not a list; start with a system or a user message"),
        ("Hello", "messages is empty or not a list; start with a system or a user message"),
        ({"role": "user"}, "messages is empty or not a list; start with a system or a user message"),
        (None, "messages is empty or not a list; start with a system or a user message"),
        (["Hello"], "messages[0] has the role None; use system, user, assistant or tool"),
        ([{"content": "Hello"}], "messages[0] has the role None; use system, user, assistant or tool"),
        ([{"role": "human", "content": "a"}], "messages[0] has the role 'human'; use system, user, assistant or tool"),
        ([user(), system("late")], "messages[1] is a system message; only the first message may be one"),
        ([{"role": "user"}], "messages[0] has no content; give a string"),
        ([user(None)], "messages[0] has no content; give a string"),
        ([user([{"type": "text", "text": "Hello"}])], "messages[0] has content of type list; give a string"),
        ([user(), assistant(7, call())], "messages[1] has content of type int; give a string"),
        ([user(), assistant(0, call())], "messages[1] has content of type int; give a string"),
        ([user(), assistant(None)], "messages[1] has no content; give a string"),
        ([user(), assistant(" \n")], "messages[1] has neither content nor tool calls; give one of them"),
        (
            [{**user(), "reasoning_content": "Well."}],
            "messages[0] has reasoning_content in a user message; only an assistant thinks",
        ),
        ([{**assistant(), "reasoning_content": 7}], "messages[0] has reasoning_content of type int; give a string"),
        ([{**assistant("a"), "tool_calls": {"name": "f"}}], "messages[0] has tool_calls of type dict; give a list"),
        ([{**assistant("a"), "tool_calls": "f()"}], "messages[0] has tool_calls of type str; give a list"),
    ],
)
def test_malformed_messages_are_an_error(messages: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_messages(messages, [])


@pytest.mark.parametrize(
    "bad", [call(None), call(7), call("add", 7), call("add", [1]), {"function": "add"}, {"name": "add"}, "add", None]
)
def test_a_malformed_tool_call_is_an_error(bad: Any) -> None:
    sentence = (
        "messages[1] has a malformed tool call; write "
        '{"type": "function", "function": {"name": text, "arguments": object}}'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_messages([user(), assistant("a", call(), bad)], [])


def test_a_tool_that_is_not_an_object_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^tools\[1\] is of type str; give its JSON schema as an object$"):
        check_messages([user()], [ADD, "find"])  # type: ignore[list-item]


BEFORE = "put a user or a tool message before it"
NO_CALL = "is a tool message without a tool call; put the assistant's call before it"
NO_OBJECT = "messages[1] calls 'add' with arguments that are not a JSON object; give one"
SURROGATE = "contains a lone surrogate, which is not a character; remove it"
NO_NAME = "give every tool its own name"


@pytest.mark.parametrize(
    ("messages", "tools", "sentence"),
    [
        ([assistant(), user()], [], f"messages[0] is an assistant message after no message; {BEFORE}"),
        ([system("a"), assistant(), user()], [], f"messages[1] is an assistant message after system; {BEFORE}"),
        ([user(), assistant(), assistant()], [], f"messages[2] is an assistant message after assistant; {BEFORE}"),
        ([user(), tool()], [], f"messages[1] {NO_CALL}"),
        ([user(), assistant(), tool()], [], f"messages[2] {NO_CALL}"),
        ([tool()], [], f"messages[0] {NO_CALL}"),
        (
            [{**user(), "tool_calls": [call()]}],
            [ADD],
            "messages[0] has tool calls in a user message; only an assistant may call tools",
        ),
        (
            [user(), assistant("a", call("sub")), tool()],
            [ADD, FIND],
            "messages[1] calls 'sub', which is not among the tools (add, find); add the tool",
        ),
        (
            [user(), assistant("a", call()), tool()],
            [],
            "messages[1] calls 'add', which is not among the tools (none); add the tool",
        ),
        ([user(), assistant("a", call("add", "a=1")), tool()], [ADD], NO_OBJECT),
        ([user(), assistant("a", call("add", "[1, 2]")), tool()], [ADD], NO_OBJECT),
        ([user(), assistant("a", call("add", {"a": float("nan")})), tool()], [ADD], NO_OBJECT),
        ([user(), assistant("a", call("add", '{"a": Infinity}')), tool()], [ADD], NO_OBJECT),
        ([user(), assistant("a", call("add", "[" * 100_000)), tool()], [ADD], NO_OBJECT),
        ([user("a"), assistant("\udc00"), user("a")], [], f"messages[1] {SURROGATE}"),
        ([user("a"), assistant("b", call("add", {"\ud83d": 1})), tool()], [ADD], f"messages[1] {SURROGATE}"),
        ([user()], [{"name": "\ud83d"}], f"tools[0] {SURROGATE}"),
        ([user()], [{"description": "no name"}], f"tools[0] has the name None; {NO_NAME}"),
        ([user()], [{"name": ""}], f"tools[0] has the name ''; {NO_NAME}"),
        ([user()], [ADD, {"type": "function", "function": ADD}], f"tools[1] has the name 'add'; {NO_NAME}"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_an_error(messages: list[Any], tools: list[Any], sentence: str) -> None:
    check_messages(messages, tools)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_order_and_tools(messages, tools)


def test_a_wrapped_schema_is_unwrapped() -> None:
    assert tool_schema(FIND) == FIND["function"]
    assert tool_schema(ADD) == ADD


def test_to_json_writes_as_transformers_and_names_a_value_that_is_not_json() -> None:
    assert to_json({"what": "é<a>", "b": [1, None]}, "it") == '{"what": "é<a>", "b": [1, null]}'
    with pytest.raises(ValueError, match=r"^it cannot be written as JSON \(.*set.*\); use objects, lists, strings and"):
        to_json({"a": {1}}, "it")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, True), ('{"a": 1}', True), ("[]", False), ("", False), ('{"a": NaN}', False), ({"a": {1}}, False)],
)
def test_is_json_object_accepts_objects_and_their_json_text(arguments: Any, expected: bool) -> None:
    assert is_json_object(arguments) is expected
