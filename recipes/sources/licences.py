"""Which license a text states for itself: an SPDX identifier, or several joined by AND.

The rules look for the words that the licenses themselves prescribe (a notice, a clause, a link) or that grant one
("under the MIT license"), not for any occurrence of their letters: a ciphertext that ends in RGPL states nothing. A
text that states several licenses gets all of them, because all of them bind anyone who copies it. The GNU licenses are
named without a version, which would need a lawyer to determine.

    python -c "from nemotron.recipes.sources.licences import stated_licence as f; print(f('under the MIT license'))"
"""

import re

# License -> words that state it. BSD is handled below, because its variants share their first sentence.
STATEMENTS = {
    "AGPL": re.compile(r"GNU Affero General Public Licen[sc]e|\bAGPL"),
    "Apache-2.0": re.compile(r"Apache Licen[sc]e,? (Version )?2\.0|apache\.org/licenses/LICENSE-2\.0"),
    "GPL": re.compile(r"GNU General Public Licen[sc]e|\bGPL(v?[23]|-[23]\.0)?\b"),
    "LGPL": re.compile(r"GNU (Lesser|Library) General Public Licen[sc]e|\bLGPL"),
    "MIT": re.compile(r"Permission is hereby granted, free of charge, to any person|under the MIT [Ll]icen[sc]e"),
    "MPL-2.0": re.compile(r"Mozilla Public Licen[sc]e"),
}
SPDX_TAG = re.compile(r"SPDX-License-Identifier: ?([A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*)")
CREATIVE_COMMONS = re.compile(r"creativecommons\.org/licenses/(by(?:-nc)?(?:-nd|-sa)?)/([0-9.]+[0-9])")
BSD_GRANT = re.compile(r"Redistribution and use in source and binary forms|under the BSD-3-Clause Licen[sc]e")
BSD_THIRD_CLAUSE = re.compile(r"Neither the names? |may be used to endorse|BSD-3-Clause")
BSD_NO_PATENT = re.compile(r"NO EXPRESS OR IMPLIED LICEN[SC]ES TO ANY PARTY'S PATENT")

# Every rule above needs one of these words; most texts contain none and need no further search.
HINT = re.compile(r"licen[sc]e|GPL|Permission is hereby|Redistribution and|creativecommons", re.IGNORECASE)
LINE_START = re.compile(r"\s*\n[ \t]*#?[ \t]*")


def stated_licence(text: str) -> str | None:
    """The license that `text` states in its comments, docstrings or elsewhere; None if it states none.

    A line break and a following comment sign count as one space, because notices are wrapped.
    """
    if not HINT.search(text):
        return None
    unwrapped = LINE_START.sub(" ", text)
    found = {licence for licence, pattern in STATEMENTS.items() if pattern.search(unwrapped)}
    found |= {match.group(1) for match in SPDX_TAG.finditer(unwrapped)}
    found |= {f"CC-{match.group(1).upper()}-{match.group(2)}" for match in CREATIVE_COMMONS.finditer(unwrapped)}
    if BSD_GRANT.search(unwrapped):
        if BSD_NO_PATENT.search(unwrapped):
            found.add("BSD-3-Clause-Clear")
        else:
            found.add("BSD-3-Clause" if BSD_THIRD_CLAUSE.search(unwrapped) else "BSD-2-Clause")
    return " AND ".join(sorted(found)) or None
