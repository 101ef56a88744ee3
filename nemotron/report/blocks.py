"""What a report is made of, and its text as Markdown. The page in HTML is made of the same blocks by page.html.

In: numbers and texts, some of which somebody else wrote. Out: blocks; lines of Markdown in which no cell can end its
table and no text its block.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from markdown_it import MarkdownIt

from nemotron.terminal import LINES, fenced, printable

NUMBER = re.compile(r"[+−-]?[\d.,]+(e[+-]?\d+)?\s?%?( ± [\d.,]+\s?%?)?( \*)?|-?")
CODE_OR_MARKUP = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)|[<\[]")
SPECIAL = re.compile(r"[\\`*\[\]<>|&~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "table"

    @property
    def right(self) -> list[bool]:
        """By column: whether it holds numbers, which are aligned to the right."""
        columns = [[row[index] for row in self.rows] for index in range(len(self.header))]
        return [bool(column) and all(map(is_number, column)) for column in columns]


@dataclass(frozen=True)
class Plot:
    """An SVG picture, what it shows in words, and its numbers for who does not see it."""

    svg: str
    alt: str
    caption: str = ""
    table: Table | None = None
    mermaid: str = ""
    """The same graph for Markdown, where there is one."""
    kind: str = "plot"


@dataclass(frozen=True)
class Code:
    """Text that keeps its lines, such as a reply."""

    text: str
    label: str = ""
    kind: str = "code"


@dataclass(frozen=True)
class Page:
    """Markdown that a step wrote; its headings become those below the step's."""

    markdown: str
    kind: str = "page"


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when the reader opens them."""

    summary: str
    blocks: Sequence["Block"]
    is_printed: bool = False
    """Whether paper shows it too."""
    kind: str = "folded"


@dataclass(frozen=True)
class Beside:
    """Texts that are compared: side by side, or below each other where there is no room."""

    blocks: Sequence[Code]
    kind: str = "beside"


@dataclass(frozen=True)
class Section:
    """A part with a heading."""

    title: str
    blocks: Sequence["Block"] = ()
    parts: Sequence["Section"] = field(default=())
    """Sections of the next level."""


Block = Text | Table | Plot | Code | Page | Folded | Beside


def is_number(cell: str) -> bool:
    """Whether a cell is a number, also one with an error or a percent sign."""
    return NUMBER.fullmatch(cell) is not None


def in_markdown(text: str) -> str:
    """A text on one line in which nothing is Markdown or HTML."""
    return SPECIAL.sub(lambda match: f"\\{match[0]}", printable(" ".join(text.split())))


def table_lines(table: Table) -> list[str]:
    """The lines of a table."""
    rows = [table.header, ["---:" if one else "---" for one in table.right], *table.rows]
    lines = [
        f"| {' | '.join(cell if index == 1 else in_markdown(cell) for cell in row)} |" for index, row in enumerate(rows)
    ]
    return [*([in_markdown(table.caption), ""] if table.caption else []), *lines, ""]


def block_lines(block: Block, level: int) -> list[str]:
    """The lines of a block below a heading of this level."""
    match block:
        case Text(text):
            return [in_markdown(text), ""]
        case Table():
            return table_lines(block)
        case Plot():
            graph = ["```mermaid", block.mermaid, "```", ""] if block.mermaid else [in_markdown(block.alt), ""]
            return [*graph, *(table_lines(block.table) if block.table else [])]
        case Code(text, label):
            above = [f"{in_markdown(label)}:", ""] if label else []
            return [*above, fenced(printable(text.rstrip(), keep=LINES)), ""]
        case Page(markdown):
            return [*lower_headings(markdown, level).split("\n"), ""]
        case Folded(summary, blocks):
            inside = [line for one in blocks for line in block_lines(one, level)]
            return [f"**{in_markdown(summary)}**", "", *inside]
        case Beside(texts):
            return [line for one in texts for line in block_lines(one, level)]


def section_lines(section: Section, level: int = 2) -> list[str]:
    """The lines of a section and its parts."""
    lines = [f"{'#' * level} {in_markdown(section.title)}", ""]
    for block in section.blocks:
        lines += block_lines(block, level)
    for part in section.parts:
        lines += section_lines(part, level + 1)
    return lines


PARSER = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink", "reference"])
"""Reads the pages that steps wrote: nothing in them is HTML, a link or a picture."""


def lower_headings(markdown: str, level: int) -> str:
    """Markdown whose headings are below one of this level, and which holds no HTML and no link; fences stay."""
    tokens = PARSER.parse(markdown)
    fenced_lines = {line for token in tokens if token.type == "fence" and token.map for line in range(*token.map)}
    headings = {token.map[0] for token in tokens if token.type == "heading_open" and token.map}
    lines = []
    for number, line in enumerate(markdown.split("\n")):
        if number in fenced_lines:
            lines.append(line)
        elif number in headings and (heading := re.match(" {0,3}(#{1,6}) ", line)):
            lines.append(f"{'#' * min(6, level + len(heading[1]))} {without_markup(line[heading.end() :])}")
        else:
            lines.append(without_markup(line))
    return "\n".join(lines)


def without_markup(line: str) -> str:
    """A line of Markdown with HTML, links and pictures as text; what is between backticks stays."""
    return CODE_OR_MARKUP.sub(lambda match: f"\\{match[0]}" if match[0] in "<[" else match[0], line)


def beginning(markdown: str, limit: int) -> str:
    """Whole blocks from the beginning of a page, at most `limit` characters of them."""
    lines, end = markdown.split("\n"), 0
    for token in PARSER.parse(markdown):
        if token.level == 0 and token.map and len("\n".join(lines[: token.map[1]])) <= limit:
            end = token.map[1]
        elif token.level == 0 and token.map:
            break
    return "\n".join(lines[:end])
