"""Two small quality scorers, and the buckets that their scores are sorted into.

In: documents, some of which carry labels. Out: a bucket from 0 (lowest) to 19 (highest) for the documents of the
labelled categories.
Source: Nemotron-CC (arXiv 2412.02595): several scorers, each score turned into one of 20 buckets that hold the same
share of the text, the maximum over the scorers taken, and the buckets grouped.

Stand-ins: two of Nemotron-CC's three scorers imitate the judgement of large language models. Here is no such judge,
so each scorer learns a label that the source gives and that the text itself does not show: A, the docstring stood
beside a worked example (removed from the text); B, the documented object is exported, not private. Both say something
about how much care went into a docstring; neither is a measured quality. Text without labels, such as source, problems
or the user's own files, gets no bucket.

Each scorer is a logistic regression on hashed words and pairs of neighbouring words: float64, all documents in every
step, no randomness.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import BaseModel

from nemotron.recipes.curation.filters import Filter
from nemotron.recipes.curation.split import falls_into_share
from nemotron.recipes.sources.dataframes import daft

NUM_FEATURES = 2**16  # our choice, and so are the next four
NUM_STEPS = 100
L2_PENALTY = 1e-4
HELD_OUT_SHARE = 0.2
MIN_LABELLED = 20
LABELS = ("has_example", "exported")  # columns of the documents
NUM_BUCKETS = 20  # Nemotron-CC, and so are the groups with the lowest bucket of each
GROUPS = {"High": 19, "Medium-High": 18, "Medium": 12, "Medium-Low": 7, "Low": 0}
WORD = re.compile(r"\w+|[^\w\s]")


class ScorerReport(BaseModel):
    """How well one scorer predicts its label on modules that it was not trained on."""

    label: str
    num_training: int
    num_held_out: int
    held_out_accuracy: float
    majority_accuracy: float
    """Accuracy of always giving the label that is more frequent among the held-out documents."""


@dataclass(frozen=True)
class Features:
    """Which of the NUM_FEATURES each text has: text rows[k] has feature columns[k], with the weight scale[rows[k]]."""

    rows: np.ndarray
    columns: np.ndarray
    scale: np.ndarray


def hashed_features(texts: Sequence[str]) -> Features:
    """The set of words and of pairs of neighbouring words of each text, hashed; a text's features have length 1."""
    features = []
    for text in texts:
        words = WORD.findall(text.lower())
        names = {*words, *(f"{left} {right}" for left, right in pairwise(words))}
        # Sorted, so that equal sets are added up in the same order and their scores are equal to the last bit.
        features.append(sorted({zlib.crc32(name.encode()) % NUM_FEATURES for name in names}))
    counts = [len(row) for row in features]
    columns = np.fromiter((column for row in features for column in row), dtype=np.int64, count=sum(counts))
    return Features(np.repeat(np.arange(len(texts)), counts), columns, 1 / np.sqrt(np.maximum(1, counts)))


def scores_of(features: Features, weights: np.ndarray) -> np.ndarray:
    """(n,) log-odds. weights: (NUM_FEATURES + 1,), the last one is the bias."""
    sums = np.bincount(features.rows, weights[features.columns], minlength=len(features.scale))
    return sums * features.scale + weights[-1]


def train_scorer(features: Features, labels: np.ndarray) -> np.ndarray:
    """Weights that minimise the mean logistic loss plus L2_PENALTY / 2 times the squared weights.

    Nesterov's accelerated gradient: rows have length 1 plus a bias, so the curvature is at most 2 / 4 and the step 2.

    Args:
        labels: (n,) 0.0 or 1.0.
    Returns:
        (NUM_FEATURES + 1,) float64, the bias last.
    """
    weights = np.zeros(NUM_FEATURES + 1)
    ahead = weights
    for step in range(NUM_STEPS):
        error = 1 / (1 + np.exp(-scores_of(features, ahead))) - labels
        slope = np.bincount(features.columns, (error * features.scale)[features.rows], minlength=NUM_FEATURES)
        gradient = np.append(slope, error.sum()) / len(labels) + L2_PENALTY * ahead
        previous, weights = weights, ahead - 2.0 * gradient
        ahead = weights + step / (step + 3) * (weights - previous)
    return weights


def equal_mass_buckets(scores: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """(n,) int: 0 for the lowest scores to 19 for the highest, each bucket with a twentieth of the mass.

    Documents with equal scores keep their order. The middle of a document's mass decides, so that a bucket's share is
    off by at most half a document at each end.

    Args:
        masses: (n,) how much each document counts; bytes, as there are no tokens before there is a tokenizer.
    """
    order = np.argsort(scores, kind="stable")
    before = np.cumsum(masses[order]) - masses[order]
    # 20 * (before + mass / 2) / total, in whole numbers
    buckets = np.empty(len(scores), dtype=np.int64)
    buckets[order] = (2 * before + masses[order]) * NUM_BUCKETS // (2 * masses.sum())
    return buckets


def group_of(bucket: int) -> str:
    """Nemotron-CC's name for a bucket."""
    return next(name for name, lowest in GROUPS.items() if bucket >= lowest)


def fit_scorers(
    texts: Sequence[str], modules: Sequence[str], labels: Mapping[str, Sequence[bool | None]], seed: int
) -> tuple[dict[str, np.ndarray], list[ScorerReport]]:
    """The weights of one scorer a label, trained on four fifths of the modules, and how it does on the others.

    A label that too few documents have, or that all of them share, gives no scorer.

    Args:
        labels: name -> label of each text, None where it has none.
    """
    in_test = np.array([falls_into_share(HELD_OUT_SHARE, "scorer", seed, module) for module in modules], dtype=bool)
    weights, reports = {}, []
    for name, values in labels.items():
        known = np.array([value is not None for value in values], dtype=bool)
        truth = np.array([bool(value) for value in values], dtype=np.float64)
        training, held_out = np.flatnonzero(known & ~in_test), np.flatnonzero(known & in_test)
        if len(training) < MIN_LABELLED or not len(held_out) or not 0 < truth[training].sum() < len(training):
            continue
        weights[name] = train_scorer(hashed_features([texts[int(row)] for row in training]), truth[training])
        scores = scores_of(hashed_features([texts[int(row)] for row in held_out]), weights[name])
        positive_share = float(np.mean(truth[held_out]))
        reports.append(
            ScorerReport(
                label=name,
                num_training=len(training),
                num_held_out=len(held_out),
                held_out_accuracy=float(np.mean((scores > 0) == truth[held_out])),
                majority_accuracy=max(positive_share, 1 - positive_share),
            )
        )
    return weights, reports


def add_buckets(documents: daft.DataFrame, seed: int) -> tuple[daft.DataFrame, list[ScorerReport]]:
    """The documents with the column `bucket`, and a report for each scorer.

    All documents of the categories that have labels get a bucket; for others, and without a scorer, it is null.
    """
    labelled = documents.where(daft.col("has_example").not_null() | daft.col("exported").not_null()).sort("id")
    rows = labelled.select("text", "module", "category", *LABELS).to_pydict()
    weights, reports = fit_scorers(rows["text"], rows["module"], {name: rows[name] for name in LABELS}, seed)
    if not weights:
        return documents.with_column("bucket", daft.lit(None).cast(daft.DataType.int64())), reports

    scored = documents.where(daft.col("category").is_in(sorted(set(rows["category"]))))
    for name in weights:
        scored = scored.with_column(name, _score(daft.col("text"), weights[name]))
    scores = scored.sort("id").select("id", daft.col("text").length_bytes().alias("mass"), *weights).to_pydict()
    masses = np.array(scores["mass"], dtype=np.int64)
    buckets = np.max([equal_mass_buckets(np.array(scores[name]), masses) for name in weights], axis=0)
    return documents.join(daft.from_pydict({"id": scores["id"], "bucket": buckets}), on="id", how="left"), reports


def _score(text: daft.Expression, weights: np.ndarray) -> daft.Expression:
    @daft.func.batch(return_dtype=daft.DataType.float64(), use_process=False)
    def scored(column: daft.Series) -> np.ndarray:
        return scores_of(hashed_features(column.to_pylist()), weights)

    return scored(text)


def bucket_filter() -> Filter:
    """Keeps documents above Nemotron-CC's group "Low", and those without a bucket."""
    lowest = GROUPS["Medium-Low"]
    return Filter(
        name="quality bucket",
        threshold=f"bucket {lowest} or higher of 0 to {NUM_BUCKETS - 1}: all but Nemotron-CC's group Low (our choice; "
        f"the published blend, from a larger corpus, has nothing below Medium)",
        value=daft.col("bucket"),
        keep=daft.col("value").is_null() | (daft.col("value") >= daft.lit(lowest)),
    )
