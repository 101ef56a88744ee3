import itertools
import random

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation import dedup
from nemotron.recipes.curation.dedup import (
    MIN_JACCARD,
    exact_duplicates_rule,
    jaccard,
    near_duplicate_pairs,
    near_duplicates_rule,
    shingles,
    smallest_of_component,
)
from nemotron.recipes.curation.rules import apply_to_dataframe, to_dataframe
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import daft


def random_text(seed, length=400):
    draw = random.Random(seed)
    return "".join("abcdefghijklmnopqrstuvwxyz    "[int(draw.random() * 30)] for _ in range(length))


def frame(texts):
    return to_dataframe([Document(id, id, "wiki", text, "MIT", "here") for id, text in texts.items()])


def brute_force_pairs(texts):
    """Every pair with a similarity of 0.8 or more, found by comparing all with all."""
    pairs = itertools.combinations(sorted(texts), 2)
    similarity = {(left, right): jaccard(shingles(texts[left]), shingles(texts[right])) for left, right in pairs}
    return {pair: value for pair, value in similarity.items() if value >= MIN_JACCARD}


def with_ending(text, num_shingles):
    """The text with this many more shingles, from the start of an ending that is always the same."""
    return text + random_text("ending").upper()[:num_shingles]


@given(st.text(alphabet="ab ", max_size=60), st.text(alphabet="ab ", max_size=60))
def test_jaccard_equals_the_definition_on_lists_of_shingles(left, right):
    def listed(text):
        return {text[i : i + 24] for i in range(len(text) - 23)} if len(text) >= 24 else {text}

    expected = len(listed(left) & listed(right)) / len(listed(left) | listed(right))
    assert jaccard(shingles(left), shingles(right)) == expected
    assert jaccard(shingles(right), shingles(left)) == expected


def test_only_the_smallest_id_of_equal_texts_stays_in_any_row_order():
    texts = {"c": "same", "a": "same", "d": "other", "b": "same", "e": "Same"}
    for ids in ("abcde", "edcba", "cadbe", "bceda"):
        reports = {}
        documents = frame({i: texts[i] for i in ids})
        kept = apply_to_dataframe(documents, [exact_duplicates_rule(documents)], reports)
        assert sorted(kept.to_pydict()["id"]) == ["a", "d", "e"]
        assert [(e.id, e.value) for e in reports["exact duplicates"].examples] == [
            ("b", "the same as a"),
            ("c", "the same as a"),
        ]


def test_planted_near_duplicates_are_found_with_their_exact_similarity():
    text = random_text("planted", 500)  # 477 shingles
    texts = {"original": text, "copy": with_ending(text, 20), "other": random_text("other", 500)}
    assert near_duplicate_pairs(frame(texts)) == [("copy", "original", 477 / 497)]


def test_pairs_below_the_bound_are_not_near_duplicates_and_pairs_at_the_bound_are(monkeypatch):
    monkeypatch.setattr(dedup, "_bands", one_band_for_all)  # every pair is proposed, so only the similarity decides
    text = random_text("border", 423)  # 400 shingles
    below, above = with_ending(text, 101), with_ending(text, 100)
    assert jaccard(shingles(text), shingles(below)) < MIN_JACCARD == jaccard(shingles(text), shingles(above))
    assert near_duplicate_pairs(frame({"a": text, "b": below})) == []
    assert near_duplicate_pairs(frame({"a": text, "b": above})) == [("a", "b", 0.8)]


@daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.string()), use_process=False)
def one_band_for_all(signature):
    return [["band"]] * len(signature)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 150)), min_size=2, max_size=8))
@settings(max_examples=10)
def test_found_pairs_reach_the_bound_and_very_similar_pairs_are_found(recipe):
    texts = {str(n): with_ending(random_text(base), changed) for n, (base, changed) in enumerate(recipe)}
    found = near_duplicate_pairs(frame(texts))
    similarity = brute_force_pairs(texts)
    found_pairs = {(left, right) for left, right, _ in found}
    assert found_pairs <= set(similarity)
    assert all(value == similarity[left, right] for left, right, value in found)
    # 20 bands of 13 propose a pair at 0.95 with probability 1 - (1 - 0.95**13)**20 = 1 - 5e-6.
    assert {pair for pair, value in similarity.items() if value >= 0.95} <= found_pairs


def test_hashes_estimate_the_similarity_of_24_character_shingles():
    text = random_text("estimate", 2000)
    other = text[:1000] + random_text("another", 1000)
    signatures = daft.functions.minhash(
        dedup._characters_as_words(daft.col("text")), num_hashes=260, ngram_size=24, seed=1, hash_function="xxhash3_64"
    )
    one, two = frame({"a": text, "b": other}).select(signatures.alias("hashes")).to_pydict()["hashes"]
    estimate = np.mean(np.array(one) == np.array(two))
    # Four standard deviations of 260 draws. The texts share almost no shingles of 24 words.
    assert estimate == pytest.approx(jaccard(shingles(text), shingles(other)), abs=4 * 0.03)


def test_a_space_is_a_character_of_a_shingle():
    spaced = dedup._characters_as_words
    frame_of_texts = daft.from_pydict({"text": ["a b", "ab", "a  b"]})
    assert frame_of_texts.select(spaced(daft.col("text"))).to_pydict()["text"] == ["a ␣ b", "a b", "a ␣ ␣ b"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=12))
def test_components_equal_those_of_networkx(pairs):
    graph = networkx.Graph(pairs)
    expected = {node: min(component) for component in networkx.connected_components(graph) for node in component}
    assert smallest_of_component(pairs) == expected


def test_only_the_smallest_id_of_a_chain_stays_and_the_report_names_the_nearest():
    text = random_text("chain", 423)
    texts = {"b": text, "c": with_ending(text, 30), "a": with_ending(text, 60), "z": random_text("unrelated")}
    reports = {}
    kept = apply_to_dataframe(frame(texts), [near_duplicates_rule(frame(texts))], reports)
    assert sorted(kept.to_pydict()["id"]) == ["a", "z"]
    examples = {example.id: example.value for example in reports["near-duplicates"].examples}
    assert examples == {"b": "0.930 to c", "c": "0.935 to a"}


def test_texts_shorter_than_a_shingle_are_compared_whole():
    texts = {"a": "Return the node.", "b": "Return the nodes.", "c": ""}
    assert near_duplicate_pairs(frame(texts)) == []


def test_row_order_does_not_change_the_pairs():
    text = random_text("order", 423)
    texts = {"a": text, "b": with_ending(text, 10), "c": with_ending(text, 20), "d": random_text("d")}
    backwards = {name: texts[name] for name in reversed(texts)}
    assert near_duplicate_pairs(frame(texts)) == near_duplicate_pairs(frame(backwards))
