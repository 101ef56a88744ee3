"""Only the worked examples of docstrings are cut, and only the docstrings of sources."""

import ast
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.docstrings import (
    Docstring,
    cut_examples,
    parse_python,
    read_docstrings,
    source_without_docstrings,
)


def docstrings_of(source: str) -> list[Docstring]:
    return read_docstrings(parse_python(source))


def source_of(source: str) -> str:
    return source_without_docstrings(source, parse_python(source))


# Finding docstrings ---------------------------------------------------------------------------------------------------


def test_names_are_qualified_and_in_source_order() -> None:
    source = '''"""module"""
class A:
    """class"""
    def f(self):
        """method"""
        def g():
            """nested"""
    if True:
        async def h(self):
            """conditional"""
def a():
    """function"""
'''
    assert [(found.name, found.text) for found in docstrings_of(source)] == [
        ("__doc__", "module"),
        ("A", "class"),
        ("A.f", "method"),
        ("A.f.g", "nested"),
        ("A.h", "conditional"),
        ("a", "function"),
    ]


def test_a_second_definition_gets_a_numbered_name() -> None:
    source = 'def f():\n    """one"""\ndef f():\n    """two"""\ndef f(): pass\ndef f():\n    """three"""\n'
    assert [found.name for found in docstrings_of(source)] == ["f", "f#2", "f#3"]


def test_comments_and_other_strings_are_not_docstrings() -> None:
    assert docstrings_of('# comment\nx = """text"""\ndef f():\n    x = 1\n    """late"""\n') == []


def test_the_text_equals_that_of_ast_get_docstring() -> None:
    source = 'def f():\n    """First.\n\n        indented\n    last \n    """\n'
    assert docstrings_of(source)[0].text == ast.get_docstring(ast.parse(source).body[0]).rstrip()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "source", ["def f(:", "x = 'open", "\x00", "(" * 400 + ")" * 400, "a" + ".b" * 100_000, "-" * 100_000 + "1"]
)
def test_a_file_that_cannot_be_parsed_raises_a_value_error(source: str) -> None:
    with pytest.raises(ValueError, match=r"line \d+|nested|null"):
        parse_python(source)


def test_an_invalid_escape_in_a_file_raises_no_warning() -> None:
    assert docstrings_of('def f():\n    "a\\d"\n')[0].text == "a\\d"


# Worked examples ------------------------------------------------------------------------------------------------------


def test_a_doctest_is_cut_with_its_output_and_its_introduction() -> None:
    text, has_example = cut_examples(
        "Adds numbers.\n\nLike this:\n\n>>> add(1, 2)\n3\n>>> add(2,\n...     3)\n5\n\nNot fast."
    )
    assert (text, has_example) == ("Adds numbers.\n\nNot fast.", True)


def test_an_example_section_is_cut_with_its_heading() -> None:
    docstring = "Adds.\n\nExamples\n========\n\n>>> add(1)\n1\n\nand so on\n\nSee Also\n========\n\nsub"
    assert cut_examples(docstring) == ("Adds.\n\nSee Also\n========\n\nsub", True)


def test_an_example_section_is_cut_with_its_subsections() -> None:
    docstring = "Adds.\n\nNotes\n=====\n\na\n\nExamples\n========\n\nOne\n---\n\nprose\n\nSee Also\n========\n\nsub"
    assert cut_examples(docstring) == ("Adds.\n\nNotes\n=====\n\na\n\nSee Also\n========\n\nsub", True)


def test_a_bold_example_heading_ends_at_the_next_bold_one() -> None:
    docstring = "Adds.\n\n**Examples**\n\nprose\n\n**References**\n\n1. a book"
    assert cut_examples(docstring) == ("Adds.\n\n**References**\n\n1. a book", True)


def test_an_example_section_without_a_prompt_is_cut() -> None:
    assert cut_examples("Adds.\n\nExample:\n    add(1, 2)\n") == ("Adds.", True)


def test_a_heading_whose_section_becomes_empty_is_cut() -> None:
    assert cut_examples("Adds.\n\nUsage\n=====\n\n>>> add(1)\n1\n\nNotes\n=====\n\nslow") == (
        "Adds.\n\nNotes\n=====\n\nslow",
        True,
    )


def test_a_directive_that_only_holds_a_doctest_is_cut() -> None:
    docstring = "Draws.\n\n.. plot::\n   :context: close-figs\n   :include-source: True\n\n   >>> plot(x)\n\nEnd."
    assert cut_examples(docstring) == ("Draws.\n\nEnd.", True)


def test_a_docstring_without_an_example_is_unchanged() -> None:
    docstring = "Adds a and b::\n\n    a + b\n\nParameters\n----------\na : int\n\nSee Also\n--------\nsub"
    assert cut_examples(docstring) == (docstring, False)


def test_a_docstring_of_only_examples_becomes_empty() -> None:
    assert cut_examples(">>> 1 + 1\n2") == ("", True)


def test_a_text_that_still_mentions_an_example_has_no_label() -> None:
    source = 'def f():\n    """Adds.\n\n    >>> f()\n    1\n\n    The example above is short.\n    """\n'
    assert docstrings_of(source)[0].has_example is None


LINES = st.sampled_from(
    ["", "prose", "prose:", "    more", ">>> f(x)", "... y", "1", "Examples", "========", "--------", "**Examples**",
     "**Notes**", "Usage", "Notes", ".. plot::", "   :context:", "Example:", "\t", "# >>> g"]
)  # fmt: skip


@given(st.lists(LINES, max_size=14).map("\n".join))
def test_no_prompt_and_no_double_blank_line_remains(docstring: str) -> None:
    text, has_example = cut_examples(docstring)
    assert ">>>" not in text
    assert "\n\n\n" not in text
    assert has_example or ">>>" not in docstring
    assert set(text.split("\n")) <= {line.rstrip() for line in docstring.split("\n")} | {""}


@given(st.lists(LINES, max_size=14).map("\n".join))
def test_cutting_again_only_cuts_headings_left_empty(docstring: str) -> None:
    text, _has_example = cut_examples(docstring)
    again, has_example = cut_examples(text)
    assert not has_example or "Example" in text
    assert len(again) <= len(text)


# Source ---------------------------------------------------------------------------------------------------------------


def tree_without_docstrings(source: str) -> str:
    """The slow reference: removes them from the tree."""
    tree = parse_python(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body[0] = ast.Pass()
    return dump_without_pass(tree)


def dump_without_pass(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not isinstance(statement, ast.Pass)]
    return ast.dump(tree)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""module"""\nx = 1\n', "x = 1"),
        ('"""module"""\n', ""),
        ("x = 1\n", "x = 1"),
        ('def f():\n    """doc"""\n    return 1\n', "def f():\n    return 1"),
        ('def f():\n    """doc"""\n', "def f():\n    pass"),
        ('def f(): "doc"\n', "def f(): pass"),
        ('def f():\n    "doc"; return 1\n', "def f():\n    pass; return 1"),
        ('def f():\n    "doc"  # why\n    return 1\n', "def f():\n    pass  # why\n    return 1"),
        ('def ä():\n    "dök"; é = "ü"\n', 'def ä():\n    pass; é = "ü"'),
        ('class A:\n    """doc\n    more\n    """\n\n    x = """kept"""\n', 'class A:\n\n    x = """kept"""'),
        ('def f():\n    """one"""\n    """two"""\n    return 1\n', 'def f():\n    """two"""\n    return 1'),
    ],
)
def test_only_the_docstring_is_cut(source: str, expected: str) -> None:
    assert source_of(source) == expected


def test_every_module_of_jinja2_parses_to_its_tree_without_docstrings() -> None:
    paths = sorted(Path(jinja2.__file__).parent.rglob("*.py"))
    assert len(paths) > 20
    for path in paths:
        source = path.read_text(encoding="utf-8")
        assert dump_without_pass(parse_python(source_of(source))) == tree_without_docstrings(source), path.name


STATEMENTS = st.recursive(
    st.sampled_from(
        ['"""doc"""', "'doc'; x = 1", "x = 1", "pass", '"""two\nlines"""', "'a' 'b'", "# comment\npass", "f'{1}'"]
    ),
    lambda inner: st.builds(
        lambda head, body: head + "\n" + "\n".join(body).replace("\n", "\n    ").join(["    ", ""]),
        st.sampled_from(["def f():", "class A:", "async def g():", "if x:", "for y in x:", "with x:"]),
        st.lists(inner, min_size=1, max_size=4),
    ),
    max_leaves=8,
)


@given(st.lists(STATEMENTS, max_size=5).map(lambda lines: "\n".join(lines) + "\n"))
def test_the_remaining_source_parses_to_the_tree_without_docstrings(source: str) -> None:
    assert dump_without_pass(parse_python(source_of(source))) == tree_without_docstrings(source)
