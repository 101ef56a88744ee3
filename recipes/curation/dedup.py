"""Exact duplicates and near-duplicates: keep one document of each group, the one with the smallest id.

In: a dataframe of documents. Out: rules that drop the other documents. A rule holds the ids to drop in memory.
Source: Nemotron-CC's parameters, from NVIDIA's curation recipes: shingles of 24 characters, 260 hashes in 20 bands of
13, Jaccard similarity 0.8. MinHash proposes pairs; the exact Jaccard similarity of their shingle sets decides.

20 bands of 13 propose 68 % of the pairs with a similarity of exactly 0.8, and 99.7 % of the pairs at 0.9. Both
documents of a pair that they do not propose are kept.
Left out: removing passages that otherwise different documents share (exact-substring deduplication).
"""

from collections.abc import Iterable, Iterator

import numpy as np

from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import daft

SHINGLE_CHARACTERS = 24  # this and the next three: NVIDIA's curation recipes
NUM_BANDS = 20
HASHES_PER_BAND = 13
MIN_JACCARD = 0.8
MINHASH_SEED = 1


def shingles(text: str) -> frozenset[str]:
    """All runs of 24 characters; the whole text if it is shorter."""
    last = max(1, len(text) - SHINGLE_CHARACTERS + 1)
    return frozenset(text[start : start + SHINGLE_CHARACTERS] for start in range(last))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """The size of the intersection divided by the size of the union."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False)
def _digests(text: daft.Series) -> list[str]:
    return [digest_of(document) for document in text.to_pylist()]


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False)
def _characters_as_words(text: daft.Series) -> list[str]:
    """Put a space between characters, because Daft makes shingles of words that spaces separate."""
    return [" ".join(document.replace(" ", "\N{OPEN BOX}")) for document in text.to_pylist()]


@daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.string()), use_process=False)
def _bands(signature: daft.Series) -> list[list[str]]:
    """One key per band; two documents that share a key are a proposed pair."""
    hashes = np.asarray(signature.to_arrow().flatten(), dtype="<u4").reshape(-1, NUM_BANDS, HASHES_PER_BAND)
    return [[f"{band}/{row[band].tobytes().hex()}" for band in range(NUM_BANDS)] for row in hashes]


@daft.func(
    return_dtype=daft.DataType.struct({"left": daft.DataType.string(), "right": daft.DataType.string()}),
    use_process=False,
)
def _pairs(ids: list[str]) -> Iterator[dict[str, str]]:
    ids = sorted(ids)
    for index, left in enumerate(ids):
        for right in ids[index + 1 :]:
            yield {"left": left, "right": right}


@daft.func.batch(return_dtype=daft.DataType.float64(), use_process=False)
def _similarities(left: daft.Series, right: daft.Series) -> list[float]:
    pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
    return [jaccard(shingles(one), shingles(other)) for one, other in pairs]


def near_duplicate_pairs(documents: daft.DataFrame) -> list[tuple[str, str, float]]:
    """Sorted (smaller id, larger id, similarity) of the pairs that MinHash proposes and that reach 0.8."""
    signatures = daft.functions.minhash(
        _characters_as_words(daft.col("text")),
        num_hashes=NUM_BANDS * HASHES_PER_BAND,
        ngram_size=SHINGLE_CHARACTERS,
        seed=MINHASH_SEED,
        hash_function="xxhash3_64",
    )
    bands = documents.select(daft.col("id"), _bands(signatures).alias("band")).explode("band")
    groups = bands.groupby("band").agg(daft.col("id").list_agg().alias("ids"))
    groups = groups.where(daft.col("ids").length() > daft.lit(1))
    proposed = groups.select(_pairs(daft.col("ids")).alias("pair"))
    proposed = proposed.select(
        daft.col("pair")["left"].alias("left"), daft.col("pair")["right"].alias("right")
    ).distinct()
    texts = documents.select("id", "text")
    compared = (
        proposed.join(texts.select(daft.col("id").alias("left"), daft.col("text").alias("left_text")), on="left")
        .join(texts.select(daft.col("id").alias("right"), daft.col("text").alias("right_text")), on="right")
        .with_column("similarity", _similarities(daft.col("left_text"), daft.col("right_text")))
        .where(daft.col("similarity") >= daft.lit(MIN_JACCARD))
        .select("left", "right", "similarity")
    )
    return sorted((row["left"], row["right"], row["similarity"]) for row in compared.to_pylist())


def smallest_of_component(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For every id in a pair: the smallest id that the pairs connect it to, directly or through others."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for left, right in pairs:
        smaller, larger = sorted((root(left), root(right)))
        parent[larger] = smaller
    return {node: root(node) for node in sorted(parent)}


def exact_duplicates_rule(documents: daft.DataFrame) -> Rule[Document]:
    """Of the documents with the same text, drops all except the one with the smallest id."""
    smallest = daft.col("id").min().over(daft.Window().partition_by(_digests(daft.col("text"))))
    kept_ids = documents.select(daft.col("id"), smallest.alias("kept_id"))
    duplicates = kept_ids.where(daft.col("kept_id") != daft.col("id")).to_pylist()
    dropped = {row["id"]: f"the same as {row['kept_id']}" for row in duplicates}
    return Rule(
        name="exact duplicates",
        threshold="no document with a smaller id has the same sha256 of the text",
        fault=lambda document: dropped.get(document.id),
    )


def near_duplicates_rule(documents: daft.DataFrame) -> Rule[Document]:
    """Of the documents that near-duplicate pairs connect, drops all except the one with the smallest id.

    The fault is the highest similarity to another document, and that document's id.
    """
    pairs = near_duplicate_pairs(documents)
    smallest = smallest_of_component((left, right) for left, right, _ in pairs)
    nearest: dict[str, tuple[float, str]] = {}
    for left, right, similarity in pairs:
        for node, other in ((left, right), (right, left)):
            nearest[node] = max(nearest.get(node, (0.0, "")), (similarity, other))
    dropped = {node: f"{nearest[node][0]:.3f} to {nearest[node][1]}" for node in smallest if smallest[node] != node}
    return Rule(
        name="near-duplicates",
        threshold=f"Jaccard similarity of {SHINGLE_CHARACTERS}-character shingles below {MIN_JACCARD} to every "
        f"document that {NUM_BANDS} bands of {HASHES_PER_BAND} MinHashes propose (NVIDIA's curation recipes)",
        fault=lambda document: dropped.get(document.id),
    )
