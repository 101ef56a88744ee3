"""A model's reply, and tool calls that are written as a JSON list between two tags.

In: the text after the thinking. Out: the text around the calls, the calls, and what is wrong with them.
`ChatFormat.parse_reply` (format.py) parses a whole reply.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemotron.recipes.chat.messages import LONE_SURROGATE, reject_constant
from nemotron.strict import MAX_JSON_DEPTH, is_too_deep

SplitCalls = tuple[str, list[dict[str, Any]], list[str]]
"""The text around the tool calls, the calls as in a message, and one sentence for each format error."""


@dataclass(frozen=True)
class Reply:
    """A reply of the model, split into its parts."""

    reasoning: str | None
    """None if the model did not think."""
    content: str
    """What the user reads. A malformed tool call stays in it."""
    tool_calls: list[dict[str, Any]]
    """As in a message: {"type": "function", "function": {"name", "arguments"}}."""
    errors: tuple[str, ...]
    """One sentence for each format error."""
    obeys: bool = True
    """Whether the model thought, or did not, as the prompt asked: one closed thought, or no thinking tag."""


def split_json_calls(open_tag: str, close_tag: str) -> Callable[[str], SplitCalls]:
    """A `ChatFormat.split_tool_calls` for formats that write <open>[{"name": ..., "arguments": {...}}, ...]<close>."""

    def split(text: str) -> SplitCalls:
        content, opened, rest = text.partition(open_tag)
        if not opened:
            return text, [], [f"{close_tag} without {open_tag}"] if close_tag in text else []
        rest = rest.lstrip()
        if close_tag not in rest:
            return text, [], [f"{open_tag} without {close_tag}"]
        try:
            # Reads to the end of the list, so a string inside it may contain the closing tag.
            calls, end = json.JSONDecoder(parse_constant=reject_constant).raw_decode(rest)
        except (ValueError, RecursionError) as error:
            return text, [], [f"the tool call is not JSON: {error}"]
        after = rest[end:].lstrip()
        if not after.startswith(close_tag):
            return text, [], [f"the list of tool calls is not followed by {close_tag}"]
        if not isinstance(calls, list) or not calls:
            return text, [], ["the tool call is not a list of calls"]
        if is_too_deep(calls):
            return text, [], [f"a call has more than {MAX_JSON_DEPTH} nested lists and objects"]
        for call in calls:
            if (
                not isinstance(call, dict)
                or not isinstance(call.get("name"), str)
                or not isinstance(call.get("arguments"), dict)
            ):
                return text, [], ['a call is not {"name": text, "arguments": object}']
            if LONE_SURROGATE.search(json.dumps(call, ensure_ascii=False)):
                return text, [], ["a call contains a lone surrogate, which is not a character"]
        after = after.removeprefix(close_tag).lstrip()
        errors = [f"there is text after {close_tag}"] if after else []
        if close_tag in content:
            errors.append(f"{close_tag} without {open_tag}")
        functions = ({"name": call["name"], "arguments": call["arguments"]} for call in calls)
        content = "\n".join(part for part in (content.rstrip(), after) if part)
        return content, [{"type": "function", "function": function} for function in functions], errors

    return split
