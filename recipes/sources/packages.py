"""Raw text that every installation has: docstrings and source of four pinned packages that torch itself depends on.

What goes in: the files of sympy, networkx, mpmath and jinja2 as pip installed them. What comes out: a document for each
docstring (category "academic", without its worked examples) and one for each module's source (category "code", without
its docstrings), with licence, origin and the two stand-in labels of docstrings.py and exports.py. The files are data:
every one is checked against the sha256 in its package's RECORD before it is read, and none is imported or run. Tests of
the packages are no documents; they serve decontamination as a text that training must not repeat.

    python -c "import nemotron.recipes.sources.packages as p; print(len(p.package_documents(750)[0]))"

Left out: files that are not Python, and what stands outside of a package's own directory.
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
from nemotron.recipes.sources.documents import Document, Unreadable
from nemotron.recipes.sources.exports import Exports
from nemotron.recipes.sources.licences import licence_stated_in

# As pinned in pyproject.toml: another version is another corpus.
PACKAGES = {"jinja2": "3.1.6", "mpmath": "1.3.0", "networkx": "3.6.1", "sympy": "1.14.0"}

# sympy's LICENSE file puts this directory under the licence of latex2sympy, from which it was copied.
LICENCES_OF_DIRECTORIES = {"sympy/parsing/latex/": "MIT"}

# Goes into the digest that orders the modules. Our choice, out of 300 that were tried: all four packages and the one
# file under a licence that curation refuses stand among the first sixty modules, so that a small sample shows what the
# whole corpus holds.
SAMPLE_ORDER = "6"


class UnreadableFile(Exception):
    """A file that is what RECORD says and still no text of this Python."""


@dataclass(frozen=True)
class Package:
    """One installed package, as its RECORD describes it."""

    name: str
    version: str
    distribution: Distribution = field(repr=False)
    digests: dict[str, str] = field(repr=False)
    """Path inside site-packages -> sha256 as RECORD writes it, URL-safe base64 without padding; "" without one."""

    @property
    def origin(self) -> str:
        """Name and version, for the attribution list."""
        return f"{self.name} {self.version}"

    @property
    def modules(self) -> list[str]:
        """Paths of the Python files in the package's own directory, its tests included."""
        return sorted(path for path in self.digests if path.startswith(f"{self.name}/") and path.endswith(".py"))

    @cached_property
    def licence(self) -> str:
        """The package's own: the SPDX expression in its metadata, else what its licence file states at the top."""
        metadata = self.distribution.metadata
        if "License-Expression" in metadata:
            return metadata["License-Expression"]
        for path in sorted(self.digests):
            if re.search(r"\.dist-info/(licenses/)?LICEN[SC]E(\.txt|\.md|\.rst)?$", path):
                own_part = decoded(self.read(path)).split("\n-----", 1)[0]  # below the line: licences of copied parts
                return licence_stated_in(own_part) or "unknown"
        return "unknown"

    def licence_of(self, path: str, text: str) -> str:
        """The licence of one file: what it states itself, else what holds for its directory, else the package's."""
        for directory, licence in LICENCES_OF_DIRECTORIES.items():
            if path.startswith(directory):
                return licence_stated_in(text) or licence
        return licence_stated_in(text) or self.licence

    def read(self, path: str) -> bytes:
        """The bytes of a file that RECORD lists.

        Raises:
            ValueError: if the file is missing or its sha256 is not the one in RECORD.
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
    """What to do about a package that is not as pinned."""
    return f"run: pip install --force-reinstall --no-deps {name}=={version}"


def installed_package(name: str, version: str) -> Package:
    """The package as installed here, with the digests of its RECORD; no other file of it is read.

    Raises:
        ValueError: if it is not installed, has another version, or came without a RECORD.
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
    """Name -> `installed_package`, in the order of the names."""
    return {name: installed_package(name, version) for name, version in sorted(packages.items())}


def package_documents(
    num_documents: int, packages: Mapping[str, str] = PACKAGES
) -> tuple[list[Document], list[Unreadable]]:
    """Docstrings and source: at least `num_documents` documents, or everything there is.

    Modules are taken whole, in the order of a digest of their paths: near-duplicates live in one file and so survive
    the sampling, a smaller sample is the beginning of a larger one, and no other file is read.

    Args:
        num_documents: how many documents to reach, at least 1; the last module may exceed it.
        packages: name -> version that must be installed.
    Returns:
        Documents ordered by module and inside it as in the file, the source last; and the files that cannot be decoded
        or parsed, each of which counts as one document. A docstring that was nothing but examples is an empty text.
    Raises:
        ValueError: if `num_documents` is below 1, or an installed package is not the pinned one.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} must be at least 1")
    installed = installed_packages(packages)
    of_module = {path: package for package in installed.values() for path in package.modules}

    def tree_of(path: str) -> ast.Module | None:
        try:
            return parsed(decoded(of_module[path].read(path))) if path in of_module else None
        except UnreadableFile:
            return None  # named when its own turn comes

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
    """The packages' own tests, whole files, as one more text that training must not repeat.

    Args:
        modules: `Document.module` of sampled documents: only the tests named after them ("core/tests/test_add.py" for
            "core/add.py"), beside them or one directory up; nothing else is read. None: all tests.
        packages: name -> version that must be installed.
    Returns:
        Documents of the category "package-tests" in the order of their paths, and the files that cannot be decoded.
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
                text = decoded(package.read(path))
            except UnreadableFile as error:
                unreadable.append(Unreadable(path, str(error)))
                continue
            texts.append(Document(path, path, "package-tests", text, package.licence_of(path, text), package.origin))
    return texts, unreadable


def is_test(path: str) -> bool:
    """Whether a file belongs to its package's tests."""
    return "/tests/" in path or path.endswith("/conftest.py")


def tests_named_after(module: str) -> list[str]:
    """Where the tests of one module would stand, beside it or one directory up."""
    directory, _slash, file_name = module.rpartition("/")
    parent = directory.rpartition("/")[0]
    return [f"{place}/tests/test_{file_name}" for place in (directory, parent) if place]


def sample_order(path: str) -> str:
    """Sort key of a module for sampling: the same on every machine and unrelated to what the path means."""
    return hashlib.sha256(f"{SAMPLE_ORDER}/{path}".encode()).hexdigest()


def documents_of_module(path: str, package: Package, exports: Exports) -> list[Document]:
    """The documents of one file: its docstrings, then its source, if there is more in it than docstrings.

    Raises:
        UnreadableFile: if it cannot be decoded or parsed.
        ValueError: if it is not the file in RECORD.
    """
    text = decoded(package.read(path))
    tree = parsed(text)
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


def decoded(content: bytes) -> str:
    """Text of a file in the encoding it declares (UTF-8 if it declares none), every line ending in a bare newline."""
    try:
        encoding, _lines = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"cannot be decoded: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parsed(text: str) -> ast.Module:
    """The tree of a file's text, or an `UnreadableFile` that says why there is none."""
    try:
        return parse_python(text)
    except ValueError as error:
        raise UnreadableFile(f"cannot be parsed: {error}") from error
