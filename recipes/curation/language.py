"""Keep English prose.

In: documents. Out: those that are English with a probability of 0.3 or more, and all documents that are no prose: a
language says nothing about source code, and generated problems are English by construction.
Source: Nemotron-CC (arXiv 2412.02595) keeps pages that fastText's lid.176 calls English with 0.3 or more. py3langid
stands in for it because its model lies in its wheel; its probabilities are another scale, so the number is a proxy.

Left out: languages other than English; the published corpus has fifteen more, which come from sources of their own.
"""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from nemotron.recipes.curation.filters import PROSE, Filter
from nemotron.recipes.sources.dataframes import daft

MIN_ENGLISH_PROBABILITY = 0.3


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def english_probability(text: str) -> float:
    """py3langid's probability that a text is English; computed in float32, so its seventh digit differs by machine."""
    return dict(_identifier().rank(text))["en"]


def likeliest_language(text: str) -> str:
    """The ISO 639-1 code that py3langid finds most probable."""
    return _identifier().rank(text)[0][0]


@daft.func.batch(return_dtype=daft.DataType.float64(), use_process=False)
def _english_probabilities(text: daft.Series, category: daft.Series) -> list[float | None]:
    pairs = zip(text.to_pylist(), category.to_pylist(), strict=True)
    return [english_probability(document) if kind in PROSE else None for document, kind in pairs]


def language_filter() -> Filter:
    """Keeps English prose and everything that is no prose."""
    return Filter(
        name="language",
        threshold=f"English with a probability of {MIN_ENGLISH_PROBABILITY} or more, prose only "
        f"(Nemotron-CC; proxy, as the probability is py3langid's)",
        value=_english_probabilities(daft.col("text"), daft.col("category")),
        keep=daft.col("value").is_null() | (daft.col("value") >= daft.lit(MIN_ENGLISH_PROBABILITY)),
    )
