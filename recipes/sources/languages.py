"""Language identification with py3langid, whose wheel includes its model.

In: a text. Out: the probability that it is English, or the ISO 639-1 code of its likeliest language. Curation keeps
English prose by the first, and verifiers of replies use the second.

    python -c "from nemotron.recipes.sources.languages import *; print(likeliest_language('Das ist ein Haus.'))"

Left out: texts of a few words, of which py3langid recognizes few. Cut into pieces of 2 words, half of the pieces of
this repository's README are English to it; of 10 words, 99 % are.
"""

from collections.abc import Collection
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def english_probability(text: str) -> float:
    """py3langid's probability that a text is English.

    It is computed in float32, so its seventh digit differs between machines.
    """
    return dict(_identifier().rank(text))["en"]


def likeliest_language(text: str, *, among: Collection[str] | None = None) -> str:
    """The ISO 639-1 code that py3langid finds most probable, of these languages or of all that it knows."""
    return next(code for code, _ in _identifier().rank(text) if among is None or code in among)
