"""Exact duplicates and near-duplicates: keep one document of each group, the one with the smallest id.

In: a dataframe of documents. Out: rules that drop the other documents. A rule holds the ids to drop in memory.
Source: Nemotron-CC's parameters, from NVIDIA's curation recipes: shingles of 24 characters, 260 hashes in 20 bands of
13, Jaccard similarity 0.8. MinHash proposes pairs; the exact Jaccard similarity of their shingle sets decides.

20 bands of 13 propose 68 % of the pairs with a similarity of exactly 0.8, and 99.7 % of the pairs at 0.9. Both
documents of a pair that they do not propose are kept.

Which documents are dropped depends only on what the pairs connect, so most pairs need no comparison: n near-copies of
one letter take about n comparisons, and memory for the texts that MinHash proposes, one group of them at a time. Pairs
below 0.8 cannot be left out in this way. Most are, because they share none of the rare shingles that a pair at 0.8 must
share (the prefix filter of AllPairs, Bayardo et al. 2007, and PPJoin, Xiao et al. 2008); this changes no result. What
remains quadratic are documents that share some of their rarest ninth of shingles, and still are below 0.8: for
example letters that are put together from a few long paragraphs in many ways.
Left out: removing passages that otherwise different documents share (exact-substring deduplication).
"""

import math
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import BATCH_ROWS, daft, rows_of, written

SHINGLE_CHARACTERS = 24  # this and the next three: NVIDIA's curation recipes
NUM_BANDS = 20
HASHES_PER_BAND = 13
MIN_JACCARD = 0.8
MINHASH_SEED = 1
BOUND = Fraction(str(MIN_JACCARD))
SHARED = BOUND / (1 + BOUND)  # of the shingles of two documents, each counted, that a pair with that similarity shares
MAX_CACHED_SHINGLES = 10_000_000  # our choice: about 200 MB
MAX_COUNTERS = 1 << 24  # our choice: 64 MB
MAX_KEYS = 1 << 21  # our choice: keys among which equal ones are looked for at a time
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a hash is lost


def shingles(text: str) -> set[str]:
    """All runs of 24 characters; the whole text if it is shorter."""
    last = max(1, len(text) - SHINGLE_CHARACTERS + 1)
    return {text[start : start + SHINGLE_CHARACTERS] for start in range(last)}


def shingle_windows(text: str) -> np.ndarray:
    """The code points of all runs of 24 characters, (number, 24); a shorter text is filled up to one."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    if (missing := SHINGLE_CHARACTERS - len(codes)) > 0:
        codes = np.append(codes, np.full(missing, sys.maxunicode + 1, dtype=codes.dtype))
    return np.lib.stride_tricks.sliding_window_view(codes, SHINGLE_CHARACTERS)


def shingle_hashes(text: str) -> np.ndarray:
    """A 64-bit hash of every run of 24 characters, in their order; equal shingles have equal hashes."""
    windows = shingle_windows(text)
    hashes = np.zeros(len(windows), dtype=np.uint64)
    for characters in windows.T:
        hashes = hashes * MULTIPLIER + characters
    return hashes ^ (hashes >> np.uint64(32))


class HashedShingles:
    """The shingles of a text, each once, by their hashes, which takes less time and memory than a set of strings.

    Hashes only find what may be equal. If two shingles with the same hash differ, sets decide.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        hashes = shingle_hashes(text)
        order = np.argsort(hashes, kind="stable")
        new = np.diff(hashes[order], prepend=~hashes[order[:1]]) != 0
        windows, first, again = shingle_windows(text), order[new], ~new
        self.are_distinct = np.array_equal(windows[order[again]], windows[first[np.cumsum(new)[again] - 1]])
        """Whether no two shingles of this text have the same hash."""
        if not self.are_distinct:
            places = {text[start : start + SHINGLE_CHARACTERS]: start for start in range(len(hashes))}
            first = np.array(list(places.values()))
            first = first[np.argsort(hashes[first], kind="stable")]
        self.places = first
        """Where each shingle begins, in the order of their hashes."""
        self.hashes = hashes[first]

    def __len__(self) -> int:
        return len(self.places)

    def shared_with(self, other: "HashedShingles") -> int:
        """How many shingles both texts have."""
        if self.are_distinct and other.are_distinct:
            _, own, others = np.intersect1d(self.hashes, other.hashes, assume_unique=True, return_indices=True)
            one, two = shingle_windows(self.text)[self.places[own]], shingle_windows(other.text)[other.places[others]]
            if np.array_equal(one, two):
                return len(own)
        return len(shingles(self.text) & shingles(other.text))


def jaccard(left: HashedShingles, right: HashedShingles) -> float:
    """The size of the intersection divided by the size of the union."""
    shared = left.shared_with(right)
    return shared / (len(left) + len(right) - shared)


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False, batch_size=BATCH_ROWS)
def _digests(text: daft.Series) -> list[str]:
    return [digest_of(document) for document in text.to_pylist()]


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False, batch_size=BATCH_ROWS)
def _characters_as_words(text: daft.Series) -> list[str]:
    """Put a space between characters, because Daft makes shingles of words that spaces separate."""
    return [" ".join(document.replace(" ", "\N{OPEN BOX}")) for document in text.to_pylist()]


@daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.uint64()), use_process=False)
def _bands(signature: daft.Series) -> pa.Array:
    """One key per band, a hash of its number and its MinHashes; two documents that share a key are a proposed pair."""
    hashes = np.asarray(signature.to_arrow().flatten(), dtype=np.uint64).reshape(-1, NUM_BANDS, HASHES_PER_BAND)
    keys = np.tile(np.arange(NUM_BANDS, dtype=np.uint64), (len(hashes), 1))
    for number in range(HASHES_PER_BAND):
        keys = (keys ^ (keys >> np.uint64(29))) * MULTIPLIER + hashes[:, :, number]
    starts = np.arange(len(keys) + 1, dtype=np.int32) * NUM_BANDS
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(keys.reshape(-1)))


def proposed_groups(documents: daft.DataFrame, directory: Path | None = None) -> list[tuple[str, ...]]:
    """Ids of documents that have a band in common; each two of a group are a pair that MinHash proposes.

    Args:
        directory: where the bands are written; without it they are held in memory.
    """
    signatures = daft.functions.minhash(
        _characters_as_words(daft.col("text")),
        num_hashes=NUM_BANDS * HASHES_PER_BAND,
        ngram_size=SHINGLE_CHARACTERS,
        seed=MINHASH_SEED,
        hash_function="xxhash3_64",
    )
    bands = documents.select(daft.col("id"), _bands(signatures).alias("band"))
    bands = bands.collect() if directory is None else written(bands, directory)
    # Equal keys are found among a part of all keys at a time.
    num_parts = 1 + NUM_BANDS * bands.count_rows() // MAX_KEYS
    found: set[tuple[str, ...]] = set()
    for part in range(num_parts):
        keys = bands.explode("band").where(daft.col("band") % daft.lit(num_parts) == daft.lit(part))
        groups = keys.groupby("band").agg(daft.col("id").list_agg().alias("ids"))
        groups = groups.where(daft.col("ids").length() > daft.lit(1)).select("ids")
        found.update(tuple(sorted(row["ids"])) for row in groups.to_pylist())
    return sorted(found)


class TextFile(Mapping[str, str]):
    """The texts of documents in a file; one is read when it is asked for."""

    def __init__(self, path: Path, texts: Iterable[tuple[str, str]]) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self.file = path.open("w+b")
        for id, text in texts:
            start, content = self.file.tell(), text.encode()
            self.file.write(content)
            self.places[id] = start, len(content)
        self.file.flush()

    def __getitem__(self, id: str) -> str:
        start, number = self.places[id]
        self.file.seek(start)
        return self.file.read(number).decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def close(self) -> None:
        """No text can be read after that."""
        self.file.close()


class ShingleCache:
    """The shingles of the documents that were compared last."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.kept: OrderedDict[str, HashedShingles] = OrderedDict()
        self.num_shingles = 0

    def __getitem__(self, id: str) -> HashedShingles:
        """The shingles of a document; those that were not used for the longest time make room."""
        if id not in self.kept:
            self.kept[id] = HashedShingles(self.texts[id])
            self.num_shingles += len(self.kept[id])
        self.kept.move_to_end(id)
        found = self.kept[id]
        while self.num_shingles > MAX_CACHED_SHINGLES and len(self.kept) > 1:
            self.num_shingles -= len(self.kept.popitem(last=False)[1])
        return found


class Components:
    """Documents by number, in components that only grow (union-find with sizes); one of its documents names each."""

    def __init__(self, number: int) -> None:
        self.parent = list(range(number))
        self.size = [1] * number
        self.smallest = list(range(number))
        """The smallest document of the component that a document names."""

    def of(self, node: int) -> int:
        """The document that names the component of a document."""
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def connect(self, one: int, other: int) -> None:
        """Make one component of two; it keeps the name of the larger one."""
        larger, smaller = self.of(one), self.of(other)
        if larger != smaller:
            if self.size[larger] < self.size[smaller]:
                larger, smaller = smaller, larger
            self.parent[smaller] = larger
            self.size[larger] += self.size[smaller]
            self.smallest[larger] = min(self.smallest[larger], self.smallest[smaller])

    def members(self) -> list[list[int]]:
        """The documents of each component, from the smallest number to the largest."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for node in range(len(self.parent)):
            found[self.of(node)].append(node)
        return list(found.values())


def near_duplicates(texts: Mapping[str, str], groups: Iterable[Sequence[str]]) -> dict[str, tuple[str, float]]:
    """The documents to drop: id -> the id that is kept for it, and the similarity of the two.

    Two documents of a group with a similarity of 0.8 or more are a pair; what pairs connect is one component, and of
    each component the smallest id is kept. The similarity to it is below 0.8 if only other documents connect the two.

    Args:
        texts: id -> text, of every document in a group.
        groups: ids of documents that are compared with each other; a document may be in several groups.
    """
    ids = sorted(texts)
    number = {id: index for index, id in enumerate(ids)}
    linked = Components(len(ids))  # whatever the groups connect, similar or not
    groups_of: list[set[int]] = [set() for _ in ids]
    for index, group in enumerate(groups):
        for id in group:
            groups_of[number[id]].add(index)
            linked.connect(number[group[0]], number[id])
    sizes, counters = shingle_statistics(texts)
    dropped: dict[str, tuple[str, float]] = {}
    for nodes in linked.members():
        cache = ShingleCache(texts)
        linked_ids = [ids[node] for node in nodes]
        groups_of_linked = [groups_of[node] for node in nodes]
        components, similarities = _connected(linked_ids, groups_of_linked, sizes, cache, counters)
        for kept, *others in components.members():
            for other in others:
                similarity = similarities.get((kept, other))
                if similarity is None:
                    similarity = jaccard(cache[linked_ids[other]], cache[linked_ids[kept]])
                dropped[linked_ids[other]] = linked_ids[kept], similarity
    return dropped


def _connected(
    ids: Sequence[str],
    groups_of: Sequence[set[int]],
    sizes_of: Mapping[str, int],
    cache: ShingleCache,
    counters: np.ndarray,
) -> tuple[Components, dict[tuple[int, int], float]]:
    """The components of documents, and the similarities that connect them; documents that share a group are compared.

    With a and b shingles, a >= b, two documents reach a similarity of t only if b >= t * a, and if they share at least
    t / (1 + t) * (a + b) shingles. In one order of all shingles, the first a - ceil(t * a) + 1 of the larger document
    then hold one of the first b - ceil(2 * t / (1 + t) * b) + 1 of the smaller one. In the order from rare to frequent,
    few others do. Smaller documents come first, so that each looks for smaller ones only.

    Of a component, the smallest document is compared first: the similarity to it is reported.
    """
    components = Components(len(ids))
    similarities: dict[tuple[int, int], float] = {}
    sizes = [sizes_of[id] for id in ids]
    # Shingle -> component -> documents that have it among their first ones.
    index: dict[int, dict[int, list[int]]] = {}
    for node in sorted(range(len(ids)), key=lambda node: (sizes[node], node)):
        size = sizes[node]
        smallest_size = math.ceil(BOUND * size)
        ranked, num_unshared = _rarest_first(cache[ids[node]].hashes, counters)
        seen: set[int] = set()
        for position in range(num_unshared, size - smallest_size + 1):
            holders = index.get(ranked[position], {})
            for name in list(holders):
                if (current := components.of(name)) != name:  # it has become part of a larger component since
                    holders.setdefault(current, []).extend(holders.pop(name))
                if current == components.of(node):
                    continue
                for other in (components.smallest[current], *holders[current]):
                    if other in seen:
                        continue
                    seen.add(other)
                    if sizes[other] < smallest_size or groups_of[node].isdisjoint(groups_of[other]):
                        continue
                    # None of the shingles before this one is shared, so the others would have to be enough.
                    if size - position < SHARED * (size + sizes[other]):
                        continue
                    similarity = jaccard(cache[ids[node]], cache[ids[other]])
                    if similarity >= MIN_JACCARD:
                        components.connect(node, other)
                        similarities[min(node, other), max(node, other)] = similarity
                        break
        for shingle in ranked[num_unshared : size - math.ceil(2 * SHARED * size) + 1]:
            index.setdefault(shingle, {}).setdefault(components.of(node), []).append(node)
    return components, similarities


def shingle_statistics(texts: Mapping[str, str]) -> tuple[dict[str, int], np.ndarray]:
    """How many different shingles each text has, and in how many texts shingles occur.

    Shingles whose hashes end in the same bits share a counter.
    """
    sizes: dict[str, int] = {}
    counters = np.zeros(min(MAX_COUNTERS, 16 << sum(map(len, texts.values())).bit_length()), dtype=np.int32)
    for id, text in texts.items():
        hashed = HashedShingles(text)
        sizes[id] = len(hashed)
        np.add.at(counters, hashed.hashes & np.uint64(len(counters) - 1), 1)
    return sizes, counters


def _rarest_first(hashes: np.ndarray, counters: np.ndarray) -> tuple[list[int], int]:
    """The hashes of the different shingles of a text, in an order from rare to frequent that all texts share.

    Also how many of them, at the beginning, no other text has.
    """
    counts = counters[hashes & np.uint64(len(counters) - 1)]
    return hashes[np.lexsort((hashes, counts))].tolist(), int((counts == 1).sum())


def exact_duplicates_rule(documents: daft.DataFrame) -> Rule[Document]:
    """Of the documents with the same text, drops all except the one with the smallest id."""
    digests = documents.select(daft.col("id"), _digests(daft.col("text")).alias("digest"))  # and no texts
    groups = digests.groupby("digest").agg(daft.col("id").min().alias("kept_id"), daft.col("id").list_agg())
    duplicates = groups.explode("id").where(daft.col("kept_id") != daft.col("id")).to_pylist()
    dropped = {row["id"]: f"the same as {row['kept_id']}" for row in duplicates}
    return Rule(
        name="exact duplicates",
        threshold="no document with a smaller id has the same sha256 of the text",
        fault=lambda document: dropped.get(document.id),
    )


def near_duplicates_rule(documents: daft.DataFrame, directory: Path | None = None) -> Rule[Document]:
    """Of the documents that near-duplicate pairs connect, drops all except the one with the smallest id.

    The fault is the similarity to the document that is kept, and that document's id.

    Args:
        directory: where bands and texts are written that are compared; without it they are held in memory.
    """
    groups = proposed_groups(documents, directory and directory / "bands")
    proposed = daft.from_pydict({"id": sorted({id for group in groups for id in group})})
    batches = documents.select("id", "text").join(proposed, on="id").to_arrow_iter() if groups else []
    texts = (row for batch in batches for row in rows_of(batch, "id", "text"))
    if directory is None:
        dropped = near_duplicates(dict(texts), groups)
    else:
        with closing(TextFile(directory / "texts", texts)) as compared:
            dropped = near_duplicates(compared, groups)
    return Rule(
        name="near-duplicates",
        threshold=f"Jaccard similarity of {SHINGLE_CHARACTERS}-character shingles below {MIN_JACCARD} to every "
        f"document that {NUM_BANDS} bands of {HASHES_PER_BAND} MinHashes propose (NVIDIA's curation recipes)",
        fault=lambda document: _fault(*dropped[document.id]) if document.id in dropped else None,
    )


def _fault(kept: str, similarity: float) -> str:
    """What the report says about a near-duplicate."""
    through = "" if similarity >= MIN_JACCARD else ", through others"
    return f"{similarity:.3f} to {kept}{through}"
