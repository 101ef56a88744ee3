"""Split the documents into training and validation, by module.

In: (module, category) of every document. Out: the held-out modules. All documents of a module (the docstrings and the
source of a file) are on one side, and near-duplicates were dropped before, so no held-out document has a near-duplicate
in training. This is our choice; the Nano 2 paper does not say how its validation text was held out.
"""

from collections.abc import Iterable

from nemotron.recipes.curation.digests import digest_of, falls_into_share


def held_out_modules(modules: Iterable[tuple[str, str]], share: float, seed: int) -> set[str]:
    """The modules of the validation split.

    A module is held out if its digest is among the lowest `share` of all digests. A category without such a module
    holds out the one with the smallest digest.

    Args:
        modules: (module, category) pairs; a module may have several categories.
        share: share of the modules to hold out, greater than 0 and less than 1.
        seed: picks the digests.
    Raises:
        ValueError: if all modules of a category would be held out.
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
                f"the corpus is too small: after the filters, category {category!r} has {len(by_category[category])} "
                f"module(s), of which a document of a source is one, and all of them are held out for validation; add "
                f"documents to this category"
            )
    return held_out
