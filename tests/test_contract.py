"""What every step and every module must satisfy, read from the files on disk, so that a new one cannot hide.

A rule is a function from a parsed module to sentences about what breaks it. Each rule is applied to the tree, and to a
snippet that breaks it.
"""

import ast
import importlib
import re
import sys
import tomllib
import typing
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemotron import SCALES, Artifact, Scale
from nemotron.config import ScaledConfig, parse_command_line
from nemotron.recipes.nano2.harness import HarnessConfig
from nemotron.strict import one_sentence

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"


def module_name(path: Path) -> str:
    """recipes/nano2/blend.py -> nemotron.recipes.nano2.blend"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("nemotron", *parts) if parts[0] in ("recipes", "golden") else parts)


def modules_below(*directories: str) -> dict[str, Path]:
    """Module name -> file, in a stable order."""
    paths = sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))
    return {module_name(path): path for path in paths}


MODULES = modules_below("nemotron", "recipes", "golden")
STAGES = sorted(path for path in RECIPES.glob("*/stage*") if path.is_dir() and list(path.glob("*.py")))
ORCHESTRATORS = {stage: importlib.import_module(module_name(stage / "__main__.py")) for stage in STAGES}
STEPS = {stage: (*one.STEPS, *getattr(one, "OPTIONAL_STEPS", ())) for stage, one in ORCHESTRATORS.items()}
STEP_MODULES = [step.__name__ for steps in STEPS.values() for step in steps]
RECIPE_NAMES = {stage.parent.name for stage in STAGES}
CORE = {name for name in MODULES if name.split(".")[1:2] not in (["recipes"], ["testing"], ["golden"], ["report"])}


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


OF_EXTRAS = {
    "nemotron.trackers": {"mlflow", "wandb"},
    "nemotron.recipes.nano2.harness": {"lm_eval"},
    "nemotron.recipes.nano2.harness.documents": {"datasets"},
    "nemotron.recipes.sources.dataframes": {"ray"},
}
"""Module -> packages of an extra; it imports them when they are asked for, and says what to install."""


# The rules.


def undeclared_imports(name: str, tree: ast.Module) -> Iterator[str]:
    tools = {"pytest", "syrupy"} if name.startswith("nemotron.testing") and not name.endswith(".compare") else set()
    tools |= OF_EXTRAS.get(name, set())
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


ROOMS = [
    ("nemotron.terminal",),
    ("nemotron.strict", "nemotron.process", "nemotron.scale", "nemotron.command_line", "nemotron.background"),
    ("nemotron.directory", "nemotron.code"),
    ("nemotron.published",),
    ("nemotron.config", "nemotron.lineage", "nemotron.trackers", "nemotron.pipe", "nemotron.ladder", "nemotron.view"),
    ("nemotron.artifact",),
    ("nemotron.stage",),
    ("nemotron",),
    ("nemotron.testing", "nemotron.golden"),
    ("nemotron.report",),
    ("nemotron.recipes.nemotron_h", "nemotron.recipes.sources"),
    ("nemotron.recipes.chat",),
    ("nemotron.recipes.curation",),
    ("nemotron.recipes.training", "nemotron.recipes.scoring"),
    ("nemotron.recipes",),
]
"""Modules and packages from the bottom of the house to its top; the last one that fits a module is its room."""


def floor_of(name: str) -> int:
    """The floor of a module's room: that of the longest name in ROOMS that it begins with."""
    floors = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
    return floors[max((room for room in floors if f"{name}.".startswith(f"{room}.")), key=len)]


def project_imports(name: str, tree: ast.Module) -> set[str]:
    """Modules of this project that a module imports when it runs, without those for annotations only."""
    annotations = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    kept = ast.Module([node for node in statements if id(node) not in annotations], [])
    found = {imported for imported in imported_names(kept) if imported in MODULES}
    longest = {imported for imported in found if not any(other.startswith(f"{imported}.") for other in found)}
    return longest - {name}


def imports_upwards(name: str, tree: ast.Module) -> Iterator[str]:
    for imported in sorted(project_imports(name, tree)):
        if floor_of(imported) > floor_of(name):
            yield f"imports {imported}, which is above it"


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
        if suppressed and name not in (
            "nemotron.pipe",
            "nemotron.terminal",
        ):  # where nobody reads, there is nobody to tell
            yield f"line {node.lineno}: an error is passed over in silence"


def changing_values(name: str, tree: ast.Module) -> Iterator[str]:
    """What differs between two runs or two Python versions: hash(), the clock, a random method that is not promised."""
    unpromised = {"shuffle", "choice", "choices", "randint", "randrange", "getrandbits", "randbytes", "gauss"}
    if not name.startswith("nemotron.recipes") or name == "nemotron.recipes.training.progress":
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
    """A step's stdout is one JSON line; print_complete, --plan, the table of bless and the chat write there.

    `whole_output` in nemotron.terminal flushes it. The stdout of template_process is a pipe to another process.
    """
    allowed = (
        "nemotron.pipe",
        "nemotron.terminal",
        "__main__",
        "nemotron.testing.bless",
        "chat.program",
        "chat.template_process",
    )
    if name.endswith(allowed):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            file = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
            if file in ([], ["sys.stdout"]):
                yield f"line {node.lineno}: print without file=sys.stderr"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdout" and "testing" not in name:
            yield f"line {node.lineno}: sys.stdout"


def inputs_of_an_unknown_scale(name: str, tree: ast.Module) -> Iterator[str]:
    """A step that reads an artifact which its Config names says so if it was made at another scale, or refuses it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        loader, call = ast.unparse(node.value.func), ast.unparse(node.value)
        if loader.endswith((".load", "base_checkpoint")) and re.search(r"config\.\w+_path", call):
            refused = f"{ast.unparse(node.targets[0])}.check_scale(config.scale)" in ast.unparse(tree)
            if not refused and "scale=config.scale" not in call:
                yield f"line {node.lineno}: {call} does not look at the scale; add scale=config.scale"


POSIX_MODULES = {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
POSIX_CALLS = {
    *("os.chown", "os.chroot", "os.fchmod", "os.fork", "os.forkpty", "os.getegid", "os.geteuid", "os.getgid"),
    *("os.getloadavg", "os.getpgid", "os.getuid", "os.killpg", "os.mkfifo", "os.mknod", "os.nice", "os.pathconf"),
    *("os.sched_getaffinity", "os.setsid", "os.statvfs", "os.sysconf", "os.uname", "os.wait", "os.O_DIRECTORY"),
    *("os.O_NOFOLLOW", "os.O_NONBLOCK", "signal.SIGKILL", "signal.SIGHUP", "signal.SIGPIPE", "signal.SIGALRM"),
    *("signal.SIGUSR1", "signal.SIGUSR2", "signal.SIGCHLD", "signal.SIGXFSZ", "signal.alarm", "signal.setitimer"),
    *("time.tzset", "shutil.chown", "Path.owner", "Path.group"),
}
"""What Python lacks on Windows."""


def only_on_posix(name: str, tree: ast.Module) -> Iterator[str]:
    """What fails on Windows; what is inside `if hasattr(...)`, or tried and caught, is guarded."""
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if (isinstance(block, ast.If) and "hasattr" in ast.unparse(block.test)) or isinstance(block, ast.Try)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {imported.split(".")[0] for imported in imported_names(ast.Module([node], []))}
            yield from (f"line {node.lineno}: imports {module}" for module in sorted(modules & POSIX_MODULES))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_CALLS:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Constant) and str(node.value).startswith(("/tmp", "/dev/", "/bin/", "/usr/")):
            yield f"line {node.lineno}: the path {node.value}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.open" and name != "nemotron.directory":
            yield f"line {node.lineno}: os.open of a directory fails; use sync_directory or locked"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.rename" and name != "nemotron.directory":
            yield f"line {node.lineno}: os.rename fails if the file exists; use os.replace"


def other_bytes_elsewhere(name: str, tree: ast.Module) -> Iterator[str]:
    """Text whose encoding, or whose ends of lines, depend on the operating system."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).split(".")[-1]
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        positional = [ast.unparse(argument) for argument in node.args]
        writes = called == "write_text"
        if (
            called in ("open", "fdopen")
            and ast.unparse(node.func) not in ("os.open", "gzip.open")
            and "daft" not in ast.unparse(node.func)
        ):
            place = 0 if isinstance(node.func, ast.Attribute) and called == "open" else 1
            mode = given.get("mode", positional[place] if len(positional) > place else "'r'")
            if "b" in mode or not mode.startswith("'"):
                continue
            writes = any(letter in mode for letter in "wax+")
        elif called not in ("write_text", "read_text", "TextIOWrapper"):
            if called in ("run", "Popen", "check_output") and "text" in given and "encoding" not in given:
                yield f"line {node.lineno}: text of a process in the encoding of the locale; give encoding"
            continue
        if "encoding" not in given and not (called == "read_text" and positional):
            yield f"line {node.lineno}: {called} in the encoding of the locale; give encoding"
        if writes and given.get("newline") not in (repr("\n"), repr("")):
            yield f"line {node.lineno}: {called} with the line ends of the system; give newline"


def flags_of_another_command(name: str, tree: ast.Module) -> Iterator[str]:
    """In the command of a stage the flag is --train.resume, so that a sentence takes it from `flag_of`.

    A program that torchrun has started is always a step by itself.
    """
    documented = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value not in documented]
    for node in texts if name != "nemotron.recipes.training.distributed" else ():
        if "--resume" in str(node.value):
            yield f"line {node.lineno}: {node.value!r} names the flag of a step's own command"


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def missing_docstring(name: str, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "has no docstring; say what goes in and what comes out"


RULES = [
    undeclared_imports,
    heavy_imports_of_the_core,
    recipes_imported_from_below,
    imports_upwards,
    relative_imports,
    unsafe_calls,
    swallowed_errors,
    changing_values,
    writes_to_stdout,
    inputs_of_an_unknown_scale,
    flags_of_another_command,
    missing_docstring,
    only_on_posix,
    other_bytes_elsewhere,
]


SCRIPTS = [
    ROOT / "noxfile.py",
    *sorted(path for place in ("benchmarks", "examples") for path in (ROOT / place).rglob("*.py")),
]


@pytest.mark.parametrize("rule", [only_on_posix, other_bytes_elsewhere], ids=lambda rule: rule.__name__)
def test_no_script_breaks_the_rule(rule):
    trees = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in SCRIPTS}
    broken = [f"{path}: {found}" for path, tree in trees.items() for found in rule(str(path), tree)]
    assert not broken, "\n".join(broken)


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
        (recipes_imported_from_below, "nemotron.artifact", "from nemotron.recipes.nano2 import blend"),
        (recipes_imported_from_below, "nemotron.testing.stage", "import nemotron.recipes.nemotron_h.model"),
        (recipes_imported_from_below, "nemotron.recipes.curation.packing", "from nemotron.recipes.nano2 import blend"),
        (recipes_imported_from_below, STEP, "from nemotron.recipes.nano2.stage1_sft import training"),
        (imports_upwards, "nemotron.directory", "from nemotron.artifact import Artifact"),
        (imports_upwards, "nemotron.recipes.curation.packing", "from nemotron.recipes.training.run import Checkpoint"),
        (imports_upwards, "nemotron.recipes.training.state", "def f():\n    from nemotron.recipes.nano2 import blend"),
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
        (inputs_of_an_unknown_scale, STEP, "dataset = Dataset.load(path=config.dataset_path)"),
        (inputs_of_an_unknown_scale, STEP, "base = base_checkpoint(config.base_checkpoint_path, made_by=command)"),
        (flags_of_another_command, STEP, "raise ValueError(f'{work} is unfinished; add --resume to go on')"),
        (missing_docstring, STEP, "import torch"),
        (only_on_posix, STEP, "import fcntl"),
        (only_on_posix, STEP, "def f():\n    from resource import getrusage"),
        (only_on_posix, STEP, "memory = os.sysconf('SC_PAGE_SIZE')"),
        (only_on_posix, STEP, "process.send_signal(signal.SIGKILL)"),
        (only_on_posix, STEP, "path = Path('/tmp/x')"),
        (only_on_posix, STEP, "descriptor = os.open(directory, os.O_RDONLY)"),
        (only_on_posix, STEP, "os.rename(partial, path)"),
        (only_on_posix, STEP, "try:\n    f()\nexcept OSError:\n    import fcntl"),
        (other_bytes_elsewhere, STEP, "path.write_text(text)"),
        (other_bytes_elsewhere, STEP, "path.write_text(text, encoding='utf-8')"),
        (other_bytes_elsewhere, STEP, "path.write_text(text, newline='\\n')"),
        (other_bytes_elsewhere, STEP, "path.read_text()"),
        (other_bytes_elsewhere, STEP, "with open(path) as file:\n    pass"),
        (other_bytes_elsewhere, STEP, "with open(path, 'w', encoding='utf-8') as file:\n    pass"),
        (other_bytes_elsewhere, STEP, "with open(path, mode='a', newline='\\n') as file:\n    pass"),
        (other_bytes_elsewhere, STEP, "with path.open('x', encoding='utf-8') as file:\n    pass"),
        (other_bytes_elsewhere, STEP, "subprocess.run(command, text=True)"),
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
        (inputs_of_an_unknown_scale, STEP, "one = Dataset.load(path=config.dataset_path, scale=config.scale)"),
        (inputs_of_an_unknown_scale, STEP, "x = Y.load(path=config.checkpoint_path)\nx.check_scale(config.scale)"),
        (flags_of_another_command, STEP, 'def f():\n    """What --resume reads."""\n    return f"add {flag}"'),
        (swallowed_errors, STEP, "try:\n    f()\nexcept OSError as error:\n    raise ValueError(error) from error"),
        (only_on_posix, STEP, "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None"),
        (only_on_posix, STEP, "if hasattr(os, 'sysconf'):\n    memory = os.sysconf('SC_PAGE_SIZE')"),
        (only_on_posix, STEP, "signal.signal(signal.SIGTERM, stop)\nos.replace(partial, path)"),
        (other_bytes_elsewhere, STEP, "path.write_text(text, encoding='utf-8', newline='\\n')"),
        (other_bytes_elsewhere, STEP, "path.read_text(encoding='utf-8')\npath.read_text('utf-8')\npath.read_bytes()"),
        (other_bytes_elsewhere, STEP, "open(path, 'rb')\npath.open('wb')\nopen(path, 'a', encoding='a', newline='')"),
        (other_bytes_elsewhere, STEP, "subprocess.run(command, encoding='utf-8')"),
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


def test_no_modules_import_each_other_in_a_circle():
    edges = {name: project_imports(name, tree_of(name)) for name in MODULES}
    waiting = dict(edges)
    while ready := [name for name, imported in waiting.items() if not imported & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert not waiting, f"these import each other: {', '.join(sorted(waiting))}"


def file_of_tests(name: str) -> Path:
    """Where the tests of a module are: nemotron/artifact.py -> tests/nemotron/test_artifact.py."""
    path = MODULES[name].relative_to(ROOT)
    parts = [part for part in path.parts[:-1] if part != "golden"]
    return ROOT.joinpath("tests", *parts, f"test_{path.stem.strip('_')}.py")


def test_every_module_has_a_file_of_tests():
    empty = {name for name in MODULES if MODULES[name].name == "__init__.py" and len(tree_of(name).body) <= 2}
    needed = {file_of_tests(name) for name in MODULES.keys() - empty - TESTED_ELSEWHERE.keys()}
    missing = sorted(path.relative_to(ROOT).as_posix() for path in needed if not path.is_file())
    assert not missing, "\n".join(missing)
    assert all((ROOT / path).is_file() for path in TESTED_ELSEWHERE.values())


TESTED_ELSEWHERE = {
    "nemotron.recipes.sources": "tests/recipes/sources/test_documents.py",
    "nemotron.testing.session": "tests/nemotron/testing/test_bless.py",
    "nemotron.testing.snapshot": "tests/nemotron/testing/test_plugin.py",
    "nemotron.recipes.training.progress": "tests/pipelines/test_training_runs.py",
    "nemotron.recipes.training.curve": "tests/recipes/training/test_run.py",
    "nemotron.recipes.nano2.__main__": "tests/test_readme.py",
}


# The contract of a step.


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_its_steps_an_orchestrator_and_a_readme(stage):
    """Every module that defines a Config is a step, and declared as one."""
    with_config = {
        path.stem
        for path in stage.glob("*.py")
        if path.name != "__main__.py" and re.search(r"^class Config\b", path.read_text(encoding="utf-8"), re.M)
    }
    assert {step.__name__.rpartition(".")[2] for step in STEPS[stage]} == with_config
    assert with_config >= {"data_curation", "training", "evaluation"}
    assert {path.name for path in stage.iterdir()} >= {"__init__.py", "__main__.py", "README.md"}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_an_orchestrator_declares_its_steps_and_has_a_field_for_each(stage):
    orchestrator = ORCHESTRATORS[stage]
    hints = typing.get_type_hints(orchestrator.Config).values()
    assert [step.Config in hints for step in STEPS[stage]] == [True] * len(STEPS[stage])
    assert f"{stage.parent.name}/{stage.name}" == orchestrator.STAGE


@pytest.fixture(params=STEP_MODULES)
def step(request):
    """Each step module found on disk, imported."""
    return importlib.import_module(request.param)


def test_the_config_of_a_step_has_scale_seed_and_output_directory(step):
    assert issubclass(step.Config, ScaledConfig)
    assert step.Config.__module__ == step.__name__
    hints = typing.get_type_hints(step.Config)
    assert (hints["scale"], hints["seed"], hints["output_dir"]) == (Scale, int, Path)
    folders = [step.Config(scale=scale).output_dir.as_posix() for scale in SCALES]
    *_, recipe, stage, name = step.__name__.split(".")
    assert folders == [f"outputs/{recipe}/{scale}/{stage}/{name}" for scale in SCALES]


def test_every_field_of_a_config_is_explained(step):
    tree = tree_of(step.__name__)
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    assert ast.get_docstring(config)
    fields = [node for node in config.body if not isinstance(node, ast.FunctionDef)]
    for statement, following in zip(fields, [*fields[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert explained, f"{ast.unparse(statement.target)} has no docstring below it"


def test_none_is_for_inputs_only(step):
    """No other field waits for somebody to fill it in."""
    config = step.Config()
    inputs = {"dataset_path", "checkpoint_path", "base_checkpoint_path", "rewardmodel_path"}
    inputs |= {"fine_tuning_path", "pretraining_path"}  # beside a base that was not made here
    inputs |= {"student_path"}  # in place of a model that the search prunes
    assert {name for name, value in vars(config).items() if value is None} <= inputs


def test_main_takes_the_config_and_returns_an_artifact(step):
    hints = typing.get_type_hints(step.main)
    assert list(hints) == ["config", "return"]
    assert hints["config"] is step.Config
    assert issubclass(hints["return"], Artifact)


TRAINS = {name for name in STEP_MODULES if "training_run" in MODULES[name].read_text(encoding="utf-8")}
"""Steps that torchrun can start in several processes."""


def test_a_step_ends_with_the_guard(step):
    name = typing.get_type_hints(step.main)["return"].__name__.lower()
    process = "training_process(config) as config" if step.__name__ in TRAINS else "step_process()"
    guard = (
        "if __name__ == '__main__':\n"
        "    config = parse_command_line(Config)\n"
        f"    with {process}:\n"
        f"        print_complete({{'{name}': main(config)}})"
    )
    assert ast.unparse(tree_of(step.__name__).body[-1]) == guard


@pytest.mark.parametrize("name", sorted(TRAINS))
def test_the_loop_of_a_training_has_few_lines_for_several_processes(name):
    (source,) = (node for node in tree_of(name).body if getattr(node, "name", None) == "main")
    imports = (node for node in tree_of(name).body if isinstance(node, ast.ImportFrom))
    of_others = [each for node in imports if str(node.module).endswith("training.distributed") for each in node.names]
    names = {each.name for each in of_others}
    lines = {node.lineno for node in ast.walk(source) if isinstance(node, ast.Name) and node.id in names}
    assert 1 <= len(lines) <= 8


def test_the_docstring_of_a_step_shows_the_command_that_runs_it(step):
    assert f"python -m {step.__name__}" in (step.__doc__ or "")


def test_a_step_is_a_page_that_can_be_read_aloud(step):
    """Docstring, Config, output type, functions, main, guard: main is last before the guard."""
    names = [node.name for node in tree_of(step.__name__).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert names[0] == "Config"
    assert names[-1] == "main"


def test_the_command_line_takes_scale_seed_and_output_directory(step):
    config = parse_command_line(step.Config, ["--scale", "small", "--seed", "7", "--output-dir", "somewhere"])
    assert (config.scale, config.seed, config.output_dir) == ("small", 7, Path("somewhere"))


def test_an_unknown_scale_is_refused_with_the_four_that_exist(step, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_command_line(step.Config, ["--scale", "huge"])
    assert stopped.value.code == 2
    written = capsys.readouterr()
    assert not written.out
    assert all(scale in written.err for scale in SCALES)


def numbers_of(step, kind):
    """Fields of a step's Config that hold a number of this type at tiny scale."""
    return [name for name, value in vars(step.Config()).items() if type(value) is kind and name != "seed"]


def test_a_negative_size_is_refused_by_name(step):
    assert numbers_of(step, int)
    for name in numbers_of(step, int):
        with pytest.raises(ValueError, match=rf"\b{name}=-1\b") as refused:
            step.Config(**{name: -1})
        assert one_sentence(refused.value) == str(refused.value)


def test_a_number_that_is_nan_is_refused_by_name(step):
    for name in numbers_of(step, float):
        with pytest.raises(ValueError, match=rf"\b{name}=nan\b"):
            step.Config(**{name: float("nan")})


# How long a step is. Lines are all lines; depth counts the statements that are indented into each other.

LIMITS = {"training.py": 300, "data_curation.py": 400, "evaluation.py": 250, "__main__.py": 50}
MAX_LINES_BEFORE_FUNCTIONS, MAX_MAIN_LINES, MAX_DEPTH, MIN_TRAINING_SHARE = 200, 60, 4, 0.7
PAPERWORK = re.compile(r"\s*(run\.|with training_run|if (run\.|is_done)|return Checkpoint|weights = |write_)")
"""How a line of a training step's main begins if it is about records, states and files, not about training."""


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_modules_of_a_stage_are_short_enough_to_read(stage):
    lines = {name: len((stage / name).read_text(encoding="utf-8").splitlines()) for name in LIMITS}
    assert lines == {name: min(lines[name], limit) for name, limit in LIMITS.items()}


def test_the_first_function_of_a_step_is_not_far_from_its_top(step):
    """Before it there are a docstring, imports and the documented numbers."""
    first = next(node for node in tree_of(step.__name__).body if isinstance(node, ast.FunctionDef))
    assert first.lineno <= MAX_LINES_BEFORE_FUNCTIONS


def depth_of(node: ast.AST) -> int:
    """Levels of statements inside a statement."""
    blocks = [child for name in ("body", "orelse", "finalbody", "handlers") for child in getattr(node, name, [])]
    return 1 + max(map(depth_of, blocks), default=0) if blocks else 0


@pytest.mark.parametrize("name", [name for name in STEP_MODULES if name.endswith("training")])
def test_the_loop_fits_on_one_screen_and_is_about_training(name):
    (main,) = (node for node in tree_of(name).body if isinstance(node, ast.FunctionDef) and node.name == "main")
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()[main.lineno - 1 : main.end_lineno]
    code = [line for line in lines if line.strip() and not line.strip().startswith(("#", '"""'))]
    training = [line for line in code if not PAPERWORK.match(line)]
    assert len(lines) <= MAX_MAIN_LINES
    assert depth_of(main) - 1 <= MAX_DEPTH
    assert len(training) / len(code) >= MIN_TRAINING_SHARE
    assert sum(line.strip().startswith("#") for line in lines) >= 6  # a heading for each part, and why


@pytest.mark.parametrize("module", ["run", "state", "curve", "progress"])
def test_the_paperwork_computes_nothing(module):
    """The loop calls the run, and the run calls nothing back: no loss, gradient, schedule or batch is made in it."""
    tree = tree_of(f"nemotron.recipes.training.{module}")
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    learning = {"backward", "zero_grad", "param_groups", "cross_entropy", "clip_grad_norm_", "autocast"}
    reads = {"param_groups"} if module == "state" else set()  # whose moments a state holds
    assert not names & (learning - reads)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"self.optimizer.step", "self.model", "batches", "collate", "loss_sum", "learning_rate_at"}


INHERITED_BY_ALL = {"scale", "output_dir", "numbers_of", "flag_prefix"}
READ_BY_THE_RUN = {"resume", "checkpoint_every_steps", "activation_checkpointing"}
"""By `training_run` in recipes/training/run.py."""


def fields_read(tree: ast.AST) -> set[str]:
    """The attributes of a variable named config, or of self, that are read, by name too: getattr(config, name)."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
    read = {node.attr for node in nodes if ast.unparse(node.value) in ("config", "self", "self.config")}
    by_name = [
        node for node in ast.walk(tree) if isinstance(node, ast.DictComp) and "getattr(config, " in ast.unparse(node)
    ]
    strings = [node for found in by_name for node in ast.walk(found) if isinstance(node, ast.Constant)]
    return read | {str(node.value) for node in strings}


def test_a_field_that_nothing_reads_is_found():
    tree = ast.parse("config.a = 1\nx = config.b + self.c\nsizes = {n: getattr(config, n) for n in ('d', 'e')}")
    assert fields_read(tree) == {"b", "c", "d", "e"}


def test_every_field_of_a_config_is_read(step):
    """In the module of the step, or in one of its package that gets the Config."""
    package = MODULES[step.__name__].parent
    own = fields_read(tree_of(step.__name__))
    passed_to = {name for name in imported_names(tree_of(step.__name__)) if name in MODULES}
    read = own.union(*(fields_read(tree_of(name)) for name in passed_to if MODULES[name].parent == package))
    if issubclass(step.Config, HarnessConfig):
        read |= fields_read(tree_of(HarnessConfig.__module__))
    if "training_run(config" in MODULES[step.__name__].read_text(encoding="utf-8"):
        read |= READ_BY_THE_RUN
    fields = {name for name in step.Config.__dataclass_fields__ if name not in INHERITED_BY_ALL}
    said = {name for name in fields if "not used" in (vars(step.Config)["__pydantic_fields__"][name].description or "")}
    assert fields - read - said == set()
