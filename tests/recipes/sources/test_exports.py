"""Objects in `__all__` are exported, objects with an underscore are private, and the text gives neither away."""

import ast

import pytest

from nemotron.recipes.sources.exports import Exports, listed_names

FILES = {
    "p/__init__.py": "from .core import Thing, helper as tool\n__all__ = ['Thing', 'tool', 'lost']\n",
    "p/core/__init__.py": "from p.core.things import Thing\nfrom .things import helper\n",
    "p/core/things.py": "class Thing: pass\nclass Other: pass\ndef helper(): pass\n",
    "p/extra.py": "__all__ = ['one']\n__all__ += ['two']\n__all__.extend(('three',))\ndef four(): pass\n",
    "p/circle/__init__.py": "from p.circle import x\n__all__ = ['x']\n",
    "p/circle/a.py": "def x(): pass\n",
    "p/_hidden.py": "def f(): pass\n",
}


@pytest.fixture
def exports() -> Exports:
    return Exports(lambda path: ast.parse(FILES[path]) if path in FILES else None)


@pytest.mark.parametrize(
    ("path", "name", "exported"),
    [
        ("p/extra.py", "one", True),
        ("p/extra.py", "two", True),
        ("p/extra.py", "three", True),
        ("p/extra.py", "four", None),
        ("p/core/things.py", "Thing", True),  # through two packages
        ("p/core/things.py", "helper", True),  # under another name
        ("p/core/things.py", "Other", None),
        ("p/extra.py", "Thing", None),  # the same name, defined elsewhere
        ("p/circle/a.py", "x", None),  # a package that imports from itself
        ("p/extra.py", "_private", False),
        ("p/extra.py", "one._method", False),
        ("p/extra.py", "_Private.method", False),
        ("p/extra.py", "one.method", None),  # a method is not listed itself
        ("p/extra.py", "Class.__init__", None),
        ("p/_hidden.py", "f", False),
        ("p/_hidden.py", "__doc__", False),
        ("p/extra.py", "__doc__", None),
        ("p/core/__init__.py", "__doc__", None),
        ("p/extra.py", "two#2", True),
    ],
)
def test_label(exports: Exports, path: str, name: str, exported: bool | None) -> None:
    assert exports.label(path, ast.parse(FILES[path]), name, "what it does") is exported


@pytest.mark.parametrize("name", ["one", "_private", "one._method"])
def test_a_text_that_mentions_its_own_object_has_no_label(exports: Exports, name: str) -> None:
    own_name = name.rpartition(".")[2]
    tree = ast.parse(FILES["p/extra.py"])
    assert exports.label("p/extra.py", tree, name, f"see {own_name}(x)") is None
    assert exports.label("p/extra.py", tree, name, f"see {own_name}_more") is not None


def test_each_init_file_is_parsed_once() -> None:
    read: list[str] = []

    def read_tree(path: str) -> ast.Module | None:
        read.append(path)
        return ast.parse(FILES[path]) if path in FILES else None

    exports = Exports(read_tree)
    for _ in range(3):
        assert exports.label("p/core/things.py", ast.parse(FILES["p/core/things.py"]), "Thing", "") is True
    assert sorted(read) == sorted(set(read))


def test_listed_names_ignores_other_variables() -> None:
    assert listed_names(ast.parse("names = ['a']\n__all__: list[str] = ['b']\nprint(['c'])\nx.extend(['d'])")) == {"b"}
