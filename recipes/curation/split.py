"""Which documents are trained on and which are held out, decided by module.

In: (module, category) of every document. Out: the modules that are held out.
All documents of a module (a file's docstrings and its source) fall on one side, and near-duplicates of different modules
were dropped before, so that nothing held out has a near-duplicate in training. Our choice; the paper does not say how
its validation text was held out.
"""

import hashlib
from collections.abc import Iterable


def order_of(*parts: str | int) -> str:
    """A digest to sort by: a random but fixed order that does not depend on what else is sorted."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def held_out_modules(modules: Iterable[tuple[str, str]], share: float, seed: int) -> set[str]:
    """The modules of the validation split.

    A module is held out where its digest falls into the first `share` of all digests. A category without such a module
    gives its first one in the order of the digests.

    Args:
        modules: (module, category) pairs; a module may have several categories.
        share: share of the modules to hold out, above 0 and below 1.
        seed: picks the digests.
    Raises:
        ValueError: if all documents of a category belong to one module, so that none is left on one of the two sides.
    """
    by_category: dict[str, set[str]] = {}
    for module, category in modules:
        by_category.setdefault(category, set()).add(module)
    held_out = {
        module
        for members in by_category.values()
        for module in members
        if int(order_of("split", seed, module)[:16], 16) < share * 2**64
    }
    for category in sorted(by_category):
        members = sorted(by_category[category], key=lambda module: order_of("split", seed, module))
        if not held_out & set(members):
            held_out.add(members[0])
        if held_out >= set(members):
            raise ValueError(
                f"category {category!r} has {len(members)} module(s) and both the training and the validation split need "
                f"one; bring more documents of this category or more --raw-documents"
            )
    return held_out
