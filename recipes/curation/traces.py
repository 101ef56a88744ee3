"""Turn conversations into token ids: empty or cut their thoughts, encode their turns.

In: conversations in a chat format. Out: token ids with the loss mask.
Source: arXiv 2508.14444, section 3: about a tenth of the reasoning traces are emptied, and in the third part of
fine-tuning traces are cut to a budget while the answer stays.
"""

from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat, EncodedChat
from nemotron.recipes.curation.conversations import split_reply
from nemotron.recipes.sources.conversations import Conversation
from nemotron.terminal import LINES, fenced, printable


def without_thought(format: ChatFormat, conversation: Conversation) -> Conversation:
    """A copy with the traces after its last question emptied, and with the flag that turns thinking off."""
    messages = format.with_flag(conversation.messages, thinking=False)
    for message in reversed(messages):
        if message["role"] in ("system", "user"):
            break
        if message["role"] == "assistant":
            message["content"] = f"{format.reply_prefixes[False]}{split_reply(message['content'] or '')[1]}"
    return replace(conversation, reasoning=False, messages=tuple(messages))


def with_cut_thought(
    format: ChatFormat, conversation: Conversation, tokenizer: Tokenizer, num_tokens: int
) -> EncodedChat | None:
    """The conversation with its last trace cut to `num_tokens` tokens and the whole answer, or None.

    None if it has no reasoning, the trace is not longer than that, or the last reply is kept out of the loss.
    Only the answer counts in the loss (our choice): the budget ends the thought, so the model need not learn to end it.
    """
    *history, reply = conversation.messages
    if reply.get("weight") == 0:
        return None
    thought, answer = split_reply(reply["content"])
    ids = tokenizer.encode(thought, add_special_tokens=False).ids
    if not conversation.reasoning or len(ids) <= num_tokens:
        return None
    cut = tokenizer.decode(ids[:num_tokens]).rstrip("\ufffd")  # the cut may split a character
    thought = f"{cut.strip()}\n{format.close_think}"
    messages = [*history, {**reply, "content": f"{format.reply_prefixes[True]}{thought}\n\n{answer}"}]
    encoded = format.encode(tokenizer, messages, conversation.tools)
    prompt = format.encode(tokenizer, history, conversation.tools, add_generation_prompt=True)
    num_thought = len(prompt.ids) + len(tokenizer.encode(thought, add_special_tokens=False).ids)
    in_loss = [counts and index >= num_thought for index, counts in enumerate(encoded.in_loss)]
    return EncodedChat(encoded.ids, in_loss)


def encoded_turns(format: ChatFormat, conversation: Conversation, tokenizer: Tokenizer) -> list[EncodedChat]:
    """One entry for every assistant turn that can be learned, each with the history that it answers."""
    turns = format.training_conversations(conversation.messages)
    return [format.encode(tokenizer, messages, conversation.tools) for messages in turns]


def samples_page(format: ChatFormat, samples: Sequence[Conversation], tokenizer: Tokenizer) -> str:
    """Markdown: the samples, each below its category, with what counts in the loss between ⟦ and ⟧."""
    lines = ["# Conversations as the model reads them", "", "What counts in the loss is between ⟦ and ⟧.", ""]
    for sample in samples:
        chat = encoded_turns(format, sample, tokenizer)[-1]
        start = chat.in_loss.index(True)
        end = len(chat.in_loss) - chat.in_loss[::-1].index(True)
        pieces = (tokenizer.decode(ids, skip_special_tokens=False) for ids in
                  (chat.ids[:start], chat.ids[start:end], chat.ids[end:]))  # fmt: skip
        quoted = printable(sample.category).replace("`", "'")
        lines += [f"## `{quoted}`", "", fenced("{}⟦{}⟧{}".format(*pieces).rstrip()), ""]
    return printable("\n".join(lines), keep=LINES)
