"""Which licences a training text may have.

In: the licence that a source states. Out: whether it is on the list.
Source: arXiv 2508.14444, section 2.2, keeps code with a BigCode-like licence detection and a shorter allow-list. The
list itself, in the paper's appendix A, is not known to us; the one below is our choice: permissive licences without
conditions on the works that are made with a text.

Left out: finding the licence of a text; that is the source's business. A text whose source states no licence
("unknown", such as a row of a web crawl) is kept, because the published pipeline has no licence filter on web text;
the attribution list counts it.
"""

from nemotron.recipes.curation.filters import Filter
from nemotron.recipes.sources.dataframes import daft

ALLOWED_LICENCES = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
)  # fmt: skip
UNKNOWN_LICENCE = "unknown"


def is_allowed(licence: str) -> bool:
    """Whether a licence is on the list: an SPDX identifier, "A AND B" if both are, "A OR B" if one is."""
    if " OR " in licence:
        return any(map(is_allowed, licence.strip("()").split(" OR ")))
    if " AND " in licence:
        return all(map(is_allowed, licence.strip("()").split(" AND ")))
    return licence in (*ALLOWED_LICENCES, UNKNOWN_LICENCE)


@daft.func.batch(return_dtype=daft.DataType.bool(), use_process=False)
def _are_allowed(licence: daft.Series) -> list[bool]:
    return [is_allowed(stated) for stated in licence.to_pylist()]


def licence_filter() -> Filter:
    """Keeps documents whose licence is on the list or not stated."""
    return Filter(
        name="licence",
        threshold=f"one of {', '.join(ALLOWED_LICENCES)}, or not stated (our choice)",
        value=daft.col("licence"),
        keep=_are_allowed(daft.col("value")),
    )
