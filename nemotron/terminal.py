"""Text on its way to a terminal: what a terminal would obey instead of show is escaped.

In: any text, also file names, ids and replies that somebody else chose. Out: the same text with control characters as
`\\x1b`, and lines on stderr. Everything that the steps print goes through here: `nemotron.pipe` for results and errors,
`print_line` for progress.

    print(printable("\\x1b[2J"))                        # shows \\x1b[2J instead of clearing the screen
"""

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls, DEL, bidirectional overrides and isolates, and halves of surrogate pairs, as which Python holds
the bytes of a file name that is not UTF-8."""
LINES = "\n\t"
"""What a text of several lines keeps."""


def printable(text: str, keep: str = "") -> str:
    """The text with the characters of OBEYED escaped; twice gives the same as once.

    Args:
        keep: characters that stay, such as LINES. A single line keeps none, so no id can begin a new line.
    """

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        if match[0] in keep:
            return match[0]
        if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name
            code -= 0xDC00
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return OBEYED.sub(escaped, text)


def fenced(text: str) -> str:
    """The text as a block of Markdown, which it cannot end: the fence has more backticks than the text in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def print_line(line: str) -> None:
    """Print one line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


def print_markdown(text: str) -> None:
    """Print a page of Markdown on stderr, with its tables drawn."""
    from rich.console import Console  # slow to import
    from rich.markdown import Markdown

    page = io.StringIO()  # a console that wrote to stderr itself would write over the display of nemotron/view.py
    is_terminal, width = sys.stderr.isatty(), shutil.get_terminal_size().columns
    Console(file=page, width=width, force_terminal=is_terminal).print(Markdown(printable(text, keep=LINES)))
    print(page.getvalue(), file=sys.stderr, end="", flush=True)


@contextmanager
def whole_output() -> Iterator[None]:
    """Ends a program with exit code 2 and one sentence if the reader of its stdout ends before all is written."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        with unless_unread():
            print_line("error: the reader of stdout ended before everything was written; write it to a file instead")
        drop_output(1)
        raise SystemExit(2) from None


@contextmanager
def silent() -> Iterator[TextIO]:
    """Drops what Python prints on stdout and stderr inside; gives the stream that takes it."""
    with (
        open(os.devnull, "w", encoding="utf-8", newline="\n") as nowhere,
        redirect_stderr(nowhere),
        redirect_stdout(nowhere),
    ):
        yield nowhere


@contextmanager
def unless_unread() -> Iterator[None]:
    """Drops what is printed on stderr inside, and from then on, if nobody reads it."""
    try:
        yield
    except BrokenPipeError:
        drop_output(2)


def drop_output(descriptor: int) -> None:
    """Drop what is still to be written: Python would try at its exit, fail, and change the exit code to 120."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


def check_utf8(place: object, name: str = "") -> None:
    """Raise ValueError if a path or text is not UTF-8, as JSON and most libraries need it.

    Args:
        name: what the text is, for the error: "output_dir".
    """
    try:
        str(place).encode()
    except UnicodeEncodeError:
        subject = f"{name}={printable(str(place))}" if name else printable(str(place))
        raise ValueError(f"{subject} is not UTF-8 text; rename the file or directory") from None
