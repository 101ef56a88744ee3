"""The chat format: by hand for each rule, and against transformers over generated conversations."""

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nemotron.recipes.curation.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import (
    CHAT_TEMPLATE,
    REPLY_PREFIXES,
    SPECIAL_IDS,
    STOP_TOKENS,
    Reply,
    check_conversation,
    encode_chat,
    load_chat_tokenizer,
    parse_reply,
    render,
    save_chat_tokenizer,
    thinking_requested,
    training_conversations,
    with_flag,
    without_flags,
)

# With merges over what the template puts next to texts, so that a text split at another place has other ids.
TEXTS = [
    "System\n\n\nUser\nHow many are 12?\nAssistant\n<think>\nTwelve are 12.\n\n</think>\n\n**12**.\n",
    "Assistant\n<think></think>**12**\n\nAssistant\n<think></think>(a) [b]\n",
    "User\n<TOOL_RESPONSE>[12, 12]</TOOL_RESPONSE>\n",
    'Assistant\n<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</TOOLCALL>\n',
] * 5
ADD = {"name": "add", "description": "Sum of <a> & b, naïve", "parameters": {"type": "object", "properties": {}}}
FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "<think>\nWell.\n</think>\n\nHi", *calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


def tool(content: Any = "3") -> dict[str, Any]:
    return {"role": "tool", "content": content}


def call(name: Any = "add", arguments: Any = None) -> dict[str, Any]:
    arguments = {"a": 1, "b": 2} if arguments is None else arguments
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 420)


@pytest.fixture(scope="module")
def transformers_tokenizer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer  # takes seconds, which tests of other things need not spend

    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, directory)
    save_chat_tokenizer(directory, directory / "chat")
    return AutoTokenizer.from_pretrained(directory / "chat")


# The template, by hand ------------------------------------------------------------------------------------------------

EMPTY_SYSTEM = "<SPECIAL_10>System\n\n"
RENDERED = {
    "a user's turn after an empty system turn": (
        [user("Hello")],
        (),
        "<SPECIAL_10>System\n\n<SPECIAL_11>User\nHello\n",
    ),
    "a system text": (
        [system(" Be brief.\n"), user("Hello")],
        (),
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\nHello\n",
    ),
    "a last reply with its thinking": (
        [user("Hello"), assistant("<think>\nWell.\n</think>\n\nHi ")],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\nHello\n<SPECIAL_11>Assistant\n<think>\nWell.\n</think>\n\nHi\n<SPECIAL_12>\n",
    ),
    "an earlier reply without its thinking": (
        [user("Hello"), assistant("<think>\nA </think> B\n</think>\n\nHi"), user("Bye")],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\nHello\n<SPECIAL_11>Assistant\nHi\n<SPECIAL_12>\n<SPECIAL_11>User\nBye\n",
    ),
    "flags and the white space around them": (
        [system("/no_think Be brief."), user("Hello there /think \n"), user("/nothink </think> un/thinkable")],
        (),
        "<SPECIAL_10>System\nBe brief.\n<SPECIAL_11>User\nHello there\n<SPECIAL_11>User\n/nothink </think> unable\n",
    ),
    "tools after an empty system text": (
        [user("Hello")],
        [{"name": "add", "note": "ä<b>"}, FIND],
        '<SPECIAL_10>System\n<AVAILABLE_TOOLS>[{"name": "add", "note": "ä<b>"}, '
        '{"name": "find", "parameters": {"type": "object"}}]</AVAILABLE_TOOLS>\n<SPECIAL_11>User\nHello\n',
    ),
    "tools after a system text": (
        [system("Be brief. /think"), user("Hello")],
        [{"name": "add"}],
        '<SPECIAL_10>System\nBe brief.\n\n<AVAILABLE_TOOLS>[{"name": "add"}]</AVAILABLE_TOOLS>\n'
        "<SPECIAL_11>User\nHello\n",
    ),
    "calls and what the tools answered": (
        [
            user("1 + 2, 3 + 4"),
            assistant("<think></think>Let me see. ", call(), call("add", '{"a":3,  "b":4}')),
            tool("3"),
            tool(" 7\n"),
            assistant(None, call("find", {"what": "é"})),
            tool(""),
        ],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1 + 2, 3 + 4\n"
        '<SPECIAL_11>Assistant\nLet me see.<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}, '
        '{"name": "add", "arguments": {"a":3,  "b":4}}]</TOOLCALL>\n<SPECIAL_12>\n'
        "<SPECIAL_11>User\n<TOOL_RESPONSE>[3,  7\n]</TOOL_RESPONSE>\n"
        '<SPECIAL_11>Assistant\n<TOOLCALL>[{"name": "find", "arguments": {"what": "é"}}]</TOOLCALL>\n<SPECIAL_12>\n'
        "<SPECIAL_11>User\n<TOOL_RESPONSE>[]</TOOL_RESPONSE>\n",
    ),
    "a last call with its thinking": (
        [user("1 + 2"), assistant("<think>\nAdd.\n</think>\n\n", call())],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1 + 2\n<SPECIAL_11>Assistant\n<think>\nAdd.\n</think>"
        '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</TOOLCALL>\n<SPECIAL_12>\n',
    ),
}


@pytest.mark.parametrize("rule", RENDERED)
def test_a_rule_of_the_format_gives_the_text_written_by_hand(rule: str) -> None:
    messages, tools, expected = RENDERED[rule]
    assert render(messages, tools) == expected


@pytest.mark.parametrize("rule", RENDERED)
def test_transformers_gives_the_text_written_by_hand(rule: str, transformers_tokenizer: Any) -> None:
    messages, tools, expected = RENDERED[rule]
    rendered = transformers_tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=False)
    assert rendered == expected


THINKING = [
    ([user("Hello")], True),
    ([user("Hello /no_think")], False),
    ([system("/no_think"), user("Hello")], False),
    ([system("/no_think"), user("Hello /think")], True),
    ([system("/think"), user("/no_think Hello"), assistant("Hi"), user("Bye")], False),
    ([user("/no_think Hello"), assistant("Hi /think"), tool("/think"), user("Bye")], False),
    ([user("/no_think Hello"), assistant("Hi"), user("Bye /think")], True),
    ([user("/think then /no_think")], False),
    ([user("/no_think then /think")], True),
    ([user("/think then /no_think then /think")], True),
    ([user("/no_think then /think then /no_think")], False),
    ([user("/no_th</think>ink")], True),
    ([user("/no_think a </think> b")], False),
    ([user("path/no_thinking")], False),
]


@pytest.mark.parametrize(("messages", "thinking"), THINKING)
def test_the_last_flag_decides_what_the_reply_begins_with(messages: list[Any], thinking: bool) -> None:
    assert thinking_requested(messages) is thinking
    header = "<SPECIAL_11>Assistant\n"
    prompt = header + ("<think>\n" if thinking else "<think></think>")
    assert render(messages, add_generation_prompt=True) == render(messages) + prompt


@pytest.mark.parametrize(("messages", "thinking"), THINKING)
def test_transformers_sees_the_same_flag(messages: list[Any], thinking: bool, transformers_tokenizer: Any) -> None:
    rendered = transformers_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<SPECIAL_11>Assistant\n<think>\n" if thinking else "<think></think>")


# Against transformers -------------------------------------------------------------------------------------------------

CHARACTERS = st.characters(exclude_categories=["Cs"])
FRAGMENTS = st.sampled_from(
    ["/think", "/no_think", "<think>", "</think>", "<think>\n", "\n", " ", "\xa0", "**", "(", "1", "a", "<", "/", "ink"]
)
ANY = st.lists(st.one_of(st.text(CHARACTERS, max_size=4), FRAGMENTS), max_size=6).map("".join)
# For the tests of ids: transformers obeys a special token that a text spells.
PLAIN = ANY.filter(lambda text: not any(token in text + without_flags(text) for token in SPECIAL_TOKENS))
SPELT = st.one_of(ANY, st.sampled_from(SPECIAL_TOKENS), st.just("a</s><SPECIAL_12>"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | PLAIN, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
OBJECTS = st.dictionaries(PLAIN, VALUES, max_size=2)


def calls_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[Any]]:
    arguments = st.one_of(OBJECTS, OBJECTS.map(json.dumps))
    return st.lists(st.builds(call, texts, arguments), min_size=1, max_size=2)


def turns_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    thoughts = st.builds("<think>\n{}\n</think>\n\n{}".format, texts, texts)
    contents = st.one_of(thoughts, texts.map("<think></think>{}".format), texts.map("a{}".format))
    return st.one_of(
        st.builds(user, texts),
        st.builds(tool, texts),
        st.builds(assistant, contents),
        st.builds(lambda content, calls: assistant(content, *calls), st.none() | contents, calls_of(texts)),
    )


def conversations_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    begin = st.lists(st.builds(system, texts), max_size=1)
    return st.builds(lambda first, rest: first + rest, begin, st.lists(turns_of(texts), min_size=1, max_size=5))


def tools_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    schemas = st.builds(lambda name, rest: {**rest, "name": name}, texts, OBJECTS)
    wrapped = schemas.map(lambda schema: {"type": "function", "function": schema})
    return st.lists(st.one_of(schemas, wrapped), max_size=2)


@given(conversations_of(SPELT), tools_of(SPELT), st.booleans())
def test_transformers_renders_every_conversation_as_python_does(
    transformers_tokenizer: Any, messages: list[Any], tools: list[Any], add_generation_prompt: bool
) -> None:
    theirs = transformers_tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert render(messages, tools, add_generation_prompt=add_generation_prompt) == theirs


JUNK = st.sampled_from([None, "", " ", "text", 0, 7, True, [], ["a"], {}, {"a": 1}])
JUNK_FUNCTIONS = st.fixed_dictionaries({}, optional={"name": JUNK, "arguments": JUNK})
JUNK_CALL = st.fixed_dictionaries({}, optional={"function": JUNK | JUNK_FUNCTIONS})
JUNK_CALLS = JUNK | st.lists(JUNK | JUNK_CALL | st.just(call()), max_size=2)
JUNK_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["system", "user", "assistant", "assistant", "tool", "developer", ""]), JUNK),
        "content": JUNK,
        "tool_calls": JUNK_CALLS,
    },
)
REFUSED = "refused"


def rendered_by_transformers(transformers_tokenizer: Any, messages: Any, tools: Any) -> str:
    try:
        return transformers_tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    except (jinja2.TemplateError, ValueError):
        return REFUSED


def rendered_here(messages: Any, tools: Any) -> str:
    try:
        return render(messages, tools)
    except ValueError:
        return REFUSED


@given(st.lists(st.one_of(JUNK_MESSAGES, st.sampled_from([user(), assistant()])), max_size=3))
def test_transformers_refuses_what_python_refuses(transformers_tokenizer: Any, messages: list[Any]) -> None:
    assert rendered_here(messages, []) == rendered_by_transformers(transformers_tokenizer, messages, [])


MALFORMED = [
    ([], "messages is empty or no list; begin with a system or a user message"),
    ([{"content": "Hello"}], "messages[0] has the role None; use system, user, assistant or tool"),
    ([{"role": "human", "content": "a"}], "messages[0] has the role 'human'; use system, user, assistant or tool"),
    ([user(), system("late")], "messages[1] is a system message; only the first message may be one"),
    ([{"role": "user"}], "messages[0] has no content; give a string"),
    ([user(None)], "messages[0] has no content; give a string"),
    ([user([{"type": "text", "text": "Hello"}])], "messages[0] has content of the type list; give a string"),
    ([user(), assistant(7, call())], "messages[1] has content of the type int; give a string"),
    ([user(), assistant(0, call())], "messages[1] has content of the type int; give a string"),
    ([user(), assistant(None)], "messages[1] has no content; give a string"),
    ([user(), assistant(" \n")], "messages[1] has neither content nor tool calls; give one of them"),
    ([{**assistant("a"), "tool_calls": {"name": "f"}}], "messages[0] has tool_calls of the type dict; give a list"),
    ([{**assistant("a"), "tool_calls": "f()"}], "messages[0] has tool_calls of the type str; give a list"),
    (
        [user(), assistant(None, {"name": "add", "arguments": {}})],
        "messages[1] has a malformed tool call; write "
        '{"type": "function", "function": {"name": text, "arguments": object}}',
    ),
]


@pytest.mark.parametrize(("messages", "sentence"), MALFORMED)
def test_malformed_messages_are_a_sentence(messages: list[Any], sentence: str, transformers_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        render(messages)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_conversation(messages, for_training=True)
    assert rendered_by_transformers(transformers_tokenizer, messages, None) == REFUSED


@pytest.mark.parametrize(
    "bad", [call(None), call(7), call("add", 7), call("add", [1]), {"function": "add"}, "add", None]
)
def test_a_call_without_name_and_arguments_is_refused_by_both(bad: Any, transformers_tokenizer: Any) -> None:
    messages = [user(), assistant("a", call(), bad)]
    with pytest.raises(ValueError, match=r"messages\[1\] has a malformed tool call; write"):
        render(messages)
    assert rendered_by_transformers(transformers_tokenizer, messages, None) == REFUSED


def test_messages_that_are_no_objects_are_a_sentence() -> None:
    for messages in ("Hello", {"role": "user"}, None, ["Hello"], [None]):
        with pytest.raises(ValueError, match=r"no list; begin with|has the role None; use system"):
            render(messages)  # type: ignore[arg-type]


def test_tools_that_are_no_objects_are_refused_by_both(transformers_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"^tools\[1\] is of the type str; give its JSON schema as an object$"):
        render([user()], [ADD, "find"])  # type: ignore[list-item]
    assert rendered_by_transformers(transformers_tokenizer, [user()], [ADD, "find"]) == REFUSED


def test_values_that_json_does_not_have_are_a_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^messages\[1\] is no JSON \(.*set.*\); use objects, lists, texts and numbers$"
    ):
        render([user(), assistant(None, call("add", {"a": {1}}))])
    with pytest.raises(ValueError, match=r"^tools\[0\] is no JSON"):
        render([user()], [{"name": {1}}])


# Ids and loss ---------------------------------------------------------------------------------------------------------


def transformers_ids(transformers_tokenizer: Any, messages: list[Any], tools: list[Any], **options: Any) -> list[int]:
    return transformers_tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **options)


@given(conversations_of(PLAIN), tools_of(PLAIN))
def test_prompts_have_the_ids_of_transformers(
    tokenizer: Tokenizer, transformers_tokenizer: Any, messages: list[Any], tools: list[Any]
) -> None:
    encoded = encode_chat(tokenizer, messages, tools, add_generation_prompt=True)
    assert encoded.ids == transformers_ids(transformers_tokenizer, messages, tools, add_generation_prompt=True)
    assert not any(encoded.in_loss)
    assert len(encoded.in_loss) == len(encoded.ids)


@st.composite
def learnt_conversations(draw: st.DrawFn, texts: st.SearchStrategy[str], first: str) -> list[dict[str, Any]]:
    """Ending with a reply that begins as its prompt does, and goes on with `first`."""
    messages = draw(conversations_of(texts))
    assume(messages[-1]["role"] in ("user", "tool"))
    calls = draw(st.one_of(st.just([]), calls_of(texts)))
    return [*messages, assistant(REPLY_PREFIXES[thinking_requested(messages)] + first + draw(texts) + "x", *calls)]


@given(learnt_conversations(SPELT, ""), tools_of(SPELT))
def test_training_reads_the_ids_that_generation_reads(
    tokenizer: Tokenizer, messages: list[Any], tools: list[Any]
) -> None:
    full = encode_chat(tokenizer, messages, tools)
    prompt = encode_chat(tokenizer, messages[:-1], tools, add_generation_prompt=True)
    assert full.ids[: len(prompt.ids)] == prompt.ids
    # In the loss is everything after the prompt, but for the line end after <SPECIAL_12>.
    num_learnt = sum(full.in_loss)
    assert full.in_loss == [False] * len(prompt.ids) + [True] * num_learnt + [False] * (
        len(full.ids) - len(prompt.ids) - num_learnt
    )
    learnt = [token for token, in_loss in zip(full.ids, full.in_loss, strict=True) if in_loss]
    assert learnt[-1] == 12
    assert full.ids[len(prompt.ids) + num_learnt :] == tokenizer.encode("\n").ids
    prompt_text = render(messages[:-1], tools, add_generation_prompt=True)
    assert prompt_text + tokenizer.decode(learnt, skip_special_tokens=False) + "\n" == render(messages, tools)


@given(learnt_conversations(PLAIN, "T"), tools_of(PLAIN))
def test_replies_have_the_ids_of_transformers(
    tokenizer: Tokenizer, transformers_tokenizer: Any, messages: list[Any], tools: list[Any]
) -> None:
    """Those that begin with a letter: nothing that this tokenizer could merge with the tag before."""
    assert encode_chat(tokenizer, messages, tools).ids == transformers_ids(transformers_tokenizer, messages, tools)


def test_a_reply_that_would_merge_with_its_tag_is_split_as_in_generation(
    tokenizer: Tokenizer, transformers_tokenizer: Any
) -> None:
    messages = [user("12 /no_think"), assistant("<think></think>**12**")]
    prompt = transformers_ids(transformers_tokenizer, messages[:-1], [], add_generation_prompt=True)
    together = transformers_ids(transformers_tokenizer, messages, [])
    assert together[: len(prompt)] != prompt
    ids = encode_chat(tokenizer, messages).ids
    assert ids == prompt + tokenizer.encode("**12**\n").ids + [12] + tokenizer.encode("\n").ids
    assert transformers_tokenizer.decode(ids) == transformers_tokenizer.decode(together)


def test_the_loss_covers_the_reply_and_its_end_by_hand(tokenizer: Tokenizer) -> None:
    messages = [
        user("Hello"),
        assistant("<think>\nA\n</think>\n\nB"),
        user("Bye"),
        assistant("<think>\nC\n</think>\n\nD"),
    ]
    encoded = encode_chat(tokenizer, messages)
    shown = "".join(
        tokenizer.decode([token], skip_special_tokens=False) if in_loss else "·"
        for token, in_loss in zip(encoded.ids, encoded.in_loss, strict=True)
    )
    assert shown.lstrip("·") == "C\n</think>\n\nD\n<SPECIAL_12>·"


def test_a_conversation_that_ends_with_another_message_has_no_loss(tokenizer: Tokenizer) -> None:
    unclosed = assistant("<think>\nA")  # so it still begins as a reply does
    for messages in ([user()], [user(), unclosed, user()], [user(), assistant("a", call()), tool()]):
        assert not any(encode_chat(tokenizer, messages).in_loss)


@pytest.mark.parametrize("spelt", ["<SPECIAL_12>", "</s>", "<SPECIAL_10>System", "<unk>"])
def test_a_special_token_that_a_text_spells_stays_text(tokenizer: Tokenizer, spelt: str) -> None:
    tokenizer.encode_special_tokens = False  # as a tokenizer comes from a file
    turns = [
        system(spelt),
        user(spelt),
        assistant(spelt),
        user("a"),
        assistant("b", call(spelt, {spelt: spelt})),
        tool(spelt),
    ]
    encoded = encode_chat(tokenizer, [*turns, assistant(f"<think>\n{spelt}\n</think>\n\n{spelt}")], [{"name": spelt}])
    special = [token for token in encoded.ids if token < len(SPECIAL_TOKENS)]
    assert special == [10, 11, 11, 12, 11, 11, 12, 11, 11, 12]


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (
            [user(), assistant("Hi")],
            "messages[1] does not begin with '<think>\\n', although thinking is on; "
            "add its reasoning, or /no_think to a message before",
        ),
        (
            [user(), assistant("<think></think>Hi")],
            "messages[1] does not begin with '<think>\\n', although thinking is on",
        ),
        (
            [user("Hello /no_think"), assistant("Hi")],
            "messages[1] does not begin with '<think></think>', although thinking is off; "
            "add this, or remove /no_think",
        ),
        (
            [user("a /no_think"), assistant()],
            "messages[1] does not begin with '<think></think>', although thinking is off",
        ),
    ],
)
def test_a_reply_that_begins_otherwise_than_its_prompt_is_a_sentence(
    tokenizer: Tokenizer, messages: list[Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        encode_chat(tokenizer, messages)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        check_conversation(messages, for_training=True)
    assert not any(
        encode_chat(tokenizer, messages, add_generation_prompt=True).in_loss
    )  # as history it may be anything


def test_text_that_is_no_unicode_is_a_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="holds half a surrogate pair, which is no character; remove it"):
        encode_chat(tokenizer, [user("\ud83d")])


def test_a_tokenizer_without_the_tokens_of_turns_is_a_sentence(tokenizer: Tokenizer) -> None:
    other = Tokenizer.from_str(tokenizer.to_str().replace("<SPECIAL_12>", "<SPECIAL_99>"))
    with pytest.raises(ValueError, match=r"^the tokenizer has no <SPECIAL_12> with the id 12, .*; use a tokenizer of"):
        encode_chat(other, [user()])


def test_the_ids_of_turns_and_stops_are_the_published_ones(tokenizer: Tokenizer) -> None:
    assert {token: tokenizer.token_to_id(token) for token in SPECIAL_IDS} == SPECIAL_IDS
    assert tuple(tokenizer.id_to_token(index) for index in STOP_TOKENS) == ("</s>", "<SPECIAL_11>", "<SPECIAL_12>")


# One conversation for each turn ---------------------------------------------------------------------------------------


def test_every_turn_of_the_assistant_is_learnt_once_as_it_is_written(tokenizer: Tokenizer) -> None:
    messages = [
        system("/no_think"),
        user("One"),
        assistant(" First"),
        user("Two /think"),
        assistant("<think>\nTwo.\n</think>\n\nSecond"),
        user("Three /no_think"),
        assistant(None, call()),
        tool("3"),
        assistant("<think></think>Third"),
    ]
    learnt = []
    for conversation in training_conversations(messages):
        check_conversation(conversation, [ADD], for_training=True)
        encoded = encode_chat(tokenizer, conversation, [ADD])
        ids = [token for token, in_loss in zip(encoded.ids, encoded.in_loss, strict=True) if in_loss]
        learnt.append(tokenizer.decode(ids, skip_special_tokens=False))
    assert learnt == [
        "First\n<SPECIAL_12>",
        "Two.\n</think>\n\nSecond\n<SPECIAL_12>",
        '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</TOOLCALL>\n<SPECIAL_12>',
        "Third\n<SPECIAL_12>",
    ]
    assert messages[2] == assistant(" First")  # what was given is as it was


def test_a_conversation_for_each_turn_keeps_the_messages_before_it() -> None:
    messages = [system("a"), user("b"), assistant(), user("c /no_think"), assistant("d"), user("e /think")]
    assert training_conversations(messages) == [messages[:3], [*messages[:4], assistant("<think></think>d")]]


def test_missing_reasoning_is_not_made_up() -> None:
    [conversation] = training_conversations([user(), assistant("Hi")])
    assert conversation == [user(), assistant("Hi")]
    with pytest.raises(ValueError, match="although thinking is on"):
        check_conversation(conversation, for_training=True)


def test_malformed_messages_have_no_training_conversations() -> None:
    with pytest.raises(ValueError, match=r"messages\[0\] has the role 'human'"):
        training_conversations([{"role": "human", "content": "a"}])


# What is refused ------------------------------------------------------------------------------------------------------


def test_good_conversations_pass() -> None:
    asked = [system(""), user("1 + 2"), assistant("Let me see.", call(), call("find", "{}")), tool("3"), tool("")]
    check_conversation(asked, [ADD, FIND], for_training=False)
    check_conversation([*asked, assistant()], [ADD, FIND], for_training=True)
    check_conversation([user("/no_think"), user("Is <s> or </s> HTML? /no_think")][1:], for_training=False)
    check_conversation([user("a /no_think"), assistant("<think></think>", call())], [ADD], for_training=True)


NO_TEXT = "is a user message without text beside control flags; write what the user asks"
NOTHING_BEFORE = "put a user or a tool message before an assistant's"
NO_CALL = "is the result of no tool call; put the assistant's call before it"
NO_OBJECT = "messages[1] calls 'add' with arguments that are no JSON object; give one"
HALF = "holds half a surrogate pair, which is no character; remove it"
NO_NAME = "give every tool a name of its own"
WRONG: list[tuple[list[Any], list[Any], str]] = [
    ([user(" \n")], [], f"messages[0] {NO_TEXT}"),
    ([user(), user(" /think /no_think")], [], f"messages[1] {NO_TEXT}"),
    ([assistant(), user()], [], f"messages[0] answers nothing; {NOTHING_BEFORE}"),
    ([system("a"), assistant(), user()], [], f"messages[1] answers system; {NOTHING_BEFORE}"),
    ([user(), assistant(), assistant(), user()], [], f"messages[2] answers assistant; {NOTHING_BEFORE}"),
    ([user(), tool()], [], f"messages[1] {NO_CALL}"),
    ([user(), assistant(), tool()], [], f"messages[2] {NO_CALL}"),
    ([tool()], [], f"messages[0] {NO_CALL}"),
    ([{**user(), "tool_calls": [call()]}], [ADD], "messages[0] calls tools as user; only an assistant may"),
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
    ([user("a"), assistant("\udc00"), user("a")], [], f"messages[1] {HALF}"),
    ([user("a"), assistant("b", call("add", {"\ud83d": 1})), tool()], [ADD], f"messages[1] {HALF}"),
    ([user()], [{"name": "\ud83d"}], f"tools[0] {HALF}"),
    ([user()], [{"description": "no name"}], f"tools[0] has the name None; {NO_NAME}"),
    ([user()], [{"name": ""}], f"tools[0] has the name ''; {NO_NAME}"),
    ([user()], [ADD, {"type": "function", "function": ADD}], f"tools[1] has the name 'add'; {NO_NAME}"),
]


@pytest.mark.parametrize(("messages", "tools", "sentence"), WRONG)
def test_what_renders_but_is_wrong_is_a_sentence(messages: list[Any], tools: list[Any], sentence: str) -> None:
    for for_training, ending in ((False, []), (True, [assistant()])):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            check_conversation(messages + ending, tools, for_training=for_training)


def test_a_prompt_ends_with_a_message_to_answer() -> None:
    for messages in ([user(), assistant()], [system("a")]):
        role = messages[-1]["role"]
        with pytest.raises(ValueError, match=rf"is {role}; end with a user or a tool message to answer$"):
            check_conversation(messages, for_training=False)


def test_what_is_learnt_ends_with_a_reply() -> None:
    with pytest.raises(ValueError, match=r"^messages\[2\] is user; end with the assistant's reply, which is learnt$"):
        check_conversation([user(), assistant(), user()], for_training=True)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<think>\nWell.", "the thinking is never closed"),
        ("<think>\nA</think>B</think>C", "the thinking is closed 2 times"),
        ("<think>\nA<think>B</think>C", "the thinking is opened again"),
        ("<think>\nA</think><TOOLCALL>[add]</TOOLCALL>", "the tool call is no JSON: "),
        ("<think>\nA</think>B<SPECIAL_11>User", "<SPECIAL_11> stands inside the reply"),
    ],
)
def test_a_reply_in_a_wrong_format_is_not_learnt(content: str, fault: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^messages\[1\] would teach a wrong format: {re.escape(fault)}.*; correct its"
    ):
        check_conversation([user(), assistant(content)], for_training=True)


@pytest.mark.parametrize(
    "messages", [[user(), assistant("<think>\nA\n</think>\n")], [user("a /no_think"), assistant("<think></think>")]]
)
def test_a_reply_without_an_answer_is_not_learnt(messages: list[Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^messages\[1\] neither answers nor calls a tool after its thinking; add the"
    ):
        check_conversation(messages, for_training=True)


# A reply back to its parts --------------------------------------------------------------------------------------------

TAG = "a reply without thinking holds a thinking tag"
CALL = '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</TOOLCALL>'


@pytest.mark.parametrize(
    ("thinking", "text", "reply"),
    [
        (True, "Well.\n</think>\n\nHi\n<SPECIAL_12>", Reply("Well.", "Hi", [], ())),
        (True, "Well.\n</think>\n\nHi", Reply("Well.", "Hi", [], ())),
        (True, "</think>Hi</s>", Reply("", "Hi", [], (), obeys=False)),  # it is to think
        (False, "Hi\n<SPECIAL_11>", Reply(None, "Hi", [], ())),
        (False, "", Reply(None, "", [], ())),
        (False, "<s>x</s><SPECIAL_12>\n", Reply(None, "<s>x</s>", [], ())),
        (False, CALL + "\n<SPECIAL_12>", Reply(None, "", [call()], ())),
        (True, f"Add.</think>I see. {CALL}", Reply("Add.", "I see.", [call()], ())),
        (False, f"{CALL[:-12]}, {CALL[11:]}", Reply(None, "", [call(), call()], ())),
        (
            False,
            '<TOOLCALL> [{"name": "f", "arguments": {"a": "</TOOLCALL>"}}]\n</TOOLCALL>',
            Reply(None, "", [call("f", {"a": "</TOOLCALL>"})], ()),
        ),
        (True, f"{CALL}</think>Hi", Reply(CALL, "Hi", [], ())),
        # Departures from the format.
        (True, "Well. Hi", Reply("Well. Hi", "", [], ("the thinking is never closed",), obeys=False)),
        (True, "A</think>B</think>C", Reply("A</think>B", "C", [], ("the thinking is closed 2 times",), obeys=False)),
        (True, "A</think>B<think>C", Reply("A", "B<think>C", [], ("the thinking is opened again",), obeys=False)),
        (False, "<think>\nA\n</think>\n\nB", Reply("A", "B", [], (TAG,), obeys=False)),
        (False, "A <think> B", Reply(None, "A <think> B", [], (TAG,), obeys=False)),
        (False, "A</think>B", Reply("A", "B", [], (TAG,), obeys=False)),
        (False, "A<SPECIAL_12>B", Reply(None, "A<SPECIAL_12>B", [], ("<SPECIAL_12> stands inside the reply",))),
        (False, "<TOOLCALL>[]", Reply(None, "<TOOLCALL>[]", [], ("<TOOLCALL> without </TOOLCALL>",))),
        (False, "A</TOOLCALL>", Reply(None, "A</TOOLCALL>", [], ("</TOOLCALL> without <TOOLCALL>",))),
        (
            False,
            '<TOOLCALL>[{"name": "f", "arguments": {"a": "</TOOLCALL>"}}]',
            Reply(
                None,
                '<TOOLCALL>[{"name": "f", "arguments": {"a": "</TOOLCALL>"}}]',
                [],
                ("the list of tool calls is not followed by </TOOLCALL>",),
            ),
        ),
        (False, f"A</TOOLCALL>{CALL}", Reply(None, "A</TOOLCALL>", [call()], ("</TOOLCALL> without <TOOLCALL>",))),
        (False, f"A {CALL} B", Reply(None, "A\nB", [call()], ("text stands after </TOOLCALL>",))),
        (
            False,
            "<TOOLCALL>[]</TOOLCALL>",
            Reply(None, "<TOOLCALL>[]</TOOLCALL>", [], ("the tool call is no list of calls",)),
        ),
    ],
)
def test_a_reply_is_taken_apart_as_by_hand(thinking: bool, text: str, reply: Reply) -> None:
    assert parse_reply(text, thinking=thinking) == reply


@pytest.mark.parametrize(
    ("inside", "error"),
    [
        ("add(1, 2)", "the tool call is no JSON: "),
        ("[" * 100_000, "the tool call is no JSON: "),
        ('[{"name": "add", "arguments": {"a": NaN}}]', "the tool call is no JSON: "),
        ("", "the tool call is no JSON: "),
        ('{"name": "add", "arguments": {}}', "the tool call is no list of calls"),
        ('["add"]', 'a call is no {"name": text, "arguments": object}'),
        ('[{"name": "add"}]', 'a call is no {"name": text, "arguments": object}'),
        ('[{"name": 7, "arguments": {}}]', 'a call is no {"name": text, "arguments": object}'),
        ('[{"name": "add", "arguments": "{}"}]', 'a call is no {"name": text, "arguments": object}'),
        ('[{"name": "add", "arguments": {"a": "\\ud83d"}}]', "a call holds half a surrogate pair"),
    ],
)
def test_a_call_that_cannot_be_read_is_named_and_stays_in_the_text(inside: str, error: str) -> None:
    text = f"See: <TOOLCALL>{inside}</TOOLCALL>"
    reply = parse_reply(text, thinking=False)
    assert (reply.content, reply.tool_calls) == (text, [])
    assert len(reply.errors) == 1
    assert reply.errors[0].startswith(error)


TAGS = st.sampled_from(["<think>", "</think>", "<TOOLCALL>", "</TOOLCALL>", CALL, "<SPECIAL_12>", "[{", "\n"])


@given(st.lists(st.one_of(TAGS, st.text(max_size=3)), max_size=8).map("".join), st.booleans())
def test_any_text_is_a_reply_that_can_be_answered(text: str, thinking: bool) -> None:
    """What was read from it can go back into a conversation."""
    reply = parse_reply(text, thinking=thinking)
    assert (reply.reasoning is None) <= (not thinking)
    if reply.content or reply.tool_calls:
        render([user(), assistant(reply.content, *reply.tool_calls), user()])


# In a text between tags, no tag may begin or end.
UNTAGGED = PLAIN.filter(lambda text: "think>" not in text and "TOOLCALL>" not in text)


@given(st.booleans(), UNTAGGED, UNTAGGED, st.lists(st.builds(call, UNTAGGED, OBJECTS), max_size=2))
def test_what_was_rendered_is_read_back(thinking: bool, reasoning: str, answer: str, calls: list[Any]) -> None:
    assume("think>" not in json.dumps(calls, ensure_ascii=False))
    content = f"<think>\n{reasoning}\n</think>\n\n{answer}" if thinking else f"<think></think>{answer}"
    prompt = [user("Hello" if thinking else "Hello /no_think")]
    rendered = render([*prompt, assistant(content, *calls)])
    reply = parse_reply(rendered.removeprefix(render(prompt, add_generation_prompt=True)), thinking=thinking)
    obeys = bool(reasoning.strip()) if thinking else True
    assert reply == Reply(reasoning.strip() if thinking else None, answer.strip(), calls, (), obeys)


# The tokenizer of a chat model ----------------------------------------------------------------------------------------


def test_a_saved_tokenizer_loads_and_holds_the_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "base")
    save_chat_tokenizer(tmp_path / "base", tmp_path / "new" / "chat")
    loaded = load_chat_tokenizer(tmp_path / "new" / "chat")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert min(loaded.encode("<SPECIAL_12>").ids) >= len(SPECIAL_TOKENS)
    config = json.loads((tmp_path / "new" / "chat" / "tokenizer_config.json").read_text())
    assert config.pop("chat_template") == CHAT_TEMPLATE
    assert config == json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"


def test_a_tokenizer_may_be_given_the_template_in_place(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    save_chat_tokenizer(tmp_path, tmp_path)
    assert load_chat_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_transformers_saved_loads(transformers_tokenizer: Any, tmp_path: Path) -> None:
    transformers_tokenizer.save_pretrained(tmp_path)
    assert load_chat_tokenizer(tmp_path).get_vocab() == transformers_tokenizer.get_vocab()


def test_a_base_model_is_a_sentence_with_the_command_that_makes_it_chat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(
        ValueError, match=r"has no chat template, so it is a base model; .*nemotron\.recipes\.nano2\.stage1_sft$"
    ):
        load_chat_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_a_sentence(tokenizer: Tokenizer, tmp_path: Path, missing: str) -> None:
    save_tokenizer(tokenizer, tmp_path)
    save_chat_tokenizer(tmp_path, tmp_path)
    (tmp_path / missing).unlink()
    sentence = rf"holds no {re.escape(missing)}; name the directory of a checkpoint or of a tokenizer$"
    with pytest.raises(ValueError, match=sentence):
        load_chat_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        save_chat_tokenizer(tmp_path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json is no tokenizer \(.*\); write or fetch it again"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is no JSON \(.*\); write or fetch it again"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json is no JSON object; write or fetch it again"),
    ],
)
def test_a_damaged_file_is_a_sentence(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    save_chat_tokenizer(tmp_path, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_chat_tokenizer(tmp_path)


def test_a_checkpoint_without_the_tokens_of_turns_is_a_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    save_chat_tokenizer(tmp_path, tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace("<SPECIAL_11>", "<SPECIAL_98>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json has no <SPECIAL_11> with the id 11"):
        load_chat_tokenizer(tmp_path)


@pytest.mark.parametrize("flag", ["/think", "/no_think"])
def test_a_flag_that_is_added_wins(flag):
    user, assistant = {"role": "user", "content": "a /think /no_think"}, {"role": "assistant", "content": "b"}
    assert with_flag([], flag) == [{"role": "system", "content": flag}]
    for messages in ([user], [user, assistant], [{"role": "system", "content": "s"}, user]):
        assert thinking_requested(with_flag(messages, flag)) == (flag == "/think")
