"""Drop documents that say what another one says: exact duplicates, then near-duplicates.

In: documents. Out: one document of every group of duplicates, the one with the smallest id.
Source: the parameters of Nemotron-CC as NVIDIA's curation recipes have them: shingles of 24 characters, 260 hashes in
20 bands of 13, Jaccard similarity 0.8. MinHash proposes pairs, the exact Jaccard similarity of their shingle sets
decides.

20 bands of 13 propose 68 % of the pairs whose similarity is exactly 0.8 and 99.7 % of those at 0.9; what they do not
propose stays.
Left out: removing passages that are repeated between otherwise different documents (exact-substring deduplication).
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from nemotron.recipes.curation.filters import Filter
from nemotron.recipes.sources.dataframes import daft

SHINGLE_CHARACTERS = 24  # as in NVIDIA's recipes, and so the next three
NUM_BANDS = 20
HASHES_PER_BAND = 13
MIN_JACCARD = 0.8
MINHASH_SEED = 1


def shingles(text: str) -> frozenset[str]:
    """All runs of 24 characters; the whole text where it is shorter."""
    last = max(1, len(text) - SHINGLE_CHARACTERS + 1)
    return frozenset(text[start : start + SHINGLE_CHARACTERS] for start in range(last))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False)
def _digests(text: daft.Series) -> list[str]:
    return [hashlib.sha256(document.encode()).hexdigest() for document in text.to_pylist()]


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False)
def _characters_as_words(text: daft.Series) -> list[str]:
    """Daft makes shingles of words between spaces: a space between characters makes them shingles of characters."""
    return [" ".join(document.replace(" ", "\N{OPEN BOX}")) for document in text.to_pylist()]


@daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.string()), use_process=False)
def _bands(signature: daft.Series) -> list[list[str]]:
    """One key a band; two documents with a key in common are a candidate pair."""
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
    """(id, id, similarity) of the pairs that MinHash proposes and that reach 0.8, the smaller id first, sorted."""
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
    """id -> smallest id that it is connected to by pairs, for every id in a pair."""
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


def exact_duplicate_filter() -> Filter:
    """Keeps, of all documents with one text, the one with the smallest id; the measured value is that id."""
    return Filter(
        name="exact duplicates",
        threshold="no document with a smaller id has the same sha256 of the text",
        value=daft.col("id").min().over(daft.Window().partition_by(_digests(daft.col("text")))),
        keep=daft.col("value") == daft.col("id"),
    )


def near_duplicate_filter(documents: daft.DataFrame) -> Filter:
    """Keeps, of each group that near-duplicate pairs connect, the document with the smallest id.

    The measured value of the others is the highest similarity to another document and that document's id.
    """
    pairs = near_duplicate_pairs(documents)
    smallest = smallest_of_component((left, right) for left, right, _ in pairs)
    nearest: dict[str, tuple[float, str]] = {}
    for left, right, similarity in pairs:
        for node, other in ((left, right), (right, left)):
            nearest[node] = max(nearest.get(node, (0.0, "")), (similarity, other))
    dropped = {node: f"{nearest[node][0]:.3f} to {nearest[node][1]}" for node in smallest if smallest[node] != node}

    @daft.func.batch(return_dtype=daft.DataType.string(), use_process=False)
    def similar_to(ids: daft.Series) -> list[str | None]:
        return [dropped.get(document) for document in ids.to_pylist()]

    return Filter(
        name="near-duplicates",
        threshold=f"Jaccard similarity of {SHINGLE_CHARACTERS}-character shingles below {MIN_JACCARD} to every "
        f"document that {NUM_BANDS} bands of {HASHES_PER_BAND} MinHashes propose (NVIDIA's curation recipes)",
        value=similar_to(daft.col("id")),
        keep=daft.col("value").is_null(),
    )
