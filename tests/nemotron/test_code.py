"""Which source files make a step: everything that it imports, found without importing it."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.code import SHOWING, digest_of, file_of, modules_of, read_module

STEP = "nemotron.recipes.nano2.stage0_pretrain.training"


def imported_by(file: Path) -> set[str]:
    """The slow reference: the imports in the syntax tree of a file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_code_of_a_step_is_what_its_syntax_trees_import():
    importlib.import_module(STEP)
    found, waiting = set(), [STEP]
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if name.startswith("nemotron.") and name not in {*SHOWING, *found} and file:
            found.add(name)
            waiting += [*imported_by(file), name.rpartition(".")[0]]
    assert modules_of(STEP).keys() == found
    assert {STEP, "nemotron.artifact", "nemotron.recipes.nemotron_h.model"} <= found
    assert not [name for name in found if "stage1" in name or "testing" in name]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package of a recipe elsewhere: writes its files."""
    name = f"recipe_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write(**files):
        for module, text in files.items():
            (tmp_path / name / f"{module}.py").write_text(text.replace("PACKAGE", name))
        importlib.invalidate_caches()
        importlib.import_module(name)
        modules_of.cache_clear()
        file_of.cache_clear()
        read_module.cache_clear()
        return name

    yield write
    for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[loaded]


@pytest.mark.parametrize(
    "text",
    [
        "import PACKAGE.b",
        "import json, PACKAGE.b as c",
        "from PACKAGE import b",
        "from PACKAGE import (\n    a,  # (why)\n    b as c,\n)",
        "from PACKAGE.b import thing",
        "def f():\n    if 1:\n        from PACKAGE import b",
    ],
)
def test_every_form_of_import_is_found(package, text):
    name = package(step=text, b="thing = 1", c="")
    assert modules_of(f"{name}.step").keys() == {name, f"{name}.step", f"{name}.b"}


def test_a_module_that_is_started_by_its_name_counts(package):
    name = package(step='command = [python, "-m", "nemotron.recipes.chat.template_process"]')
    importlib.import_module("nemotron.recipes.chat")
    assert "nemotron.recipes.chat.template_process" in modules_of(f"{name}.step")


def test_an_edit_changes_the_digest_of_the_steps_that_import_the_file(package):
    name = package(one="import PACKAGE.shared", two="", shared="a = 1")
    before = {step: digest_of(modules_of(f"{name}.{step}")) for step in ("one", "two")}
    assert modules_of(f"{name}.one") is modules_of(f"{name}.one")  # read once: an edit now is not what runs
    package(shared="a = 2")
    after = {step: digest_of(modules_of(f"{name}.{step}")) for step in ("one", "two")}
    assert [before[step] == after[step] for step in ("one", "two")] == [False, True]


def test_tooling_that_only_shows_is_left_out(package):
    name = package(step="import nemotron.pipe\nimport nemotron.terminal\nimport nemotron.scale")
    assert modules_of(f"{name}.step").keys() == {name, f"{name}.step", "nemotron.scale"}


def test_a_step_without_a_file_has_no_code():
    assert modules_of("no_such_module") == {}


@given(content=st.binary())
def test_any_content_of_a_file_counts(content, tmp_path_factory):
    file = tmp_path_factory.mktemp("code") / "a.py"
    file.write_bytes(content)
    digest, names = read_module(file)
    assert len(digest) == 64
    assert all(isinstance(name, str) for name in names)
