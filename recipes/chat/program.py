"""A chat with a fine-tuned checkpoint, in the terminal or through a pipe, for any `ChatFormat`.

In: the directory of a Checkpoint, whose files are checked first, or one with the Hugging Face files of any model; lines
from the terminal, or one message from the pipe. A chat template that the checkpoint brings is used (template.py). Out:
the answer on stdout while it is generated; the thinking on stderr, with a note if the reply was cut off.
Run: a recipe's chat_cli.py, such as python -m nemotron.recipes.nano2.chat_cli <checkpoint>

The format's flags (/think and /no_think) switch thinking until the next flag: they may be anywhere in a message, also
inside a word, and are removed from it. The line /new starts a new conversation, /exit or the end of input ends the
program, Ctrl-C stops an answer. Decoding as published for Nemotron Nano 2 (model card): temperature 0.6 and top-p 0.95
with thinking, greedy without.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from nemotron.artifact import check_artifact
from nemotron.command_line import parse_arguments
from nemotron.config import published
from nemotron.directory import METADATA
from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling, ThinkingBudget, stream
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.strict import one_sentence
from nemotron.terminal import LINES, print_line, printable, whole_output

MODEL = "model"  # where a Checkpoint has its Hugging Face files


@dataclass
class Config:
    """Talk to a fine-tuned checkpoint in the terminal, or pipe in one message."""

    checkpoint: tyro.conf.Positional[Path]
    """Directory of a Checkpoint of fine-tuning, or of its Hugging Face files."""
    budget: int | Literal["none"] = "none"
    """Tokens that the model may think. Then the thinking is closed at the next line end, and at the latest after
    --grace-tokens more."""
    grace_tokens: int = published(500, "Nemotron Nano 2, budget control").value
    """Tokens beyond the budget after which the thinking is closed by force."""
    max_new_tokens: int | Literal["context"] = "context"
    """Maximum tokens of one reply; "context" means up to the end of the model's context."""
    temperature: float = published(0.6, "model card of Nemotron Nano 9B v2, with thinking").value
    """Sampling temperature with thinking; 0 is greedy. Replies without thinking are always greedy."""
    top_p: float = published(0.95, "model card of Nemotron Nano 9B v2, with thinking").value
    """With thinking: sample from the most likely tokens that together have this probability."""
    system: str = ""
    """System message."""
    seed: int = 1234
    """Seed of sampling."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        if isinstance(self.budget, int) and self.budget < 1:
            raise ValueError(f"budget={self.budget} must be at least 1 token; leave it out for no limit")
        if isinstance(self.max_new_tokens, int) and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1; leave it out for no limit")
        if self.grace_tokens < 0:
            raise ValueError(f"grace_tokens={self.grace_tokens} must not be negative")
        Sampling(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)  # checks their ranges


@dataclass
class Chat:
    """A model, its tokenizer and chat format, and the conversation so far."""

    format: ChatFormat
    model: NemotronH
    tokenizer: Tokenizer
    config: Config
    messages: list[dict[str, Any]]

    def reply(self, text: str) -> Iterator[tuple[str, bool]]:
        """Answer one more user message, piece by piece, and add the message and the reply to `messages`.

        Yields:
            Text, and whether it goes to stderr: thinking, or the note that the reply was cut off.

        Raises:
            ValueError: if the message cannot be answered; `messages` is then unchanged.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        self.format.check_conversation(messages, for_training=False)
        prompt = self.format.encode(self.tokenizer, messages, add_generation_prompt=True).ids
        context = self.model.config.max_position_embeddings
        if len(prompt) >= context:
            raise ValueError(
                f"the conversation has {len(prompt)} tokens, but the model's context is {context}; shorten the "
                f"message, or start a new conversation with /new"
            )
        thinking = self.format.thinking_requested(messages)
        budget = None
        if thinking and self.config.budget != "none":
            budget = ThinkingBudget(
                self.config.budget, self.tokenizer, self.format.close_think, self.config.grace_tokens
            )
        max_new_tokens = self.config.max_new_tokens
        sampling = Sampling(
            max_new_tokens=context if max_new_tokens == "context" else max_new_tokens,
            stop_ids=self.format.stop_ids,
            temperature=self.config.temperature if thinking else 0.0,
            top_p=self.config.top_p if thinking else 1.0,
            budget=budget,
        )
        decoding = DecodeStream(skip_special_tokens=True)
        ids: list[int] = []
        written, shown = "", ("", "")
        steps = stream(self.model, [prompt], sampling, seeds=[self.config.seed + len(messages)])
        for step in chain(steps, [None]):
            if step is None:
                written = self.tokenizer.decode(ids)  # includes the bytes of an unfinished character at the end
            else:
                ids.append(step[0].id)
                written += decoding.step(self.tokenizer, ids[-1]) or ""
            parts = self.split_thought(written, thinking=thinking)
            yield parts[0][len(shown[0]) :], True
            yield parts[1][len(shown[1]) :], False
            shown = parts
        close_think = self.format.close_think
        is_open = thinking and close_think not in written
        yield "\n" if is_open else "", True
        yield "\n", False
        if ids[-1] not in self.format.stop_ids:
            is_full = len(prompt) + len(ids) >= context
            remedy = "the context is full, start again with /new" if is_full else "raise --max-new-tokens"
            yield f"(the reply was cut off after {len(ids)} tokens; {remedy})\n", True
        closing = f"\n{close_think}" if is_open else ""  # without it, the history would keep the thinking as an answer
        content = f"{self.format.reply_prefixes[thinking]}{written}{closing}"
        self.messages = [*messages, {"role": "assistant", "content": content}]

    def split_thought(self, written: str, *, thinking: bool) -> tuple[str, str]:
        """The thinking and the answer in an unfinished reply; as the reply grows, both only get longer at their end."""
        if not thinking:
            return "", written.strip()
        close_think = self.format.close_think
        thought, close, answer = written.partition(close_think)
        return (f"{thought}{close_think}\n" if close else thought), answer.strip()


def load_chat(format: ChatFormat, config: Config) -> Chat:
    """Load the checkpoint, ready to chat.

    Raises:
        ValueError: if this machine lacks the device, the directory has no fine-tuned checkpoint of the format, or it is
            a Checkpoint, or the directory `model` of one, that has changed since it was saved.
    """
    directory = config.checkpoint
    device_memory_bytes(config.device)  # raises if this machine has no such device
    place = directory.resolve()
    for artifact in [place, place.parent] if place.name == MODEL else [place]:
        if os.path.lexists(artifact / METADATA):
            check_artifact(artifact, "checkpoint")
    if (directory / MODEL).is_dir():
        directory = directory / MODEL
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{config.checkpoint} has no checkpoint; make one with {format.finetune_command}, and give the directory "
            f"of its Checkpoint"
        )
    tokenizer = load_chat_tokenizer(format, directory)
    format = format_of(format, directory)
    model = load_checkpoint(directory, device=config.device, dtype=torch.float32)
    system = [{"role": "system", "content": config.system}] if config.system else []
    return Chat(format, model, tokenizer, config, system)


def converse(chat: Chat) -> None:
    """Answer line by line until the input ends. A message that cannot be answered is reported and dropped."""
    start = list(chat.messages)
    flags = {flag: thinking for thinking, flag in chat.format.flags.items()}
    commands = f"type {', '.join(flags)}, /new or /exit; Ctrl-C stops an answer"
    print_line(commands)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)  # the prompt of input() may go to stdout
        try:
            line = input().strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            print_line(f"error: the line is not UTF-8 text ({error}); write it in UTF-8")
            continue
        if line == "/exit":
            return
        if line == "/new":
            chat.messages = list(start)
            print_line("new conversation")
        elif line in flags:
            chat.messages = chat.format.with_flag(chat.messages, thinking=flags[line])
            print_line(f"thinking is {'on' if flags[line] else 'off'}")
        elif re.fullmatch(r"/\w+", line):
            print_line(f"error: {line} is not a command; {commands}")
        elif line:
            try:
                print_reply(chat, line)
            except ValueError as error:
                print_line(f"error: {one_sentence(error)}")
            except KeyboardInterrupt:
                print("\nstopped; this message is not part of the conversation", file=sys.stderr)


def print_reply(chat: Chat, text: str) -> None:
    """Print the reply to one message while it is generated: the answer to stdout, everything else to stderr."""
    for piece, is_aside in chat.reply(text):
        shown = printable(piece, keep=LINES)
        print(shown, end="", file=sys.stderr if is_aside else sys.stdout, flush=True)


def main(format: ChatFormat, config: Config) -> None:
    """Chat in the terminal, or answer the text from the pipe as one message."""
    if sys.stdin is None:
        raise ValueError("stdin is closed; run in a terminal, or pipe in a message")
    sys.stdin.reconfigure(errors="strict")  # type: ignore[union-attr]  # some locales decode to lone surrogates instead
    chat = load_chat(format, config)
    if sys.stdin.isatty():
        converse(chat)
    else:
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"the text from the pipe is not UTF-8 ({error}); convert it first") from error
        if not text.strip():
            raise ValueError("the pipe holds no text; pipe in a message, or run in a terminal")
        print_reply(chat, text)


def chat_program(format: ChatFormat) -> None:
    """The whole program: reads the command line, chats, and exits with 2 after an error and with 130 after Ctrl-C."""
    config = parse_arguments(Config)
    try:
        with whole_output():
            main(format, config)
    except (ValueError, OSError) as error:
        print_line(f"error: {one_sentence(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
