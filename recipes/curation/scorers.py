"""Two small quality scorers, and the buckets that their scores are sorted into.

In: documents, some of which carry labels. Out: a bucket from 0 (lowest) to 19 (highest) for the documents of the labelled
categories.
Source: Nemotron-CC (arXiv 2412.02595): several scorers, each score turned into one of 20 buckets that hold the same share
of the text, the maximum over the scorers taken, and the buckets grouped.

Stand-ins: Nemotron-CC's scorers imitate the judgement of large language models. Here there is no such judge, so each scorer
learns a label that the source gives and that the text itself does not show: A, the docstring stood beside a worked example
(removed from the text); B, the documented object is exported, not private. Both say something about how much care went into
a docstring; neither is a measured quality. Text without labels, such as source, problems or the user's own files, gets no
bucket.

Each scorer is a logistic regression on hashed words and pairs of neighbouring words: float64, all documents in every
step, no randomness.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import daft
import numpy as np
from daft import DataFrame, DataType, Expression, Series, col, lit
from daft import func as daft_function
from pydantic import BaseModel

from nemotron.recipes.curation.filters import Filter
from nemotron.recipes.curation.split import order_of

NUM_FEATURES = 2**16  # our choice, and so are the next four
NUM_STEPS = 100
L2_PENALTY = 1e-4
HELD_OUT_SHARE = 0.2
MIN_LABELLED = 20
LABELS = ("has_example", "exported")  # columns of the documents
NUM_BUCKETS = 20  # Nemotron-CC, and so are the groups: (name, lowest bucket)
GROUPS = (("High", 19), ("Medium-High", 18), ("Medium", 12), ("Medium-Low", 7), ("Low", 0))
WORD = re.compile(r"\w+|[^\w\s]")


class ScorerReport(BaseModel):
    """How well one scorer predicts its label on modules that it was not trained on."""

    label: str
    num_training: int
    num_held_out: int
    held_out_accuracy: float
    majority_accuracy: float
    """Accuracy of always giving the more frequent label of the training documents."""


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
        names = {*words, *(f"{left} {right}" for left, right in zip(words, words[1:], strict=False))}
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

    Documents with equal scores keep their order. The middle of a document's mass decides, so that a bucket's share is off
    by at most one document at each end.

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
    return next(name for name, lowest in GROUPS if bucket >= lowest)


def is_held_out(module: str, seed: int) -> bool:
    """Whether a module's documents test the scorers instead of training them: a fifth of all modules."""
    return int(order_of("scorer", seed, module)[:16], 16) < HELD_OUT_SHARE * 2**64


def add_buckets(documents: DataFrame, seed: int) -> tuple[DataFrame, list[ScorerReport]]:
    """The documents with the column `bucket`, and a report for each scorer.

    The scorers are trained on the labelled documents; they score, and sort into buckets, all documents of the categories
    that have labels. Without any scorer, and for other categories, the bucket is null.
    """
    labelled = documents.where(col("has_example").not_null() | col("exported").not_null()).sort("id")
    columns = labelled.select("text", "module", "category", *LABELS).to_pydict()
    test = np.array([is_held_out(module, seed) for module in columns["module"]], dtype=bool)
    weights, reports = {}, []
    for label in LABELS:
        known = np.array([value is not None for value in columns[label]], dtype=bool)
        truth = np.array([bool(value) for value in columns[label]], dtype=np.float64)
        training, held_out = np.flatnonzero(known & ~test), np.flatnonzero(known & test)
        if len(training) < MIN_LABELLED or not len(held_out) or len(set(truth[training].tolist())) < 2:
            continue  # the caller sees that there is no report for this label
        weights[label] = train_scorer(hashed_features([columns["text"][row] for row in training]), truth[training])
        scores = scores_of(hashed_features([columns["text"][row] for row in held_out]), weights[label])
        majority = float(2 * truth[training].sum() >= len(training))
        reports.append(
            ScorerReport(
                label=label,
                num_training=len(training),
                num_held_out=len(held_out),
                held_out_accuracy=float(((scores > 0) == truth[held_out]).mean()),
                majority_accuracy=float((truth[held_out] == majority).mean()),
            )
        )
    if not reports:
        return documents.with_column("bucket", lit(None).cast(DataType.int64())), reports

    scored = documents.where(col("category").is_in(sorted(set(columns["category"])))).sort("id")
    scored = scored.select("id", col("text").length_bytes().alias("bytes"), *(_score(col("text"), weights[w], w) for w in weights))
    rows = scored.to_pydict()
    buckets = np.max([equal_mass_buckets(np.array(rows[w]), np.array(rows["bytes"])) for w in weights], axis=0)
    table = daft.from_pydict({"id": rows["id"], "bucket": buckets})
    return documents.join(table, on="id", how="left"), reports


def _score(text: Expression, weights: np.ndarray, name: str) -> Expression:
    @daft_function.batch(return_dtype=DataType.float64(), use_process=False)
    def scored(column: Series) -> np.ndarray:
        return scores_of(hashed_features(column.to_pylist()), weights)

    return scored(text).alias(name)


def bucket_filter() -> Filter:
    """Keeps documents above Nemotron-CC's group "Low", and those without a bucket."""
    lowest = dict(GROUPS)["Medium-Low"]
    return Filter(
        name="quality bucket",
        threshold=f"bucket {lowest} or higher of 0 to {NUM_BUCKETS - 1} (the group Low of Nemotron-CC goes; that nothing "
        f"else goes is our choice)",
        value=col("bucket"),
        keep=col("value").is_null() | (col("value") >= lowest),
    )
