"""The chat template that a checkpoint brings: found, rendered as transformers does, and used in place of the format's.

In: the directory of a tokenizer and a `ChatFormat`. Out: the format itself, or one whose conversations are rendered by
the checkpoint's own template, with all else as before: flags, tags, which turn is learned. Stop tokens of
generation_config.json are added to those of the format.

    format = format_of(CHAT, Path("<directory of a checkpoint>"))

A template is a program of a stranger. It is rendered in jinja2's sandbox, in a separate process that has a limit of
time and memory. A special token that a message spells out stays text, as everywhere in this package.

Left out: templates for several purposes in one checkpoint, other than the default.
"""

import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nemotron.recipes.chat import template_process
from nemotron.recipes.chat.format import ChatFormat, Piece
from nemotron.recipes.chat.messages import Message, Tool, tool_schema
from nemotron.recipes.chat.tokenizer import read_tokenizer, read_tokenizer_config
from nemotron.recipes.nemotron_h.checkpoint import GENERATION_FILE, stop_tokens_of
from nemotron.strict import short

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 2**20  # our choice; published templates have some 10,000
RENDER_SECONDS = 10.0  # our choice: a template of any use needs milliseconds
MAX_ANSWERS = 7  # our choice: renderings that are kept, those of one turn
# Marks the special tokens that texts spell out while a template is rendered: a private character that no text has.
PRIVATE_CHARACTERS = range(0xE000, 0xF8FF)


def template_of(directory: Path) -> tuple[str, str] | None:
    """The chat template in a tokenizer's directory and the place where it is; None if there is none.

    Raises:
        ValueError: if tokenizer_config.json is damaged, or the template is not text, or several without a default.
    """
    file = directory / TEMPLATE_FILE
    if file.is_file():  # wins over the other, as in transformers
        if file.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ValueError(f"{file} has more than {MAX_TEMPLATE_BYTES:,} bytes; fetch it again")
        try:
            return file.read_text(encoding="utf-8"), str(file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error}); fetch it again") from error
    place = f"{directory / 'tokenizer_config.json'}: chat_template"
    found = read_tokenizer_config(directory).get("chat_template")
    if isinstance(found, list):  # several, each with a name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        if "default" not in named:
            raise ValueError(f"{place} has no template with the name default; add it")
        found = named["default"]
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{place} is {short(found)}, not a text; fetch it again")
    return (found, place) if found else None


def format_of(format: ChatFormat, directory: Path) -> ChatFormat:
    """The format with which to talk to the checkpoint: with its own template if it brings one, else `format`.

    A reply then also ends at the tokens that generation_config.json names.

    Raises:
        ValueError: if the template or the tokenizer is damaged, or the template does not fit the format.
    """
    found = template_of(directory)
    if (directory / GENERATION_FILE).is_file():
        stop_tokens = {**format.stop_tokens, **stop_tokens_of(directory, read_tokenizer(format, directory))}
        format = format if stop_tokens == format.stop_tokens else replace(format, stop_tokens=stop_tokens)
    if found is None or found[0].strip() == format.template.strip():
        return format
    template, place = found
    tokenizer = read_tokenizer(format, directory)
    added = tokenizer.get_added_tokens_decoder().values()
    special = sorted({token.content for token in added if token.special} | set(format.special_ids))
    variables = {}
    for name, token in read_tokenizer_config(directory).items():
        if re.fullmatch(r"(bos|eos|unk|pad|sep|cls|mask)_token", name):
            variables[name] = token.get("content") if isinstance(token, dict) else token
    values = {item.name: getattr(format, item.name) for item in fields(ChatFormat)}
    values["template"] = template
    chosen = TemplateFormat(**values, renderer=TemplateRenderer(template, place, variables), special_tokens=special)
    chosen.thinking_requested([{"role": "user", "content": "Hello"}])  # finds a template that does not fit
    return chosen


class TemplateRenderer:
    """Renders one template in a process that lives as long as this object."""

    def __init__(self, template: str, place: str, variables: Mapping[str, Any]) -> None:
        """
        Args:
            place: where the template is, for errors.
            variables: what the template can read beside the conversation, such as bos_token.
        """
        self.template, self.place, self.variables = template, place, dict(variables)
        self.process: subprocess.Popen[str] | None = None
        self.answers: dict[str, str] = {}  # the last ones: the prompt of a turn is asked for several times
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy that is sent to another process starts its own renderer."""
        return TemplateRenderer, (self.template, self.place, self.variables)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool) -> str:
        """The text of the conversation.

        Raises:
            ValueError: if the template is wrong, refuses the conversation, or does not end in time.
        """
        variables = {
            **self.variables,
            # None and no key mean the same, as in transformers.
            "messages": [{key: value for key, value in one.items() if value is not None} for one in messages],
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        request = json.dumps({"template": self.template, "variables": variables})
        with self.lock:
            if request not in self.answers:
                self.answers = dict([*list(self.answers.items())[-MAX_ANSWERS:], (request, self._answer(request))])
            return self.answers[request]

    def _answer(self, request: str) -> str:
        if self.process is None:
            command = [sys.executable, "-P", template_process.__file__]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
            weakref.finalize(self, stop, self.process)
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(RENDER_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            stop(process)
            self.process = None
            raise ValueError(
                f"{self.place} is not rendered within {RENDER_SECONDS:g} seconds and {template_process.MAX_BYTES:,} "
                f"bytes of memory; correct the template"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.place} {answer['error'].rstrip('.')}; correct the template or the messages")
        return answer["text"]


def stop(process: subprocess.Popen[str]) -> None:
    """End the process and close its pipes."""
    process.kill()
    process.communicate()


@dataclass(frozen=True)
class TemplateFormat(ChatFormat):
    """A format whose conversations are rendered by a template, the reply that is trained on included.

    The prompt of a reply is rendered once without it and once with it. What the second text adds is what the assistant
    writes, so what is learned is what is asked for; a template for which the first text is not the beginning of the
    second is refused.
    """

    renderer: TemplateRenderer
    special_tokens: Sequence[str]
    """Special tokens of the tokenizer, which the template may write and texts may not."""

    def thinking_requested(self, messages: Sequence[Message]) -> bool:
        """Whether the assistant should think: as the prompt ends that the template makes."""
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            return True
        text = "".join(piece.text for piece in self.prompt_pieces(messages, ()))
        for thinking in (False, True):
            if text.endswith(self.reply_prefixes[thinking]):
                return thinking
        endings = " or ".join(repr(prefix) for prefix in self.reply_prefixes.values())
        raise ValueError(
            f"{self.renderer.place} ends a prompt with {text[-20:]!r}, and replies begin after {endings}; use the "
            f"program that the checkpoint was made for"
        )

    def pieces(self, messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool) -> list[Piece]:
        """As in ChatFormat, with the text that the template renders."""
        written = super().pieces(messages, tools, add_generation_prompt)  # also checks the messages
        if not any(piece.in_loss for piece in written):
            return self.prompt_pieces(messages, tools, add_generation_prompt=add_generation_prompt)
        reply = "".join(piece.text for piece in written if piece.in_loss and not piece.is_special).strip()
        return self.turn_pieces(messages, tools, reply)

    def prompt_pieces(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The text that the template renders, split at the special tokens that it writes itself."""
        merged = [self.with_thought(message, f"messages[{index}]") for index, message in enumerate(messages)]
        mark = unused_character(merged, tools)
        return self.split(self.rendered(merged, tools, mark, add_generation_prompt=add_generation_prompt), mark)

    def turn_pieces(self, messages: Sequence[Message], tools: Sequence[Tool], reply: str) -> list[Piece]:
        """The prompt of the reply at the end, and what the template adds to it for the reply.

        Args:
            reply: what the format itself writes after the prefix, without the end of turn.
        Raises:
            ValueError: if the prompt is not the beginning of the whole text, the template leaves out a part of the
                reply, or it does not end the turn with a token that stops generation.
        """
        *history, last = [self.with_thought(message, f"messages[{index}]") for index, message in enumerate(messages)]
        prefix = self.reply_prefixes[self.thinking_requested(messages)]
        content = (last.get("content") or "").strip().removeprefix(prefix)
        names = [call["function"]["name"] for call in last.get("tool_calls") or []]
        mark = unused_character(messages, tools)
        prompt = self.rendered(history, tools, mark, add_generation_prompt=True)
        refused: ValueError | None = None
        calls = reply.removeprefix(content).strip()  # as the format writes them, between two tags
        tags = [token for token in self.special_tokens if calls.startswith(token) or calls.endswith(token)]
        for given in self.ways_to_give(last, prefix, content, reply):
            try:
                text = self.rendered([*history, given], tools, mark, add_generation_prompt=False, tags=tags)
            except ValueError as error:  # a template may refuse one way and take another
                refused = refused or error
                continue
            span = text[len(prompt) :].replace(mark, "")
            is_whole = without_space(content) in without_space(span) and all(name in span for name in names)
            is_doubled = span.startswith(prefix) and not content.startswith(prefix)
            if text.startswith(prompt) and is_whole and not is_doubled:
                return [*self.split(prompt, mark), *self.learned(self.split(text[len(prompt) :], mark))]
        raise refused or ValueError(
            f"{self.renderer.place} is not stable: the text of a conversation does not begin with the prompt of the "
            f"assistant's last turn, or leaves out a part of that turn, so what the assistant writes cannot be found; "
            f"correct the template, or remove it to use that of the recipe"
        )

    def ways_to_give(self, last: Message, prefix: str, content: str, reply: str) -> Iterator[Message]:
        """The last turn as different templates expect it: with the prefix of its reply or without, or as fields."""
        yield {**last, "content": content}  # the template writes the prefix, as the published one does
        yield last
        thought, close, answer = content.partition(self.close_think)
        if close:
            yield {**last, "content": answer.strip(), "reasoning_content": thought.strip()}
        if last.get("tool_calls"):  # the template writes no calls in the last turn: they are part of its text
            rest = {key: value for key, value in last.items() if key != "tool_calls"}
            yield {**rest, "content": reply}
            yield {**rest, "content": f"{prefix}{reply}"}

    def learned(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces of a reply, in the loss up to the token that ends it."""
        for place, piece in enumerate(pieces):
            if piece.is_special and piece.text in self.stop_tokens:
                counted = [replace(one, in_loss=True) for one in pieces[: place + 1]]
                return [*counted, *pieces[place + 1 :]]
        raise ValueError(
            f"{self.renderer.place} ends no reply with one of {', '.join(self.stop_tokens)}, which stop generation; "
            f"correct the template, or remove it to use that of the recipe"
        )

    def rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        mark: str,
        *,
        add_generation_prompt: bool,
        tags: Sequence[str] = (),
    ) -> str:
        """The text that the template renders, with the mark in every special token that a message spells out.

        Args:
            tags: special tokens that stay as they are at the end of the conversation, in what the assistant writes.
        """
        everything = token_pattern(self.special_tokens)
        # The tags of the assistant's thoughts stay as they are: a template looks for them in the messages.
        thoughts = (self.open_think, self.close_think)
        others = [token for token in self.special_tokens if token not in thoughts]
        of_assistant, of_last = token_pattern(others), token_pattern([one for one in others if one not in tags])
        marked = [spelled(one, of_assistant if one["role"] == "assistant" else everything, mark) for one in messages]
        if messages[-1]["role"] == "assistant":
            marked[-1] = spelled(messages[-1], of_last, mark)
        schemas = [{"type": "function", "function": tool_schema(tool)} for tool in tools]
        return self.renderer.render(
            marked, spelled(schemas, everything, mark), add_generation_prompt=add_generation_prompt
        )

    def split(self, text: str, mark: str) -> list[Piece]:
        """A rendered text in pieces: the special tokens that the template wrote, and what is between, without marks."""
        pattern = token_pattern(self.special_tokens)
        return [
            Piece(part, is_special=True) if pattern.fullmatch(part) else Piece(part.replace(mark, ""))
            for part in parts_of(text, pattern)
        ]


def unused_character(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
    """A private character that none of the texts has."""
    given = json.dumps([list(messages), list(tools)], ensure_ascii=False)
    return next(chr(code) for code in PRIVATE_CHARACTERS if chr(code) not in given)


def token_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def without_space(text: str) -> str:
    """The text without white space, which templates change."""
    return "".join(text.split())


def parts_of(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """The text in parts: what matches the pattern, and what is between."""
    start = 0
    for match in pattern.finditer(text):
        yield from (part for part in (text[start : match.start()], match[0]) if part)
        start = match.end()
    if text[start:]:
        yield text[start:]


def spelled(value: Any, pattern: re.Pattern[str], mark: str) -> Any:
    """The value with a mark inside every special token that one of its texts spells out."""
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0][:1] + mark + match[0][1:], value)
    if isinstance(value, Mapping):
        return {spelled(key, pattern, mark): spelled(inner, pattern, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(inner, pattern, mark) for inner in value]
    return value
