"""Which documents are trained on and which are held out, decided by module.

In: (module, category) of every document. Out: the modules that are held out. All documents of a module (a file's
docstrings and its source) fall on one side, and near-duplicates of different modules were dropped before, so that
nothing held out has a near-duplicate in training. Our choice; the paper does not say how its validation text was held
out.
"""

import hashlib
from collections.abc import Iterable


def digest_of(*parts: str | int) -> str:
    """A digest to sort by: an arbitrary order, but the same everywhere and independent of what else is sorted."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def falls_into_share(share: float, *parts: str | int) -> bool:
    """Whether the digest of the parts is among the first `share` (0 to 1) of all digests."""
    return int(digest_of(*parts)[:16], 16) < share * 2**64


def held_out_modules(modules: Iterable[tuple[str, str]], share: float, seed: int) -> set[str]:
    """The modules of the validation split.

    A module is held out if its digest falls into the first `share` of all digests. A category without such a module
    gives the one with the smallest digest.

    Args:
        modules: (module, category) pairs; a module may have several categories.
        share: share of the modules to hold out, above 0 and below 1.
        seed: picks the digests.
    Raises:
        ValueError: if a category has no module for one of the two sides.
    """
    by_category: dict[str, set[str]] = {}
    for module, category in modules:
        by_category.setdefault(category, set()).add(module)
    everything = set().union(*by_category.values())
    held_out = {module for module in everything if falls_into_share(share, "split", seed, module)}
    for category in sorted(by_category):
        if not held_out & by_category[category]:
            held_out.add(min(by_category[category], key=lambda module: digest_of("split", seed, module)))
    for category in sorted(by_category):
        if not by_category[category] - held_out:
            raise ValueError(
                f"the corpus is too small: category {category!r} comes from {len(by_category[category])} module(s), "
                f"and training and validation need one each; bring more documents of this category"
            )
    return held_out
