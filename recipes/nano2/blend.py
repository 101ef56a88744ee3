"""The pretraining blend: the share of tokens that each category of text has in each phase, and its released datasets.

The phases are published (arXiv 2508.14444, sections 2.2 and 2.3: phase 1 for diversity, phases 2 and 3 for quality,
switches at 60 % and 90 % of the tokens). The percentages are only in a figure that we could not read, so
Nemotron 3 Nano's two phases serve as proxy: its first for our phase 1, its second for our phases 2 and 3. Its numbers
were read from a rendered chart, so single ones may be off. They sum to 100.0 and 100.1; `renormalised` divides by the
sum.

A category without a document leaves its weight to those of its kind (prose, code, math): what stays as published is how
much prose, code and math a phase has. If all categories shared the weight, code would have 57 % of phase 1 offline.

Long-context phase (published, section 2.6): 20 % questions on long documents, and phase 3's weights for the rest.
"""

from nemotron.config import proxy, published
from nemotron.recipes.curation.categories import kind_of

PERCENT = "Nemotron 3 Nano, percent of the tokens of its phase"
PHASE1: dict[str, float] = proxy(
    {
        "crawl-medium": 6.8,
        "crawl-medium-high": 5.7,
        "crawl-high": 6.5,
        "syn-crawl-medium-high": 11.7,
        "syn-crawl-high": 20.4,
        "code": 14.0,
        "nemotron-cc-code": 1.3,
        "math": 6.4,
        "wiki": 0.6,
        "academic": 4.1,
        "crawl++": 2.9,
        "multilingual": 5.0,
        "stem-sft": 11.1,
        "code-sft": 3.3,
        "general-sft": 0.2,
    },
    PERCENT,
).value
PHASE2: dict[str, float] = proxy(
    {
        "crawl-medium-high": 4.0,
        "crawl-high": 6.5,
        "syn-crawl-medium-high": 5.0,
        "syn-crawl-high": 20.4,
        "code": 14.0,
        "math": 12.5,
        "wiki": 1.3,
        "academic": 2.0,
        "multilingual": 5.0,
        "stem-sft": 22.3,
        "code-sft": 6.7,
        "general-sft": 0.4,
    },
    PERCENT,
).value
LONG_DOCUMENT_QA = "long-document-qa"
LONG_DOCUMENT_QA_SHARE: float = published(0.2, "section 2.6").value

# The long-context phase has phase 3's weights in the 80 % that the questions leave (published, section 2.6).
BLEND = {"phase1": PHASE1, "phase2": PHASE2, "phase3": PHASE2, "long_context": PHASE2}

# NVIDIA's released datasets for each category. Which dataset belongs to which category is our reading of the dataset
# cards; a category without an entry was not released with its text.
RELEASED: dict[str, tuple[str, ...]] = {
    "crawl-medium": ("hf://datasets/nvidia/Nemotron-CC-v2/Medium-Quality/*.parquet",),
    "crawl-medium-high": ("hf://datasets/nvidia/Nemotron-CC-v2/Medium-High-Quality/*.parquet",),
    "crawl-high": ("hf://datasets/nvidia/Nemotron-CC-v2/High-Quality/*.parquet",),
    "syn-crawl-high": (
        "hf://datasets/nvidia/Nemotron-CC-v2/High-Quality-Synthetic/*.parquet",
        "hf://datasets/nvidia/Nemotron-CC-v2/Diverse-QA/*.parquet",
    ),
    "code": ("hf://datasets/nvidia/Nemotron-Pretraining-Code-v1/Synthetic-Code/*.parquet",),
    "math": (
        "hf://datasets/nvidia/Nemotron-CC-Math-v1/4plus/*.parquet",
        "hf://datasets/nvidia/Nemotron-CC-Math-v1/3/*.parquet",
        "hf://datasets/nvidia/Nemotron-CC-Math-v1/4plus_MIND/*.parquet",
    ),
    "multilingual": ("hf://datasets/nvidia/Nemotron-CC-v2/Translated-Diverse-QA/*.parquet",),
    "stem-sft": ("hf://datasets/nvidia/Nemotron-Pretraining-SFT-v1/Nemotron-SFT-MATH/*.parquet",),
    "code-sft": ("hf://datasets/nvidia/Nemotron-Pretraining-SFT-v1/Nemotron-SFT-Code/*.parquet",),
    "general-sft": ("hf://datasets/nvidia/Nemotron-Pretraining-SFT-v1/Nemotron-SFT-General/*.parquet",),
}


def renormalised(weights: dict[str, float], present: list[str]) -> dict[str, float]:
    """Share of each category in `present`: its kind's share of the blend, divided in proportion to the weights.

    Raises:
        ValueError: if none of `present` has a weight.
    """
    kept = {category: weights[category] for category in sorted(present) if category in weights}
    if not kept:
        raise ValueError(f"no source belongs to a category of the blend; name one of {', '.join(weights)}")
    kinds = {kind_of(category) for category in kept}
    of_kind = {kind: sum(w for name, w in weights.items() if kind_of(name) == kind) for kind in sorted(kinds)}
    kept_of_kind = {kind: sum(w for name, w in kept.items() if kind_of(name) == kind) for kind in sorted(kinds)}
    total = sum(of_kind.values())
    shares = {}
    for category, weight in kept.items():
        kind = kind_of(category)
        shares[category] = of_kind[kind] / total * weight / kept_of_kind[kind]
    return shares
