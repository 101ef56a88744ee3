"""A chat format: what differs between model families, as data, and what programs do with it, as methods.

In: messages and tools (messages.py). Out: the text and the token ids that the model reads, which of the ids count in
the loss, and the parts of the model's reply. The thinking of an assistant is part of its content: for example
"<think>\\nreasoning\\n</think>\\n\\nanswer", or "<think></think>answer" without thinking. "reasoning_content", as newer
datasets have it, is put at the start of the content.

    python -c "from nemotron.recipes.nano2.chat import CHAT; print(CHAT.render([{'role': 'user', 'content': 'Hello'}]))"

Our choices, for all formats:

- The loss covers only what the model writes itself in the last turn. That includes the end of the turn, but not the tag
  that the prompt ends with. Earlier turns lack their reasoning, so they are not what a model writes;
  `training_conversations` turns each of them into the last turn of a separate conversation.
- A turn that is trained on must begin with the prefix that its prompt ends with (`reply_prefixes`). Where thinking is
  off, the prefix is added. A missing thought cannot be invented, so it is an error where thinking is on.
- Text never becomes a special token: an end of turn that a user spells out is encoded like any other characters.

transformers gives the same ids, with two exceptions. It parses a special token that a text spells out; and it may merge
the first characters of a reply with the tag before them, while the ids here are split as in generation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nemotron.recipes.chat.messages import (
    Message,
    Tool,
    check_characters,
    check_messages,
    check_order_and_tools,
)
from nemotron.recipes.chat.reply import Reply, SplitCalls


@dataclass(frozen=True)
class Piece:
    """A part of the rendered text that is tokenized separately."""

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
class ChatFormat:
    """How a model family writes conversations. True and False as keys mean thinking on and off."""

    template: str
    """Jinja chat template for other programs; renders the same text as `to_pieces`."""
    special_ids: Mapping[str, int]
    """Special tokens of the format and their ids."""
    stop_tokens: Mapping[str, int]
    """Tokens that end a reply, and their ids."""
    flags: Mapping[bool, str]
    """Texts in system and user messages that switch thinking, such as /think and /no_think. The last message that has
    one decides; if it has both, thinking is on, as without any."""
    reply_prefixes: Mapping[bool, str]
    """What the prompt ends with, so every reply begins after it."""
    open_think: str
    close_think: str
    """Tags around the reasoning."""
    to_pieces: Callable[["ChatFormat", Sequence[Message], Sequence[Tool], bool], list[Piece]]
    """(format, messages, tools, add_generation_prompt) -> the rendered text in pieces: special tokens, the texts
    between them, and the last reply split from its prefix, with in_loss=True on the reply and the end of turn. No piece
    is in the loss if the conversation does not end with a reply that begins with its prefix, or if
    add_generation_prompt is True. The messages have passed `check_messages`."""
    split_tool_calls: Callable[[str], SplitCalls]
    """Takes the tool calls out of a reply, for example `split_json_calls` (reply.py)."""
    pretrain_command: str
    finetune_command: str
    """Commands that error messages recommend: the first makes the tokenizer, the second a checkpoint that can chat."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a reply."""
        return tuple(self.stop_tokens.values())

    # Messages to text and ids -----------------------------------------------------------------------------------------

    def pieces(self, messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool) -> list[Piece]:
        """The rendered conversation in pieces; see the field `to_pieces`.

        Raises:
            ValueError: as `render`.
        """
        check_messages(messages, tools)
        messages = [self.with_thought(message, f"messages[{index}]") for index, message in enumerate(messages)]
        return self.to_pieces(self, messages, tools, add_generation_prompt)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation, the same characters as from `template`.

        Raises:
            ValueError: if the messages or tools are malformed (see `check_messages`), or a message has its thought
                both as "reasoning_content" and in its content.
        """
        return "".join(piece.text for piece in self.pieces(messages, tools, add_generation_prompt))

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = False,
    ) -> EncodedChat:
        """The ids of a conversation, and which of them count in the loss.

        The loss covers the reply at the end, if there is one and add_generation_prompt is False. The ids before it are
        those of its prompt: `encode(..., messages[:-1], add_generation_prompt=True)`.

        Args:
            tokenizer: is set to `encode_special_tokens = True`, which its files do not keep: special tokens that a text
                spells out stay text, here and in everything it encodes later.
        Raises:
            ValueError: if the messages are malformed (see `check_messages`), the reply at the end does not begin as its
                prompt ends, a text contains a lone surrogate, or the tokenizer lacks the special tokens of the format.
        """
        self.check_special_tokens(tokenizer, "the tokenizer")
        pieces = self.pieces(messages, tools, add_generation_prompt)
        if messages[-1]["role"] == "assistant" and not add_generation_prompt:
            self.check_prefix(messages, pieces)
        tokenizer.encode_special_tokens = True
        ids: list[int] = []
        in_loss: list[bool] = []
        for piece in pieces:
            check_characters(piece.text, "a text")
            if piece.is_special:
                special_id = tokenizer.token_to_id(piece.text)
                assert special_id is not None
                piece_ids = [special_id]
            else:
                piece_ids = tokenizer.encode(piece.text, add_special_tokens=False).ids
            ids += piece_ids
            in_loss += [piece.in_loss] * len(piece_ids)
        return EncodedChat(ids, in_loss)

    # Thinking on and off ----------------------------------------------------------------------------------------------

    def thinking_requested(self, messages: Sequence[Message]) -> bool:
        """Whether the assistant should think after these messages; see the field `flags`."""
        thinking = True
        for message in messages:
            if message["role"] in ("system", "user"):
                text = message["content"].replace(self.close_think, "<>")  # </think> contains /think
                if self.flags[True] in text or self.flags[False] in text:
                    thinking = self.flags[True] in text
        return thinking

    def without_flags(self, text: str) -> str:
        """The text without flags and without white space around it; the closing tag of thoughts stays."""
        parts = text.split(self.close_think)
        return self.close_think.join(
            part.replace(self.flags[False], "").replace(self.flags[True], "") for part in parts
        ).strip()

    def with_flag(self, messages: Sequence[Message], *, thinking: bool) -> list[dict[str, Any]]:
        """A copy of the conversation with the flag at the end of its last system or user message, where it decides.

        The flag for thinking is removed from that message if thinking is to be off, because it would win.
        """
        flag = self.flags[thinking]
        places = [index for index, message in enumerate(messages) if message["role"] in ("system", "user")]
        flagged = [dict(message) for message in messages]
        if not places:
            return [{"role": "system", "content": flag}, *flagged]
        text = flagged[places[-1]]["content"]
        while not thinking and self.flags[True] in text.replace(self.close_think, "<>"):
            text = self.without_flags(text)  # more than once if the rest spells a flag again
        flagged[places[-1]]["content"] = f"{text} {flag}"
        return flagged

    def with_thought(self, message: Message, name: str) -> Message:
        """The message with its "reasoning_content" at the start of its content.

        Args:
            message: has passed `check_messages`.
        Raises:
            ValueError: if the content has a thinking tag too; the error text begins with `name`.
        """
        thought, content = (message.get("reasoning_content") or "").strip(), message.get("content") or ""
        if not thought:
            return message
        if self.open_think in content or self.close_think in content:
            raise ValueError(f"{name} has reasoning_content and a thinking tag in its content; keep one of them")
        content = f"{self.reply_prefixes[True]}{thought}\n{self.close_think}\n\n{content.strip()}"
        return {**{key: message[key] for key in message if key != "reasoning_content"}, "content": content}

    # Conversations to train on ----------------------------------------------------------------------------------------

    def training_conversations(self, messages: Sequence[Message]) -> list[list[Message]]:
        """One conversation for each assistant turn that can be trained on; it ends with that turn.

        A turn with "weight": 0 is only context for later turns. Each conversation contains the flags up to its turn.
        A turn without reasoning where thinking is off gets the prefix of such replies. An earlier turn that does not
        begin as its prompt ends, for example one without reasoning where thinking is on, is only context for later
        turns. The last turn without "weight": 0 is always included. Pass each conversation to `check_conversation`,
        which raises if its last turn cannot be trained on.

        Raises:
            ValueError: if the messages are malformed, see `check_messages`.
        """
        check_messages(messages, ())
        messages = [self.with_thought(message, f"messages[{index}]") for index, message in enumerate(messages)]
        conversations: list[list[Message]] = []
        turns = [
            i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight") != 0
        ]
        for index in turns:
            content = (messages[index].get("content") or "").strip()
            thinking = self.thinking_requested(messages[:index])
            prefix = self.reply_prefixes[thinking]
            if not thinking and not content.startswith(self.open_think):
                content = prefix + content
            if content.startswith(prefix) or index == turns[-1]:
                conversations.append([*messages[:index], {**messages[index], "content": content}])
        return conversations

    def check_prefix(self, messages: Sequence[Message], pieces: Sequence[Piece]) -> None:
        """Check that the reply at the end begins as its prompt ends, so that its pieces are in the loss.

        Raises:
            ValueError: if it does not.
        """
        if not any(piece.in_loss for piece in pieces):
            thinking = self.thinking_requested(messages)
            prefix, state = self.reply_prefixes[thinking], "on" if thinking else "off"
            remedy = (
                f"add its reasoning, or {self.flags[False]} to an earlier message"
                if thinking
                else f"add it, or remove {self.flags[False]}"
            )
            raise ValueError(
                f"messages[{len(messages) - 1}] does not begin with {prefix!r}, although thinking is {state}; {remedy}"
            )

    def check_conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, for_training: bool
    ) -> None:
        """Check for mistakes in a conversation that renders, but should not be trained on or answered.

        A flag inside a user's text is allowed: it switches thinking and is removed. A tool result may be empty.

        Args:
            for_training: True if the conversation ends with the reply to train on, False if with the message to answer.
        Raises:
            ValueError: names the message, and what to change.
        """
        check_messages(messages, tools)
        check_order_and_tools(messages, tools)
        for index, message in enumerate(messages):
            if message["role"] == "user" and not self.without_flags(message["content"]):
                raise ValueError(f"messages[{index}] is a user message without text; write what the user asks")
        name, role = f"messages[{len(messages) - 1}]", messages[-1]["role"]
        if not for_training:
            if role not in ("user", "tool"):
                raise ValueError(f"{name} has the role {role}; end with a user or a tool message to answer")
            return
        if role != "assistant":
            raise ValueError(f"{name} has the role {role}; end with the assistant's reply to train on")
        pieces = self.pieces(messages, tools, add_generation_prompt=False)
        self.check_prefix(messages, pieces)
        text = "".join(piece.text for piece in pieces if piece.in_loss and piece.text not in self.stop_tokens)
        reply = self.parse_reply(text, thinking=self.thinking_requested(messages))
        if reply.errors:
            raise ValueError(f"{name} has a format error: {reply.errors[0]}; correct its content")
        if not reply.content and not reply.tool_calls:
            raise ValueError(f"{name} has neither an answer nor a tool call after its thinking; add the answer")

    # A reply back to its parts ----------------------------------------------------------------------------------------

    def parse_reply(self, text: str, *, thinking: bool) -> Reply:
        """Split what the model wrote after the prompt into its parts; any text parses, with its format errors listed.

        Args:
            text: of the sampled tokens; one stop token at its end is dropped.
            thinking: whether the prompt asked for thinking, that is, which of `reply_prefixes` it ended with.
        """
        errors = []
        text = text.rstrip()
        stop = next((token for token in self.stop_tokens if text.endswith(token)), "")
        text = text.removesuffix(stop)
        errors += [f"{token} is inside the reply" for token in self.special_ids if token in text]
        before, close, answer = text.rpartition(self.close_think)
        reasoning = before.strip() if close else None
        num_closed, is_opened = text.count(self.close_think), self.open_think in text
        obeys = not is_opened and (num_closed == 1 and bool(reasoning) if thinking else num_closed == 0)
        if thinking:
            if not close:
                errors.append("the thinking is never closed")
                reasoning, answer = text.strip(), ""
            if num_closed > 1:
                errors.append(f"the thinking is closed {num_closed} times")
            if is_opened:
                errors.append("the thinking is opened again")
        elif close or is_opened:
            errors.append("a reply without thinking contains a thinking tag")
            reasoning = reasoning and reasoning.removeprefix(self.open_think).lstrip()
        content, tool_calls, call_errors = self.split_tool_calls(answer.strip())
        return Reply(reasoning, content, tool_calls, (*errors, *call_errors), obeys)

    # The tokenizer ----------------------------------------------------------------------------------------------------

    def check_special_tokens(self, tokenizer: Tokenizer, name: str) -> None:
        """Check that the tokenizer has the special tokens of the format, with their ids.

        Raises:
            ValueError: names the first token that is missing or has another id; the error text begins with `name`.
        """
        for token, index in self.special_ids.items():
            if tokenizer.token_to_id(token) != index:
                raise ValueError(
                    f"{name} has no token {token} with id {index}, which the chat format needs; "
                    f"use a tokenizer from {self.pretrain_command}"
                )
