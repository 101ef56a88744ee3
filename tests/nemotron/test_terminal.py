"""What a terminal would obey instead of show is escaped, wherever the project prints."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nemotron
from nemotron import recipes
from nemotron.terminal import LINES, check_utf8, fenced, print_line, printable

HOSTILE = "\x1b]0;title\x07 \x9b31m \x7f \r\u202egpj.exe\u2066 [red]\\[/] :smile:"
SHOWN = r"\x1b]0;title\x07 \x9b31m \x7f \x0d\u202egpj.exe\u2066 [red]\[/] :smile:"


def test_control_characters_are_escaped_and_other_text_stays() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Zürich 東京 🎈 \u200d") == "Zürich 東京 🎈 \u200d"


@pytest.mark.parametrize(
    ("text", "fence"), [("a", "```"), ("a `b` ``c``", "```"), ("```\n![](http://x)\n```", "````"), ("`" * 7, "`" * 8)]
)
def test_a_text_cannot_end_its_block_in_markdown(text: str, fence: str) -> None:
    assert fenced(text) == f"{fence}\n{text}\n{fence}"


def test_a_byte_of_a_file_name_is_shown_as_that_byte() -> None:
    assert printable("caf\udce9 \ud800") == r"caf\xe9 \ud800"


def test_line_ends_and_tabs_stay_where_they_are_kept() -> None:
    assert printable("a\n\tb\r") == r"a\x0a\x09b\x0d"
    assert printable("a\n\tb\r", keep=LINES) == "a\n\tb\\x0d"


@given(st.text(st.characters()))
def test_any_text_becomes_text_that_can_be_written_and_stays_so(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert printable(shown) == shown
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in shown)


def test_a_printed_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(f"{HOSTILE}\nreproduces its golden: yes")
    assert capsys.readouterr().err == f"{SHOWN}\\x0areproduces its golden: yes\n"


def test_text_that_is_not_utf8_is_refused_by_name() -> None:
    check_utf8(Path("Zürich"))
    with pytest.raises(ValueError, match=r"^output_dir=caf\\xe9/x is not UTF-8 text; rename the file or directory$"):
        check_utf8(Path("caf\udce9/x"), "output_dir")


PACKAGES = [Path(next(iter(nemotron.__path__))), Path(next(iter(recipes.__path__)))]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if "testing" not in path.parts)
OWN_CONSOLE = {
    "evaluation.py", "merging.py", "pipe.py", "progress.py", "reward_model.py", "rules.py", "terminal.py", "view.py",
}  # fmt: skip
"""Modules whose tables, bars and lines rich writes; `test_hostile_sources` looks at their bytes."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(path.parts[-3:]))
def test_no_step_prints_text_that_is_not_escaped(path: Path) -> None:
    """A call of print writes a constant, or what `printable` returned to a name `shown`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        # template_process writes JSON to the process that started it.
        if node.func.id == "print" and path.name not in ("terminal.py", "pipe.py", "template_process.py"):
            text = node.args[0]
            is_safe = isinstance(text, ast.Constant) or (isinstance(text, ast.Name) and text.id == "shown")
            assert is_safe, f"{path}:{node.lineno} prints text that may come from outside; use print_line"
        if node.func.id == "Console":
            assert path.name in OWN_CONSOLE, f"{path}:{node.lineno} makes a Console; use print_line"
