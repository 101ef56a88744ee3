"""Two small quality scorers, and quality buckets made from their scores.

In: documents, some of them with labels. Out: a bucket from 0 (lowest) to 19 (highest) for each document of the labeled
categories.
Source: Nemotron-CC (arXiv 2412.02595): several scorers; each score becomes one of 20 buckets that hold equal shares of
the text; a document gets the maximum over the scorers; the buckets form groups.

Stand-ins: two of Nemotron-CC's three scorers imitate judgments of large language models. Without such a judge, each
scorer here learns a label that comes from the source and that the text does not show: has_example, the docstring had a
worked example (removed from the text); exported, the documented object is exported and not private. Both labels relate
to the care that went into a docstring; neither measures quality. Categories without any label, such as source code
and problems, get no bucket; in a category with labels, the user's files get one too.

Each scorer is a logistic regression on hashed words and pairs of adjacent words: float64, all documents in every step,
no randomness.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import BaseModel

from nemotron.recipes.curation.digests import falls_into_share
from nemotron.recipes.curation.rules import Rule, progress
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import BATCH_ROWS, daft

NUM_FEATURES = 2**16  # this and the next four: our choice
NUM_STEPS = 100
L2_PENALTY = 1e-4
HELD_OUT_SHARE = 0.2
MIN_LABELED = 20
LABELS = ("has_example", "exported")  # columns of the documents
NUM_BUCKETS = 20  # Nemotron-CC
GROUPS = {"High": 19, "Medium-High": 18, "Medium": 12, "Medium-Low": 7, "Low": 0}  # Nemotron-CC; lowest bucket of each
WORD = re.compile(r"\w+|[^\w\s]")


class ScorerReport(BaseModel):
    """How well a scorer predicts its label on modules that it was not trained on."""

    label: str
    num_training: int
    num_held_out: int
    held_out_accuracy: float
    majority_accuracy: float
    """Accuracy of always predicting the more frequent label of the held-out documents."""


@dataclass(frozen=True)
class Features:
    """A sparse (texts, NUM_FEATURES) matrix: text rows[k] has feature columns[k] with the value scale[rows[k]]."""

    rows: np.ndarray
    columns: np.ndarray
    scale: np.ndarray


def hashed_features(texts: Sequence[str]) -> Features:
    """The hashed set of words and of pairs of adjacent words of each text; each row has norm 1."""
    features = []
    for text in texts:
        words = WORD.findall(text.lower())
        names = {*words, *(f"{left} {right}" for left, right in pairwise(words))}
        # Sorted, so that equal sets are summed in the same order and have bitwise equal scores.
        features.append(sorted({zlib.crc32(name.encode()) % NUM_FEATURES for name in names}))
    counts = [len(row) for row in features]
    columns = np.fromiter((column for row in features for column in row), dtype=np.int64, count=sum(counts))
    return Features(np.repeat(np.arange(len(texts)), counts), columns, 1 / np.sqrt(np.maximum(1, counts)))


def scores_of(features: Features, weights: np.ndarray) -> np.ndarray:
    """(n,) log-odds.

    Args:
        weights: (NUM_FEATURES + 1,), the bias last.
    """
    sums = np.bincount(features.rows, weights[features.columns], minlength=len(features.scale))
    return sums * features.scale + weights[-1]


def train_scorer(features: Features, labels: np.ndarray) -> np.ndarray:
    """Weights that minimize the mean logistic loss plus L2_PENALTY / 2 times the squared norm of the weights.

    Nesterov's accelerated gradient: a row with its bias has squared norm 2, so the curvature is at most 2 / 4 and the
    step size is 2.

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

    Documents with equal scores keep their order. The middle of a document's mass decides its bucket, so the share of a
    bucket is off by at most half a document at each end.

    Args:
        scores: (n,) float64.
        masses: (n,) int64, the size of each document in bytes, because there is no tokenizer yet to count tokens.
    """
    order = np.argsort(scores, kind="stable")
    before = np.cumsum(masses[order]) - masses[order]
    # 20 * (before + mass / 2) / total, in integers
    buckets = np.empty(len(scores), dtype=np.int64)
    buckets[order] = (2 * before + masses[order]) * NUM_BUCKETS // (2 * masses.sum())
    return buckets


def group_of(bucket: int) -> str:
    """The Nemotron-CC group of a bucket."""
    return next(name for name, lowest in GROUPS.items() if bucket >= lowest)


def fit_scorers(
    texts: Sequence[str], modules: Sequence[str], labels: Mapping[str, Sequence[bool | None]], seed: int
) -> tuple[dict[str, np.ndarray], list[ScorerReport]]:
    """Train a scorer for each label on four fifths of the modules, and test it on the others.

    There is no scorer for a label that fewer than MIN_LABELED training documents have, that no held-out document has,
    or that is the same for all training documents.

    Args:
        modules: module of each text.
        labels: name of each label -> its value for each text, or None.
        seed: picks the held-out modules.
    Returns:
        label -> weights of its scorer, and the reports.
    """
    in_test = np.array([falls_into_share(HELD_OUT_SHARE, "scorer", seed, module) for module in modules], dtype=bool)
    weights, reports = {}, []
    for name, values in labels.items():
        known = np.array([value is not None for value in values], dtype=bool)
        truth = np.array([bool(value) for value in values], dtype=np.float64)
        training, held_out = np.flatnonzero(known & ~in_test), np.flatnonzero(known & in_test)
        if len(training) < MIN_LABELED or not len(held_out) or not 0 < truth[training].sum() < len(training):
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
    """Add the column `bucket` to the documents; also returns a report for each scorer, and prints it.

    A document gets a bucket if any document of its category has a label. The bucket of the others is null, and so are
    all buckets if there is no scorer.
    """
    labeled = documents.where(daft.col("has_example").not_null() | daft.col("exported").not_null())
    rows = labeled.select("id", "text", "module", "category", *LABELS).sort("id").to_pydict()
    weights, reports = fit_scorers(rows["text"], rows["module"], {name: rows[name] for name in LABELS}, seed)
    for report in reports:
        progress.print(
            f"scorer of the stand-in label {report.label}: {report.held_out_accuracy:.1%} right on "
            f"{report.num_held_out:,} held-out documents, always the same label {report.majority_accuracy:.1%}"
        )
    if not weights:
        progress.print("too few documents carry a label: no quality scorer, no buckets")
        return documents.with_column("bucket", daft.lit(None).cast(daft.DataType.int64())), reports

    scored = documents.where(daft.col("category").is_in(sorted(set(rows["category"]))))
    for name in weights:
        scored = scored.with_column(name, _score(daft.col("text"), weights[name]))
    scores = scored.select("id", daft.col("text").length_bytes().alias("mass"), *weights).sort("id").to_pydict()
    masses = np.array(scores["mass"], dtype=np.int64)
    buckets = np.max([equal_mass_buckets(np.array(scores[name]), masses) for name in weights], axis=0)
    found = daft.from_pydict({"id": scores["id"], "bucket": buckets})
    others = [name for name in documents.column_names if name != "bucket"]
    return documents.select(*others).join(found, on="id", how="left"), reports


def _score(text: daft.Expression, weights: np.ndarray) -> daft.Expression:
    @daft.func.batch(return_dtype=daft.DataType.float64(), use_process=False, batch_size=BATCH_ROWS)
    def scored(column: daft.Series) -> np.ndarray:
        return scores_of(hashed_features(column.to_pylist()), weights)

    return scored(text)


def bucket_fault(document: Document) -> str | None:
    """The bucket, if it is in Nemotron-CC's group "Low"."""
    low = document.bucket is not None and document.bucket < GROUPS["Medium-Low"]
    return f"bucket {document.bucket}" if low else None


def bucket_rule() -> Rule[Document]:
    """Drops documents in Nemotron-CC's group "Low"; documents without a bucket stay."""
    return Rule(
        name="quality bucket",
        threshold=f"bucket {GROUPS['Medium-Low']} or higher of 0 to {NUM_BUCKETS - 1}: all but Nemotron-CC's group Low "
        f"(our choice; the published blend, from a larger corpus, has nothing below Medium)",
        fault=bucket_fault,
    )
