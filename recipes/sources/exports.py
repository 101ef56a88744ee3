"""Label B: whether a documented object is exported or private, according to the files around it.

In: syntax trees of a file and of the `__init__` files of its parent packages. Out: True for an object in `__all__`,
False for one with a leading underscore, None for all others. Nothing is imported.

Left out: names that are added to `__all__` by a star import or computed.
"""

import ast
import re
from collections.abc import Callable

from nemotron.recipes.sources.docstrings import MODULE

MAX_HOPS = 10  # our choice: longest chain of re-exports that is followed; ends circular imports


class Exports:
    """Labels for the files of one corpus; `__init__` files are parsed when they are first needed.

    Args:
        read_tree: path of a file -> its tree, or None if the corpus has no such file or cannot read it.
    """

    def __init__(self, read_tree: Callable[[str], ast.Module | None]) -> None:
        self.read_tree = read_tree
        self.trees: dict[str, ast.Module | None] = {}
        self.imports: dict[str, dict[str, tuple[str, str]]] = {}
        self.listed: dict[str, set[tuple[str, str]]] = {}

    def label(self, path: str, tree: ast.Module, name: str, text: str) -> bool | None:
        """True for an object in `__all__` of its module or of a parent package, False for a private one, else None.

        An object is private if a part of its qualified name starts with an underscore, except names like __init__. A
        text that names its own object would reveal the label (the underscore is in the name), so it gets None.

        Args:
            path: the file.
            tree: its tree.
            name: qualified name in the file, as in `Docstring.name`.
            text: the part of the docstring that goes into the document.
        """
        name = name.partition("#")[0]
        module_parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
        parts = module_parts if name == MODULE else [*module_parts, *name.split(".")]
        if re.search(rf"(?<!\w){re.escape(parts[-1])}(?!\w)", text):
            return None
        if len(parts) == len(module_parts) + 1 and self.is_listed(path, tree, name):
            return True
        return False if any(part.startswith("_") and not part.endswith("__") for part in parts) else None

    def is_listed(self, path: str, tree: ast.Module, name: str) -> bool:
        """Whether the file's `__all__` lists `name`, or a parent package imports it from the file and lists it."""
        if name in listed_names(tree):
            return True
        directories = path.split("/")[:-1]
        around = ("/".join([*directories[:depth], "__init__.py"]) for depth in range(len(directories), 0, -1))
        return any((path, name) in self.listed_by(init) for init in around if init != path)

    def listed_by(self, init: str) -> set[tuple[str, str]]:
        """(file, name) of the definition of every name that an `__init__` file lists, cached."""
        if init not in self.listed:
            tree = self.tree_of(init)
            names = listed_names(tree) if tree else set()
            self.listed[init] = {self.defined_at(init, name) for name in names}
        return self.listed[init]

    def defined_at(self, path: str, name: str) -> tuple[str, str]:
        """The (file, name) of a definition, following `from x import name` through `__init__` files."""
        for _ in range(MAX_HOPS):
            if path not in self.imports:
                tree = self.tree_of(path)
                self.imports[path] = imported_names(path, tree) if tree else {}
            if name not in self.imports[path]:
                break
            module, name = self.imports[path][name]
            path = f"{module}/__init__.py"
            if self.tree_of(path) is None:
                return f"{module}.py", name
        return path, name

    def tree_of(self, path: str) -> ast.Module | None:
        """The tree of a file, cached."""
        if path not in self.trees:
            self.trees[path] = self.read_tree(path)
        return self.trees[path]


def listed_names(tree: ast.Module) -> set[str]:
    """Names in `__all__ = ...`, `__all__ += ...` or `__all__.extend(...)` at the top level of a module."""
    names: set[str] = set()
    for statement in tree.body:
        value: ast.expr | None = None
        if isinstance(statement, ast.Assign):
            value = statement.value if any(is_all(target) for target in statement.targets) else None
        elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
            value = statement.value if is_all(statement.target) else None
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            function = statement.value.func
            value = statement.value if isinstance(function, ast.Attribute) and is_all(function.value) else None
        if value is not None:
            constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
            names.update(constant for constant in constants if isinstance(constant, str))
    return names


def is_all(node: ast.expr) -> bool:
    """Whether an expression is the name `__all__`."""
    return isinstance(node, ast.Name) and node.id == "__all__"


def imported_names(path: str, tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Name in a file -> (module that it is imported from, as a path without suffix, and its name there)."""
    names: dict[str, tuple[str, str]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            base = path.split("/")[: -statement.level] if statement.level else []
            module = "/".join([*base, *(statement.module or "").split(".")]).rstrip("/")
            for alias in statement.names:
                names[alias.asname or alias.name] = (module, alias.name)
    return names
