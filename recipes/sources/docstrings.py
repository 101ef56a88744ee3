"""Two texts from one Python file: its docstrings, and its source without them.

In: the text of a file. Out: every docstring as `ast.get_docstring` reads it, without its worked examples, and the
source without the docstrings, so that the categories "academic" and "code" do not repeat each other. Nothing is
imported or run.

    python -c "import nemotron.recipes.sources.docstrings as d; \
        print(d.read_docstrings(d.parse_python(open(d.__file__).read())))"

Label A, `has_example`: the docstring had a worked example, a doctest or a section headed "Example". The example is cut,
with its heading and the sentence that introduces it. Label B is in exports.py. Both are stand-ins for judgments of
quality: the published scorers were trained on documents annotated by large language models (arXiv 2412.02595), which
are not available here.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

MODULE = "__doc__"  # the name of a module's own docstring


@dataclass(frozen=True)
class Docstring:
    """One docstring of a file."""

    name: str
    """Qualified name in the file: "Add.flatten", "Add.flatten#2" for a second definition, `MODULE` for the module."""
    text: str
    """The docstring without its worked examples; may be empty."""
    has_example: bool | None
    """Label A; None if the text still mentions an example, which would reveal the label."""


def parse_python(text: str) -> ast.Module:
    """The syntax tree of `text`.

    Raises:
        ValueError: with the reason, if this Python cannot parse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is data here; its invalid escapes are not our warnings
        try:
            return ast.parse(text)
        except SyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.msg}") from error
        except (RecursionError, MemoryError) as error:  # either of the parser's two stacks can overflow
            raise ValueError("nested too deeply to parse") from error


def read_docstrings(tree: ast.Module) -> list[Docstring]:
    """Every docstring in the order of the file: of the module, classes and functions, including nested ones."""
    docstrings: list[Docstring] = []
    seen: dict[str, int] = {}
    for name, node in documented_nodes(tree):
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        seen[name] = seen.get(name, 0) + 1
        unique_name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        text, has_example = cut_examples(docstring)
        label = None if EXAMPLE.search(text) else has_example
        docstrings.append(Docstring(unique_name, text, label))
    return docstrings


def documented_nodes(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """(qualified name, node) of everything that can have a docstring, in the order of the file."""
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        if isinstance(node, ast.Module):
            yield MODULE, node
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            prefix = f"{prefix}.{node.name}" if prefix else node.name
            yield prefix, node
        elif isinstance(node, ast.expr):
            continue  # an expression contains no statement
        pending.extend((prefix, child) for child in reversed(list(ast.iter_child_nodes(node))))


# Worked examples ------------------------------------------------------------------------------------------------------

UNDERLINE = re.compile(r"\s*([=\-~^*#+])\1{2,}\s*")
BOLD_HEADING = re.compile(r"\s*\*\*[^*]+\*\*:?\s*")
EXAMPLE = re.compile(r"\bexamples?\b", re.IGNORECASE)
COLON_HEADING = re.compile(r"\s*(examples?|doctests?)\s*:{0,2}\s*", re.IGNORECASE)
PROMPT = re.compile(r"\s*#?\s*>>>")
CODE_DIRECTIVE = re.compile(r"\s*\.\. (plot|doctest|code|code-block|sourcecode|ipython|testcode)::.*|\s+:[\w-]+:.*")


def cut_examples(docstring: str) -> tuple[str, bool]:
    """The docstring without its worked examples, and whether there was one.

    Three things are cut: sections with "Example" in their heading, up to the next heading of the same or a higher rank;
    doctests anywhere else, from the prompt to the next blank line; the paragraph before such a doctest if it ends in a
    colon. Underlined headings that become empty are cut as well, and in every docstring several blank lines become one,
    so that no gap shows where something was cut.
    """
    lines = docstring.split("\n")
    kept: list[str] = []
    has_example = False
    headings = section_headings(lines)
    index = 0
    while index < len(lines):
        rank = headings.get(index)
        if rank is not None and EXAMPLE.search(lines[index]):
            later = (line for line, other in headings.items() if line > index and other <= rank)
            index = min(later, default=len(lines))
            has_example = True
        elif PROMPT.match(lines[index]):
            has_example = True
            drop_lead_in(kept)
            while index < len(lines) and lines[index].strip():
                index += 1
        else:
            kept.append(lines[index].rstrip())
            index += 1
    drop_empty_sections(kept)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n"), has_example


def section_headings(lines: list[str]) -> dict[int, int]:
    """Line number of each heading -> its rank, 0 for the outermost.

    As in reStructuredText, underlines rank by the order in which a docstring first uses them. A line in bold, or one
    that only says "Example:", is a heading of the lowest rank.
    """
    headings: dict[int, int] = {}
    underlines: list[str] = []
    lowest = 99
    for index, line in enumerate(lines):
        if not line.strip() or PROMPT.match(line):
            continue
        underline = UNDERLINE.fullmatch(lines[index + 1]) if index + 1 < len(lines) else None
        if underline and not UNDERLINE.fullmatch(line):
            if underline.group(1) not in underlines:
                underlines.append(underline.group(1))
            headings[index] = underlines.index(underline.group(1))
        elif BOLD_HEADING.fullmatch(line) or COLON_HEADING.fullmatch(line):
            headings[index] = lowest
    return headings


def drop_empty_sections(kept: list[str]) -> None:
    """Removes underlined headings, such as "Usage", whose section is now empty."""
    content_follows = False
    for index in reversed(range(1, len(kept))):
        if UNDERLINE.fullmatch(kept[index]) and kept[index - 1].strip() and not UNDERLINE.fullmatch(kept[index - 1]):
            if not content_follows:
                kept[index - 1 : index + 1] = ["", ""]
            content_follows = False
        elif kept[index].strip() and not (index + 1 < len(kept) and UNDERLINE.fullmatch(kept[index + 1])):
            content_follows = True


def drop_lead_in(kept: list[str]) -> None:
    """Removes the lines at the end of `kept` that only introduce the doctest that follows."""
    while kept and (not kept[-1].strip() or CODE_DIRECTIVE.fullmatch(kept[-1])):
        kept.pop()
    if kept and kept[-1].endswith(":"):
        while kept and kept[-1].strip() and not UNDERLINE.fullmatch(kept[-1]):
            kept.pop()
    kept.append("")


# Source ---------------------------------------------------------------------------------------------------------------


def source_without_docstrings(text: str, tree: ast.Module) -> str:
    """The source without its docstrings; the rest parses to the same tree without them.

    If a docstring is alone on its lines, the lines are removed. If it is a whole body, or shares a line with something
    else, it becomes `pass`. Nothing else changes.
    """
    lines = [line.encode() for line in text.split("\n")]  # the tree's columns count bytes of UTF-8
    for _name, node in reversed(list(documented_nodes(tree))):
        if not node.body or ast.get_docstring(node, clean=False) is None:
            continue
        docstring = node.body[0]
        assert docstring.end_lineno
        assert docstring.end_col_offset is not None
        first, last = docstring.lineno - 1, docstring.end_lineno - 1
        before, after = lines[first][: docstring.col_offset], lines[last][docstring.end_col_offset :]
        alone = not before.strip() and not after.strip()
        needed = len(node.body) == 1 and not isinstance(node, ast.Module)
        lines[first : last + 1] = [] if alone and not needed else [before + b"pass" + after]
    return b"\n".join(lines).decode().strip("\n")
