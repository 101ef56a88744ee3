"""What every step, and every module, of the tree keeps to: read from the files on disk, so that a new one cannot hide.

A rule is a function from a parsed module to the sentences that it breaks. Each rule is held against the tree, and
against a snippet that breaks it.
"""

import ast
import dataclasses
import importlib
import re
import sys
import tomllib
import typing
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tyro
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemotron import SCALES, Artifact, Scale
from nemotron.testing.stage import STEPS

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"


def module_name(path: Path) -> str:
    """recipes/nano2/sizes.py -> nemotron.recipes.nano2.sizes"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("nemotron", *parts) if parts[0] in ("recipes", "golden") else parts)


def modules_below(*directories: str) -> dict[str, Path]:
    """Module name -> file, in a stable order."""
    paths = sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))
    return {module_name(path): path for path in paths}


MODULES = modules_below("nemotron", "recipes", "golden")
STAGES = sorted(path for path in RECIPES.glob("*/stage*") if path.is_dir() and list(path.glob("*.py")))
STEP_MODULES = [module_name(stage / f"{step}.py") for stage in STAGES for step in STEPS]
RECIPE_NAMES = {stage.parent.name for stage in STAGES}
CORE = {name for name in MODULES if name.split(".")[1:2] not in (["recipes"], ["testing"], ["golden"])}


def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in the file: `from a import b` may mean a.b, so it gives both."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def declared_packages() -> set[str]:
    """The names under which the declared dependencies are imported, without those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    return {
        package
        for package, distributions in packages_distributions().items()
        if declared & {canonicalize_name(distribution) for distribution in distributions}
    }


DECLARED = declared_packages()


# The rules.


def undeclared_imports(name: str, tree: ast.Module) -> Iterator[str]:
    tools = {"pytest", "syrupy"} if name.startswith("nemotron.testing") and not name.endswith(".compare") else set()
    for imported in imported_names(tree):
        package = imported.split(".")[0]
        if package not in sys.stdlib_module_names | DECLARED | tools | {"nemotron"}:
            yield f"imports {imported}, which pyproject.toml does not declare"


def heavy_imports_of_the_core(name: str, tree: ast.Module) -> Iterator[str]:
    if name in CORE:
        heavy = {"torch", "daft", "pyarrow", "matplotlib", "numpy", "tokenizers", "safetensors"}
        yield from (f"imports {imported}" for imported in imported_names(tree) if imported.split(".")[0] in heavy)


def recipes_imported_from_below(name: str, tree: ast.Module) -> Iterator[str]:
    """The tooling knows no recipe, the shared parts know no recipe, a recipe knows no other, a stage no later one."""
    parts = name.split(".")
    own_recipe = parts[2] if parts[1:2] == ["recipes"] and len(parts) > 2 and parts[2] in RECIPE_NAMES else None
    own_stage = parts[3] if own_recipe and len(parts) > 3 and parts[3].startswith("stage") else None
    for imported in imported_names(tree):
        target = imported.split(".")
        if target[:2] != ["nemotron", "recipes"]:
            continue
        if parts[1:2] != ["recipes"]:
            yield f"imports {imported}: the tooling serves any recipe"
        elif len(target) > 2 and target[2] in RECIPE_NAMES and target[2] != own_recipe:
            yield f"imports {imported} of another recipe"
        elif own_stage and len(target) > 3 and target[3].startswith("stage") and target[3] > own_stage:
            yield f"imports {imported} of a later stage"


def relative_imports(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: relative import; it breaks a step that is run as a file"


def unsafe_calls(name: str, tree: ast.Module) -> Iterator[str]:
    unsafe_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    yield from (f"imports {imported}" for imported in imported_names(tree) if imported.split(".")[0] in unsafe_modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in (
                "torch.load",
                "torch.save",
                "np.load",
                "numpy.load",
                "eval",
                "exec",
                "__import__",
                "os.system",
            ):
                yield f"line {node.lineno}: calls {called}"
            if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                yield f"line {node.lineno}: allow_pickle"
            if any(keyword.arg == "shell" for keyword in node.keywords):
                yield f"line {node.lineno}: a shell"


def swallowed_errors(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"line {node.lineno}: except without a class"
            if all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body):
                yield f"line {node.lineno}: an error is passed over in silence"
        suppressed = isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress")
        if suppressed and name != "nemotron.pipe":  # where nobody reads, there is nobody to tell
            yield f"line {node.lineno}: an error is passed over in silence"


def changing_values(name: str, tree: ast.Module) -> Iterator[str]:
    """What differs between two runs or two Python versions: hash(), the clock, a random method that is not promised."""
    unpromised = {"shuffle", "choice", "choices", "randint", "randrange", "getrandbits", "randbytes", "gauss"}
    if not name.startswith("nemotron.recipes"):
        return
    for imported in imported_names(tree):
        package, _, rest = imported.partition(".")
        if package in ("datetime", "secrets", "uuid") or (package == "time" and rest not in ("", "sleep")):
            yield f"imports {imported}: no clock and no chance in a result"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "hash":
                yield f"line {node.lineno}: hash() differs between processes"
            if re.fullmatch(r"random\.[a-z]\w*", called):
                yield f"line {node.lineno}: {called} has no seed of its own; use random.Random(seed).random()"
            if called.split(".")[-1] in unpromised:
                yield f"line {node.lineno}: {called} may change between versions; use random.Random(seed).random()"
            if called.startswith("time.") and called != "time.sleep":
                yield f"line {node.lineno}: {called} reads the clock"
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
            if {"os.listdir", "os.scandir", "os.walk"} & set(calls) and "sorted" not in calls:
                yield f"{function.name} lists a directory in its own order; sort what it gives"


def writes_to_stdout(name: str, tree: ast.Module) -> Iterator[str]:
    """A step's stdout is one JSON line; print_complete, --plan, the table of bless and the chat write there."""
    if name.endswith(("nemotron.pipe", "__main__", "nemotron.testing.bless", "chat_cli")):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            file = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
            if file in ([], ["sys.stdout"]):
                yield f"line {node.lineno}: print without file=sys.stderr"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdout" and "testing" not in name:
            yield f"line {node.lineno}: sys.stdout"


def missing_docstring(name: str, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "has no docstring; say what goes in and what comes out"


RULES = [
    undeclared_imports,
    heavy_imports_of_the_core,
    recipes_imported_from_below,
    relative_imports,
    unsafe_calls,
    swallowed_errors,
    changing_values,
    writes_to_stdout,
    missing_docstring,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks_the_rule(rule):
    broken = [f"{MODULES[name].relative_to(ROOT)}: {found}" for name in MODULES for found in rule(name, tree_of(name))]
    assert not broken, "\n".join(broken)


STEP = "nemotron.recipes.nano2.stage0_pretrain.training"


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (undeclared_imports, STEP, "import requests"),
        (undeclared_imports, STEP, "def f():\n    from yaml import load"),
        (undeclared_imports, STEP, "import pytest"),
        (undeclared_imports, "nemotron.testing.compare", "import pytest"),
        (undeclared_imports, STEP, "import transformers"),
        (heavy_imports_of_the_core, "nemotron.artifact", "import torch.nn"),
        (heavy_imports_of_the_core, "nemotron.artifact", "def f():\n    import pyarrow.parquet as pq"),
        (recipes_imported_from_below, "nemotron.artifact", "from nemotron.recipes.nano2 import sizes"),
        (recipes_imported_from_below, "nemotron.testing.stage", "import nemotron.recipes.nemotron_h.model"),
        (recipes_imported_from_below, "nemotron.recipes.curation.packing", "from nemotron.recipes.nano2 import sizes"),
        (recipes_imported_from_below, STEP, "from nemotron.recipes.nano2.stage1_sft import training"),
        (relative_imports, STEP, "from .data_curation import Dataset"),
        (unsafe_calls, STEP, "import pickle"),
        (unsafe_calls, STEP, "from pickle import loads"),
        (unsafe_calls, STEP, "state = torch.load(path, weights_only=True)"),
        (unsafe_calls, STEP, "np.frombuffer(x, allow_pickle=True)"),
        (unsafe_calls, STEP, "exec(text)"),
        (unsafe_calls, STEP, "subprocess.run(text, shell=True)"),
        (swallowed_errors, STEP, "try:\n    f()\nexcept:\n    raise"),
        (swallowed_errors, STEP, "try:\n    f()\nexcept OSError:\n    pass"),
        (swallowed_errors, STEP, "for x in y:\n    try:\n        f()\n    except OSError:\n        continue"),
        (swallowed_errors, STEP, "with contextlib.suppress(OSError):\n    f()"),
        (changing_values, STEP, "seed = hash(name)"),
        (changing_values, STEP, "import time\nstarted = time.perf_counter()"),
        (changing_values, STEP, "from time import time"),
        (changing_values, STEP, "from datetime import datetime"),
        (changing_values, STEP, "x = random.random()"),
        (changing_values, STEP, "random.Random(0).shuffle(documents)"),
        (changing_values, STEP, "def f(path):\n    return os.listdir(path)"),
        (writes_to_stdout, STEP, "print(loss)"),
        (writes_to_stdout, STEP, "print(loss, file=sys.stdout)"),
        (writes_to_stdout, STEP, "sys.stdout.write(text)"),
        (missing_docstring, STEP, "import torch"),
    ],
)
def test_the_rule_finds_what_breaks_it(rule, name, source):
    assert list(rule(name, ast.parse(source)))


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (undeclared_imports, STEP, "import json\nimport torch.nn.functional as F\nfrom nemotron import Artifact"),
        (undeclared_imports, "nemotron.testing.plugin", "import pytest"),
        (recipes_imported_from_below, "nemotron.recipes.nano2.stage1_sft.training", f"from {STEP} import Checkpoint"),
        (changing_values, STEP, "x = random.Random(seed).random()"),
        (changing_values, STEP, "import time\ntime.sleep(1)"),
        (changing_values, STEP, "def f(path):\n    return sorted(os.listdir(path))"),
        (writes_to_stdout, STEP, "print(loss, file=sys.stderr)"),
        (swallowed_errors, STEP, "try:\n    f()\nexcept OSError as error:\n    raise ValueError(error) from error"),
    ],
)
def test_the_rule_lets_good_code_pass(rule, name, source):
    assert not list(rule(name, ast.parse(source)))


def test_no_test_is_switched_off():
    words = [f"pytest.{word}" for word in ("skip", "importorskip", "xfail", "mark.skip", "mark.xfail")]
    words += [word + ":" for word in ("TODO", "FIXME", "XXX")] + ["pragma: no " + "cover"]
    paths = [
        path for directory in ("nemotron", "recipes", "tests", "golden") for path in (ROOT / directory).rglob("*.py")
    ]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path != Path(__file__)}
    found = [f"{path.relative_to(ROOT)}: {word}" for path, text in texts.items() for word in words if word in text]
    assert not found


# The contract of a step.


def test_every_stage_is_three_steps_an_orchestrator_and_a_readme():
    assert STAGES
    needed = {f"{step}.py" for step in STEPS} | {"__init__.py", "__main__.py", "README.md"}
    missing = {str(stage.relative_to(ROOT)): needed - {path.name for path in stage.iterdir()} for stage in STAGES}
    assert missing == {name: set() for name in missing}


@pytest.fixture(params=STEP_MODULES)
def step(request):
    """Each step module found on disk, imported."""
    return importlib.import_module(request.param)


def test_the_config_of_a_step_has_scale_seed_and_output_directory(step):
    assert dataclasses.is_dataclass(step.Config)
    assert step.Config.__module__ == step.__name__
    hints = typing.get_type_hints(step.Config)
    defaults = {field.name: field.default for field in dataclasses.fields(step.Config)}
    assert (hints["scale"], defaults["scale"]) == (Scale, "tiny")
    assert (hints["seed"], type(defaults["seed"])) == (int, int)
    assert (hints["output_dir"], defaults["output_dir"]) == (Path | None, None)


def test_every_field_of_a_config_is_explained(step):
    tree = tree_of(step.__name__)
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    assert ast.get_docstring(config)
    for statement, following in zip(config.body, [*config.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert explained, f"{ast.unparse(statement.target)} has no docstring below it"


def test_main_takes_the_config_and_returns_an_artifact_of_its_module(step):
    hints = typing.get_type_hints(step.main)
    assert list(hints) == ["config", "return"]
    assert hints["config"] is step.Config
    assert issubclass(hints["return"], Artifact)
    assert hints["return"].__module__ == step.__name__


def test_a_step_ends_with_the_guard(step):
    name = typing.get_type_hints(step.main)["return"].__name__.lower()
    guard = (
        "if __name__ == '__main__':\n"
        "    config = tyro.cli(Config)\n"
        "    with step_process():\n"
        f"        print_complete({{'{name}': main(config)}})"
    )
    assert ast.unparse(tree_of(step.__name__).body[-1]) == guard


def test_the_docstring_of_a_step_shows_the_command_that_runs_it(step):
    assert f"python -m {step.__name__}" in (step.__doc__ or "")


def test_a_step_is_a_page_that_can_be_read_aloud(step):
    """Docstring, Config, output type, functions, main, guard: main is last before the guard."""
    names = [node.name for node in tree_of(step.__name__).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert names[0] == "Config"
    assert names[-1] == "main"


def test_the_command_line_takes_scale_seed_and_output_directory(step):
    config = tyro.cli(step.Config, args=["--scale", "small", "--seed", "7", "--output-dir", "somewhere"])
    assert (config.scale, config.seed, config.output_dir) == ("small", 7, Path("somewhere"))


def test_an_unknown_scale_is_refused_with_the_four_that_exist(step, capsys):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(step.Config, args=["--scale", "huge"])
    assert stopped.value.code == 2
    written = capsys.readouterr()
    assert not written.out
    assert all(scale in written.err for scale in SCALES)


def test_a_negative_size_is_refused_by_name(step):
    hints = typing.get_type_hints(step.Config)
    sizes = [name for name, hint in hints.items() if hint in (int, int | None) and name != "seed"]
    assert sizes or step.__name__.endswith("evaluation")
    for name in sizes:
        with pytest.raises(ValueError, match=rf"\b{name}=-1\b"):
            step.Config(**{name: -1})


def test_a_number_that_is_none_is_refused_by_name(step):
    hints = typing.get_type_hints(step.Config)
    for name in (name for name, hint in hints.items() if hint in (float, float | None)):
        with pytest.raises(ValueError, match=rf"\b{name}=nan\b"):
            step.Config(**{name: float("nan")})
