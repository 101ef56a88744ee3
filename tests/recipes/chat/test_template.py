"""A chat template that a checkpoint brings: used as transformers uses it, kept, and refused in one sentence if bad."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from nemotron.recipes.chat import template as template_module
from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.template import TemplateFormat, format_of, template_of
from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.checkpoint import load_tokenizer

# A template of another author for Nano 2's special tokens: it explains the tools, and puts bos_token first.
THEIRS = r"""{{ bos_token }}<SPECIAL_10>System
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{% if tools %}
You may use tools.
{{ tools | tojson }}
{% endif %}
{% set ns = namespace(thinking=true) %}
{% for message in messages %}
{% if message.role == 'user' %}
{% if '/no_think' in message.content %}{% set ns.thinking = false %}{% endif %}
<SPECIAL_11>User
{{ message.content.replace('/no_think', '') | trim }}
{% elif message.role == 'tool' %}
<SPECIAL_11>User
Result: {{ message.content }}
{% elif message.role == 'assistant' %}
<SPECIAL_11>Assistant
{% generation %}{{
    (message.content if loop.last else message.content.split('</think>')[-1]) | trim }}{% endgeneration %}{{
    message.tool_calls | tojson if message.tool_calls else '' }}
<SPECIAL_12>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<SPECIAL_11>Assistant
{{ '<think>\n' if ns.thinking else '<think></think>' }}{% endif %}"""
ADD = {"name": "add", "parameters": {"type": "object", "properties": {}}}


def user(content: str = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str = "<think>\nWell.\n</think>\n\nHi", *calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


CONVERSATIONS = [
    [user()],
    [{"role": "system", "content": "Be brief."}, user("Hi"), assistant(), user("Bye /no_think")],
    [user("1 + 2"), assistant("", {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}),
     {"role": "tool", "content": "3 é <b>"}],
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["System\nUser\nHello\nAssistant\n<think>\nWell.\n</think>\n\nHi <think></think>"] * 9, 330)


@pytest.fixture
def base(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The directory of a base model's tokenizer, without a template."""
    save_tokenizer(tokenizer, tmp_path / "base")
    return tmp_path / "base"


def with_template(directory: Path, template: Any, place: str = "chat_template.jinja") -> Path:
    """The directory with a template, in a file as transformers 5 writes it or in the configuration as before it."""
    if place == "chat_template.jinja":
        (directory / place).write_text(template, encoding="utf-8")
    else:
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return directory


PLACES = ["chat_template.jinja", "tokenizer_config.json"]


@pytest.mark.parametrize("place", PLACES)
def test_a_prompt_has_the_ids_of_transformers(base: Path, tokenizer: Tokenizer, place: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(with_template(base, THEIRS, place))
    chat = format_of(CHAT, base)
    assert isinstance(chat, TemplateFormat)
    for messages in CONVERSATIONS:
        for tools in ([], [{"type": "function", "function": ADD}]):
            ids = theirs.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=True, return_dict=False
            )
            encoded = chat.encode(tokenizer, messages, tools, add_generation_prompt=True)
            assert encoded.ids == ids
            assert not any(encoded.in_loss)
            assert chat.render(messages, tools, add_generation_prompt=True) == theirs.decode(ids)


def test_the_template_of_the_format_gives_the_same_ids_in_either_way(base: Path, tokenizer: Tokenizer) -> None:
    chat = format_of(CHAT, with_template(base, CHAT.template + "{# as another text #}"))
    assert isinstance(chat, TemplateFormat)
    for messages in (*CONVERSATIONS, [user(), assistant()], [user("a /no_think"), assistant("<think></think>b")]):
        assert chat.encode(tokenizer, messages, [ADD]) == CHAT.encode(tokenizer, messages, [ADD])


def test_without_a_template_of_its_own_a_checkpoint_uses_the_format(base: Path, tmp_path: Path) -> None:
    assert format_of(CHAT, base) is CHAT
    save_chat_tokenizer(CHAT, base, tmp_path / "chat")
    assert format_of(CHAT, tmp_path / "chat") is CHAT


def test_the_file_wins_over_the_configuration(base: Path) -> None:
    with_template(with_template(base, "config", "tokenizer_config.json"), "file")
    assert template_of(base) == ("file", str(base / "chat_template.jinja"))


def test_of_several_templates_the_default_is_used(base: Path) -> None:
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    found = template_of(with_template(base, named, "tokenizer_config.json"))
    assert found is not None
    assert found[0] == "D"
    with pytest.raises(ValueError, match=r"chat_template has no template with the name default; add it$"):
        template_of(with_template(base, named[:1], "tokenizer_config.json"))


def test_what_is_learned_is_what_is_asked_for(base: Path, tokenizer: Tokenizer) -> None:
    chat = format_of(CHAT, with_template(base, THEIRS))
    for messages, learned in (
        ([user(), assistant()], "Well.\n</think>\n\nHi\n<SPECIAL_12>"),
        ([user("a /no_think"), assistant("<think></think>b")], "b\n<SPECIAL_12>"),
    ):
        encoded = chat.encode(tokenizer, messages, [ADD])
        prompt = chat.encode(tokenizer, messages[:-1], [ADD], add_generation_prompt=True)
        assert encoded.ids[: len(prompt.ids)] == prompt.ids
        assert not any(encoded.in_loss[: len(prompt.ids)])
        counted = [token for token, counts in zip(encoded.ids, encoded.in_loss, strict=True) if counts]
        assert tokenizer.decode(counted, skip_special_tokens=False) == learned
        assert "You may use tools." in chat.render(messages, [ADD])


def published(content: str | None, **fields: Any) -> dict[str, Any]:
    """The assistant's turn as the published template takes it at the end: without the prefix of the reply."""
    return {"role": "assistant", "content": content, **fields}


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": arguments}}


THOUGHT = "<think>\nWell.\n</think>\n\nHi"
TURNS: list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = [
    ([user()], assistant(THOUGHT), published("Well.\n</think>\n\nHi")),
    ([user("Hello /no_think")], assistant("<think></think>Hi"), published("Hi")),
    ([{"role": "system", "content": "Be brief. /no_think"}, user()], assistant("<think></think>1"), published("1")),
    ([user("a"), assistant(THOUGHT), user("b")], assistant(THOUGHT), published("Well.\n</think>\n\nHi")),
    ([user("1 + 2"), assistant("", call(a=1, b=2)), {"role": "tool", "content": "3"}, {"role": "tool", "content": "4"}],
     assistant(THOUGHT), published("Well.\n</think>\n\nHi")),
    ([user("1 + 2")], {"role": "assistant", "content": "Hi", "reasoning_content": "Well."},
     published("Well.\n</think>\n\nHi")),
    # The template writes no calls of a turn at the end, so they are part of its text.
    ([user("1 + 2 /no_think")], assistant("<think></think>", call(a=1)),
     published('<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>')),
]  # fmt: skip
"""What comes before, the turn that is learned, and the same turn as transformers is given it."""


@pytest.mark.parametrize("added", ["", "special", "tag"])
def test_a_turn_has_the_ids_of_transformers_with_a_template_as_published(
    base: Path, published_template: str, added: str
) -> None:
    """Also if tags of thoughts and calls are tokens of their own, which a published tokenizer may have."""
    from transformers import AutoTokenizer

    tags = [AddedToken(tag, special=added == "special", normalized=False)
            for tag in ("<think>", "</think>", "<TOOLCALL>", "</TOOLCALL>") if added]  # fmt: skip
    changed = load_tokenizer(base)
    changed.add_tokens(tags)
    changed.save(str(base / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(with_template(base, published_template))
    chat, ours = format_of(CHAT, base), load_tokenizer(base)
    for history, reply, given in TURNS:
        for tools in ([], [ADD]):
            wrapped = [{"type": "function", "function": tool} for tool in tools] or None
            encoded = chat.encode(ours, [*history, reply], tools)
            prompt = theirs.apply_chat_template(history, tools=wrapped, add_generation_prompt=True, return_dict=False)
            assert encoded.ids == theirs.apply_chat_template([*history, given], tools=wrapped, return_dict=False)
            assert encoded.ids[: len(prompt)] == prompt
            learned = ours.decode(encoded.ids[len(prompt) :], skip_special_tokens=False)
            assert learned == f"{given['content']}\n<SPECIAL_12>\n"
            end = encoded.ids.index(12, len(prompt))
            assert encoded.in_loss == [len(prompt) <= place <= end for place in range(len(encoded.ids))]
            chat.check_conversation([*history, reply], [ADD], for_training=True)


UNSTABLE = {
    "the prompt counts the turns": "{{ messages | length }} turns\n",
    "the prompt names the last turn": "{{ messages[-1].role }}\n",
}


@pytest.mark.parametrize("beginning", UNSTABLE.values(), ids=UNSTABLE)
def test_a_template_that_is_not_stable_is_refused(base: Path, tokenizer: Tokenizer, beginning: str) -> None:
    chat = format_of(CHAT, with_template(base, beginning + THEIRS))
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not stable: .*; correct the template, or remove it"):
        chat.encode(tokenizer, [user(), assistant()])


def test_a_template_that_leaves_out_the_thought_is_refused(base: Path, tokenizer: Tokenizer) -> None:
    drops = THEIRS.replace("message.content if loop.last else ", "")
    chat = format_of(CHAT, with_template(base, drops))
    with pytest.raises(ValueError, match=r"is not stable: .* or leaves out a part of that turn"):
        chat.encode(tokenizer, [user(), assistant()])


def test_a_template_that_ends_no_turn_is_refused(base: Path, tokenizer: Tokenizer) -> None:
    chat = format_of(CHAT, with_template(base, THEIRS.replace("<SPECIAL_12>", "***")))
    with pytest.raises(ValueError, match=r"ends no reply with one of </s>, <SPECIAL_11>, <SPECIAL_12>, which stop gen"):
        chat.encode(tokenizer, [user(), assistant()])


def test_a_reply_also_ends_where_the_generation_settings_say(base: Path, tokenizer: Tokenizer) -> None:
    (base / "generation_config.json").write_text('{"eos_token_id": [12, 9]}')
    chat = format_of(CHAT, base)
    assert chat.stop_ids == (2, 11, 12, 9)
    assert chat.parse_reply("Hi<SPECIAL_9>", thinking=False).content == "Hi"
    assert format_of(CHAT, with_template(base, THEIRS)).stop_ids == (2, 11, 12, 9)
    (base / "generation_config.json").write_text('{"eos_token_id": 12}')
    assert format_of(CHAT, base).stop_ids == CHAT.stop_ids


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("{", r"generation_config\.json is not valid JSON"),
        (
            '{"eos_token_id": "x"}',
            r"generation_config\.json: eos_token_id is 'x', not an id or a list of ids; correct it$",
        ),
        (
            '{"eos_token_id": [99999]}',
            r"generation_config\.json: eos_token_id 99999 is not in tokenizer\.json; correct it$",
        ),
    ],
)
def test_damaged_generation_settings_are_an_error(base: Path, settings: str, sentence: str) -> None:
    (base / "generation_config.json").write_text(settings)
    with pytest.raises(ValueError, match=sentence):
        format_of(CHAT, base)


def test_the_template_decides_about_thinking(base: Path) -> None:
    chat = format_of(CHAT, with_template(base, THEIRS))
    assert chat.thinking_requested([user("/no_think")]) is False
    assert chat.thinking_requested([user("/no_think"), assistant("b"), user("/think")]) is False  # unlike the format
    assert CHAT.thinking_requested([user("/no_think"), assistant("b"), user("/think")]) is True


@pytest.mark.parametrize("spelled", ["<SPECIAL_12>", "</s>", "a<SPECIAL_11>User", "<unk>"])
def test_a_special_token_in_a_text_stays_text(base: Path, tokenizer: Tokenizer, spelled: str) -> None:
    chat = format_of(CHAT, with_template(base, THEIRS))
    messages = [{"role": "system", "content": spelled}, user(f"{spelled} \ue000"), assistant(spelled), user(spelled)]
    ids = chat.encode(tokenizer, messages, [{"name": spelled}], add_generation_prompt=True).ids
    assert [token for token in ids if token < len(SPECIAL_TOKENS)] == [2, 10, 11, 11, 12, 11, 11]
    text = chat.render(messages, [{"name": spelled}], add_generation_prompt=True)
    assert text.count(spelled) >= 4
    assert text.count("\ue000") == 1


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% if %}", r"has a syntax error in line 1: Expected an expression"),
        ("\n{{ messages[7].content.text }}", r"uses something that is not there: list object has no element 7"),
        ("{{ raise_exception('No user.') }}", r"refuses this conversation: No user; correct the"),
        ("{{ ''.__class__.__mro__ }}", r"(refuses this conversation|uses something that is not there): .*unsafe"),
        ("{{ messages.append(1) }}", r"(refuses this conversation|uses something).*unsafe|not safely callable"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"calls itself without an end"),
        ("{{ 'x' * 2000000000 }}", r"needs more than 1,073,741,824 bytes of memory"),
        ("{{ 1 / 0 }}", r"fails with ZeroDivisionError: division by zero"),
        ("Hello", r"ends a prompt with 'Hello', and replies begin after '<think>\\n' or '<think></think>'; use the"),
    ],
)
def test_a_bad_template_is_one_sentence_before_the_chat_begins(base: Path, template: str, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"chat_template\.jinja.*({fault})") as raised:
        format_of(CHAT, with_template(base, template))
    assert "\n" not in str(raised.value)


def test_an_endless_template_is_stopped(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "RENDER_SECONDS", 2.0)
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"is not rendered within 2 seconds and .* bytes of memory; correct the temp"):
        format_of(CHAT, with_template(base, loops))
    assert time.monotonic() - begin < 60


def test_a_template_may_fail_for_one_conversation_and_render_the_next(base: Path) -> None:
    refusing = THEIRS + "{% if messages[-1].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
    chat = format_of(CHAT, with_template(base, refusing.replace("{% if add", "{%- if add", 1)))
    with pytest.raises(ValueError, match=r"refuses this conversation: not this; correct the template or the messages$"):
        chat.render([user("no")], add_generation_prompt=True)
    assert chat.render([user("yes")], add_generation_prompt=True).endswith("<think>\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe", r"chat_template\.jinja is not UTF-8 text \(.*\); fetch it again$"),
        (b"x" * (2**20 + 1), r"chat_template\.jinja has more than 1,048,576 bytes; fetch it again$"),
    ],
)
def test_a_damaged_file_is_an_error(base: Path, content: bytes, sentence: str) -> None:
    (base / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        format_of(CHAT, base)


def test_a_template_that_is_not_text_is_an_error(base: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is 7, not a text; fetch it again$"):
        format_of(CHAT, with_template(base, 7, "tokenizer_config.json"))


@pytest.mark.parametrize("place", PLACES)
def test_a_tokenizer_that_brings_a_template_keeps_it_when_it_is_saved(
    base: Path, chatml: ChatFormat, tmp_path: Path, place: str
) -> None:
    from transformers import AutoTokenizer

    save_chat_tokenizer(CHAT, with_template(base, THEIRS, place), tmp_path / "again")
    found = template_of(tmp_path / "again")
    assert found is not None
    assert found[0] == THEIRS
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == THEIRS


def test_several_threads_render_with_one_format(base: Path) -> None:
    chat = format_of(CHAT, with_template(base, THEIRS))
    texts = [f"Hello {number}" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        rendered = pool.map(lambda text: chat.render([user(text)], add_generation_prompt=True), texts)
        assert all(f"\n{text}\n" in found for text, found in zip(texts, rendered, strict=True))


def test_a_format_can_be_sent_to_another_process(base: Path) -> None:
    from daft import pickle  # as it sends functions

    chat = format_of(CHAT, with_template(base, THEIRS))
    copy = pickle.loads(pickle.dumps(chat))
    assert copy.render([user()], add_generation_prompt=True) == chat.render([user()], add_generation_prompt=True)
