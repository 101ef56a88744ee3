"""Every number of full says who it is from, so that a reader can tell our choice from a mark that was forgotten."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest
from pydantic.dataclasses import dataclass

from nemotron import recipes
from nemotron.config import (
    Marked,
    ScaledConfig,
    at_every_scale,
    by_scale,
    our_choice,
    output_below,
    proxy,
    published,
    same_as,
    unmarked_numbers,
)
from nemotron.recipes.nano2 import blend
from nemotron.recipes.nano2.models import BATCH_SEQUENCES, DEVICES, DTYPES, FULL_SHAPE, MODELS, VOCAB_SIZES

ROOT = Path(recipes.__file__).parent
RECIPE = Path(blend.__file__).parent
STAGES = [
    importlib.import_module(f"nemotron.recipes.nano2.{stage.parent.name}.__main__")
    for stage in sorted(RECIPE.glob("stage*/__main__.py"))
]
CONFIGS = [step.Config for stage in STAGES for step in (*stage.STEPS, *getattr(stage, "OPTIONAL_STEPS", ()))]
MODULES = sorted(ROOT.rglob("*.py"))


def name_of(config_class):
    return config_class.__module__.removeprefix("nemotron.recipes.nano2.")


@pytest.mark.parametrize("config_class", CONFIGS, ids=name_of)
def test_every_number_of_full_has_a_mark(config_class):
    assert unmarked_numbers(config_class) == []


@pytest.mark.parametrize("config_class", CONFIGS, ids=name_of)
def test_no_number_of_a_config_is_outside_of_the_marks(config_class):
    """A plain default is a name, a switch or the seed; a number is by_scale or at_every_scale, which take marks."""
    plain = [item for item in dataclasses.fields(config_class) if "by_scale" not in item.metadata]
    numbers = [item.name for item in plain if isinstance(item.default, int | float) and item.default not in (0, 1)]
    assert set(numbers) <= {"seed"}
    assert {type(item.default) for item in plain if item.default in (0, 1)} <= {bool}


def test_a_forgotten_mark_is_found():
    @dataclass
    class Config(ScaledConfig):
        output_dir: Path = output_below("somewhere")
        forgotten: int = by_scale(tiny=1, small=1, medium=our_choice(1), full=1)
        forgotten_everywhere: int = at_every_scale(2)
        published: int = by_scale(tiny=1, small=1, medium=1, full=published(1, "table 1"))
        proxy: int = at_every_scale(proxy(1, "another"))
        same: int = at_every_scale(same_as(1, "pretraining"))
        ours: int = at_every_scale(our_choice(1))

    assert unmarked_numbers(Config) == ["forgotten", "forgotten_everywhere"]
    assert unmarked_numbers(Config, "medium") == ["forgotten_everywhere", "published"]


def test_every_number_of_the_full_model_has_a_mark():
    assert {name: mark.value for name, mark in FULL_SHAPE.items()} == dataclasses.asdict(MODELS["full"])
    for mark in (*FULL_SHAPE.values(), *(table["full"] for table in (DTYPES, DEVICES, BATCH_SEQUENCES, VOCAB_SIZES))):
        assert isinstance(mark, Marked)
        assert mark.origin


@pytest.mark.parametrize("config_class", CONFIGS, ids=name_of)
def test_a_published_number_names_the_place(config_class):
    """A reader can look it up: a section, a table, a card, a configuration, or the rule that it belongs to."""
    places = r"published, .*(section|table|card|config|20T tokens|budget control)"
    for item in dataclasses.fields(config_class):
        for mark in item.metadata.get("by_scale", {}).values():
            assert not mark.origin.startswith("published") or re.search(places, mark.origin), item.name


# Constants of modules -------------------------------------------------------------------------------------------------

MARKS = {"published", "proxy", "our_choice"}
UNMARKED_CONSTANT = re.compile(r"^ *[A-Za-z_]+(: [a-z]+)? = [-\d_.e]+ *# *(published|proxy)\b", re.M)


def marked_with(value):
    """The name of the mark around a constant, as in `published(0.1, "section 2.6").value`; None if there is none."""
    if isinstance(value, ast.Attribute) and value.attr == "value" and isinstance(value.value, ast.Call):
        return getattr(value.value.func, "id", None)
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_constant_is_marked_by_a_call_and_not_by_a_comment(path):
    """A comment may say why; who published a number is in its mark, with the place."""
    assert [found[0] for found in UNMARKED_CONSTANT.finditer(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("module", ["nano2/blend.py", "curation/long_context.py"])
def test_every_constant_of_a_published_method_has_a_mark(module):
    marks = {}
    for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            has_numbers = any(
                isinstance(one, ast.Constant) and isinstance(one.value, int | float) for one in ast.walk(node.value)
            )
            if has_numbers:
                marks[name] = marked_with(node.value)
    assert marks
    assert {name for name, mark in marks.items() if mark not in MARKS} == set()
