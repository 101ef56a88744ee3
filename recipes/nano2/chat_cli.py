"""Talk to a fine-tuned checkpoint in the terminal, or through a pipe.

In: a Checkpoint of stage 1, or a directory that transformers would load; lines from the terminal, or one message from
the pipe. Out: the answer on stdout while it is written, what the model thinks on stderr, and there also whether the
reply was cut off.
Run: python -m nemotron.recipes.nano2.chat_cli outputs/nano2/small/stage1_sft/training
     echo "What is 7 + 5? /no_think" | python -m nemotron.recipes.nano2.chat_cli outputs/nano2/small/stage1_sft/training

/think and /no_think anywhere in a message, also inside a word, vanish and switch the thinking until the next of them; a
line of /new forgets the conversation, /exit or the end of input leaves, Ctrl-C stops an answer. Decoding as published:
temperature 0.6 and top-p 0.95 with thinking, greedy without.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import tyro
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from nemotron.pipe import one_sentence
from nemotron.recipes.nano2.chat import (
    CLOSE,
    NO_THINK,
    REPLY_PREFIXES,
    STOP_TOKENS,
    THINK,
    check_conversation,
    encode_chat,
    load_chat_tokenizer,
    thinking_requested,
    with_flag,
)
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.generate import Sampling, ThinkingBudget, stream
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.training.device import device_memory_bytes

COMMANDS = f"{THINK}, {NO_THINK}, /new and /exit work here, Ctrl-C stops an answer."


@dataclass
class Config:
    """Talk to a fine-tuned checkpoint; /think, /no_think, /new and /exit work inside."""

    checkpoint: tyro.conf.Positional[Path]
    """Directory of stage 1's Checkpoint, or of its Hugging Face files."""
    budget: int | None = None
    """Tokens that the model may think: it is stopped at the next line end, or by force --grace-tokens later."""
    grace_tokens: int = 500  # published
    """See budget."""
    max_new_tokens: int | None = None
    """Of one reply; to the end of the model's context if left out."""
    temperature: float = 0.6  # published, with thinking
    """Of replies with thinking, 0 for the most likely token every time; those without thinking are always so."""
    top_p: float = 0.95  # published, with thinking
    """Share of the probability that replies with thinking are drawn from."""
    system: str = ""
    """System message."""
    seed: int = 1234
    """Of what is drawn."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens <= 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be greater than 0")
        if self.budget is not None and self.budget <= 0:
            raise ValueError(f"budget={self.budget} must be at least 1 token; switch thinking off with /no_think")
        if self.grace_tokens < 0:
            raise ValueError(f"grace_tokens={self.grace_tokens} must not be negative")
        Sampling(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)  # refuses what is out of range


def thought_and_answer(written: str, *, thinking: bool) -> tuple[str, str]:
    """The two parts of a reply so far; as it grows, each only gains text at its end."""
    if not thinking:
        return "", written.strip()
    thought, close, answer = written.partition(CLOSE)
    return (f"{thought}{CLOSE}\n" if close else thought), answer.strip()


@dataclass
class Chat:
    """A model, its tokenizer, and what was said so far."""

    model: NemotronH
    tokenizer: Tokenizer
    config: Config
    messages: list[dict[str, Any]]

    def reply(self, text: str) -> Iterator[tuple[str, bool]]:
        """The model's answer to one more message of the user, piece by piece, and a line end.

        Yields:
            Text, and whether it is an aside: a thought, or the note that the reply was cut off.

        Raises:
            ValueError: if the message cannot be answered; the conversation then is as it was before.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        check_conversation(messages, for_training=False)
        prompt = encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids
        context = self.model.config.max_position_embeddings
        if len(prompt) >= context:
            raise ValueError(
                f"the conversation has {len(prompt)} tokens and the model's context {context}; shorten the message, or "
                f"begin anew with /new"
            )
        thinking = thinking_requested(messages)
        budget = None
        if self.config.budget is not None:
            budget = ThinkingBudget(self.config.budget, self.tokenizer, self.config.grace_tokens)
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens or context,
            stop_ids=STOP_TOKENS,
            temperature=self.config.temperature if thinking else 0.0,
            top_p=self.config.top_p if thinking else 1.0,
            budget=budget if thinking else None,
        )
        decoding = DecodeStream(skip_special_tokens=True)
        ids: list[int] = []
        written, shown = "", ("", "")
        steps = stream(self.model, [prompt], sampling, seeds=[self.config.seed + len(messages)])
        for step in chain(steps, [None]):
            if step is None:
                written = self.tokenizer.decode(ids)  # also what the stream held back, of a character that never ended
            else:
                ids.append(step[0].id)
                written += decoding.step(self.tokenizer, ids[-1]) or ""
            parts = thought_and_answer(written, thinking=thinking)
            yield parts[0][len(shown[0]) :], True
            yield parts[1][len(shown[1]) :], False
            shown = parts
        is_open = thinking and CLOSE not in written
        yield "\n" if is_open else "", True
        yield "\n", False
        if ids[-1] not in STOP_TOKENS:
            is_full = len(prompt) + len(ids) >= context
            remedy = "the model's context is full, begin anew with /new" if is_full else "give it more --max-new-tokens"
            yield f"(the reply was cut off after {len(ids)} tokens; {remedy})\n", True
        unfinished = f"\n{CLOSE}" if is_open else ""  # else it would stay in the history as an answer
        content = f"{REPLY_PREFIXES[thinking]}{written}{unfinished}"
        self.messages = [*messages, {"role": "assistant", "content": content}]


def loaded(config: Config) -> Chat:
    """The checkpoint, ready to chat.

    Raises:
        ValueError: if the directory holds no fine-tuned checkpoint.
    """
    directory = config.checkpoint
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    if (directory / "model").is_dir():  # a Checkpoint holds its Hugging Face files there
        directory = directory / "model"
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{config.checkpoint} holds no checkpoint; make one with python -m nemotron.recipes.nano2.stage1_sft, and "
            f"name outputs/nano2/<scale>/stage1_sft/training"
        )
    tokenizer = load_chat_tokenizer(directory)
    model = load_checkpoint(directory, device=config.device, dtype=torch.float32)
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise ValueError(
            f"{directory} holds a tokenizer of {tokenizer.get_vocab_size()} tokens and a model of "
            f"{model.config.vocab_size}; they do not belong together"
        )
    system = [{"role": "system", "content": config.system}] if config.system else []
    return Chat(model, tokenizer, config, system)


def converse(chat: Chat) -> None:
    """Answer line by line until the input ends; a message that cannot be answered is said to be so, and forgotten."""
    beginning = list(chat.messages)
    print(COMMANDS, file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)  # input's own prompt may go to stdout
        try:
            line = input().strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            print(f"error: the line is no UTF-8 text ({error}); write it in UTF-8", file=sys.stderr)
            continue
        if line == "/exit":
            return
        if line == "/new":
            chat.messages = list(beginning)
            print("a new conversation", file=sys.stderr)
        elif line in (THINK, NO_THINK):
            chat.messages = with_flag(chat.messages, line)
            print(f"thinking is {'on' if line == THINK else 'off'}", file=sys.stderr)
        elif re.fullmatch(r"/\w+", line):
            print(f"error: {line} is no command; {COMMANDS}", file=sys.stderr)
        elif line:
            try:
                say(chat, line)
            except ValueError as error:
                print(f"error: {one_sentence(error)}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\nstopped; this message is forgotten", file=sys.stderr)


def say(chat: Chat, text: str) -> None:
    """Write the reply to one message as it comes: thoughts and notes to stderr, the answer to stdout."""
    for piece, is_aside in chat.reply(text):
        print(piece, end="", file=sys.stderr if is_aside else sys.stdout, flush=True)


def main(config: Config) -> None:
    """Chat in the terminal, or answer what comes through the pipe as one message."""
    if sys.stdin is None:
        raise ValueError("stdin is closed; write in a terminal, or pipe in a message")
    sys.stdin.reconfigure(errors="strict")  # type: ignore[union-attr]  # some locales make half surrogates instead
    chat = loaded(config)
    if sys.stdin.isatty():
        converse(chat)
    else:
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"what comes through the pipe is no UTF-8 text ({error}); convert it first") from error
        say(chat, text)


if __name__ == "__main__":
    config = tyro.cli(Config)
    try:
        main(config)
    except (ValueError, OSError) as error:
        print(f"error: {one_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
