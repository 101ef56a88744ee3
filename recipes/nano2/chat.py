r"""The chat format of Nemotron Nano v2, as a `ChatFormat`.

In: messages and tools, see recipes/chat/messages.py. Out: `CHAT`, whose methods render, encode and parse conversations.

    python -c "from nemotron.recipes.nano2.chat import CHAT; print(CHAT.render([{'role': 'user', 'content': 'Hello'}]))"

Published (chat template on the model card of Nemotron-Nano-9B-v2; the paper is arXiv 2508.14444, section 3):

    <SPECIAL_10>System       always there, also without a text; tools follow, <AVAILABLE_TOOLS>[...]</AVAILABLE_TOOLS>
    <SPECIAL_11>User         also for tool results, <TOOL_RESPONSE>[...]</TOOL_RESPONSE>
    <SPECIAL_11>Assistant    ends with <SPECIAL_12>; calls tools with <TOOLCALL>[{"name", "arguments"}]</TOOLCALL>

- The flags /think and /no_think in system and user texts, also inside a word, switch thinking and are removed. The last
  message that has a flag decides; if it has both, /think wins. Without any flag, thinking is on.
- A reply with thinking begins after "<think>\n", one without after "<think></think>".
- Of an assistant turn before the last message, only the text between the first </think> and the next one is kept.
- Calls follow the text of their turn after a blank line. Arguments that are given as text are written as they are.
- A blank line separates the tools from the system text.
- Results of consecutive tool messages are joined by ", ".

Where this differs on purpose from the published template ("there"):

- </think> in a system or user text is not a flag and stays as it is; there it counts as /think, which is a slip.
- A last assistant message has its thinking tag in its content, so that a conversation shows whether it thinks, and a
  missing thought is found; there the template puts the tag before the content.
- The sentences around the tool list, which introduce it and show how to write calls and results, are NVIDIA's wording.
  They are left out, with the blank lines between them. A published checkpoint brings them in its own template, which
  the chat and fine-tuning then use and keep (recipes/chat/template.py).

Our choice, where our sources say nothing: there is no blank line before the tools if the system text is empty; texts
lose the white space around them; tool results are written as they are, not as JSON; a message's "reasoning_content" is
put at the start of its content; malformed messages are an error.
"""

from collections.abc import Sequence
from itertools import takewhile

from nemotron.recipes.chat.format import ChatFormat, Piece
from nemotron.recipes.chat.messages import Message, Tool, to_json, tool_schema
from nemotron.recipes.chat.reply import split_json_calls

SYSTEM, TURN, END_OF_TURN = "<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"
OPEN_THINK, CLOSE_THINK = "<think>", "</think>"
OPEN_CALL, CLOSE_CALL = "<TOOLCALL>", "</TOOLCALL>"

# Renders the same text as `nano2_pieces`, for other programs. Every tag strips the white space around it, so the layout
# below has no effect.
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
    {%- set thought = message.get('reasoning_content') -%}
    {%- if thought is not string and thought is not none -%}
        {{- raise_exception(name ~ ' has reasoning_content that is not a string; give one') -}}
    {%- endif -%}
    {%- if thought and thought.strip() and message['role'] != 'assistant' -%}
        {{- raise_exception(name ~ ' has reasoning_content; only an assistant thinks') -}}
    {%- endif -%}
    {%- if thought and thought.strip() and ('<think>' in (content or '') or '</think>' in (content or '')) -%}
        {{- raise_exception(name ~ ' has reasoning_content and a thinking tag in its content; keep one of them') -}}
    {%- endif -%}
    {%- if calls and calls is not sequence -%}
        {{- raise_exception(name ~ ' has tool_calls that are not a list; give one') -}}
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
        {%- if '/think' in flags or '/no_think' in flags -%}
            {%- set seen.thinking = '/think' in flags -%}
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
            {{- raise_exception('tools[' ~ loop.index0 ~ '] is not a JSON object; give its schema') -}}
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
        {%- set thought = (message.get('reasoning_content') or '').strip() -%}
        {%- if thought -%}
            {%- set content = '<think>\n' ~ thought ~ '\n</think>\n\n' ~ content.strip() -%}
        {%- endif -%}
        {%- if not loop.last and '</think>' in content -%}
            {%- set content = content.split('</think>')[1] -%}
        {%- endif -%}
        {%- set content = content.strip() -%}
        {{- '<SPECIAL_11>Assistant\n' ~ content -}}
        {%- for call in message['tool_calls'] or [] -%}
            {%- set arguments = call['function']['arguments'] -%}
            {%- if loop.first -%}
                {{- ('' if content in ['', '<think></think>'] else '\n\n') ~ '<TOOLCALL>[' -}}
            {%- else -%}
                {{- ', ' -}}
            {%- endif -%}
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


def nano2_pieces(
    chat: ChatFormat, messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool
) -> list[Piece]:
    """The rendered conversation in pieces, see `ChatFormat.to_pieces`."""
    prefix = chat.reply_prefixes[chat.thinking_requested(messages)]
    system = chat.without_flags(messages[0]["content"]) if messages[0]["role"] == "system" else ""
    pieces = [Piece(SYSTEM, is_special=True), Piece(f"System\n{system}{tool_block(system, tools)}\n")]
    for index, message in enumerate(messages):
        if message["role"] == "user":
            pieces += [Piece(TURN, is_special=True), Piece(f"User\n{chat.without_flags(message['content'])}\n")]
        elif message["role"] == "tool" and (index == 0 or messages[index - 1]["role"] != "tool"):
            results = takewhile(lambda following: following["role"] == "tool", messages[index:])
            joined = ", ".join(result["content"] for result in results)
            pieces += [Piece(TURN, is_special=True), Piece(f"User\n<TOOL_RESPONSE>[{joined}]</TOOL_RESPONSE>\n")]
        elif message["role"] == "assistant":
            is_last = index == len(messages) - 1
            text = assistant_text(message, f"messages[{index}]", keep_thinking=is_last)
            pieces.append(Piece(TURN, is_special=True))
            in_loss = is_last and not add_generation_prompt and text.startswith(prefix)
            if in_loss:
                pieces += [Piece(f"Assistant\n{prefix}"), Piece(f"{text.removeprefix(prefix)}\n", in_loss=True)]
            else:
                pieces.append(Piece(f"Assistant\n{text}\n"))
            pieces += [Piece(END_OF_TURN, in_loss=in_loss, is_special=True), Piece("\n")]
    if add_generation_prompt:
        pieces += [Piece(TURN, is_special=True), Piece(f"Assistant\n{prefix}")]
    return pieces


def tool_block(system: str, tools: Sequence[Tool]) -> str:
    """What follows the system text: the tools as a JSON list, after a blank line if the system text is not empty."""
    if not tools:
        return ""
    schemas = ", ".join(to_json(tool_schema(tool), f"tools[{index}]") for index, tool in enumerate(tools))
    return ("\n\n" if system else "") + f"<AVAILABLE_TOOLS>[{schemas}]</AVAILABLE_TOOLS>"


def assistant_text(message: Message, name: str, *, keep_thinking: bool) -> str:
    """The text of an assistant turn: its content, with or without its thinking, and its tool calls."""
    content = message.get("content") or ""
    if not keep_thinking and CLOSE_THINK in content:
        content = content.split(CLOSE_THINK)[1]
    content = content.strip()
    calls = [call["function"] for call in message.get("tool_calls") or []]
    if not calls:
        return content
    written = ", ".join(
        f'{{"name": {to_json(call["name"], name)}, "arguments": '
        f"{call['arguments'] if isinstance(call['arguments'], str) else to_json(call['arguments'], name)}}}"
        for call in calls
    )
    blank_line = "" if content in ("", OPEN_THINK + CLOSE_THINK) else "\n\n"  # only after text; a tag is not text
    return f"{content}{blank_line}{OPEN_CALL}[{written}]{CLOSE_CALL}"


# Published are the special tokens and their ids, the flags, the prefixes and the tags.
CHAT = ChatFormat(
    template=CHAT_TEMPLATE,
    special_ids={SYSTEM: 10, TURN: 11, END_OF_TURN: 12},
    # The ids at which NVIDIA's programs stop: end of text, the next turn, the end of this one. One list: our choice.
    stop_tokens={"</s>": 2, TURN: 11, END_OF_TURN: 12},
    flags={True: "/think", False: "/no_think"},
    reply_prefixes={True: f"{OPEN_THINK}\n", False: f"{OPEN_THINK}{CLOSE_THINK}"},
    open_think=OPEN_THINK,
    close_think=CLOSE_THINK,
    to_pieces=nano2_pieces,
    split_tool_calls=split_json_calls(OPEN_CALL, CLOSE_CALL),
    pretrain_command="python -m nemotron.recipes.nano2.stage0_pretrain",
    finetune_command="python -m nemotron.recipes.nano2.stage1_sft",
)
