"""Nano 2's chat format: each rule by hand, and against transformers over generated conversations."""

import json
from typing import Any

import jinja2
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nemotron.recipes.chat.reply import Reply
from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT

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
    from transformers import AutoTokenizer  # takes seconds, which the other tests need not spend

    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, directory)
    save_chat_tokenizer(CHAT, directory, directory / "chat")
    return AutoTokenizer.from_pretrained(directory / "chat")


# The template, by hand ------------------------------------------------------------------------------------------------

EMPTY_SYSTEM = "<SPECIAL_10>System\n\n"
RENDERED = {
    "a user turn after an empty system turn": (
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
        [user("Hello"), assistant("<think>\nA\n</think>\n\nHi"), user("Bye")],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\nHello\n<SPECIAL_11>Assistant\nHi\n<SPECIAL_12>\n<SPECIAL_11>User\nBye\n",
    ),
    "of several closing tags in an earlier reply, what follows the first up to the next": (
        [user("Hello"), assistant("<think>\nA </think> B\n</think>\n\nC </think> D"), user("Bye")],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\nHello\n<SPECIAL_11>Assistant\nB\n<SPECIAL_12>\n<SPECIAL_11>User\nBye\n",
    ),
    "several closing tags in the last reply": (
        [user("Hello"), assistant("<think>\nA </think> B\n</think>\n\nC")],
        (),
        EMPTY_SYSTEM
        + "<SPECIAL_11>User\nHello\n<SPECIAL_11>Assistant\n<think>\nA </think> B\n</think>\n\nC\n<SPECIAL_12>\n",
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
    "calls and their results": (
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
        '<SPECIAL_11>Assistant\nLet me see.\n\n<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}, '
        '{"name": "add", "arguments": {"a":3,  "b":4}}]</TOOLCALL>\n<SPECIAL_12>\n'
        "<SPECIAL_11>User\n<TOOL_RESPONSE>[3,  7\n]</TOOL_RESPONSE>\n"
        '<SPECIAL_11>Assistant\n<TOOLCALL>[{"name": "find", "arguments": {"what": "é"}}]</TOOLCALL>\n<SPECIAL_12>\n'
        "<SPECIAL_11>User\n<TOOL_RESPONSE>[]</TOOL_RESPONSE>\n",
    ),
    "a thought in reasoning_content": (
        [
            user("1"),
            {**assistant(" Hi\n"), "reasoning_content": "A\n"},
            user("2"),
            {**assistant("B"), "reasoning_content": "C"},
        ],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1\n<SPECIAL_11>Assistant\nHi\n<SPECIAL_12>\n"
        "<SPECIAL_11>User\n2\n<SPECIAL_11>Assistant\n<think>\nC\n</think>\n\nB\n<SPECIAL_12>\n",
    ),
    "a thought in reasoning_content before a call": (
        [user("1"), {**assistant(None, call("f", {})), "reasoning_content": "C"}],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1\n<SPECIAL_11>Assistant\n<think>\nC\n</think>\n\n"
        '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>\n<SPECIAL_12>\n',
    ),
    "a last call with its thinking": (
        [user("1 + 2"), assistant("<think>\nAdd.\n</think>\n\n", call())],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1 + 2\n<SPECIAL_11>Assistant\n<think>\nAdd.\n</think>\n\n"
        '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</TOOLCALL>\n<SPECIAL_12>\n',
    ),
    "a last call without thinking": (
        [user("1 + 2 /no_think"), assistant("<think></think> ", call("f", {}))],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1 + 2\n<SPECIAL_11>Assistant\n<think></think>"
        '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>\n<SPECIAL_12>\n',
    ),
    "a last call without thinking after a text": (
        [user("1 + 2 /no_think"), assistant("<think></think>Let me see.\n", call("f", {}))],
        (),
        EMPTY_SYSTEM + "<SPECIAL_11>User\n1 + 2\n<SPECIAL_11>Assistant\n<think></think>Let me see.\n\n"
        '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>\n<SPECIAL_12>\n',
    ),
}


@pytest.mark.parametrize("rule", RENDERED)
def test_each_rule_renders_the_text_written_by_hand(rule: str) -> None:
    messages, tools, expected = RENDERED[rule]
    assert CHAT.render(messages, tools) == expected


@pytest.mark.parametrize("rule", RENDERED)
def test_transformers_renders_the_text_written_by_hand(rule: str, transformers_tokenizer: Any) -> None:
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
    # Of two flags in one message /think wins, whatever the order.
    ([user("/think then /no_think")], True),
    ([user("/no_think then /think")], True),
    ([user("/no_think then /think then /no_think")], True),
    ([system("/think then /no_think"), user("Hello")], True),
    ([user("/think /no_think"), assistant("Hi"), user("/no_think")], False),
    ([user("/no_th</think>ink")], True),
    ([user("/no_think a </think> b")], False),
    ([user("path/no_thinking")], False),
]


@pytest.mark.parametrize(("messages", "thinking"), THINKING)
def test_the_last_flag_decides_what_the_prompt_ends_with(messages: list[Any], thinking: bool) -> None:
    assert CHAT.thinking_requested(messages) is thinking
    header = "<SPECIAL_11>Assistant\n"
    prompt = header + ("<think>\n" if thinking else "<think></think>")
    assert CHAT.render(messages, add_generation_prompt=True) == CHAT.render(messages) + prompt


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
# For the tests of ids: transformers parses a special token that a text spells out.
PLAIN = ANY.filter(lambda text: not any(token in text + CHAT.without_flags(text) for token in SPECIAL_TOKENS))
WITH_SPECIAL = st.one_of(ANY, st.sampled_from(SPECIAL_TOKENS), st.just("a</s><SPECIAL_12>"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | PLAIN, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
OBJECTS = st.dictionaries(PLAIN, VALUES, max_size=2)


def calls_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[Any]]:
    arguments = st.one_of(OBJECTS, OBJECTS.map(json.dumps))
    return st.lists(st.builds(call, texts, arguments), min_size=1, max_size=2)


FLAGS = st.sampled_from(["/think", "/no_think"])
ANSWERS = st.sampled_from(["Four", " Four\n", "a"])  # without a thinking tag


def turns_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    thoughts = st.builds("<think>\n{}\n</think>\n\n{}".format, texts, texts)
    closings = st.lists(texts, min_size=2, max_size=4).map(lambda parts: "a" + "</think>".join(parts))
    contents = st.one_of(thoughts, closings, texts.map("<think></think>{}".format), texts.map("a{}".format))
    return st.one_of(
        st.builds(user, texts),
        st.builds("{}{} {}".format, texts, FLAGS, FLAGS).map(user),
        st.builds(tool, texts),
        st.builds(assistant, contents),
        st.builds(lambda content, thought: {**assistant(content), "reasoning_content": thought}, ANSWERS, texts),
        st.builds(lambda content, calls: assistant(content, *calls), st.none() | contents, calls_of(texts)),
    )


def conversations_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    begin = st.lists(st.builds(system, texts), max_size=1)
    return st.builds(lambda first, rest: first + rest, begin, st.lists(turns_of(texts), min_size=1, max_size=5))


def tools_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    schemas = st.builds(lambda name, rest: {**rest, "name": name}, texts, OBJECTS)
    wrapped = schemas.map(lambda schema: {"type": "function", "function": schema})
    return st.lists(st.one_of(schemas, wrapped), max_size=2)


@given(conversations_of(WITH_SPECIAL), tools_of(WITH_SPECIAL), st.booleans())
def test_transformers_renders_every_conversation_as_python_does(
    transformers_tokenizer: Any, messages: list[Any], tools: list[Any], add_generation_prompt: bool
) -> None:
    theirs = transformers_tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert CHAT.render(messages, tools, add_generation_prompt=add_generation_prompt) == theirs


JUNK = st.sampled_from([None, "", " ", "text", 0, 7, True, [], ["a"], {}, {"a": 1}])
JUNK_FUNCTIONS = st.fixed_dictionaries({}, optional={"name": JUNK, "arguments": JUNK})
JUNK_CALL = st.fixed_dictionaries({}, optional={"function": JUNK | JUNK_FUNCTIONS})
JUNK_CALLS = JUNK | st.lists(JUNK | JUNK_CALL | st.just(call()), max_size=2)
JUNK_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["system", "user", "assistant", "assistant", "tool", "developer", ""]), JUNK),
        "content": JUNK,
        "reasoning_content": JUNK,
        "tool_calls": JUNK_CALLS,
    },
)
FAILED = "failed"


def rendered_by_transformers(transformers_tokenizer: Any, messages: Any, tools: Any) -> str:
    try:
        return transformers_tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    except (jinja2.TemplateError, ValueError):
        return FAILED


def rendered_here(messages: Any, tools: Any) -> str:
    try:
        return CHAT.render(messages, tools)
    except ValueError:
        return FAILED


@given(st.lists(st.one_of(JUNK_MESSAGES, st.sampled_from([user(), assistant()])), max_size=3))
def test_transformers_fails_where_python_fails(transformers_tokenizer: Any, messages: list[Any]) -> None:
    assert rendered_here(messages, []) == rendered_by_transformers(transformers_tokenizer, messages, [])


MALFORMED: list[list[Any]] = [
    [],
    [{"content": "Hello"}],
    [{"role": "human", "content": "a"}],
    [user(), system("late")],
    [{"role": "user"}],
    [user(None)],
    [user([{"type": "text", "text": "Hello"}])],
    [user(), assistant(7, call())],
    [user(), assistant(0, call())],
    [user(), assistant(None)],
    [user(), assistant(" \n")],
    [{**user(), "reasoning_content": "Well."}],
    [user(), {**assistant("a"), "reasoning_content": ["Well."]}],
    [user(), {**assistant("<think>Hm."), "reasoning_content": "Well."}],
    [user(), {**assistant("Well.</think>a"), "reasoning_content": "Well."}],
    [{**assistant("a"), "tool_calls": {"name": "f"}}],
    [{**assistant("a"), "tool_calls": "f()"}],
    [user(), assistant(None, {"name": "add", "arguments": {}})],
    *([user(), assistant("a", call(), bad)] for bad in (call(None), call("add", 7), call("add", [1]), "add", None)),
]


@pytest.mark.parametrize("messages", MALFORMED)
def test_malformed_messages_are_an_error_here_and_in_transformers(
    messages: list[Any], transformers_tokenizer: Any
) -> None:
    assert rendered_here(messages, []) == FAILED
    assert rendered_by_transformers(transformers_tokenizer, messages, None) == FAILED


def test_a_tool_that_is_not_an_object_is_an_error_here_and_in_transformers(transformers_tokenizer: Any) -> None:
    assert rendered_here([user()], [ADD, "find"]) == FAILED
    assert rendered_by_transformers(transformers_tokenizer, [user()], [ADD, "find"]) == FAILED


def test_a_value_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^messages\[1\] cannot be written as JSON \(.*set.*\); use objects, lists,"):
        CHAT.render([user(), assistant(None, call("add", {"a": {1}}))])
    with pytest.raises(ValueError, match=r"^tools\[0\] cannot be written as JSON"):
        CHAT.render([user()], [{"name": {1}}])


# Ids and loss ---------------------------------------------------------------------------------------------------------


def transformers_ids(transformers_tokenizer: Any, messages: list[Any], tools: list[Any], **options: Any) -> list[int]:
    return transformers_tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **options)


@given(conversations_of(PLAIN), tools_of(PLAIN))
def test_prompts_have_the_ids_of_transformers(
    tokenizer: Tokenizer, transformers_tokenizer: Any, messages: list[Any], tools: list[Any]
) -> None:
    encoded = CHAT.encode(tokenizer, messages, tools, add_generation_prompt=True)
    assert encoded.ids == transformers_ids(transformers_tokenizer, messages, tools, add_generation_prompt=True)
    assert not any(encoded.in_loss)
    assert len(encoded.in_loss) == len(encoded.ids)


@st.composite
def training_conversations(draw: st.DrawFn, texts: st.SearchStrategy[str], first: str) -> list[dict[str, Any]]:
    """Conversations that end with a reply; after its prefix the reply begins with `first`."""
    messages = draw(conversations_of(texts))
    assume(messages[-1]["role"] in ("user", "tool"))
    calls = draw(st.one_of(st.just([]), calls_of(texts)))
    return [
        *messages,
        assistant(CHAT.reply_prefixes[CHAT.thinking_requested(messages)] + first + draw(texts) + "x", *calls),
    ]


@given(training_conversations(WITH_SPECIAL, ""), tools_of(WITH_SPECIAL))
def test_training_reads_the_ids_that_generation_reads(
    tokenizer: Tokenizer, messages: list[Any], tools: list[Any]
) -> None:
    full = CHAT.encode(tokenizer, messages, tools)
    prompt = CHAT.encode(tokenizer, messages[:-1], tools, add_generation_prompt=True)
    assert full.ids[: len(prompt.ids)] == prompt.ids
    # Everything after the prompt is in the loss, except the line end after <SPECIAL_12>.
    num_in_loss = sum(full.in_loss)
    assert full.in_loss == [False] * len(prompt.ids) + [True] * num_in_loss + [False] * (
        len(full.ids) - len(prompt.ids) - num_in_loss
    )
    counted = [token for token, in_loss in zip(full.ids, full.in_loss, strict=True) if in_loss]
    assert counted[-1] == 12
    assert full.ids[len(prompt.ids) + num_in_loss :] == tokenizer.encode("\n").ids
    prompt_text = CHAT.render(messages[:-1], tools, add_generation_prompt=True)
    assert prompt_text + tokenizer.decode(counted, skip_special_tokens=False) + "\n" == CHAT.render(messages, tools)


@given(training_conversations(PLAIN, "T"), tools_of(PLAIN))
def test_replies_have_the_ids_of_transformers(
    tokenizer: Tokenizer, transformers_tokenizer: Any, messages: list[Any], tools: list[Any]
) -> None:
    """Replies that begin with a letter, which this tokenizer cannot merge with the tag before."""
    assert CHAT.encode(tokenizer, messages, tools).ids == transformers_ids(transformers_tokenizer, messages, tools)


def test_a_reply_that_could_merge_with_its_tag_is_split_as_in_generation(
    tokenizer: Tokenizer, transformers_tokenizer: Any
) -> None:
    messages = [user("12 /no_think"), assistant("<think></think>**12**")]
    prompt = transformers_ids(transformers_tokenizer, messages[:-1], [], add_generation_prompt=True)
    together = transformers_ids(transformers_tokenizer, messages, [])
    assert together[: len(prompt)] != prompt
    ids = CHAT.encode(tokenizer, messages).ids
    assert ids == prompt + tokenizer.encode("**12**\n").ids + [12] + tokenizer.encode("\n").ids
    assert transformers_tokenizer.decode(ids) == transformers_tokenizer.decode(together)


def test_the_loss_covers_the_reply_and_its_end_by_hand(tokenizer: Tokenizer) -> None:
    messages = [
        user("Hello"),
        assistant("<think>\nA\n</think>\n\nB"),
        user("Bye"),
        assistant("<think>\nC\n</think>\n\nD"),
    ]
    encoded = CHAT.encode(tokenizer, messages)
    shown = "".join(
        tokenizer.decode([token], skip_special_tokens=False) if in_loss else "·"
        for token, in_loss in zip(encoded.ids, encoded.in_loss, strict=True)
    )
    assert shown.lstrip("·") == "C\n</think>\n\nD\n<SPECIAL_12>·"


@pytest.mark.parametrize(
    ("content", "flag", "learned"),
    [
        ("<think>\nAdd.\n</think>", "", "Add.\n</think>\n\n{call}\n<SPECIAL_12>·"),
        ("<think></think>", " /no_think", "{call}\n<SPECIAL_12>·"),
        ("<think></think>See.", " /no_think", "See.\n\n{call}\n<SPECIAL_12>·"),
    ],
)
def test_the_loss_covers_a_call_and_the_blank_line_before_it(
    tokenizer: Tokenizer, content: str, flag: str, learned: str
) -> None:
    encoded = CHAT.encode(tokenizer, [user(f"1 + 2{flag}"), assistant(content, call("f", {}))])
    shown = "".join(
        tokenizer.decode([token], skip_special_tokens=False) if in_loss else "·"
        for token, in_loss in zip(encoded.ids, encoded.in_loss, strict=True)
    )
    assert shown.lstrip("·") == learned.format(call='<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>')


def test_a_conversation_that_does_not_end_with_a_reply_has_no_loss(tokenizer: Tokenizer) -> None:
    unclosed = assistant("<think>\nA")  # begins as a reply does, also in the history
    for messages in ([user()], [user(), unclosed, user()], [user(), assistant("a", call()), tool()]):
        assert not any(CHAT.encode(tokenizer, messages).in_loss)


@pytest.mark.parametrize("spelled", ["<SPECIAL_12>", "</s>", "<SPECIAL_10>System", "<unk>"])
def test_a_special_token_in_a_text_stays_text(tokenizer: Tokenizer, spelled: str) -> None:
    tokenizer.encode_special_tokens = False  # the value after loading from a file
    turns = [
        system(spelled),
        user(spelled),
        assistant(spelled),
        user("a"),
        assistant("b", call(spelled, {spelled: spelled})),
        tool(spelled),
    ]
    encoded = CHAT.encode(
        tokenizer, [*turns, assistant(f"<think>\n{spelled}\n</think>\n\n{spelled}")], [{"name": spelled}]
    )
    special = [token for token in encoded.ids if token < len(SPECIAL_TOKENS)]
    assert special == [10, 11, 11, 12, 11, 11, 12, 11, 11, 12]


def test_the_ids_of_turns_and_stops_are_the_published_ones(tokenizer: Tokenizer) -> None:
    assert {token: tokenizer.token_to_id(token) for token in CHAT.special_ids} == CHAT.special_ids
    assert tuple(tokenizer.id_to_token(index) for index in CHAT.stop_ids) == ("</s>", "<SPECIAL_11>", "<SPECIAL_12>")


# A reply back to its parts --------------------------------------------------------------------------------------------

CALL = '<TOOLCALL>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</TOOLCALL>'
TAGS = st.sampled_from(["<think>", "</think>", "<TOOLCALL>", "</TOOLCALL>", CALL, "<SPECIAL_12>", "[{", "\n"])


@given(st.lists(st.one_of(TAGS, st.text(max_size=3)), max_size=8).map("".join), st.booleans())
def test_any_text_parses_and_its_parts_render(text: str, thinking: bool) -> None:
    reply = CHAT.parse_reply(text, thinking=thinking)
    assert (reply.reasoning is None) <= (not thinking)
    if reply.content or reply.tool_calls:
        CHAT.render([user(), assistant(reply.content, *reply.tool_calls), user()])


# Between tags, no tag may begin or end.
UNTAGGED = PLAIN.filter(lambda text: "think>" not in text and "TOOLCALL>" not in text)


@given(st.booleans(), UNTAGGED, UNTAGGED, st.lists(st.builds(call, UNTAGGED, OBJECTS), max_size=2))
def test_a_rendered_reply_parses_back_to_its_parts(
    thinking: bool, reasoning: str, answer: str, calls: list[Any]
) -> None:
    assume("think>" not in json.dumps(calls, ensure_ascii=False))
    content = f"<think>\n{reasoning}\n</think>\n\n{answer}" if thinking else f"<think></think>{answer}"
    prompt = [user("Hello" if thinking else "Hello /no_think")]
    rendered = CHAT.render([*prompt, assistant(content, *calls)])
    reply = CHAT.parse_reply(rendered.removeprefix(CHAT.render(prompt, add_generation_prompt=True)), thinking=thinking)
    obeys = bool(reasoning.strip()) if thinking else True
    assert reply == Reply(reasoning.strip() if thinking else None, answer.strip(), calls, (), obeys)
