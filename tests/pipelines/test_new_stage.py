"""A new stage takes the eight places that CONTRIBUTING.md lists: one is made in a temporary tree and accepted there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = "nano2"
STAGES = sorted(path.name for path in (ROOT / "recipes" / RECIPE).glob("stage*") if (path / "__main__.py").is_file())
OLD = "stage1_sft"
NEW = f"stage{len(STAGES)}_again"
"""The next stage, whatever their number is; it is made of an old one."""
TREES = ("nemotron", "recipes", "golden", "tests", "benchmarks", "examples")
FILES = ("pyproject.toml", "conftest.py", "noxfile.py", "README.md", "LICENSE")


def renamed(text: str) -> str:
    """A text about the old stage, about the new one: its name and its fixture."""
    return text.replace(OLD, NEW).replace(OLD.partition("_")[0], NEW.partition("_")[0])


def copy_folder(tree: Path, place: str) -> None:
    """The folder of the old stage under the new name, and every file in it."""
    source = tree / place.replace(NEW, OLD)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = tree / place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(path.read_text(encoding="utf-8")))


def copy_file(tree: Path, place: str) -> None:
    """The file of the old stage under the new name."""
    text = (tree / place.replace(NEW, OLD)).read_text(encoding="utf-8")
    (tree / place).write_text(text.replace(OLD, NEW))


def repeat_lines(tree: Path, place: str) -> None:
    """Every line about the old stage once more, about the new one."""
    lines = (tree / place).read_text(encoding="utf-8").splitlines(keepends=True)
    added = ((line, renamed(line)) for line in lines)
    (tree / place).write_text("".join(old if old == new else old + new for old, new in added))


PLACES = {
    f"recipes/{RECIPE}/{NEW}/": copy_folder,
    "pyproject.toml": repeat_lines,
    "conftest.py": repeat_lines,
    f"recipes/{RECIPE}/__main__.py": None,  # how it connects the stage is the recipe's own code
    f"recipes/{RECIPE}/README.md": repeat_lines,
    f"tests/recipes/{RECIPE}/{NEW}/": copy_folder,
    f"golden/{RECIPE}/{NEW}.json": copy_file,
    f"tests/mutants/{RECIPE}/{NEW}.toml": copy_file,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository with one stage more, and an installation of it."""
    tree = tmp_path_factory.mktemp("new_stage") / "tree"
    for name in TREES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    for place, make in PLACES.items():
        if make:
            make(tree, place)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(tree.parent / "installed"), str(tree)], check=True)
    shutil.rmtree(tree / "build", ignore_errors=True)
    return tree


def contract(tree, *selected):
    """Run the contract tests of the tree on its installation; -P keeps the tree's own sources off the path."""
    environment = {**os.environ, "PYTHONPATH": str(tree.parent / "installed")}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py", "-k"]
    return subprocess.run([*command, *selected], cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_contributing_lists_the_places_and_there_are_at_most_eight():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## A new step or stage")[2]
    items = re.findall(r"^\d\. .*?(?=^\d\. |^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(items) == len(PLACES) <= 8
    for place in PLACES:
        named = place.replace(RECIPE, "<recipe>").replace(NEW, "stage<N>_<name>").removesuffix("stage<N>_<name>.json")
        assert sum(f"`{named}`" in item.partition(":")[0] for item in items) == 1, named


def test_a_stage_in_its_places_satisfies_the_contract(tree):
    done = contract(tree, f"{NEW} or circle or file_of_tests or breaks_the_rule or a_stage_is_its_steps")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


def test_a_place_that_is_left_out_turns_the_contract_red(tree):
    left_out = [f"tests/recipes/{RECIPE}/{NEW}/test_training.py", f"recipes/{RECIPE}/{NEW}/README.md"]
    kept = {tree / place: (tree / place).read_bytes() for place in left_out}
    for path in kept:
        path.unlink()
    try:
        done = contract(tree, "file_of_tests or a_stage_is_its_steps")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert "2 failed" in done.stdout
    assert left_out[0] in done.stdout
    assert "README.md" in done.stdout
