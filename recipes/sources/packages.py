"""Raw text that every installation has: docstrings and source of four pinned packages that torch depends on.

In: the files of sympy, networkx, mpmath and jinja2 as pip installed them. Out: a document for each docstring (category
"academic", without its worked examples) and one for each module's source (category "code", without its docstrings),
with license, origin and the two stand-in labels of docstrings.py and exports.py. The files are data: each is checked
against the sha256 in its package's RECORD before it is read, and none is imported or run. The packages' tests do not
become documents; decontamination uses them as text that training must not repeat.

    python -c "import nemotron.recipes.sources.packages as p; print(len(p.package_documents(750)[0]))"

Left out: files that are not Python, and files outside of a package's own directory.
"""

import ast
import base64
import csv
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from nemotron.recipes.sources.docstrings import parse_python, read_docstrings, source_without_docstrings
from nemotron.recipes.sources.documents import UNKNOWN_LICENCE, Document, Unreadable
from nemotron.recipes.sources.exports import Exports
from nemotron.recipes.sources.licences import stated_licence

# As pinned in pyproject.toml; with other versions the corpus would differ.
PACKAGES = {"jinja2": "3.1.6", "mpmath": "1.3.0", "networkx": "3.6.1", "sympy": "1.14.0"}

# sympy's LICENSE file puts this directory under the license of latex2sympy, from which it was copied.
LICENCES_OF_DIRECTORIES = {"sympy/parsing/latex/": "MIT"}

# Part of the digest that orders the modules. Our choice, out of 300 that were tried: the first sixty modules include
# all four packages and the one file whose license curation rejects, so a small sample represents the whole corpus.
SAMPLE_ORDER = "6"


class UnreadableFile(Exception):
    """A file that matches RECORD but that this Python cannot decode or parse."""


@dataclass(frozen=True)
class Package:
    """One installed package, as its RECORD describes it."""

    name: str
    version: str
    distribution: Distribution = field(repr=False)
    digests: dict[str, str] = field(repr=False)
    """Path in site-packages -> sha256 as in RECORD, URL-safe base64 without padding; "" if RECORD has none."""

    @property
    def origin(self) -> str:
        """Name and version, for the attribution list."""
        return f"{self.name} {self.version}"

    @property
    def modules(self) -> list[str]:
        """Paths of the Python files in the package's own directory, including its tests."""
        return sorted(path for path in self.digests if path.startswith(f"{self.name}/") and path.endswith(".py"))

    @cached_property
    def licence(self) -> str:
        """The package's license: the SPDX expression in its metadata, else the one at the top of its LICENSE file."""
        metadata = self.distribution.metadata
        if "License-Expression" in metadata:
            return metadata["License-Expression"]
        for path in sorted(self.digests):
            if re.search(r"\.dist-info/(licenses/)?LICEN[SC]E(\.txt|\.md|\.rst)?$", path):
                own_part = decode(self.read(path)).split("\n-----", 1)[0]  # below: licenses of copied parts
                return stated_licence(own_part) or UNKNOWN_LICENCE
        return UNKNOWN_LICENCE

    def licence_of(self, path: str, text: str) -> str:
        """The license of one file: the one that it states, else its directory's, else the package's."""
        for directory, licence in LICENCES_OF_DIRECTORIES.items():
            if path.startswith(directory):
                return stated_licence(text) or licence
        return stated_licence(text) or self.licence

    def read(self, path: str) -> bytes:
        """The bytes of a file that RECORD lists.

        Raises:
            ValueError: if the file is missing or its sha256 differs from RECORD.
        """
        location = Path(str(self.distribution.locate_file(path)))
        recorded = f"{self.origin} lists it in its RECORD; {reinstall(self.name, self.version)}"
        try:
            content = location.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{location} is missing, but {recorded}") from None
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if digest != self.digests[path]:
            raise ValueError(f"{location} has sha256 {digest}, not {self.digests[path] or 'any'} as {recorded}")
        return content


def reinstall(name: str, version: str) -> str:
    """The command that installs the pinned package again."""
    return f"run: pip install --force-reinstall --no-deps {name}=={version}"


def installed_package(name: str, version: str) -> Package:
    """The installed package with the digests in its RECORD; none of its other files is read.

    Raises:
        ValueError: if it is not installed, has another version, or has no RECORD.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise ValueError(f"{name} is part of the corpus and not installed; {reinstall(name, version)}") from None
    if found.version != version:
        raise ValueError(f"{name} {found.version} is installed, the corpus needs {version}; {reinstall(name, version)}")
    record = found.read_text("RECORD")
    if not record:
        raise ValueError(f"{name} {version} has no RECORD to check its files against; {reinstall(name, version)}")
    rows = [row for row in csv.reader(io.StringIO(record, newline="")) if len(row) == 3]
    digests = {path: digest.removeprefix("sha256=") if digest.startswith("sha256=") else "" for path, digest, _ in rows}
    return Package(name, version, found, digests)


def installed_packages(packages: Mapping[str, str]) -> dict[str, Package]:
    """Name -> `installed_package`, sorted by name."""
    return {name: installed_package(name, version) for name, version in sorted(packages.items())}


def package_documents(
    num_documents: int, packages: Mapping[str, str] = PACKAGES
) -> tuple[list[Document], list[Unreadable]]:
    """Docstrings and source: at least `num_documents` documents, or all of them.

    Whole modules are sampled, in the order of a digest of their paths. So near-duplicates, which are in the same file,
    survive the sampling, a smaller sample is a prefix of a larger one, and no other file is read.

    Args:
        num_documents: how many documents to reach, at least 1; the last module may exceed it.
        packages: name -> version that must be installed.
    Returns:
        Documents ordered by module and within a module as in the file, the source last; and the files that cannot be
        decoded or parsed, each of which counts as one document. A docstring of only examples becomes an empty text.
    Raises:
        ValueError: if `num_documents` is below 1, or an installed package is not the pinned one.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} must be at least 1")
    installed = installed_packages(packages)
    of_module = {path: package for package in installed.values() for path in package.modules}

    def tree_of(path: str) -> ast.Module | None:
        try:
            return parse(decode(of_module[path].read(path))) if path in of_module else None
        except UnreadableFile:
            return None  # reported when the file itself is sampled

    exports = Exports(tree_of)
    documents: list[Document] = []
    unreadable: list[Unreadable] = []
    for path in sorted((path for path in of_module if not is_test(path)), key=sample_order):
        if len(documents) + len(unreadable) >= num_documents:
            break
        try:
            documents += documents_of_module(path, of_module[path], exports)
        except UnreadableFile as error:
            unreadable.append(Unreadable(path, str(error)))
    return documents, unreadable


def package_test_texts(
    modules: Iterable[str] | None = None, packages: Mapping[str, str] = PACKAGES
) -> tuple[list[Document], list[Unreadable]]:
    """The packages' own tests as whole files: more text that training must not repeat.

    Args:
        modules: `Document.module` of sampled documents: reads only the tests named after them
            ("core/tests/test_add.py" for "core/add.py"), in the same directory or one directory up. None: all tests.
        packages: name -> version that must be installed.
    Returns:
        Documents of the category "package-tests", sorted by package and path, and the files that cannot be decoded.
    Raises:
        ValueError: if an installed package is not the pinned one.
    """
    wanted = None if modules is None else {test for module in modules for test in tests_named_after(module)}
    texts: list[Document] = []
    unreadable: list[Unreadable] = []
    for package in installed_packages(packages).values():
        for path in package.modules:
            if not is_test(path) or (wanted is not None and path not in wanted):
                continue
            try:
                text = decode(package.read(path))
            except UnreadableFile as error:
                unreadable.append(Unreadable(path, str(error)))
                continue
            texts.append(Document(path, path, "package-tests", text, package.licence_of(path, text), package.origin))
    return texts, unreadable


def is_test(path: str) -> bool:
    """Whether a file belongs to its package's tests."""
    return "/tests/" in path or path.endswith("/conftest.py")


def tests_named_after(module: str) -> list[str]:
    """Possible paths of the tests of one module, in its directory or one directory up."""
    directory, _slash, file_name = module.rpartition("/")
    parent = directory.rpartition("/")[0]
    return [f"{place}/tests/test_{file_name}" for place in (directory, parent) if place]


def sample_order(path: str) -> str:
    """Sort key of a module for sampling: the same on every machine and unrelated to the meaning of the path."""
    return hashlib.sha256(f"{SAMPLE_ORDER}/{path}".encode()).hexdigest()


def documents_of_module(path: str, package: Package, exports: Exports) -> list[Document]:
    """The documents of one file: its docstrings, then its source if it contains more than docstrings.

    Raises:
        UnreadableFile: if it cannot be decoded or parsed.
        ValueError: if it differs from RECORD.
    """
    text = decode(package.read(path))
    tree = parse(text)
    licence = package.licence_of(path, text)
    documents = [
        Document(
            id=f"{path}::{docstring.name}",
            module=path,
            category="academic",
            text=docstring.text,
            licence=licence,
            origin=package.origin,
            has_example=docstring.has_example,
            exported=exports.label(path, tree, docstring.name, docstring.text),
        )
        for docstring in read_docstrings(tree)
    ]
    source = source_without_docstrings(text, tree)
    if source.strip():
        documents.append(Document(path, path, "code", source, licence, package.origin))
    return documents


def decode(content: bytes) -> str:
    """Text of a file in its declared encoding (UTF-8 if none is declared), with newlines as the only line ending."""
    try:
        encoding, _lines = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"cannot be decoded: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse(text: str) -> ast.Module:
    """The tree of a file's text.

    Raises:
        UnreadableFile: if it cannot be parsed.
    """
    try:
        return parse_python(text)
    except ValueError as error:
        raise UnreadableFile(f"cannot be parsed: {error}") from error
