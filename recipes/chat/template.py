"""The chat template that a checkpoint brings: found, rendered as transformers does, and used in place of the format's.

In: the directory of a tokenizer and a `ChatFormat`. Out: the format itself, or one whose prompts are rendered by the
checkpoint's own template, with all else as before: flags, tags, stop tokens, what counts in the loss.

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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemotron.recipes.chat import template_process
from nemotron.recipes.chat.format import ChatFormat, Piece
from nemotron.recipes.chat.messages import Message, Tool, tool_schema
from nemotron.recipes.chat.tokenizer import read_tokenizer, read_tokenizer_config
from nemotron.strict import short

TEMPLATE_FILE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 2**20  # our choice; published templates have some 10,000
RENDER_SECONDS = 10.0  # our choice: a template of any use needs milliseconds
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

    Raises:
        ValueError: if the template or the tokenizer is damaged, or the template does not fit the format.
    """
    found = template_of(directory)
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
        self.last: tuple[str, str] = ("", "")  # the prompt of a turn is asked for several times

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
        if self.last[0] != request:
            self.last = request, self._answer(request)
        return self.last[1]

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
    """A format whose conversations are rendered by a template, except for the reply that is trained on.

    That reply is written as `to_pieces` writes it: it follows the prompt that the template ends with, so what is
    learned is what is asked for.
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
        """As in ChatFormat, with the template's text before the reply at the end."""
        written = super().pieces(messages, tools, add_generation_prompt)  # also checks the messages
        reply = next((written[index:] for index, piece in enumerate(written) if piece.in_loss), [])
        if reply:
            return [*self.prompt_pieces(messages[:-1], tools), *reply]
        return self.prompt_pieces(messages, tools, add_generation_prompt=add_generation_prompt)

    def prompt_pieces(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The text that the template renders, split at the special tokens that it writes itself."""
        merged = [self.with_thought(message, f"messages[{index}]") for index, message in enumerate(messages)]
        given = json.dumps([merged, list(tools)], ensure_ascii=False)
        mark = next(chr(code) for code in PRIVATE_CHARACTERS if chr(code) not in given)
        # The tags of thoughts stay as they are: a template looks for them in the messages.
        guarded = [token for token in self.special_tokens if token not in (self.open_think, self.close_think)]
        pattern = re.compile("|".join(map(re.escape, sorted(guarded, key=len, reverse=True))))
        marked_messages = spelled(merged, pattern, mark)
        schemas = [tool_schema(tool) for tool in tools]
        marked_tools = spelled([{"type": "function", "function": schema} for schema in schemas], pattern, mark)
        text = self.renderer.render(marked_messages, marked_tools, add_generation_prompt=add_generation_prompt)
        return [
            Piece(part, is_special=True) if pattern.fullmatch(part) else Piece(part.replace(mark, ""))
            for part in parts_of(text, pattern)
        ]


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
