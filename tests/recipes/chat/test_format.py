"""What a ChatFormat does with conversations, on the ChatML format of conftest.py.

tests/recipes/nano2/test_chat.py compares a whole format with transformers, over generated conversations.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.reply import Reply, SplitCalls
from nemotron.recipes.chat.tokenizer import save_chat_tokenizer
from nemotron.recipes.curation.tokenizer import SPECIAL_TOKENS, save_tokenizer

ADD = {"name": "add", "parameters": {"type": "object", "properties": {}}}
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


def in_loss(tokenizer: Tokenizer, encoded: Any) -> str:
    """The text of the tokens in the loss."""
    ids = [token for token, counts in zip(encoded.ids, encoded.in_loss, strict=True) if counts]
    return tokenizer.decode(ids, skip_special_tokens=False)


# Messages to text and ids ---------------------------------------------------------------------------------------------

CONVERSATION = [
    system("Be brief. /direct"),
    user("1 + 2"),
    assistant("<think></think>", call()),
    tool("3"),
    assistant("<think></think>It is 3."),
    user("And 2 + 3? /reason"),
    assistant("<think>\nAdd.\n</think>\n\n5"),
]
RENDERED = """\
<|im_start|>system
Be brief.<tools>[{"name": "add", "parameters": {"type": "object", "properties": {}}}]</tools><|im_end|>
<|im_start|>user
1 + 2<|im_end|>
<|im_start|>assistant
<tool_call>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</tool_call><|im_end|>
<|im_start|>tool
3<|im_end|>
<|im_start|>assistant
It is 3.<|im_end|>
<|im_start|>user
And 2 + 3?<|im_end|>
<|im_start|>assistant
<think>
Add.
</think>

5<|im_end|>
"""


def test_a_second_format_renders_the_text_written_by_hand(chatml: ChatFormat) -> None:
    assert chatml.render(CONVERSATION, [ADD]) == RENDERED


def test_a_second_format_has_the_text_and_ids_of_transformers(
    chatml: ChatFormat, chatml_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer  # takes seconds, which the other tests need not spend

    save_tokenizer(chatml_tokenizer, tmp_path)
    save_chat_tokenizer(chatml, tmp_path, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(CONVERSATION, tools=[ADD], tokenize=False) == RENDERED
    for end in (2, 4, 6):
        messages = CONVERSATION[:end]
        ids = theirs.apply_chat_template(messages, tools=[ADD], add_generation_prompt=True, return_dict=False)
        assert chatml.encode(chatml_tokenizer, messages, [ADD], add_generation_prompt=True).ids == ids


def test_the_loss_covers_the_reply_and_its_end(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    encoded = chatml.encode(chatml_tokenizer, CONVERSATION, [ADD])
    assert in_loss(chatml_tokenizer, encoded) == "Add.\n</think>\n\n5<|im_end|>"
    assert not encoded.in_loss[-1]  # the line end after the turn


def test_training_reads_the_ids_that_generation_reads(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    """Also where the tokenizer has a merge over the end of the prompt and the first characters of the reply."""
    messages = [user("How many are 12? /direct"), assistant("<think></think>**12**")]
    prompt = chatml.encode(chatml_tokenizer, messages[:-1], add_generation_prompt=True)
    encoded = chatml.encode(chatml_tokenizer, messages)
    assert chatml_tokenizer.encode("<think></think>**12**").ids[: -len(chatml_tokenizer.encode("**12**").ids)] != (
        chatml_tokenizer.encode("<think></think>").ids
    )
    assert encoded.ids[: len(prompt.ids)] == prompt.ids
    assert not any(prompt.in_loss)
    assert in_loss(chatml_tokenizer, encoded) == "**12**<|im_end|>"


def test_a_special_token_in_a_text_stays_text(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    chatml_tokenizer.encode_special_tokens = False  # the value after loading from a file
    text = "<|im_end|></s><|im_start|>"
    messages = [system(text), user(text), assistant(f"<think>\n{text}\n</think>\n\n{text}")]
    ids = chatml.encode(chatml_tokenizer, messages).ids
    assert [token for token in ids if token < len(SPECIAL_TOKENS)] == [10, 11] * 3


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (
            [user(), assistant("Hi")],
            "messages[1] does not begin with '<think>\\n', although thinking is on; "
            "add its reasoning, or /direct to an earlier message",
        ),
        (
            [user(), assistant("<think></think>Hi")],
            "messages[1] does not begin with '<think>\\n', although thinking is on",
        ),
        (
            [user("Hello /direct"), assistant("Hi")],
            "messages[1] does not begin with '<think></think>', although thinking is off; add it, or remove /direct",
        ),
        (
            [user("a /direct"), assistant()],
            "messages[1] does not begin with '<think></think>', although thinking is off",
        ),
    ],
)
def test_a_reply_that_does_not_begin_as_its_prompt_ends_is_an_error(
    chatml: ChatFormat, chatml_tokenizer: Tokenizer, messages: list[Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        chatml.encode(chatml_tokenizer, messages)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        chatml.check_conversation(messages, for_training=True)
    prompt = chatml.encode(chatml_tokenizer, messages, add_generation_prompt=True)  # allowed in the history
    assert not any(prompt.in_loss)


def test_malformed_messages_are_an_error_in_every_method(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    messages = [{"role": "human", "content": "a"}]
    for use in (
        lambda: chatml.render(messages),
        lambda: chatml.encode(chatml_tokenizer, messages),
        lambda: chatml.training_conversations(messages),
        lambda: chatml.check_conversation(messages, for_training=False),
    ):
        with pytest.raises(ValueError, match=r"^messages\[0\] has the role 'human'"):
            use()


def test_a_lone_surrogate_is_an_error(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="contains a lone surrogate, which is not a character; remove it"):
        chatml.encode(chatml_tokenizer, [user("\ud83d")])


def test_a_tokenizer_without_the_special_tokens_is_an_error(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    other = Tokenizer.from_str(chatml_tokenizer.to_str().replace("<|im_end|>", "<SPECIAL_99>"))
    sentence = (
        r"^the tokenizer has no token <\|im_end\|> with id 11, .*; use a tokenizer from python -m chatml\.pretrain$"
    )
    with pytest.raises(ValueError, match=sentence):
        chatml.encode(other, [user()])


# Thinking on and off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "thinking"),
    [
        ([user()], True),
        ([user("Hello /direct")], False),
        ([system("/direct"), user("Hello /reason")], True),
        ([user("/direct Hello"), assistant("Hi /reason"), tool("/reason"), user("Bye")], False),
        ([user("/reason then /direct")], True),
        ([user("/direct then /reason")], True),
        ([user("/think /no_think")], True),  # flags of another format
    ],
)
def test_the_last_flag_switches_thinking(chatml: ChatFormat, messages: list[Any], thinking: bool) -> None:
    assert chatml.thinking_requested(messages) is thinking
    prompt = chatml.render(messages, add_generation_prompt=True)
    assert prompt.endswith("assistant\n<think>\n" if thinking else "assistant\n<think></think>")


def test_the_closing_tag_of_thoughts_is_not_a_flag(chatml: ChatFormat) -> None:
    slashed = replace(chatml, flags={True: "/think", False: "/no_think"})
    assert not slashed.thinking_requested([user("/no_think a </think> b")])
    assert slashed.without_flags(" /no_think a </think> b/think ") == "a </think> b"


@pytest.mark.parametrize("thinking", [True, False])
def test_an_added_flag_wins(chatml: ChatFormat, thinking: bool) -> None:
    asked = user("a /reason /direct /di/reasonrect /rea/reasonson")
    for messages in ([asked], [asked, assistant("b")], [system("s"), asked]):
        before = [dict(message) for message in messages]
        assert chatml.thinking_requested(chatml.with_flag(messages, thinking=thinking)) is thinking
        assert messages == before
    assert chatml.with_flag([], thinking=thinking) == [system("/reason" if thinking else "/direct")]


# Conversations to train on --------------------------------------------------------------------------------------------


def test_every_assistant_turn_is_trained_on_once(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    messages = [
        system("/direct"),
        user("One"),
        assistant(" First"),
        user("Two /reason"),
        assistant("<think>\nTwo.\n</think>\n\nSecond"),
        user("Three /direct"),
        assistant(None, call()),
        tool("3"),
        assistant("<think></think>Third"),
    ]
    trained_on = []
    for conversation in chatml.training_conversations(messages):
        chatml.check_conversation(conversation, [ADD], for_training=True)
        trained_on.append(in_loss(chatml_tokenizer, chatml.encode(chatml_tokenizer, conversation, [ADD])))
    assert trained_on == [
        "First<|im_end|>",
        "Two.\n</think>\n\nSecond<|im_end|>",
        '<tool_call>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</tool_call><|im_end|>',
        "Third<|im_end|>",
    ]
    assert messages[2] == assistant(" First")  # the input is not changed


def test_a_training_conversation_keeps_the_messages_before_its_turn(chatml: ChatFormat) -> None:
    messages = [system("a"), user("b"), assistant(), user("c /direct"), assistant("d"), user("e /reason")]
    assert chatml.training_conversations(messages) == [messages[:3], [*messages[:4], assistant("<think></think>d")]]


def test_an_earlier_turn_without_its_reasoning_is_only_context(chatml: ChatFormat) -> None:
    messages = [user("a"), assistant("b"), user("c"), assistant()]
    assert chatml.training_conversations(messages) == [messages]


def test_a_turn_of_weight_zero_is_only_context(chatml: ChatFormat) -> None:
    messages = [
        user("a"),
        assistant(),
        user("b"),
        {**assistant(), "weight": 0},
        user("c"),
        {**assistant(), "weight": 0},
    ]
    assert chatml.training_conversations(messages) == [messages[:2]]


def test_reasoning_content_is_trained_on_before_the_content(chatml: ChatFormat, chatml_tokenizer: Tokenizer) -> None:
    thought = {**assistant("Hi"), "reasoning_content": "Well.\n"}
    [*_, conversation] = chatml.training_conversations([user("a"), thought, user("b"), thought])
    chatml.check_conversation(conversation, for_training=True)
    assert len(chatml.training_conversations([user("a"), thought, user("b"), thought])) == 2
    assert in_loss(chatml_tokenizer, chatml.encode(chatml_tokenizer, conversation)) == "Well.\n</think>\n\nHi<|im_end|>"
    both = {**assistant("<think>\nHm.\n</think>\n\nHi"), "reasoning_content": "Well."}
    with pytest.raises(
        ValueError, match=r"^messages\[1\] has reasoning_content and a thinking tag in its content; keep"
    ):
        chatml.render([user(), both])


def test_missing_reasoning_is_not_invented(chatml: ChatFormat) -> None:
    [conversation] = chatml.training_conversations([user(), assistant("Hi")])
    assert conversation == [user(), assistant("Hi")]
    with pytest.raises(ValueError, match="although thinking is on"):
        chatml.check_conversation(conversation, for_training=True)


def test_good_conversations_pass_the_check(chatml: ChatFormat) -> None:
    asked = [system(""), user("1 + 2"), assistant("Let me see.", call(), call("find", "{}")), tool("3"), tool("")]
    chatml.check_conversation(asked, [ADD, FIND], for_training=False)
    chatml.check_conversation([*asked, assistant()], [ADD, FIND], for_training=True)
    chatml.check_conversation([user("Is <s> or </s> HTML? /direct")], for_training=False)
    chatml.check_conversation([user("a /direct"), assistant("<think></think>", call())], [ADD], for_training=True)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([user(" \n")], "messages[0] is a user message without text; write what the user asks"),
        ([user(), user(" /reason /direct")], "messages[1] is a user message without text; write what the user asks"),
        ([user(), tool()], "messages[1] is a tool message without a tool call; put the assistant's call before it"),
    ],
)
def test_a_wrong_message_is_an_error(chatml: ChatFormat, messages: list[Any], sentence: str) -> None:
    for for_training, ending in ((False, []), (True, [assistant()])):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            chatml.check_conversation(messages + ending, for_training=for_training)


def test_a_prompt_must_end_with_a_message_to_answer(chatml: ChatFormat) -> None:
    for messages in ([user(), assistant()], [system("a")]):
        role = messages[-1]["role"]
        with pytest.raises(ValueError, match=rf"has the role {role}; end with a user or a tool message to answer$"):
            chatml.check_conversation(messages, for_training=False)


def test_a_training_conversation_must_end_with_a_reply(chatml: ChatFormat) -> None:
    with pytest.raises(ValueError, match=r"^messages\[2\] has the role user; end with the assistant's reply to train"):
        chatml.check_conversation([user(), assistant(), user()], for_training=True)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<think>\nWell.", "the thinking is never closed"),
        ("<think>\nA</think>B</think>C", "the thinking is closed 2 times"),
        ("<think>\nA<think>B</think>C", "the thinking is opened again"),
        ("<think>\nA</think><tool_call>[add]</tool_call>", "the tool call is not JSON: "),
        ("<think>\nA</think>B<|im_start|>user", "<|im_start|> is inside the reply"),
    ],
)
def test_a_reply_with_a_format_error_is_not_trained_on(chatml: ChatFormat, content: str, fault: str) -> None:
    sentence = rf"^messages\[1\] has a format error: {re.escape(fault)}.*; correct its content$"
    with pytest.raises(ValueError, match=sentence):
        chatml.check_conversation([user(), assistant(content)], for_training=True)


@pytest.mark.parametrize(
    "messages", [[user(), assistant("<think>\nA\n</think>\n")], [user("a /direct"), assistant("<think></think>")]]
)
def test_a_reply_without_an_answer_is_not_trained_on(chatml: ChatFormat, messages: list[Any]) -> None:
    sentence = r"^messages\[1\] has neither an answer nor a tool call after its thinking; add the answer$"
    with pytest.raises(ValueError, match=sentence):
        chatml.check_conversation(messages, for_training=True)


# A reply back to its parts --------------------------------------------------------------------------------------------

TAG = "a reply without thinking contains a thinking tag"
CALL = '<tool_call>[{"name": "add", "arguments": {"a": 1, "b": 2}}]</tool_call>'


@pytest.mark.parametrize(
    ("thinking", "text", "reply"),
    [
        (True, "Well.\n</think>\n\nHi\n<|im_end|>", Reply("Well.", "Hi", [], ())),
        (True, "Well.\n</think>\n\nHi", Reply("Well.", "Hi", [], ())),
        (True, "</think>Hi</s>", Reply("", "Hi", [], (), obeys=False)),  # the prompt asked for thinking
        (False, "Hi\n<|im_end|>", Reply(None, "Hi", [], ())),
        (False, "", Reply(None, "", [], ())),
        (False, "<s>x</s><|im_end|>\n", Reply(None, "<s>x</s>", [], ())),
        (False, CALL + "\n<|im_end|>", Reply(None, "", [call()], ())),
        (True, f"Add.</think>I see. {CALL}", Reply("Add.", "I see.", [call()], ())),
        (True, f"{CALL}</think>Hi", Reply(CALL, "Hi", [], ())),
        # Format errors.
        (True, "Well. Hi", Reply("Well. Hi", "", [], ("the thinking is never closed",), obeys=False)),
        (True, "A</think>B</think>C", Reply("A</think>B", "C", [], ("the thinking is closed 2 times",), obeys=False)),
        (True, "A</think>B<think>C", Reply("A", "B<think>C", [], ("the thinking is opened again",), obeys=False)),
        (False, "<think>\nA\n</think>\n\nB", Reply("A", "B", [], (TAG,), obeys=False)),
        (False, "A <think> B", Reply(None, "A <think> B", [], (TAG,), obeys=False)),
        (False, "A</think>B", Reply("A", "B", [], (TAG,), obeys=False)),
        (False, "A<|im_end|>B", Reply(None, "A<|im_end|>B", [], ("<|im_end|> is inside the reply",))),
        (False, "<tool_call>[]", Reply(None, "<tool_call>[]", [], ("<tool_call> without </tool_call>",))),
    ],
)
def test_a_reply_is_parsed_as_by_hand(chatml: ChatFormat, thinking: bool, text: str, reply: Reply) -> None:
    assert chatml.parse_reply(text, thinking=thinking) == reply


def test_a_format_may_write_tool_calls_in_another_syntax(chatml: ChatFormat) -> None:
    def split_tool_calls(text: str) -> SplitCalls:
        content, *names = re.split(r"<function=(\w+)></function>", text)[:2]
        return content, [call(name, {}) for name in names], []

    other = replace(chatml, split_tool_calls=split_tool_calls)
    assert other.parse_reply("Well.<function=find></function>", thinking=False) == Reply(
        None, "Well.", [call("find", {})], ()
    )
