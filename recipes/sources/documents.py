"""What every source hands to curation: a `Document`, or an `Unreadable` with the reason why there is none.

Nothing is skipped silently: a reader of n things returns documents and unreadables that account for all n.
"""

from dataclasses import dataclass

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Document:
    """One raw text with everything that curation needs to know about it."""

    id: str
    """Unique in its source and the same on every machine: "sympy/core/add.py::Add.flatten", "math/arithmetic/000123",
    the source's own id, or "<file>#<row>"."""
    module: str
    """What sampling and the train/validation split keep together: for a docstring its file, for a problem its block of
    twenty problems, otherwise the id itself."""
    category: str
    """In the blend: "academic" for docstrings, "code" for source, "math" for problems, else what the user names."""
    text: str
    licence: str
    """SPDX identifier, or the license as the source words it; `UNKNOWN_LICENCE` if the source states none."""
    origin: str
    """Where it comes from, for the attribution list: "sympy 1.14.0", a path, a URI, "procedural"."""
    has_example: bool | None = None
    """Whether this docstring had a worked example; None for a text that is not a docstring, or if it is unclear."""
    exported: bool | None = None
    """True if the documented object is exported, False if it is private; None if neither is certain."""
    bucket: int | None = None
    """Quality bucket from 0 to 19 that curation adds; None before that, and for documents that no scorer judges."""


@dataclass(frozen=True)
class Unreadable:
    """Something that a source could not read: a file, a row or a line."""

    id: str
    reason: str
