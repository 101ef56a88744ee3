"""Which source files make the result of a step: its module, and all modules of this project that it imports.

In: the name of a step's module. Out: each of those modules, with the sha256 of its file. A module counts if it is
imported anywhere in a file, also inside a function, or if its whole name is written as a string, as for `python -m`.
The modules in SHOWING are left out: they parse, show and report, and no result depends on them. Numbers in a Config
count as config. Other packages count by their version.

A file is read once in a process: a file that is edited while its step runs is not the code that ran.
Run: python -c "from nemotron.code import modules_of; print(*modules_of('nemotron.recipes.nano2.chat'))"
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PROJECT = "nemotron"
# Searched as text, because parsing all files takes a second. What is found too much, in a docstring, only counts too.
IMPORT = re.compile(r"^[ \t]*import[ \t]+([^\n]*)", re.MULTILINE)
FROM_IMPORT = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
NAME_IN_STRING = re.compile(rf"[\"']({PROJECT}\.[\w.]+)[\"']")
NOISE = re.compile(r"#[^\n]*|\bas[ \t]+\w+")
DOTTED = re.compile(r"[\w.]+")
SHOWING = (
    "nemotron",
    "nemotron.code",
    "nemotron.command_line",
    "nemotron.config",
    "nemotron.lineage",
    "nemotron.pipe",
    "nemotron.process",
    "nemotron.stage",
    "nemotron.terminal",
    "nemotron.view",
    "nemotron.recipes.training.progress",
)


@cache
def modules_of(step: str) -> dict[str, str]:
    """Module -> sha256 of its file, sorted, for everything that a step's result depends on; empty if it has no file."""
    packages = {PROJECT, step.partition(".")[0]}
    found: dict[str, str] = {}
    waiting = [step]
    while waiting:
        name = waiting.pop()
        if name in found or (name in SHOWING and name != step) or name.partition(".")[0] not in packages:
            continue
        file = file_of(name)
        if file is not None:
            found[name], names = read_module(file)
            waiting += [*names, *parents_of(name)]
    return dict(sorted(found.items()))


def digest_of(modules: Mapping[str, str]) -> str:
    """One sha256 for the modules of a step."""
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()


def parents_of(name: str) -> list[str]:
    """The packages that a module is in, which Python imports before it."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


@cache
def file_of(name: str) -> Path | None:
    """The file of a module, without importing it; None if there is none, as for a function."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file and Path(file).is_file():
        return Path(file)
    for package in reversed(parents_of(name)):
        folders = getattr(sys.modules.get(package), "__path__", None)
        if folders is None:
            continue
        for folder in folders:
            place = Path(folder, *name.removeprefix(f"{package}.").split("."))
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    return file
        return None
    return None


@cache
def read_module(file: Path) -> tuple[str, tuple[str, ...]]:
    """The sha256 of a source file, and every dotted name in it that may be a module."""
    content = file.read_bytes()
    text = content.decode(errors="replace")
    names = set(NAME_IN_STRING.findall(text))
    code = NOISE.sub("", text)
    names.update(name for imported in IMPORT.findall(code) for name in DOTTED.findall(imported))
    for package, imported in FROM_IMPORT.findall(code):
        names |= {package, *(f"{package}.{name}" for name in DOTTED.findall(imported))}
    return hashlib.sha256(content).hexdigest(), tuple(sorted(names))
