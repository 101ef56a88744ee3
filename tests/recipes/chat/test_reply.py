"""Tool calls as a JSON list between tags: split by hand, with every format error named."""

from typing import Any

import pytest

from nemotron.recipes.chat.reply import split_json_calls

split = split_json_calls("<tool_call>", "</tool_call>")
CALL = '<tool_call>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</tool_call>'


def call(name: str = "add", arguments: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments or {"a": 1, "b": 2}}}


@pytest.mark.parametrize(
    ("text", "content", "calls", "errors"),
    [
        ("", "", [], []),
        ("Hi [1]", "Hi [1]", [], []),
        (CALL, "", [call()], []),
        (f"I see. {CALL}", "I see.", [call()], []),
        (f"{CALL[:-13]}, {CALL[12:]}", "", [call(), call()], []),
        (
            '<tool_call> [{"name": "f", "arguments": {"a": "</tool_call>"}}]\n</tool_call>',
            "",
            [call("f", {"a": "</tool_call>"})],
            [],
        ),
        # Format errors.
        ("<tool_call>[]", "<tool_call>[]", [], ["<tool_call> without </tool_call>"]),
        ("A</tool_call>", "A</tool_call>", [], ["</tool_call> without <tool_call>"]),
        (f"A</tool_call>{CALL}", "A</tool_call>", [call()], ["</tool_call> without <tool_call>"]),
        (f"A {CALL} B", "A\nB", [call()], ["there is text after </tool_call>"]),
        (
            '<tool_call>[{"name": "f", "arguments": {"a": "</tool_call>"}}]',
            '<tool_call>[{"name": "f", "arguments": {"a": "</tool_call>"}}]',
            [],
            ["the list of tool calls is not followed by </tool_call>"],
        ),
        (
            "<tool_call>[]</tool_call>",
            "<tool_call>[]</tool_call>",
            [],
            ["the tool call is not a list of calls"],
        ),
    ],
)
def test_a_reply_is_split_as_by_hand(text: str, content: str, calls: list[Any], errors: list[str]) -> None:
    assert split(text) == (content, calls, errors)


@pytest.mark.parametrize(
    ("inside", "error"),
    [
        ("add(1, 2)", "the tool call is not JSON: "),
        ("[" * 100_000, "the tool call is not JSON: "),
        ('[{"name": "add", "arguments": {"a": NaN}}]', "the tool call is not JSON: "),
        ("", "the tool call is not JSON: "),
        ('{"name": "add", "arguments": {}}', "the tool call is not a list of calls"),
        ('["add"]', 'a call is not {"name": text, "arguments": object}'),
        ('[{"name": "add"}]', 'a call is not {"name": text, "arguments": object}'),
        ('[{"name": 7, "arguments": {}}]', 'a call is not {"name": text, "arguments": object}'),
        ('[{"name": "add", "arguments": "{}"}]', 'a call is not {"name": text, "arguments": object}'),
        ('[{"name": "add", "arguments": {"a": "\\ud83d"}}]', "a call contains a lone surrogate"),
        (
            f'[{{"name": "add", "arguments": {{"a": {"[" * 98}1{"]" * 98}}}}}]',
            "a call has more than 100 nested lists and objects",
        ),
    ],
)
def test_a_malformed_call_is_named_and_stays_in_the_text(inside: str, error: str) -> None:
    text = f"See: <tool_call>{inside}</tool_call>"
    content, calls, errors = split(text)
    assert (content, calls) == (text, [])
    assert len(errors) == 1
    assert errors[0].startswith(error)
