"""Which license a text or a row states: an SPDX identifier, or several joined by AND.

The rules look for the words that the licenses themselves prescribe (a notice, a clause, a link) or that grant one
("under the MIT license"), not for any occurrence of their letters: a ciphertext that ends in RGPL states nothing. A
text that states several licenses gets all of them, because all of them bind anyone who copies it. The GNU licenses are
named without a version, which would need a lawyer to determine. A column or an SPDX tag that is not understood is
reported too, so that no filter takes the text for an unlicensed one.

Left out: other licenses that a text names in its own words, such as "Business Source License 1.1", "released under CC
BY-NC 4.0" or "Proprietary license". Such a text counts as stating none.

    python -c "from nemotron.recipes.sources.licences import stated_licence as f; print(f('under the MIT license'))"
"""

import json
import re
from collections.abc import Set
from typing import Any

import pyarrow as pa

from nemotron.recipes.sources.documents import UNKNOWN_LICENCE
from nemotron.recipes.sources.reading import Row, is_text
from nemotron.strict import load_json

# License -> words that state it. BSD is handled below, because its variants share their first sentence.
STATEMENTS = {
    "AGPL": re.compile(r"GNU Affero General Public Licen[sc]e|\bAGPL"),
    "Apache-2.0": re.compile(r"Apache Licen[sc]e,? (Version )?2\.0|apache\.org/licenses/LICENSE-2\.0"),
    "GPL": re.compile(r"GNU General Public Licen[sc]e|\bGPL(v?[23]|-[23]\.0)?\b"),
    "LGPL": re.compile(r"GNU (Lesser|Library) General Public Licen[sc]e|\bLGPL"),
    "MIT": re.compile(r"Permission is hereby granted, free of charge, to any person|under the MIT [Ll]icen[sc]e"),
    "MPL-2.0": re.compile(r"Mozilla Public Licen[sc]e"),
}
SPDX_OPERAND = r"\(*[A-Za-z0-9.+:-]+\)*"
SPDX_TAG = re.compile(
    rf"SPDX-License-Identifier: ?({SPDX_OPERAND}(?: (?:AND|OR|WITH) {SPDX_OPERAND})*)?", re.IGNORECASE
)
NOT_UNDERSTOOD = "not understood"
"""The license of a text whose SPDX tag has no expression."""
KINDS = {"permissive"}
"""A license_type of The Stack v2, which adds nothing to a license that is named beside it."""
CREATIVE_COMMONS = re.compile(r"creativecommons\.org/licenses/(by(?:-nc)?(?:-nd|-sa)?)/([0-9.]+[0-9])")
BSD_GRANT = re.compile(r"Redistribution and use in source and binary forms|under the BSD-3-Clause Licen[sc]e")
BSD_THIRD_CLAUSE = re.compile(r"Neither the names? |may be used to endorse|BSD-3-Clause")
BSD_NO_PATENT = re.compile(r"NO EXPRESS OR IMPLIED LICEN[SC]ES TO ANY PARTY'S PATENT")

# Every rule above needs one of these words; most texts contain none and need no further search.
HINT = re.compile(r"licen[sc]e|GPL|Permission is hereby|Redistribution and|creativecommons", re.IGNORECASE)
CHOICE = re.compile(r"\sOR\s", re.IGNORECASE)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
LINE_START = re.compile(r"\s*\n[ \t]*#?[ \t]*")

LICENCE_COLUMNS = {
    "license", "licence", "licenses", "licences", "license_type", "repo_license", "spdx_license",
    "detected_licenses", "max_forks_repo_licenses", "max_issues_repo_licenses", "max_stars_repo_licenses",
}  # fmt: skip
"""Columns, in upper or lower case, and keys of `METADATA_COLUMNS` that state a license. `license_type` and the
last four names are those of The Stack, versions 1 and 2."""
METADATA_COLUMNS = ("metadata", "meta")  # objects, or JSON in a text


def stated_licence(text: str) -> str | None:
    """The license that `text` states in its comments, docstrings or elsewhere; None if it states none.

    A line break and a following comment sign count as one space, because notices are wrapped.
    """
    if not HINT.search(text):
        return None
    unwrapped = LINE_START.sub(" ", text)
    found = {spdx_expression(match.group(1) or "") for match in SPDX_TAG.finditer(unwrapped)}
    unwrapped = SPDX_TAG.sub(" ", unwrapped)  # or the GPL in "MIT OR GPL-2.0-only" would count twice
    found |= {licence for licence, pattern in STATEMENTS.items() if pattern.search(unwrapped)}
    found |= {f"CC-{match.group(1).upper()}-{match.group(2)}" for match in CREATIVE_COMMONS.finditer(unwrapped)}
    if BSD_GRANT.search(unwrapped):
        if BSD_NO_PATENT.search(unwrapped):
            found.add("BSD-3-Clause-Clear")
        else:
            found.add("BSD-3-Clause" if BSD_THIRD_CLAUSE.search(unwrapped) else "BSD-2-Clause")
    return joined(found)


def spdx_expression(text: str) -> str:
    """An expression after an SPDX tag, without the end of the sentence or of the brackets around the tag."""
    text = text.rstrip(".:")
    while text.endswith(")") and text.count(")") > text.count("("):
        text = text[:-1]
    return text or NOT_UNDERSTOOD


def column_licence(value: Any) -> str | None:
    """The license that the value of a column states: its words, those of a list joined by AND; None if it is empty."""
    stated = stated_in(value)
    return joined(stated - KINDS or stated)


def stated_in(value: Any) -> set[str]:
    """Every license that the value of a column states, also in lists of lists."""
    if isinstance(value, list):
        return {licence for item in value for licence in stated_in(item)}
    if value in (None, {}) or (isinstance(value, str) and not value.strip()):
        return set()
    if isinstance(value, str) and not LONE_SURROGATE.search(value):
        return {value.strip()}
    try:
        return {json.dumps(value)}
    except TypeError:
        return {repr(value)}


def joined(licences: Set[str]) -> str | None:
    """All of the licenses in one expression, with brackets around those that offer a choice; None if there are none."""
    if len(licences) < 2:
        return next(iter(licences), None)
    return " AND ".join(sorted(f"({one})" if CHOICE.search(one) else one for one in licences))


# The rows of a source -------------------------------------------------------------------------------------------------


def row_licence(row: Row) -> str:
    """The licenses that the row states, in its words, or `UNKNOWN_LICENCE` if it states none."""
    values = licence_values(row.columns)
    for column in METADATA_COLUMNS:
        metadata = row.columns.get(column)
        if isinstance(metadata, str) and metadata.lstrip().startswith("{") and HINT.search(metadata):
            try:
                metadata = load_json(metadata)
            except (ValueError, RecursionError):
                values.append(NOT_UNDERSTOOD)
        if isinstance(metadata, dict):
            values += licence_values(metadata)
    return column_licence(values) or UNKNOWN_LICENCE


def licence_values(columns: dict[Any, Any]) -> list[Any]:
    """What the columns say that state a license."""
    return [value for name, value in columns.items() if str(name).casefold() in LICENCE_COLUMNS]


def licence_columns(schema: pa.Schema) -> list[str]:
    """The columns of a .parquet file that can state a license; a struct of metadata only if it has a key for it."""

    def can_state(column: pa.Field) -> bool:
        if column.name not in METADATA_COLUMNS:
            return column.name.casefold() in LICENCE_COLUMNS
        if pa.types.is_struct(column.type):
            return any(key.name.casefold() in LICENCE_COLUMNS for key in column.type)
        return is_text(column.type) or pa.types.is_map(column.type)

    return [column.name for column in schema if can_state(column)]
