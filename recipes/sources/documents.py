"""What every source hands to curation: a `Document`, or an `Unreadable` that says why there is none.

Nothing is skipped in silence: whoever reads n things returns documents and unreadables that account for all n.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One raw text with everything that curation has to know about it."""

    id: str
    """Unique in its source and the same on every machine: "sympy/core/add.py::Add.flatten", "math/arithmetic/000123",
    the source's own id, or "<file>#<row>"."""
    module: str
    """What belongs together, for sampling and for the train/validation split: the file of a docstring, the block of
    twenty of a problem, the id itself where nothing is known."""
    category: str
    """Of the blend: "academic" for docstrings, "code" for source, "math" for problems, else what the user says."""
    text: str
    licence: str
    """SPDX identifier, or the words in which the source states its licence; "unknown" where it states none."""
    origin: str
    """Where it comes from, for the attribution list: "sympy 1.14.0", a path, a URI, "procedural"."""
    has_example: bool | None = None
    """A worked example stood beside this docstring; None where the question does not arise."""
    exported: bool | None = None
    """The documented object is exported (True) or private (False); None where neither is sure."""


@dataclass(frozen=True)
class Unreadable:
    """One thing that a source could not read: a file, a row, a line."""

    id: str
    reason: str
