import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation import scorers
from nemotron.recipes.curation.rules import apply_to_dataframe
from nemotron.recipes.curation.scorers import (
    L2_PENALTY,
    NUM_BUCKETS,
    NUM_FEATURES,
    add_buckets,
    bucket_fault,
    bucket_rule,
    equal_mass_buckets,
    fit_scorers,
    group_of,
    hashed_features,
    scores_of,
    train_scorer,
)
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.dataframes import daft

MASSES = st.lists(st.integers(1, 50), min_size=1, max_size=60)
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


def draw_words(seed, count):
    draw = random.Random(seed)
    return " ".join(WORDS[int(draw.random() * len(WORDS))] for _ in range(count))


def labeled_texts(count):
    """Texts of random words that end with "good" or "bad", their labels, and their modules."""
    texts = [draw_words(seed, 12) + (" good" if seed % 2 else " bad") for seed in range(count)]
    return texts, [seed % 2 == 1 for seed in range(count)], [f"module{seed % 40}" for seed in range(count)]


@given(MASSES)
def test_every_bucket_holds_a_twentieth_of_the_mass_up_to_one_document(masses):
    masses = np.array(masses)
    buckets = equal_mass_buckets(np.arange(len(masses), dtype=float), masses)
    for bucket in range(NUM_BUCKETS):
        assert abs(masses[buckets == bucket].sum() - masses.sum() / NUM_BUCKETS) <= masses.max()
        # The same for all buckets up to this one, so errors do not add up.
        assert abs(masses[buckets <= bucket].sum() - masses.sum() * (bucket + 1) / NUM_BUCKETS) <= masses.max() / 2


@given(MASSES, st.integers(0, 9))
def test_a_higher_score_never_has_a_lower_bucket(masses, seed):
    draw = random.Random(seed)
    scores = np.array([draw.random() for _ in masses])
    buckets = equal_mass_buckets(scores, np.array(masses))
    in_order = buckets[np.argsort(scores)]
    assert (np.diff(in_order) >= 0).all()
    assert in_order.min() >= 0
    assert in_order.max() < NUM_BUCKETS


def test_twenty_documents_of_equal_size_get_twenty_buckets():
    scores = np.array([float((7 * number) % 20) for number in range(20)])
    assert equal_mass_buckets(scores, np.ones(20, dtype=np.int64)).tolist() == [int(score) for score in scores]


def test_the_order_of_the_documents_breaks_ties_of_scores():
    scores = np.arange(2000) * 7 % 3.0
    buckets = equal_mass_buckets(scores, np.ones(2000, dtype=np.int64))
    in_order = sorted(range(2000), key=scores.tolist().__getitem__)
    assert buckets[in_order].tolist() == [number // 100 for number in range(2000)]


@pytest.mark.parametrize(
    ("bucket", "group"),
    [
        *((0, "Low"), (6, "Low"), (7, "Medium-Low"), (11, "Medium-Low")),
        *((12, "Medium"), (17, "Medium"), (18, "Medium-High"), (19, "High")),
    ],
)
def test_the_groups_are_those_of_nemotron_cc(bucket, group):
    assert group_of(bucket) == group


def test_texts_with_the_same_words_and_pairs_have_bitwise_equal_scores():
    texts = ["a b a b a", draw_words(0, 50), "b a b a b a b"]
    weights = np.array([random.Random(number).random() for number in range(NUM_FEATURES + 1)])
    scores = scores_of(hashed_features(texts), weights)
    assert scores[0] == scores[2] != scores[1]


def test_scores_equal_a_dense_matrix_product():
    texts = ["", "one", "one two", draw_words(1, 30)]
    features = hashed_features(texts)
    dense = np.zeros((len(texts), NUM_FEATURES))
    dense[features.rows, features.columns] = features.scale[features.rows]
    weights = np.array([random.Random(number).random() for number in range(NUM_FEATURES + 1)])
    assert np.linalg.norm(dense, axis=1) == pytest.approx([0, 1, 1, 1])
    assert scores_of(features, weights) == pytest.approx(dense @ weights[:-1] + weights[-1], rel=1e-12)


def loss(features, labels, weights):
    scores = scores_of(features, weights)
    return np.mean(np.logaddexp(0, scores) - labels * scores) + L2_PENALTY / 2 * (weights**2).sum()


def test_training_ends_near_the_minimum_of_the_penalized_loss(monkeypatch):
    texts, labels, _ = labeled_texts(60)
    features, labels = hashed_features(texts), np.array(labels, dtype=float)
    weights = train_scorer(features, labels)
    monkeypatch.setattr(scorers, "NUM_STEPS", 1000)
    best = loss(features, labels, train_scorer(features, labels))
    assert best <= loss(features, labels, weights) < best + 0.01
    assert best < loss(features, labels, np.zeros(NUM_FEATURES + 1)) / 5
    # No small change of a weight lowers the loss: a slow check of the gradient.
    minimum = train_scorer(features, labels)
    for column in [*np.unique(features.columns)[:10], NUM_FEATURES]:
        for change in (1e-3, -1e-3):
            moved = minimum.copy()
            moved[column] += change
            assert loss(features, labels, moved) >= best - 1e-8


def test_a_scorer_predicts_a_label_that_the_text_shows_on_held_out_modules():
    texts, labels, modules = labeled_texts(200)
    _, [report] = fit_scorers(texts, modules, {"good": labels}, seed=0)
    assert report.held_out_accuracy == 1.0
    assert report.num_training + report.num_held_out == 200
    held_out_modules = {m for m in modules if scorers.falls_into_share(scorers.HELD_OUT_SHARE, "scorer", 0, m)}
    assert report.num_held_out == sum(module in held_out_modules for module in modules)


@pytest.mark.parametrize("negate", [False, True])
def test_the_baseline_is_the_more_frequent_label_of_the_held_out_documents(negate):
    texts = [draw_words(seed, 12) for seed in range(200)]
    labels = [(number % 4 == 0) != negate for number in range(200)]
    _, [report] = fit_scorers(texts, [f"m{n}" for n in range(200)], {"label": labels}, seed=0)
    held_out = [n for n in range(200) if scorers.falls_into_share(scorers.HELD_OUT_SHARE, "scorer", 0, f"m{n}")]
    share = sum(labels[n] for n in held_out) / len(held_out)
    assert report.majority_accuracy == pytest.approx(max(share, 1 - share))
    assert report.majority_accuracy > 0.6


def test_a_scorer_cannot_predict_a_random_label_on_held_out_modules():
    texts = [draw_words(seed, 12) for seed in range(600)]
    labels = [random.Random(-seed).random() < 0.5 for seed in range(600)]
    _, [report] = fit_scorers(texts, [f"m{n}" for n in range(600)], {"chance": labels}, seed=0)
    assert report.held_out_accuracy < 0.65


@pytest.mark.parametrize("labels", [[None] * 50, [True] * 50, [True, False] * 5 + [None] * 40])
def test_missing_equal_or_too_few_labels_give_no_scorer(labels):
    texts, _, modules = labeled_texts(50)
    assert fit_scorers(texts, modules, {"label": labels}, seed=0) == ({}, [])


def frame_of(texts, modules, categories, **labels):
    same = {"licence": ["MIT"] * len(texts), "origin": ["here"] * len(texts)}
    ids = [f"{n:03d}" for n in range(len(texts))]
    columns = {"id": ids, "text": texts, "module": modules, "category": categories} | same
    flags = {name: daft.Series.from_pylist(values).cast(daft.DataType.bool()) for name, values in labels.items()}
    return daft.from_pydict(columns | flags)


def test_the_bucket_is_the_larger_of_the_two_scorers():
    texts, labels, modules = labeled_texts(200)
    one, two = labels, [("alpha" in text) for text in texts]
    frame = frame_of(texts, modules, ["academic"] * 200, has_example=one, exported=two)
    documents, reports = add_buckets(frame, seed=0)
    assert [report.label for report in reports] == ["has_example", "exported"]
    weights, _ = fit_scorers(texts, modules, {"has_example": one, "exported": two}, seed=0)
    masses = np.array([len(text.encode()) for text in texts])
    each = [equal_mass_buckets(scores_of(hashed_features(texts), w), masses) for w in weights.values()]
    assert documents.sort("id").to_pydict()["bucket"] == np.maximum(*each).tolist()


def test_documents_of_categories_without_labels_get_no_bucket_and_stay():
    texts, labels, modules = labeled_texts(200)
    categories = ["academic"] * 150 + ["code"] * 50
    known = [*labels[:150], *[None] * 50]
    documents, _ = add_buckets(frame_of(texts, modules, categories, has_example=known, exported=[None] * 200), seed=0)
    rows = documents.sort("id").to_pydict()["bucket"]
    assert None not in rows[:150]
    assert rows[150:] == [None] * 50
    reports = {}
    kept = apply_to_dataframe(documents, [bucket_rule()], reports)
    assert kept.count_rows() == 200 - sum(bucket < 7 for bucket in rows[:150])
    assert all(int(example.value.removeprefix("bucket ")) < 7 for example in reports["quality bucket"].examples)


def test_without_labels_no_document_is_scored_or_dropped():
    frame = frame_of(["one", "two"], ["a", "b"], ["wiki"] * 2, has_example=[None] * 2, exported=[None] * 2)
    documents, reports = add_buckets(frame, seed=0)
    assert reports == []
    assert apply_to_dataframe(documents, [bucket_rule()], {}).to_pydict()["bucket"] == [None, None]


@pytest.mark.parametrize(("bucket", "fault"), [(None, None), (0, "bucket 0"), (6, "bucket 6"), (7, None), (19, None)])
def test_documents_of_the_lowest_group_are_dropped(bucket, fault):
    assert bucket_fault(Document("a", "a", "wiki", "text", "MIT", "here", bucket=bucket)) == fault


@pytest.mark.parametrize("labeled", [True, False])
def test_buckets_replace_an_empty_column(labeled):
    texts, labels, modules = labeled_texts(60)
    labels = labels if labeled else [None] * 60
    frame = frame_of(texts, modules, ["academic"] * 60, has_example=labels, exported=[None] * 60)
    empty = frame.with_column("bucket", daft.lit(None).cast(daft.DataType.int64()))
    (expected, _), (replaced, _) = add_buckets(frame, seed=0), add_buckets(empty, seed=0)
    assert replaced.sort("id").to_pydict()["bucket"] == expected.sort("id").to_pydict()["bucket"]
    assert sorted(replaced.column_names) == sorted(expected.column_names)


@given(st.permutations(range(60)))
@settings(max_examples=3)
def test_row_order_does_not_change_a_bucket(order):
    texts, labels, modules = labeled_texts(30)
    texts, labels, modules = texts * 2, labels * 2, modules * 2  # so there are ties
    frame = frame_of(texts, modules, ["academic"] * 60, has_example=labels, exported=[None] * 60)
    rows = frame.to_pylist()
    shuffled = daft.from_pylist([rows[number] for number in order]).with_column(
        "exported", daft.lit(None).cast(daft.DataType.bool())
    )
    expected = add_buckets(frame, seed=0)[0].sort("id").to_pydict()["bucket"]
    assert add_buckets(shuffled, seed=0)[0].sort("id").to_pydict()["bucket"] == expected
