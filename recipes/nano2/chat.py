r"""The chat format of Nemotron Nano v2: messages to text, to token ids with the loss mask, and back.

In: messages as transformers takes them, {"role": "system" | "user" | "assistant" | "tool", "content": text}, an
assistant's also with "tool_calls"; tools as JSON schemas. Out: the text and the ids that the model sees, which of the
ids are learnt, and what the model's reply means. The thinking of an assistant is part of its content:
"<think>\nreasoning\n</think>\n\nanswer", or "<think></think>answer" where it does not think.

    python -c "from nemotron.recipes.nano2.chat import render; print(render([{'role': 'user', 'content': 'Hello'}]))"

Published (chat template on the model card of Nemotron-Nano-9B-v2; the paper is arXiv 2508.14444, section 3):

    <SPECIAL_10>System       always there, also without a text; tools follow, <AVAILABLE_TOOLS>[...]</AVAILABLE_TOOLS>
    <SPECIAL_11>User         also for what tools answer, <TOOL_RESPONSE>[...]</TOOL_RESPONSE>
    <SPECIAL_11>Assistant    ends with <SPECIAL_12>; calls tools with <TOOLCALL>[{"name", "arguments"}]</TOOLCALL>

- /think and /no_think in system and user texts switch the thinking; the last one wins, and without one it is on.
- A reply begins behind "<think>\n", or behind "<think></think>" without thinking.
- Turns of the assistant before the last message lose their text up to the last </think>.

Our choices, where the published facts say nothing:

- A flag counts wherever it stands, inside a word as well (but for </think>), and its characters vanish from the text.
- Results of tools stand in their brackets as they are, not as JSON, and arguments that are given as text as well.
- A blank line parts the tools from a system text, nothing parts a call from the text before it.
- Only the last turn is learnt, and of it what the model has to write: not the tag that the prompt gives, yet the end of
  turn. Earlier turns lack their reasoning, so they are not what a model writes; `training_conversations` makes each of
  them the last turn of a conversation of its own.
- A learnt turn has to begin as its prompt does. "<think></think>" is added where thinking is off; missing reasoning
  cannot be made up, so such a turn is refused.

Text never becomes a special token: "<SPECIAL_12>" or "</s>" that a user writes is encoded like any other characters.
transformers gives the same ids, with two exceptions. It obeys a special token that a text spells; and it may merge the
first characters of a learnt reply with the tag before them, where the ids here are split as they are in generation.

Left out: the published sentences that explain to the model how to call tools (we do not have them); images; several
system messages.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

SYSTEM, TURN, END_OF_TURN = "<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"
SPECIAL_IDS = {SYSTEM: 10, TURN: 11, END_OF_TURN: 12}  # published
STOP_TOKENS = (2, 11, 12)  # published: </s>, the next turn, the end of this one
STOP_TEXTS = ("</s>", TURN, END_OF_TURN)

THINK, NO_THINK = "/think", "/no_think"
OPEN, CLOSE = "<think>", "</think>"
REPLY_PREFIXES = {True: f"{OPEN}\n", False: f"{OPEN}{CLOSE}"}  # published: what the prompt gives, thinking on and off
OPEN_CALL, CLOSE_CALL = "<TOOLCALL>", "</TOOLCALL>"

HALF_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one; it is no character and has no bytes

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

# The same as `render`, for everybody else's programs. Every tag strips the white space around it, so that the layout
# below is for reading only.
CHAT_TEMPLATE = r"""
{%- macro without_flags(text) -%}
    {{- text.split('</think>')|map('replace', '/no_think', '')|map('replace', '/think', '')|join('</think>')|trim -}}
{%- endmacro -%}

{%- set seen = namespace(thinking=true, system='') -%}
{%- if not messages -%}
    {{- raise_exception('messages is empty; begin with a system or a user message') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- set name = 'messages[' ~ loop.index0 ~ ']' -%}
    {%- if message is not mapping or message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
        {{- raise_exception(name ~ ' has no role that is known; use system, user, assistant or tool') -}}
    {%- endif -%}
    {%- if message['role'] == 'system' and not loop.first -%}
        {{- raise_exception(name ~ ' is a system message; only the first message may be one') -}}
    {%- endif -%}
    {%- set calls = message['tool_calls'] if message['role'] == 'assistant' else [] -%}
    {%- set content = message.get('content') -%}
    {%- if content is not string and (content is not none or not calls) -%}
        {{- raise_exception(name ~ ' has no text as content; give a string') -}}
    {%- endif -%}
    {%- if message['role'] == 'assistant' and not calls and not content.strip() -%}
        {{- raise_exception(name ~ ' has neither content nor tool calls; give one of them') -}}
    {%- endif -%}
    {%- if calls and calls is not sequence -%}
        {{- raise_exception(name ~ ' has tool_calls that are no list; give a list') -}}
    {%- endif -%}
    {%- for call in calls or [] -%}
        {%- set function = call['function'] if call is mapping else none -%}
        {%- if function is not mapping or function['name'] is not string
               or (function['arguments'] is not string and function['arguments'] is not mapping) -%}
            {{- raise_exception(name ~ ' has a tool call without name and arguments; give both') -}}
        {%- endif -%}
    {%- endfor -%}
    {%- if message['role'] in ['system', 'user'] -%}
        {%- set flags = content.replace('</think>', '<>') -%}
        {%- if flags.rfind('/think') != flags.rfind('/no_think') -%}
            {%- set seen.thinking = flags.rfind('/think') > flags.rfind('/no_think') -%}
        {%- endif -%}
    {%- endif -%}
    {%- if message['role'] == 'system' -%}
        {%- set seen.system = without_flags(content) -%}
    {%- endif -%}
{%- endfor -%}

{{- '<SPECIAL_10>System\n' ~ seen.system -}}
{%- if tools -%}
    {{- ('\n\n' if seen.system else '') ~ '<AVAILABLE_TOOLS>[' -}}
    {%- for tool in tools -%}
        {%- if tool is not mapping -%}
            {{- raise_exception('tools[' ~ loop.index0 ~ '] is no JSON object; give its schema') -}}
        {%- endif -%}
        {%- set wrapped = tool['type'] == 'function' and tool['function'] is mapping -%}
        {{- (tool['function'] if wrapped else tool)|tojson ~ ('' if loop.last else ', ') -}}
    {%- endfor -%}
    {{- ']</AVAILABLE_TOOLS>' -}}
{%- endif -%}
{{- '\n' -}}

{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '<SPECIAL_11>User\n' ~ without_flags(message['content']) ~ '\n' -}}
    {%- elif message['role'] == 'tool' -%}
        {%- set is_first = loop.first or loop.previtem['role'] != 'tool' -%}
        {%- set is_last = loop.last or loop.nextitem['role'] != 'tool' -%}
        {{- '<SPECIAL_11>User\n<TOOL_RESPONSE>[' if is_first else ', ' -}}
        {{- message['content'] -}}
        {{- ']</TOOL_RESPONSE>\n' if is_last else '' -}}
    {%- elif message['role'] == 'assistant' -%}
        {%- set content = message['content'] or '' -%}
        {%- if not loop.last -%}
            {%- set content = content.split('</think>')[-1] -%}
        {%- endif -%}
        {{- '<SPECIAL_11>Assistant\n' ~ content.strip() -}}
        {%- for call in message['tool_calls'] or [] -%}
            {%- set arguments = call['function']['arguments'] -%}
            {{- '<TOOLCALL>[' if loop.first else ', ' -}}
            {{- '{"name": ' ~ call['function']['name']|tojson ~ ', "arguments": ' -}}
            {{- (arguments if arguments is string else arguments|tojson) ~ '}' -}}
            {{- ']</TOOLCALL>' if loop.last else '' -}}
        {%- endfor -%}
        {{- '\n<SPECIAL_12>\n' -}}
    {%- endif -%}
{%- endfor -%}

{%- if add_generation_prompt -%}
    {{- '<SPECIAL_11>Assistant\n' ~ ('<think>\n' if seen.thinking else '<think></think>') -}}
{%- endif -%}
""".strip()


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered text that becomes tokens on its own."""

    text: str
    in_loss: bool = False
    is_special: bool = False


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as the model reads it."""

    ids: list[int]
    in_loss: list[bool]
    """True = this token counts in the loss when it is predicted; as long as `ids`."""


@dataclass(frozen=True)
class Reply:
    """What the model wrote, taken apart."""

    reasoning: str | None
    """None where it did not think."""
    content: str
    """What the user reads; a tool call that cannot be read stays in it."""
    tool_calls: list[dict[str, Any]]
    """As in a message: {"type": "function", "function": {"name", "arguments"}}."""
    errors: tuple[str, ...]
    """One sentence for each departure from the format."""
    obeys: bool = True
    """Whether it thinks, or does not, as its prompt asks: a thought that is closed once, or no thinking tag."""


# Messages to text and ids ---------------------------------------------------------------------------------------------


def render(messages: Sequence[Message], tools: Sequence[Tool] = (), *, add_generation_prompt: bool = False) -> str:
    """The text of a conversation, character by character what CHAT_TEMPLATE gives.

    Raises:
        ValueError: if the messages are malformed, as the template does: no messages, an unknown role, a system message
            that is not the first, content that is no text, an assistant that neither says nor calls anything, ...
    """
    return "".join(piece.text for piece in pieces_of(messages, tools, add_generation_prompt))


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = False,
) -> EncodedChat:
    """The ids of a conversation, and which of them are learnt.

    In the loss is the reply at the end, if there is one and no prompt for another follows. The ids before it are those
    of its prompt: `encode_chat(..., messages[:-1], add_generation_prompt=True)`.

    Args:
        tokenizer: gets `encode_special_tokens = True`, a switch that no file keeps: special tokens that a text spells
            stay text, here and in whatever it encodes later.
    Raises:
        ValueError: if the messages are malformed (see `render`), the reply at the end does not begin as its prompt
            does, a text is no Unicode, or the tokenizer lacks the special tokens of chats.
    """
    refuse_tokenizer_without_turns(tokenizer, "the tokenizer")
    pieces = pieces_of(messages, tools, add_generation_prompt)
    if messages[-1]["role"] == "assistant" and not add_generation_prompt:
        learnt_text(messages)  # refuses
    tokenizer.encode_special_tokens = True
    ids: list[int] = []
    in_loss: list[bool] = []
    for piece in pieces:
        if HALF_SURROGATE.search(piece.text):
            raise ValueError("a text holds half a surrogate pair, which is no character; remove it")
        if piece.is_special:
            piece_ids = [SPECIAL_IDS[piece.text]]
        else:
            piece_ids = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += piece_ids
        in_loss += [piece.in_loss] * len(piece_ids)
    return EncodedChat(ids, in_loss)


def pieces_of(messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool) -> list[Piece]:
    """The conversation in pieces: special tokens, the texts between them, and the learnt reply apart from its prompt.

    Raises:
        ValueError: as `render`.
    """
    refuse_malformed(messages, tools)
    prefix = REPLY_PREFIXES[thinking_requested(messages)]
    system = without_flags(messages[0]["content"]) if messages[0]["role"] == "system" else ""
    pieces = [Piece(SYSTEM, is_special=True), Piece(f"System\n{system}{tool_block(system, tools)}\n")]
    for index, message in enumerate(messages):
        if message["role"] == "user":
            pieces += [Piece(TURN, is_special=True), Piece(f"User\n{without_flags(message['content'])}\n")]
        elif message["role"] == "tool" and (index == 0 or messages[index - 1]["role"] != "tool"):
            results = takewhile(lambda following: following["role"] == "tool", messages[index:])
            joined = ", ".join(result["content"] for result in results)
            pieces += [Piece(TURN, is_special=True), Piece(f"User\n<TOOL_RESPONSE>[{joined}]</TOOL_RESPONSE>\n")]
        elif message["role"] == "assistant":
            is_last = index == len(messages) - 1
            text = assistant_text(message, f"messages[{index}]", keeps_thinking=is_last)
            pieces.append(Piece(TURN, is_special=True))
            is_learnt = is_last and not add_generation_prompt and text.startswith(prefix)
            if is_learnt:
                pieces += [Piece(f"Assistant\n{prefix}"), Piece(f"{text.removeprefix(prefix)}\n", in_loss=True)]
            else:
                pieces.append(Piece(f"Assistant\n{text}\n"))
            pieces += [Piece(END_OF_TURN, in_loss=is_learnt, is_special=True), Piece("\n")]
    if add_generation_prompt:
        pieces += [Piece(TURN, is_special=True), Piece(f"Assistant\n{prefix}")]
    return pieces


def thinking_requested(messages: Sequence[Message]) -> bool:
    """Whether the assistant is to think after these messages: as the last /think or /no_think says, else yes."""
    thinking = True
    for message in messages:
        if message["role"] in ("system", "user"):
            text = message["content"].replace(CLOSE, "<>")  # which ends in /think>
            if text.rfind(THINK) != text.rfind(NO_THINK):
                thinking = text.rfind(THINK) > text.rfind(NO_THINK)
    return thinking


def with_flag(messages: Sequence[Message], flag: str) -> list[dict[str, Any]]:
    """The conversation with a control flag that wins: at the end of its last system or user message.

    Args:
        flag: THINK or NO_THINK.
    """
    places = [index for index, message in enumerate(messages) if message["role"] in ("system", "user")]
    flagged = [dict(message) for message in messages]
    if not places:
        return [{"role": "system", "content": flag}, *flagged]
    flagged[places[-1]]["content"] += f" {flag}"
    return flagged


def without_flags(text: str) -> str:
    """The text without /think and /no_think and without white space around it; </think> stays."""
    return CLOSE.join(part.replace(NO_THINK, "").replace(THINK, "") for part in text.split(CLOSE)).strip()


def tool_block(system: str, tools: Sequence[Tool]) -> str:
    """What follows the system text: the tools as a JSON list, after a blank line if there is a text."""
    if not tools:
        return ""
    schemas = ", ".join(as_json(schema_of(tool), f"tools[{index}]") for index, tool in enumerate(tools))
    return ("\n\n" if system else "") + f"<AVAILABLE_TOOLS>[{schemas}]</AVAILABLE_TOOLS>"


def schema_of(tool: Tool) -> Tool:
    """The schema itself: {"type": "function", "function": schema} is unwrapped."""
    is_wrapped = tool.get("type") == "function" and isinstance(tool.get("function"), Mapping)
    return tool["function"] if is_wrapped else tool


def assistant_text(message: Message, name: str, *, keeps_thinking: bool) -> str:
    """What stands in an assistant's turn: its content, with or without its thinking, and its tool calls."""
    content = message.get("content") or ""
    if not keeps_thinking:
        content = content.rpartition(CLOSE)[2]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    if not calls:
        return content.strip()
    written = ", ".join(
        f'{{"name": {as_json(call["name"], name)}, "arguments": '
        f"{call['arguments'] if isinstance(call['arguments'], str) else as_json(call['arguments'], name)}}}"
        for call in calls
    )
    return f"{content.strip()}{OPEN_CALL}[{written}]{CLOSE_CALL}"


def as_json(value: Any, name: str) -> str:
    """JSON as transformers writes it.

    Raises:
        ValueError: if the value cannot be written as JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON ({error}); use objects, lists, texts and numbers") from error


def training_conversations(messages: Sequence[Message]) -> list[list[Message]]:
    """One conversation for each turn of the assistant that can be learnt, which ends with it.

    Each holds the control flags up to its turn. A turn without reasoning where thinking is off gets "<think></think>".
    An earlier turn that does not begin as its prompt does, such as one without reasoning where thinking is on, is read
    by the later ones and not learnt; the last one is always there. Give each to `check_conversation`, which refuses
    what cannot be learnt.

    Raises:
        ValueError: if the messages are malformed, as `render`.
    """
    refuse_malformed(messages, ())
    conversations: list[list[Message]] = []
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index in turns:
        content = (messages[index].get("content") or "").strip()
        prefix = REPLY_PREFIXES[thinking_requested(messages[:index])]
        if prefix == REPLY_PREFIXES[False] and not content.startswith(OPEN):
            content = prefix + content
        if content.startswith(prefix) or index == turns[-1]:
            conversations.append([*messages[:index], {**messages[index], "content": content}])
    return conversations


# What is refused ------------------------------------------------------------------------------------------------------


def refuse_malformed(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Refuses what CHAT_TEMPLATE refuses.

    Raises:
        ValueError: which message or tool is malformed, and what to do.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("messages is empty or no list; begin with a system or a user message")
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
            kind = "no content" if content is None else f"content of the type {type(content).__name__}"
            raise ValueError(f"{name} has {kind}; give a string")
        if role == "assistant" and not calls and not (content or "").strip():
            raise ValueError(f"{name} has neither content nor tool calls; give one of them")
        if not isinstance(calls, list | tuple):
            raise ValueError(f"{name} has tool_calls of the type {type(calls).__name__}; give a list")
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
            raise ValueError(f"tools[{index}] is of the type {type(tool).__name__}; give its JSON schema as an object")


def learnt_text(messages: Sequence[Message]) -> str:
    """The reply at the end, without the tag that its prompt gives.

    Raises:
        ValueError: if it does not begin with this tag.
    """
    last = len(messages) - 1
    thinking = thinking_requested(messages)
    prefix = REPLY_PREFIXES[thinking]
    text = assistant_text(messages[last], f"messages[{last}]", keeps_thinking=True)
    if not text.startswith(prefix):
        state = "on" if thinking else "off"
        remedy = "add its reasoning, or /no_think to a message before" if thinking else "add this, or remove /no_think"
        raise ValueError(f"messages[{last}] does not begin with {prefix!r}, although thinking is {state}; {remedy}")
    return text.removeprefix(prefix)


def check_conversation(messages: Sequence[Message], tools: Sequence[Tool] = (), *, for_training: bool) -> None:
    """Refuses conversations that render, but should neither be learnt nor answered.

    A /think or /no_think inside a user's text is no mistake: it switches the thinking, and vanishes. A tool may answer
    nothing.

    Args:
        for_training: the conversation ends with the reply to learn; otherwise with the message to answer.
    Raises:
        ValueError: which message is wrong, and what to do.
    """
    refuse_malformed(messages, tools)
    tool_names = []
    for index, tool in enumerate(tools or ()):
        tool_name = schema_of(tool).get("name")
        if not isinstance(tool_name, str) or not tool_name or tool_name in tool_names:
            raise ValueError(f"tools[{index}] has the name {tool_name!r}; give every tool a name of its own")
        refuse_half_surrogates(as_json(tool, f"tools[{index}]"), f"tools[{index}]")
        tool_names.append(tool_name)
    for index, message in enumerate(messages):
        name, role = f"messages[{index}]", message["role"]
        before = messages[index - 1] if index else {"role": "nothing"}
        refuse_half_surrogates(as_json(message, name), name)
        if role == "user" and not without_flags(message["content"]):
            raise ValueError(f"{name} is a user message without text beside control flags; write what the user asks")
        if role == "assistant" and before["role"] not in ("user", "tool"):
            raise ValueError(f"{name} answers {before['role']}; put a user or a tool message before an assistant's")
        if (
            role == "tool"
            and before["role"] != "tool"
            and not (before["role"] == "assistant" and before.get("tool_calls"))
        ):
            raise ValueError(f"{name} is the result of no tool call; put the assistant's call before it")
        if role != "assistant" and message.get("tool_calls"):
            raise ValueError(f"{name} calls tools as {role}; only an assistant may")
        for call in (call["function"] for call in message.get("tool_calls") or []):
            if call["name"] not in tool_names:
                known = ", ".join(tool_names) or "none"
                raise ValueError(f"{name} calls {call['name']!r}, which is not among the tools ({known}); add the tool")
            if not is_json_object(call["arguments"]):
                raise ValueError(f"{name} calls {call['name']!r} with arguments that are no JSON object; give one")
    last = len(messages) - 1
    if not for_training:
        if messages[-1]["role"] not in ("user", "tool"):
            raise ValueError(f"messages[{last}] is {messages[-1]['role']}; end with a user or a tool message to answer")
        return
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"messages[{last}] is {messages[-1]['role']}; end with the assistant's reply, which is learnt")
    reply = parse_reply(learnt_text(messages), thinking=thinking_requested(messages))
    if reply.errors:
        raise ValueError(f"messages[{last}] would teach a wrong format: {reply.errors[0]}; correct its content")
    if not reply.content and not reply.tool_calls:
        raise ValueError(f"messages[{last}] neither answers nor calls a tool after its thinking; add the answer")


def refuse_half_surrogates(text: str, name: str) -> None:
    """Refuses what cannot be encoded.

    Raises:
        ValueError: if the text holds half a surrogate pair.
    """
    if HALF_SURROGATE.search(text):
        raise ValueError(f"{name} holds half a surrogate pair, which is no character; remove it")


def refuse_constant(name: str) -> None:
    """Raises ValueError: NaN and Infinity, which Python reads, are no JSON."""
    raise ValueError(f"{name} is no number of JSON")


def is_json_object(arguments: str | Mapping[str, Any]) -> bool:
    """Whether a tool call's arguments are an object, or the JSON of one."""
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, allow_nan=False)
        return isinstance(json.loads(text, parse_constant=refuse_constant), dict)
    except (TypeError, ValueError, RecursionError):
        return False


# A reply back to its parts --------------------------------------------------------------------------------------------


def parse_reply(text: str, *, thinking: bool) -> Reply:
    """What the model wrote after the generation prompt; any text is a reply, with its format errors named.

    Args:
        text: of the sampled tokens; one stop token at its end is dropped.
        thinking: whether the prompt ended in "<think>\n" or in "<think></think>".
    """
    errors = []
    text = text.rstrip()
    if text.endswith(STOP_TEXTS):
        text = text[: text.rindex("<")]
    for token in (SYSTEM, TURN, END_OF_TURN):
        if token in text:
            errors.append(f"{token} stands inside the reply")
    before, close, answer = text.rpartition(CLOSE)
    reasoning = before.strip() if close else None
    num_closed = text.count(CLOSE)
    obeys = OPEN not in text and (num_closed == 1 and bool(reasoning) if thinking else num_closed == 0)
    if thinking:
        if not close:
            errors.append("the thinking is never closed")
            reasoning, answer = text.strip(), ""
        if CLOSE in before:
            errors.append(f"the thinking is closed {num_closed} times")
        if OPEN in text:
            errors.append("the thinking is opened again")
    elif close or OPEN in text:
        errors.append("a reply without thinking holds a thinking tag")
        reasoning = reasoning and reasoning.removeprefix(OPEN).lstrip()
    content, tool_calls, call_errors = split_tool_calls(answer.strip())
    return Reply(reasoning, content, tool_calls, (*errors, *call_errors), obeys)


def split_tool_calls(text: str) -> tuple[str, list[dict[str, Any]], list[str]]:
    """The text around the tool calls, the calls, and what is wrong with them; wrong ones stay in the text."""
    content, opened, rest = text.partition(OPEN_CALL)
    if not opened:
        return text, [], [f"{CLOSE_CALL} without {OPEN_CALL}"] if CLOSE_CALL in text else []
    rest = rest.lstrip()
    if CLOSE_CALL not in rest:
        return text, [], [f"{OPEN_CALL} without {CLOSE_CALL}"]
    try:
        # Reads to the end of the list, so a text inside it may hold the closing tag.
        calls, end = json.JSONDecoder(parse_constant=refuse_constant).raw_decode(rest)
    except (ValueError, RecursionError) as error:
        return text, [], [f"the tool call is no JSON: {error}"]
    after = rest[end:].lstrip()
    if not after.startswith(CLOSE_CALL):
        return text, [], [f"the list of tool calls is not followed by {CLOSE_CALL}"]
    if not isinstance(calls, list) or not calls:
        return text, [], ["the tool call is no list of calls"]
    for call in calls:
        if (
            not isinstance(call, dict)
            or not isinstance(call.get("name"), str)
            or not isinstance(call.get("arguments"), dict)
        ):
            return text, [], ['a call is no {"name": text, "arguments": object}']
        if HALF_SURROGATE.search(json.dumps(call, ensure_ascii=False)):
            return text, [], ["a call holds half a surrogate pair, which is no character"]
    after = after.removeprefix(CLOSE_CALL).lstrip()
    errors = [f"text stands after {CLOSE_CALL}"] if after else []
    if CLOSE_CALL in content:
        errors.append(f"{CLOSE_CALL} without {OPEN_CALL}")
    functions = ({"name": call["name"], "arguments": call["arguments"]} for call in calls)
    content = "\n".join(part for part in (content.rstrip(), after) if part)
    return content, [{"type": "function", "function": function} for function in functions], errors


# The tokenizer of a chat model ----------------------------------------------------------------------------------------


def save_chat_tokenizer(tokenizer_path: Path, directory: Path) -> None:
    """Copy a tokenizer into `directory`, which is created, and give the copy the chat template.

    The end of text stays </s>, as published; a chat ends at any of STOP_TOKENS.

    Args:
        tokenizer_path: directory that holds tokenizer.json and tokenizer_config.json; `directory` itself is allowed.
    Raises:
        ValueError: if these are missing or lack the special tokens of chats.
    """
    config = read_tokenizer_config(tokenizer_path)
    read_tokenizer(tokenizer_path)
    vocabulary = (tokenizer_path / "tokenizer.json").read_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_bytes(vocabulary)
    content = json.dumps({**config, "chat_template": CHAT_TEMPLATE}, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(content, encoding="utf-8")


def load_chat_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint that chats; special tokens that a text spells stay text.

    Raises:
        ValueError: if the checkpoint has no tokenizer, no chat template, or no special tokens of chats.
    """
    config = read_tokenizer_config(directory)
    # The file is where transformers writes the template when it saves a tokenizer.
    if not config.get("chat_template") and not (directory / "chat_template.jinja").is_file():
        raise ValueError(
            f"{directory} has no chat template, so it is a base model; "
            "make a chat model of it with python -m nemotron.recipes.nano2.stage1_sft"
        )
    tokenizer = read_tokenizer(directory)
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    Raises:
        ValueError: if there is none, or it is no JSON object.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no {path.name}; name the directory of a checkpoint or of a tokenizer")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); write or fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object; write or fetch it again")
    return config


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in tokenizer.json.

    Raises:
        ValueError: if there is none, it cannot be read, or it lacks the special tokens of chats.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{directory} holds no {path.name}; name the directory of a checkpoint or of a tokenizer")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises no narrower class
        raise ValueError(f"{path} is no tokenizer ({error}); write or fetch it again") from error
    refuse_tokenizer_without_turns(tokenizer, str(path))
    return tokenizer


def refuse_tokenizer_without_turns(tokenizer: Tokenizer, name: str) -> None:
    """Refuses a tokenizer whose special tokens of chats are missing or have other ids than the published ones.

    Raises:
        ValueError: which token it lacks.
    """
    for token, index in SPECIAL_IDS.items():
        if tokenizer.token_to_id(token) != index:
            raise ValueError(
                f"{name} has no {token} with the id {index}, with which turns are marked; "
                "use a tokenizer of python -m nemotron.recipes.nano2.stage0_pretrain"
            )
