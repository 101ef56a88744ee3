"""Messages and tools, as every chat format takes them, and the checks that do not depend on the format.

In: messages as transformers takes them, {"role": "system" | "user" | "assistant" | "tool", "content": text}. An
assistant message may also have "tool_calls": [{"type": "function", "function": {"name", "arguments"}}], and its thought
as "reasoning_content". Tools are JSON schemas.
Out: nothing, or a ValueError that names the message and says what to change.

Left out: images, and system messages that are not the first message.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON and Python strings can hold one, but UTF-8 cannot


def check_messages(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Check that messages and tools have the shape that a chat template can render.

    Raises:
        ValueError: names the malformed message or tool, and what to change.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("messages is empty or not a list; start with a system or a user message")
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "user", "assistant", "tool"):
            raise ValueError(f"{name} has the role {role!r}; use system, user, assistant or tool")
        if role == "system" and index:
            raise ValueError(f"{name} is a system message; only the first message may be one")
        calls = (message.get("tool_calls") or []) if role == "assistant" else []
        content = message.get("content")
        if not isinstance(content, str) and (content is not None or not calls):
            kind = "no content" if content is None else f"content of type {type(content).__name__}"
            raise ValueError(f"{name} has {kind}; give a string")
        if role == "assistant" and not calls and not (content or "").strip():
            raise ValueError(f"{name} has neither content nor tool calls; give one of them")
        thought = message.get("reasoning_content")
        if thought is not None and not isinstance(thought, str):
            raise ValueError(f"{name} has reasoning_content of type {type(thought).__name__}; give a string")
        if thought and thought.strip() and role != "assistant":
            raise ValueError(f"{name} has reasoning_content in a {role} message; only an assistant thinks")
        if not isinstance(calls, list | tuple):
            raise ValueError(f"{name} has tool_calls of type {type(calls).__name__}; give a list")
        for call in calls:
            function = call.get("function") if isinstance(call, Mapping) else None
            if (
                not isinstance(function, Mapping)
                or not isinstance(function.get("name"), str)
                or not isinstance(function.get("arguments"), str | Mapping)
            ):
                raise ValueError(
                    f"{name} has a malformed tool call; write "
                    '{"type": "function", "function": {"name": text, "arguments": object}}'
                )
    for index, tool in enumerate(tools or ()):
        if not isinstance(tool, Mapping):
            raise ValueError(f"tools[{index}] is of type {type(tool).__name__}; give its JSON schema as an object")


def check_order_and_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Check what renders but makes no sense: roles out of order, unknown tools, arguments that are not JSON.

    Args:
        messages: have passed `check_messages`, like `tools`.
    Raises:
        ValueError: names the message or tool, and what to change.
    """
    tool_names: list[str] = []
    for index, tool in enumerate(tools or ()):
        tool_name = tool_schema(tool).get("name")
        if not isinstance(tool_name, str) or not tool_name or tool_name in tool_names:
            raise ValueError(f"tools[{index}] has the name {tool_name!r}; give every tool its own name")
        check_characters(to_json(tool, f"tools[{index}]"), f"tools[{index}]")
        tool_names.append(tool_name)
    for index, message in enumerate(messages):
        name, role = f"messages[{index}]", message["role"]
        before = messages[index - 1] if index else {"role": "no message"}
        check_characters(to_json(message, name), name)
        if role == "assistant" and before["role"] not in ("user", "tool"):
            raise ValueError(
                f"{name} is an assistant message after {before['role']}; put a user or a tool message before it"
            )
        if (
            role == "tool"
            and before["role"] != "tool"
            and not (before["role"] == "assistant" and before.get("tool_calls"))
        ):
            raise ValueError(f"{name} is a tool message without a tool call; put the assistant's call before it")
        if role != "assistant" and message.get("tool_calls"):
            raise ValueError(f"{name} has tool calls in a {role} message; only an assistant may call tools")
        for call in (call["function"] for call in message.get("tool_calls") or []):
            if call["name"] not in tool_names:
                known = ", ".join(tool_names) or "none"
                raise ValueError(f"{name} calls {call['name']!r}, which is not among the tools ({known}); add the tool")
            if not is_json_object(call["arguments"]):
                raise ValueError(f"{name} calls {call['name']!r} with arguments that are not a JSON object; give one")


def tool_schema(tool: Tool) -> Tool:
    """The schema of a tool: {"type": "function", "function": schema} is unwrapped."""
    is_wrapped = tool.get("type") == "function" and isinstance(tool.get("function"), Mapping)
    return tool["function"] if is_wrapped else tool


def to_json(value: Any, name: str) -> str:
    """The value as JSON, as transformers writes it in a chat template.

    Raises:
        ValueError: if the value cannot be written as JSON; the error text begins with `name`.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(
            f"{name} cannot be written as JSON ({error}); use objects, lists, strings and numbers"
        ) from error


def check_characters(text: str, name: str) -> None:
    """Check that the text can be encoded as UTF-8.

    Raises:
        ValueError: if the text contains a lone surrogate; the error text begins with `name`.
    """
    if LONE_SURROGATE.search(text):
        raise ValueError(f"{name} contains a lone surrogate, which is not a character; remove it")


def reject_constant(name: str) -> None:
    """For `parse_constant` of json: raises ValueError, because NaN and Infinity are not JSON."""
    raise ValueError(f"{name} is not a JSON number")


def is_json_object(arguments: str | Mapping[str, Any]) -> bool:
    """Whether the arguments of a tool call are an object, or the JSON text of one."""
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, allow_nan=False)
        return isinstance(json.loads(text, parse_constant=reject_constant), dict)
    except (TypeError, ValueError, RecursionError):
        return False
