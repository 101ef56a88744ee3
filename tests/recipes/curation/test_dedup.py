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
    HashedShingles,
    exact_duplicates_rule,
    jaccard,
    near_duplicates,
    near_duplicates_rule,
    proposed_groups,
    shingles,
)
from nemotron.recipes.curation.rules import apply_to_dataframe, to_dataframe
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import daft


def random_text(seed, length=400):
    draw = random.Random(seed)
    return "".join("abcdefghijklmnopqrstuvwxyz    "[int(draw.random() * 30)] for _ in range(length))


def frame(texts):
    return to_dataframe([Document(id, id, "wiki", text, "MIT", "here") for id, text in texts.items()])


def by_sets(left, right):
    """The definition of the Jaccard similarity, on sets of strings."""
    one, other = shingles(left), shingles(right)
    return len(one & other) / len(one | other)


def similarities(texts):
    pairs = itertools.combinations(sorted(texts), 2)
    return {(left, right): by_sets(texts[left], texts[right]) for left, right in pairs}


def brute_force(texts, groups):
    """What `near_duplicates` returns, found by comparing every pair of every group."""
    pairs = {pair for group in groups for pair in itertools.combinations(sorted(group), 2)}
    similarity = similarities(texts)
    graph = networkx.Graph([pair for pair in sorted(pairs) if similarity[pair] >= MIN_JACCARD])
    components = [sorted(component) for component in networkx.connected_components(graph)]
    return {id: (kept, similarity[kept, id]) for kept, *others in components for id in others}


def dropped_of(texts):
    return near_duplicates(texts, proposed_groups(frame(texts)))


def with_ending(text, num_shingles):
    """The text with this many more shingles, from the start of an ending that is always the same."""
    return text + random_text("ending").upper()[:num_shingles]


@given(st.text(alphabet="ab ", max_size=60), st.text(alphabet="ab ", max_size=60))
def test_jaccard_equals_the_definition_on_lists_of_shingles(left, right):
    def listed(text):
        return {text[i : i + 24] for i in range(len(text) - 23)} if len(text) >= 24 else {text}

    expected = len(listed(left) & listed(right)) / len(listed(left) | listed(right))
    assert by_sets(left, right) == expected
    assert jaccard(HashedShingles(left), HashedShingles(right)) == expected
    assert jaccard(HashedShingles(right), HashedShingles(left)) == expected


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
    assert dropped_of(texts) == {"original": ("copy", 477 / 497)}


def test_pairs_below_the_bound_are_not_near_duplicates_and_pairs_at_the_bound_are():
    text = random_text("border", 423)  # 400 shingles
    below, above = with_ending(text, 101), with_ending(text, 100)
    assert by_sets(text, below) < MIN_JACCARD == by_sets(text, above)
    assert near_duplicates({"a": text, "b": below}, [("a", "b")]) == {}
    assert near_duplicates({"a": text, "b": above}, [("a", "b")]) == {"b": ("a", 0.8)}


@pytest.mark.parametrize("max_keys", [1, 7, 100, 1 << 21])
def test_proposed_groups_do_not_depend_on_where_and_in_how_many_parts_keys_are_compared(
    tmp_path, monkeypatch, max_keys
):
    texts = {f"{n:02d}": with_ending(random_text(str(n // 3)), 5 * n) for n in range(15)}
    whole = proposed_groups(frame(texts))
    assert len(whole) >= 5
    monkeypatch.setattr(dedup, "MAX_KEYS", max_keys)
    assert proposed_groups(frame(texts)) == whole
    assert proposed_groups(frame(texts), tmp_path / "bands") == whole


def test_near_duplicates_are_the_same_from_files(tmp_path):
    texts = {f"{n:02d}": with_ending(random_text(str(n // 3)) + "\u00fc\U0001f642", 5 * n) for n in range(15)}
    rules = [near_duplicates_rule(frame(texts)), near_duplicates_rule(frame(texts), tmp_path)]
    documents = [Document(id, id, "wiki", text, "MIT", "here") for id, text in texts.items()]
    in_memory, from_files = ([rule.fault(one) for one in documents] for rule in rules)
    assert from_files == in_memory
    assert 0 < in_memory.count(None) < 15


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 150)), min_size=2, max_size=8))
@settings(max_examples=10)
def test_found_pairs_reach_the_bound_and_very_similar_pairs_are_found(recipe):
    texts = {str(n): with_ending(random_text(base), changed) for n, (base, changed) in enumerate(recipe)}
    groups = proposed_groups(frame(texts))
    assert near_duplicates({id: texts[id] for group in groups for id in group}, groups) == brute_force(texts, groups)
    # 20 bands of 13 propose a pair at 0.95 with probability 1 - (1 - 0.95**13)**20 = 1 - 5e-6.
    proposed = {pair for group in groups for pair in itertools.combinations(group, 2)}
    assert {pair for pair, value in similarities(texts).items() if value >= 0.95} <= proposed


# Texts of up to six slots, each filled from a few alternatives of other lengths: similarities lie all around the bound.
FILLINGS = [[random_text(f"{slot}/{filling}", 30 + 25 * filling) for filling in range(3)] for slot in range(6)]
SLOTS = st.tuples(*(st.sampled_from([0, 0, 0, 0, 1, 2, None]) for _ in FILLINGS))
IDS = "abcdefghijkl"


@given(
    st.lists(SLOTS, min_size=2, max_size=len(IDS)),
    st.lists(st.lists(st.sampled_from(IDS), min_size=2, max_size=len(IDS), unique=True), max_size=5),
    st.permutations(IDS),
    st.sampled_from([1, 20, 1 << 22]),
)
@settings(max_examples=300)
def test_what_is_dropped_equals_the_comparison_of_all_pairs(fillings, groups, names, max_counters):
    texts = {
        id: "".join(FILLINGS[slot][filling] for slot, filling in enumerate(filled) if filling is not None)
        for id, filled in zip(names, fillings, strict=False)
    }
    groups = [members for group in groups if len(members := [id for id in group if id in texts]) > 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "MAX_COUNTERS", max_counters)  # a counter for many shingles changes no result
        patch.setattr(dedup, "MAX_CACHED_SHINGLES", 400)
        assert near_duplicates({id: texts[id] for group in groups for id in group}, groups) == brute_force(
            texts, groups
        )


@given(st.lists(st.text(alphabet="ab ", max_size=40), min_size=2, max_size=8))
def test_repetitive_and_short_texts_are_compared_like_any_other(texts):
    texts = {IDS[index]: text for index, text in enumerate(texts)}
    assert near_duplicates(texts, [sorted(texts)]) == brute_force(texts, [sorted(texts)])


@pytest.mark.parametrize(
    "hashes",
    [
        pytest.param(np.zeros, id="all the same"),
        pytest.param(np.arange, id="different in a text and the same in all texts"),
        pytest.param(lambda number: np.arange(number) // 2, id="pairs"),
    ],
)
def test_shingles_with_the_same_hash_change_no_result(monkeypatch, hashes):
    monkeypatch.setattr(dedup, "shingle_hashes", lambda text: hashes(max(1, len(text) - 23)).astype(np.uint64))
    text = random_text("collision", 423)
    texts = {"a": text, "b": with_ending(text, 60), "c": with_ending(text, 110), "d": random_text("d")}
    assert near_duplicates(texts, [sorted(texts)]) == brute_force(texts, [sorted(texts)])


def count_comparisons(monkeypatch, texts):
    """How often `near_duplicates` compares two documents that are all in one group, and what it drops."""
    compared = []

    def counted(left, right):
        compared.append(1)
        return jaccard(left, right)

    monkeypatch.setattr(dedup, "jaccard", counted)
    dropped = near_duplicates(texts, [sorted(texts)])
    return len(compared), dropped


def letter(seed, changed, length=600):
    """A letter of `length` characters, of which the last `changed` are its own."""
    return random_text("letter", length - changed) + random_text(f"own {seed}", changed)


@pytest.mark.parametrize("number", [50, 200])
def test_comparisons_grow_with_the_number_of_letters_that_differ_in_a_number(monkeypatch, number):
    """One for each letter but the first."""
    texts = {f"{index:03d}": letter(index, 5) for index in range(number)}
    num_comparisons, dropped = count_comparisons(monkeypatch, texts)
    assert num_comparisons == number - 1
    assert {kept for kept, _ in dropped.values()} == {"000"}
    assert len(dropped) == number - 1


def test_letters_that_differ_in_too_much_are_not_compared_with_each_other(monkeypatch):
    """A similarity of 0.74, at which bands propose most pairs: their rare shingles tell them apart."""
    texts = {f"{index:03d}": letter(index, 86) for index in range(200)}
    assert 0.7 < by_sets(texts["000"], texts["001"]) < 0.75
    assert count_comparisons(monkeypatch, texts) == (0, {})


def with_others(texts, frequent):
    """The texts, and five more documents that share a passage, so that its shingles are frequent."""
    return texts | {f"other {index}": frequent + random_text(f"other {index}", 900) for index in range(5)}


def test_documents_of_other_lengths_are_not_compared(monkeypatch):
    """Although they share all of the rare shingles."""
    rare, frequent = random_text("rare", 600), random_text("frequent", 300)
    texts = with_others({"a": rare, "b": rare + frequent}, frequent)
    assert 0.6 < by_sets(texts["a"], texts["b"]) < 0.7
    assert count_comparisons(monkeypatch, texts) == (0, {})


def test_documents_are_not_compared_if_what_is_left_after_the_rare_shingles_is_too_little(monkeypatch):
    """One of them begins with a seventh of shingles that nobody has, and only then come those of the other."""
    frequent = random_text("frequent", 86)
    shared = random_text("shared", 514)
    texts = with_others({"a": shared + frequent, "b": shared + random_text("own", 86)}, frequent)
    assert 0.7 < by_sets(texts["a"], texts["b"]) < 0.75
    assert count_comparisons(monkeypatch, texts) == (0, {})


def test_shingles_of_few_documents_are_in_memory_at_a_time(monkeypatch):
    monkeypatch.setattr(dedup, "MAX_CACHED_SHINGLES", 1500)
    texts = {f"{index:03d}": letter(index, 5) for index in range(10)}  # 577 shingles each
    cache = dedup.ShingleCache(texts)
    for id, text in texts.items():
        assert len(cache[id]) == len(shingles(text)) == cache[id].shared_with(HashedShingles(text))
        assert len(cache.kept) <= 2
    assert cache["000"].text == texts["000"]


def test_hashes_estimate_the_similarity_of_24_character_shingles():
    text = random_text("estimate", 2000)
    other = text[:1000] + random_text("another", 1000)
    signatures = daft.functions.minhash(
        dedup._characters_as_words(daft.col("text")), num_hashes=260, ngram_size=24, seed=1, hash_function="xxhash3_64"
    )
    one, two = frame({"a": text, "b": other}).select(signatures.alias("hashes")).to_pydict()["hashes"]
    estimate = np.mean(np.array(one) == np.array(two))
    # Four standard deviations of 260 draws. The texts share almost no shingles of 24 words.
    assert estimate == pytest.approx(by_sets(text, other), abs=4 * 0.03)


def test_a_space_is_a_character_of_a_shingle():
    spaced = dedup._characters_as_words
    frame_of_texts = daft.from_pydict({"text": ["a b", "ab", "a  b"]})
    assert frame_of_texts.select(spaced(daft.col("text"))).to_pydict()["text"] == ["a ␣ b", "a b", "a ␣ ␣ b"]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_components_equal_those_of_networkx(pairs):
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(8))
    components = dedup.Components(8)
    for pair in pairs:
        components.connect(*pair)
    assert sorted(components.members()) == sorted(map(sorted, networkx.connected_components(graph)))


def test_only_the_smallest_id_of_a_chain_stays_and_the_report_names_it():
    text = random_text("chain", 423)
    texts = {"b": text, "c": with_ending(text, 30), "a": with_ending(text, 60), "z": random_text("unrelated")}
    reports = {}
    kept = apply_to_dataframe(frame(texts), [near_duplicates_rule(frame(texts))], reports)
    assert sorted(kept.to_pydict()["id"]) == ["a", "z"]
    examples = {example.id: example.value for example in reports["near-duplicates"].examples}
    assert examples == {"b": "0.870 to a", "c": "0.935 to a"}


def test_the_report_says_which_documents_only_others_connect(monkeypatch):
    text = random_text("far", 423)  # 400 shingles
    texts = {"a": text, "b": with_ending(text, 80), "c": with_ending(text, 160), "d": random_text("unrelated")}
    monkeypatch.setattr(dedup, "proposed_groups", lambda documents, directory: [("a", "b", "c")])
    reports = {}
    apply_to_dataframe(frame(texts), [near_duplicates_rule(frame(texts))], reports)
    examples = {example.id: example.value for example in reports["near-duplicates"].examples}
    assert examples == {"b": "0.833 to a", "c": "0.714 to a, through others"}


def test_texts_shorter_than_a_shingle_are_compared_whole():
    texts = {"a": "Return the node.", "b": "Return the nodes.", "c": ""}
    assert near_duplicates(texts, [("a", "b", "c")]) == {}


def test_row_order_does_not_change_what_is_proposed():
    text = random_text("order", 423)
    texts = {"a": text, "b": with_ending(text, 10), "c": with_ending(text, 20), "d": random_text("d")}
    backwards = {name: texts[name] for name in reversed(texts)}
    assert proposed_groups(frame(texts)) == proposed_groups(frame(backwards)) != []


def test_a_corpus_without_a_proposed_pair_keeps_everything():
    texts = {"a": random_text("a"), "b": random_text("b")}
    reports = {}
    kept = apply_to_dataframe(frame(texts), [near_duplicates_rule(frame(texts))], reports)
    assert sorted(kept.to_pydict()["id"]) == ["a", "b"]
