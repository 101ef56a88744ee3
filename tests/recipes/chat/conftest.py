"""A second chat format, ChatML with its own flags, so that nothing in recipes/chat can depend on Nano 2's format."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat, Piece
from nemotron.recipes.chat.messages import Message, Tool, to_json, tool_schema
from nemotron.recipes.chat.reply import split_json_calls
from nemotron.recipes.curation.tokenizer import train_tokenizer

START, END = "<|im_start|>", "<|im_end|>"

TEMPLATE = r"""
{%- macro without_flags(text) -%}
    {{- text.replace('/direct', '').replace('/reason', '')|trim -}}
{%- endmacro -%}

{%- set seen = namespace(thinking=true) -%}
{%- for message in messages -%}
    {%- if message['role'] in ['system', 'user'] -%}
        {%- if '/reason' in message['content'] or '/direct' in message['content'] -%}
            {%- set seen.thinking = '/reason' in message['content'] -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}

{%- if tools and messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\n<tools>' ~ tools|tojson ~ '</tools><|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- set content = message['content'] or '' -%}
        {{- (content if loop.last else content.split('</think>')[-1])|trim -}}
        {%- if message['tool_calls'] -%}
            {{- '<tool_call>' ~ message['tool_calls']|map(attribute='function')|list|tojson ~ '</tool_call>' -}}
        {%- endif -%}
    {%- elif message['role'] == 'tool' -%}
        {{- message['content'] -}}
    {%- else -%}
        {{- without_flags(message['content']) -}}
        {%- if tools and loop.first and message['role'] == 'system' -%}
            {{- '<tools>' ~ tools|tojson ~ '</tools>' -}}
        {%- endif -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}

{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' ~ ('<think>\n' if seen.thinking else '<think></think>') -}}
{%- endif -%}
""".strip()


def chatml_pieces(
    chat: ChatFormat, messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool
) -> list[Piece]:
    prefix = chat.reply_prefixes[chat.thinking_requested(messages)]
    schemas = f"<tools>{to_json([tool_schema(tool) for tool in tools], 'tools')}</tools>" if tools else ""
    if schemas and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    pieces: list[Piece] = []
    for index, message in enumerate(messages):
        role, content, is_last = message["role"], message["content"] or "", index == len(messages) - 1
        in_loss = False
        if role == "assistant":
            content = (content if is_last else content.rpartition(chat.close_think)[2]).strip()
            if message.get("tool_calls"):
                calls = [call["function"] for call in message["tool_calls"]]
                content += f"<tool_call>{to_json(calls, f'messages[{index}]')}</tool_call>"
            in_loss = is_last and not add_generation_prompt and content.startswith(prefix)
        elif role != "tool":
            content = chat.without_flags(content) + (schemas if role == "system" else "")
        pieces.append(Piece(START, is_special=True))
        if in_loss:
            pieces += [Piece(f"assistant\n{prefix}"), Piece(content.removeprefix(prefix), in_loss=True)]
        else:
            pieces.append(Piece(f"{role}\n{content}"))
        pieces += [Piece(END, in_loss=in_loss, is_special=True), Piece("\n")]
    if add_generation_prompt:
        pieces += [Piece(START, is_special=True), Piece(f"assistant\n{prefix}")]
    return pieces


@pytest.fixture(scope="session")
def chatml() -> ChatFormat:
    return ChatFormat(
        template=TEMPLATE,
        special_ids={START: 10, END: 11},
        stop_tokens={"</s>": 2, END: 11},
        flags={True: "/reason", False: "/direct"},
        reply_prefixes={True: "<think>\n", False: "<think></think>"},
        open_think="<think>",
        close_think="</think>",
        to_pieces=chatml_pieces,
        split_tool_calls=split_json_calls("<tool_call>", "</tool_call>"),
        pretrain_command="python -m chatml.pretrain",
        finetune_command="python -m chatml.finetune",
    )


@pytest.fixture(scope="session")
def chatml_tokenizer() -> Tokenizer:
    """With merges over what the template puts next to texts, so that a text split at another place has other ids."""
    texts = ["assistant\n<think></think>**12**\n", "user\nHow many are 12?\n", "assistant\n<think>\n12\n</think>. \n"]
    trained = train_tokenizer(texts * 20, 400).to_str()
    return Tokenizer.from_str(trained.replace("<SPECIAL_10>", START).replace("<SPECIAL_11>", END))
