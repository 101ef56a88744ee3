"""The licenses that a training text may have, and the rule that drops the others.

Source: arXiv 2508.14444, section 2.2, filters code by a BigCode-like license detection and a shorter allow-list. We do
not know that list (the paper's appendix A); the one below is our choice: permissive licenses without conditions on
works made with a text.

Licenses are SPDX expressions; upper and lower case do not matter. A text whose license is not such an
expression is dropped, and the report quotes the license. A text whose source states no license ("unknown", such as a
row of a web crawl) is kept, because the published pipeline has no license filter on web text; the attribution list
counts it.
Left out: finding the license of a text, which each source does.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from license_expression import ExpressionError, LicenseSymbol, LicenseWithExceptionSymbol, get_spdx_licensing
from pydantic import BaseModel

from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.conversations import Conversation
from nemotron.recipes.sources.documents import UNKNOWN_LICENCE
from nemotron.recipes.sources.exercises.exercise import Exercise

ALLOWED_LICENCES = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
)  # fmt: skip


SPDX = get_spdx_licensing()
ALLOWED_KEYS = {licence.casefold() for licence in ALLOWED_LICENCES}
KNOWN_EXCEPTIONS = {symbol.key for symbol in SPDX.known_symbols.values() if symbol.is_exception}


def is_allowed(licence: str) -> bool:
    """Whether a license is on the list: an SPDX identifier, "A AND B" if both are, "A OR B" if either is.

    An exception of the SPDX list ("A WITH B") and "or later" ("A+") only add permissions, so A decides.
    """
    if licence == UNKNOWN_LICENCE:
        return True
    try:
        return allows(SPDX.parse(licence))
    except (ExpressionError, RecursionError):
        return False


def allows(node: Any) -> bool:
    """Whether an expression that license-expression has parsed, or a part of it, permits the text's use."""
    if isinstance(node, SPDX.AND):
        return all(map(allows, node.args))
    if isinstance(node, SPDX.OR):
        return any(map(allows, node.args))
    if isinstance(node, LicenseWithExceptionSymbol):
        return node.exception_symbol.key in KNOWN_EXCEPTIONS and allows(node.license_symbol)
    return isinstance(node, LicenseSymbol) and node.key.removesuffix("+").casefold() in ALLOWED_KEYS


def licence_rule() -> Rule[Document]:
    """Drops documents whose stated license is not on the list."""
    return Rule(
        name="licence",
        threshold=f"one of {', '.join(ALLOWED_LICENCES)}, or not stated (our choice)",
        fault=lambda document: None if is_allowed(document.licence) else document.licence,
    )


class Attribution(BaseModel):
    """How many kept documents, conversations or exercises come from one origin under one license."""

    origin: str
    licence: str
    num_documents: int


def attribution_of(items: Iterable[Document | Conversation | Exercise]) -> list[Attribution]:
    """Who is to be credited for documents, conversations or exercises, sorted by origin and license.

    A row of the user's says both in the details of its exercise; the other exercises are made here.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for item in items:
        if isinstance(item, Exercise):
            stated = {"origin": "procedural", "licence": "Apache-2.0", **json.loads(item.details)}
            counts[stated["origin"], stated["licence"]] += 1
        else:
            counts[item.origin, item.licence] += 1
    return attribution_of_pairs(counts.elements())


def attribution_of_pairs(pairs: Iterable[tuple[str, ...]]) -> list[Attribution]:
    """Who is to be credited, from (origin, license) of each text, sorted by both."""
    counts = Counter(pairs)
    return [
        Attribution(origin=origin, licence=licence, num_documents=count)
        for (origin, licence), count in sorted(counts.items())
    ]
