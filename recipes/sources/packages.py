"""Docstrings and source of four pinned packages, each file verified before it is read."""

import ast
import base64
import csv
import hashlib
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from nemotron.recipes.sources.documents import Document, Unreadable

PACKAGES = {"sympy": "1.14.0", "networkx": "3.6.1", "mpmath": "1.3.0", "jinja2": "3.1.6"}
LICENCES = {"sympy": "BSD-3-Clause", "networkx": "BSD-3-Clause", "mpmath": "BSD-3-Clause", "jinja2": "BSD-3-Clause"}


def package_files() -> dict[str, tuple[Path, str]]:
    """Relative path -> (absolute path, sha256) of every Python file of the four packages."""
    files: dict[str, tuple[Path, str]] = {}
    for name, version in PACKAGES.items():
        repair = f"run: pip install --force-reinstall {name}=={version}"
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            raise ValueError(f"{name} is not installed, and its text is part of the corpus; {repair}") from None
        if installed.version != version:
            raise ValueError(f"{name} {installed.version} is installed, the corpus is {name} {version}; {repair}")
        record = installed.read_text("RECORD")
        if record is None:
            raise ValueError(f"{name} {version} is installed without a RECORD to check its files against; {repair}")
        for path, digest, _size in csv.reader(record.splitlines()):
            if path.startswith(f"{name}/") and path.endswith(".py"):
                files[path] = (Path(str(installed.locate_file(path))), digest.removeprefix("sha256="))
    return files


def read_verified(path: str, location: Path, digest: str) -> bytes:
    """The bytes of a file whose sha256 is the one that RECORD holds."""
    content = location.read_bytes()
    found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    if found != digest:
        name = path.split("/")[0]
        raise ValueError(
            f"{location} differs from its package's RECORD; run: pip install --force-reinstall {name}=={PACKAGES[name]}"
        )
    return content


def package_documents(num_documents: int) -> tuple[list[Document], list[Unreadable]]:
    """At least `num_documents` documents (or all), by whole modules in a stable order."""
    files = package_files()
    documents: list[Document] = []
    unreadable: list[Unreadable] = []
    modules = sorted((path for path in files if "/tests/" not in path), key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    for path in modules:
        if len(documents) >= num_documents:
            break
        try:
            text = read_verified(path, *files[path]).decode("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError) as error:
            unreadable.append(Unreadable(path, str(error)))
            continue
        name = path.split("/")[0]
        seen: dict[str, int] = {}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            docstring = ast.get_docstring(node)
            if docstring:
                label = getattr(node, "name", "__doc__")
                seen[label] = seen.get(label, 0) + 1
                suffix = f"#{seen[label]}" if seen[label] > 1 else ""
                documents.append(
                    Document(
                        id=f"{path}::{label}{suffix}",
                        module=path,
                        category="academic",
                        text=docstring,
                        licence=LICENCES[name],
                        origin=f"{name} {PACKAGES[name]}",
                        has_example=">>>" in docstring,
                        exported=None if not label.startswith("_") else False,
                    )
                )
        documents.append(Document(path, path, "code", text, LICENCES[name], f"{name} {PACKAGES[name]}"))
    return documents, unreadable
