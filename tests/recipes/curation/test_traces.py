"""Emptied and cut thoughts, turns and packing, on conversations small enough to check by eye."""

from dataclasses import replace

import pytest

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.curation.traces import (
    encoded_turns,
    samples_page,
    with_cut_thought,
    without_thought,
)
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.sources.conversations import Conversation

THOUGHT = "three and four make seven"
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = ({"name": "f", "parameters": {}},)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is three and four? three and four make seven"], 300)


def conversation(question="What is 3 + 4?", reply=f"<think>\n{THOUGHT}\n</think>\n\n7", **changes):
    given = {"category": "math", "reasoning": True, "tools": (), "licence": "Apache-2.0", "origin": "somewhere"}
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
    return Conversation(**({"id": "1", "messages": messages} | given | changes))


def learned(chat, tokenizer, **decoding):
    """The text that counts in the loss."""
    return tokenizer.decode([token for token, counts in zip(chat.ids, chat.in_loss, strict=True) if counts], **decoding)


def test_an_emptied_thought_keeps_the_answer_and_asks_for_no_thinking():
    emptied = without_thought(CHAT, conversation())
    assert emptied.messages[0] == {"role": "user", "content": "What is 3 + 4? /no_think"}
    assert emptied.messages[-1]["content"] == "<think></think>7"
    assert not emptied.reasoning


def test_a_last_reply_of_weight_zero_is_not_cut_into_the_loss(tokenizer):
    question, reply = conversation().messages
    assert with_cut_thought(CHAT, conversation(), tokenizer, 1) is not None
    kept_out = conversation(messages=(question, reply, question, {**reply, "weight": 0}))
    assert with_cut_thought(CHAT, kept_out, tokenizer, 1) is None


def test_every_thought_after_the_last_question_is_emptied(tokenizer):
    messages = (
        *conversation().messages,
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "<think>\nwhich?\n</think>\n\n", "tool_calls": [CALL]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "<think>\nit is done\n</think>\n\nDone."},
    )
    emptied = without_thought(CHAT, conversation(messages=messages, tools=TOOLS))
    texts = [learned(chat, tokenizer) for chat in encoded_turns(CHAT, emptied, tokenizer)]
    assert THOUGHT in texts[0]  # before the last question
    assert texts[1].startswith("<TOOLCALL>")
    assert texts[2].startswith("Done.")


def test_a_tool_call_without_content_can_be_emptied():
    question, answer = conversation().messages
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = (question, call, {"role": "tool", "content": "7"}, answer)
    emptied = without_thought(CHAT, conversation(messages=messages, tools=TOOLS))
    assert [message["content"] for message in emptied.messages[1::2]] == ["<think></think>", "<think></think>7"]


def test_an_emptied_thought_overrides_the_users_flag(tokenizer):
    emptied = without_thought(CHAT, conversation(question="What is 3 + 4? /think"))
    (chat,) = encoded_turns(CHAT, emptied, tokenizer)
    assert "<think></think>7" in tokenizer.decode(chat.ids)


def test_without_thought_leaves_the_conversation_unchanged():
    one = conversation()
    without_thought(CHAT, one)
    assert one == conversation()


def test_a_cut_thought_keeps_its_first_tokens_and_the_whole_answer(tokenizer):
    cut = with_cut_thought(CHAT, conversation(), tokenizer, 5)
    text = tokenizer.decode(cut.ids, skip_special_tokens=False)
    first = tokenizer.decode(tokenizer.encode(THOUGHT).ids[:5]).strip()
    assert f"<think>\n{first}\n</think>\n\n7\n<SPECIAL_12>" in text


def test_only_the_answer_after_a_cut_thought_counts_in_the_loss(tokenizer):
    cut = with_cut_thought(CHAT, conversation(), tokenizer, 5)
    assert learned(cut, tokenizer, skip_special_tokens=False) == "\n\n7\n<SPECIAL_12>"


def test_white_space_before_the_thought_does_not_change_the_cut(tokenizer):
    spaced = conversation(reply=f"\n <think>\n{THOUGHT}\n</think>\n\n7")
    assert with_cut_thought(CHAT, spaced, tokenizer, 5) == with_cut_thought(CHAT, conversation(), tokenizer, 5)


def test_a_cut_leaves_no_partial_character(tokenizer):
    greek = conversation(reply="<think>\n" + "\N{GREEK SMALL LETTER OMEGA}" * 20 + "\n</think>\n\n7")
    for num_tokens in range(3, 9):
        cut = with_cut_thought(CHAT, greek, tokenizer, num_tokens)
        assert "\ufffd" not in tokenizer.decode(cut.ids)


def test_a_thought_is_cut_only_if_it_is_longer_than_the_budget(tokenizer):
    length = len(tokenizer.encode(THOUGHT).ids)
    assert with_cut_thought(CHAT, conversation(), tokenizer, length) is None
    assert with_cut_thought(CHAT, conversation(), tokenizer, length - 1) is not None


def test_a_conversation_without_reasoning_is_not_cut(tokenizer):
    assert with_cut_thought(CHAT, without_thought(CHAT, conversation()), tokenizer, 100) is None
    assert with_cut_thought(CHAT, conversation(reasoning=False), tokenizer, 1) is None


def test_the_page_of_samples_shows_a_conversation_as_text(tokenizer):
    reply = f"<think>\n{THOUGHT}\n</think>\n\n```\n![](http://a.b)\n# Heading"
    page = samples_page(CHAT, [conversation(reply=reply, category="math\n`<img src=x>")], tokenizer)
    lines = page.splitlines()
    fence = "````"
    assert "## `math\\x0a'<img src=x>`" in lines
    assert lines.count(fence) == 2
    (end,) = (number for number, line in enumerate(lines) if line.startswith("# Heading"))
    assert lines.index(fence) < end < len(lines) - 1 - lines[::-1].index(fence)


def test_every_assistant_turn_is_learned_once(tokenizer):
    messages = (*conversation().messages, {"role": "user", "content": "And 5 + 5?"},
                {"role": "assistant", "content": "<think>\nten\n</think>\n\n10"})  # fmt: skip
    turns = encoded_turns(CHAT, replace(conversation(), messages=messages), tokenizer)
    assert [learned(turn, tokenizer).split()[-1] for turn in turns] == ["7", "10"]
    assert THOUGHT not in tokenizer.decode(turns[1].ids)


def test_an_earlier_turn_without_a_thought_is_read_and_not_learned(tokenizer):
    two_turns = conversation(messages=(*conversation("Hello", "Hi.").messages, *conversation().messages))
    (chat,) = encoded_turns(CHAT, two_turns, tokenizer)
    assert "Hi." in tokenizer.decode(chat.ids)
    assert "Hi." not in learned(chat, tokenizer)
    assert learned(chat, tokenizer).strip().endswith("7")
