"""A published model, as transformers writes one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.sources.exercises.families import FAMILIES

# A chat template with the structure of the published one: the flags in any system or user text, tools after the system
# text between sentences, thoughts only in the last turn, which gets its prefix from the template.
PUBLISHED_TEMPLATE = r"""
{%- set ns = namespace(thinking=true, system='', last=none) -%}
{%- set turns = messages -%}
{%- for message in messages -%}
    {%- if message.role in ['system', 'user'] -%}
        {%- if '/think' in message.content -%}{%- set ns.thinking = true -%}
        {%- elif '/no_think' in message.content -%}{%- set ns.thinking = false -%}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if messages[0].role == 'system' -%}
    {%- set ns.system = messages[0].content.replace('/no_think', '').replace('/think', '') | trim -%}
    {%- set turns = turns[1:] -%}
{%- endif -%}
{%- if messages[-1].role == 'assistant' -%}
    {%- set ns.last = messages[-1].content | trim -%}
    {%- set turns = turns[:-1] -%}
{%- endif -%}
{{- '<SPECIAL_10>System\n' + ns.system -}}
{%- if tools -%}
    {{- '\n\n' if ns.system else '' -}}{{- 'These are your tools.\n<AVAILABLE_TOOLS>[' -}}
    {%- for tool in tools -%}{{- (tool.function | tojson) + ('' if loop.last else ', ') -}}{%- endfor -%}
    {{- ']</AVAILABLE_TOOLS>\n\nA call looks like this: <TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>' -}}
    {{- '\n\nA result looks like this: <TOOL_RESPONSE>[{}]</TOOL_RESPONSE>\n\nCall again if it failed.' -}}
{%- endif -%}
{{- '\n' -}}
{%- for message in turns -%}
    {%- if message.role == 'user' -%}
        {{- '<SPECIAL_11>User\n' + message.content.replace('/no_think', '').replace('/think', '') | trim + '\n' -}}
    {%- elif message.role == 'tool' -%}
        {%- set before = turns[loop.index0 - 1].role if loop.index0 else '' -%}
        {%- set after = turns[loop.index0 + 1].role if loop.index0 + 1 < turns | length else '' -%}
        {{- ', ' if before == 'tool' else '<SPECIAL_11>User\n<TOOL_RESPONSE>[' -}}{{- message.content -}}
        {{- '' if after == 'tool' else ']</TOOL_RESPONSE>\n' -}}
    {%- else -%}
        {%- set content = message.content or '' -%}
        {%- if '</think>' in content -%}{%- set content = content.split('</think>')[1] -%}{%- endif -%}
        {%- set content = content | trim -%}
        {{- '<SPECIAL_11>Assistant\n' + content -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set arguments = call.function.arguments -%}
            {{- (('\n\n' if content else '') + '<TOOLCALL>[') if loop.first else ', ' -}}
            {{- '{"name": "' + call.function.name + '", "arguments": ' -}}
            {{- (arguments if arguments is string else arguments | tojson) + '}' -}}
            {{- ']</TOOLCALL>' if loop.last else '' -}}
        {%- endfor -%}
        {{- '\n<SPECIAL_12>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt or ns.last is not none -%}
    {{- '<SPECIAL_11>Assistant\n' + ('<think>\n' if ns.thinking else '<think></think>') -}}
{%- endif -%}
{%- if ns.last is not none -%}{{- ns.last + '\n<SPECIAL_12>\n' -}}{%- endif -%}
""".strip()

# Another shape than that of any scale, with the layers of the published 9B in their order.
SHAPE = {
    "vocab_size": 448,
    "hidden_size": 48,
    "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"],
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "ssm_state_size": 8,
    "chunk_size": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="session")
def published_template() -> str:
    """A chat template with the structure of the published one."""
    return PUBLISHED_TEMPLATE


@pytest.fixture(scope="session")
def whole_published_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as NVIDIA publishes models: sharded safetensors with an index, bfloat16, tokenizer and template.

    Written by transformers; random weights. Tests must not change it; `published_model` is a copy.
    """
    from transformers import NemotronHConfig, NemotronHForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("published") / "NVIDIA-Nemotron-Nano-tiny"
    torch.manual_seed(0)
    config = NemotronHConfig(**SHAPE, bos_token_id=1, eos_token_id=12, pad_token_id=0)
    model = NemotronHForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():  # most replies end within a few tokens, so that some have the right form
        model.get_input_embeddings().weight[:, 0] = 3.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[12, 0] = 0.9
    model.generation_config.update(eos_token_id=[2, 11, 12], do_sample=True, temperature=0.6, top_p=0.95)
    model.save_pretrained(directory, max_shard_size="40KB")
    texts = [
        message["content"]
        for family in FAMILIES.values()
        for exercise in family.generate_exercises(20, 0, split="train")
        for message in exercise.messages
    ]
    save_tokenizer(train_tokenizer(texts, SHAPE["vocab_size"]), directory)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, bos_token="<s>", eos_token="<SPECIAL_12>")
    tokenizer.chat_template = PUBLISHED_TEMPLATE
    tokenizer.save_pretrained(directory)
    special = {"bos_token": "<s>", "eos_token": "<SPECIAL_12>", "unk_token": "<unk>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return directory


@pytest.fixture
def published_model(whole_published_model: Path, tmp_path: Path) -> Path:
    """A copy of the published model, which a test may damage."""
    return Path(shutil.copytree(whole_published_model, tmp_path / "NVIDIA-Nemotron-Nano-tiny"))
