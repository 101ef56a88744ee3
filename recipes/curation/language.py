"""The rule that drops prose that is not English; ../sources/languages.py identifies the language.

The rule keeps prose that is English with a probability of 0.3 or more. It keeps all other documents: source code has no
natural language to identify, and generated problems are English by construction.
Source: Nemotron-CC (arXiv 2412.02595) keeps pages that fastText's lid.176 finds English with a score of 0.3 or more.
We use py3langid because its wheel includes its model; its scores are on another scale, so the threshold is a proxy.

Left out: languages other than English; the published corpus has fifteen more, from separate sources.
"""

from nemotron.recipes.curation.categories import PROSE_RULES
from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.languages import english_probability

MIN_ENGLISH_PROBABILITY = 0.3


def language_fault(document: Document) -> str | None:
    """The probability of English, if it is too low for prose."""
    if document.category not in PROSE_RULES:
        return None
    probability = english_probability(document.text)
    return None if probability >= MIN_ENGLISH_PROBABILITY else f"English with a probability of {probability:.4g}"


def language_rule() -> Rule[Document]:
    """Drops prose that is not English."""
    return Rule(
        name="language",
        threshold=f"English with a probability of {MIN_ENGLISH_PROBABILITY} or more, prose only "
        f"(Nemotron-CC; proxy, because the probability is py3langid's)",
        fault=language_fault,
    )
