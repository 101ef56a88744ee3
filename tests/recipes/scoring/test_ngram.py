import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.scoring.ngram import FALLBACK_DISCOUNTS, KneserNey, Unigram, modified_discounts

VOCAB_SIZE = 6
rows_of_tokens = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=2, max_size=30), min_size=1, max_size=8)


class SlowKneserNey:
    """The same model with dictionaries and recursion, one n-gram at a time."""

    def __init__(self, rows, vocab_size, order):
        self.vocab_size, self.order = vocab_size, order
        occurrences = Counter()
        for row in rows:
            padded = [vocab_size] * order + list(row)
            for end in range(order + 2, len(padded) + 1):
                occurrences[tuple(padded[end - order : end])] += 1
        self.counts = {order: occurrences}
        for k in range(order - 1, 0, -1):
            self.counts[k] = Counter(gram[1:] for gram in self.counts[k + 1])
        self.discounts = {
            k: (0.0, *modified_discounts(np.array(list(counts.values())))) for k, counts in self.counts.items()
        }
        self.followers = {k: defaultdict(dict) for k in self.counts}
        for k, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[k][gram[:-1]][gram[-1]] = count

    def probability(self, token, context, k=None):
        k = self.order if k is None else k
        if k == 0:
            return 1 / self.vocab_size
        context = ((self.vocab_size,) * self.order + tuple(context))[-(k - 1) :] if k > 1 else ()
        below = self.probability(token, context[1:], k - 1)
        followers = self.followers[k].get(context)
        if followers is None:
            return below
        total = sum(followers.values())
        discount = self.discounts[k]
        count = followers.get(token, 0)
        freed = sum(discount[min(c, 3)] for c in followers.values())
        return (count - discount[min(count, 3)]) / total + freed / total * below


def test_probabilities_of_a_hand_written_corpus():
    # Bigrams: 0->1 twice, 1->0 and 1->2 once. Too few for computed discounts, so they are 0.5, 1 and 1.5. Each token
    # follows one other token, so order 1 gives each 0.5/3 + 0.5 * 1/3 = 1/3.
    model = KneserNey([[0, 1, 0, 1, 2]], vocab_size=3, order=2)
    np.testing.assert_allclose(model.distribution([0]), [1 / 6, 2 / 3, 1 / 6], rtol=1e-15)
    np.testing.assert_allclose(model.distribution([1]), [5 / 12, 1 / 6, 5 / 12], rtol=1e-15)
    np.testing.assert_allclose(model.distribution([2]), [1 / 3, 1 / 3, 1 / 3], rtol=1e-15)


def test_a_computed_discount_may_be_zero():
    # y = 1 / (1 + 2 * 1); the second discount is 2 - 3 y 2 / 1 = 0
    assert modified_discounts(np.repeat([1, 2, 3, 4], [1, 1, 2, 1])) == pytest.approx((1 / 3, 0.0, 3 - 2 / 3))


def test_discounts_of_hand_written_counts():
    # n1=8 n2=4 n3=2 n4=1: Y = 8/16, so 1 - 2/2 * 4/8 = 0.5, 2 - 3/2 * 2/4 = 1.25, 3 - 4/2 * 1/2 = 2.
    assert modified_discounts(np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 5])) == (0.5, 1.25, 2.0)


@pytest.mark.parametrize("numbers", [(0, 4, 2, 1), (8, 0, 2, 1), (8, 4, 0, 1), (8, 4, 2, 0), (1, 1, 9, 1)])
def test_discounts_fall_back_if_the_counts_give_no_valid_ones(numbers):
    assert modified_discounts(np.repeat([1, 2, 3, 4], numbers)) == FALLBACK_DISCOUNTS


@settings(max_examples=60, deadline=None)
@given(rows_of_tokens, rows_of_tokens, st.integers(1, 5))
def test_kneser_ney_equals_the_slow_reference(train, test, order):
    slow = SlowKneserNey(train, VOCAB_SIZE, order)
    for row, losses in zip(test, KneserNey(train, VOCAB_SIZE, order).losses(test), strict=True):
        expected = [-math.log(slow.probability(row[place], row[:place])) for place in range(1, len(row))]
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows_of_tokens, st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8), st.integers(1, 5))
def test_probabilities_sum_to_one_after_any_context(train, context, order):
    distribution = KneserNey(train, VOCAB_SIZE, order).distribution(context)
    assert abs(distribution.sum() - 1) < 1e-12
    assert distribution.min() > 0


def skewed_rows(vocab_size, num_rows, num_tokens):
    """Rows of random tokens, of which a few are frequent and many are rare."""
    uniform = random.Random(0).random
    return [[int(vocab_size ** uniform()) - 1 for _ in range(num_tokens)] for _ in range(num_rows)]


def test_kneser_ney_equals_the_slow_reference_with_computed_discounts():
    vocab_size = 60
    rows = skewed_rows(vocab_size, 20, 60)
    model, slow = KneserNey(rows, vocab_size, order=3), SlowKneserNey(rows, vocab_size, order=3)
    assert all(level.discounts != FALLBACK_DISCOUNTS for level in model.levels[1:])
    for row in rows[:3]:
        expected = [-math.log(slow.probability(row[place], row[:place])) for place in range(1, len(row))]
        np.testing.assert_allclose(model.losses([row])[0], expected, rtol=1e-12)


def test_large_token_ids_do_not_collide():
    vocab_size = 32768
    spread = [0, 1, 181, 182, 32766, 32767]
    rows = [[spread[token] for token in row] for row in skewed_rows(6, 30, 30)]
    model, slow = KneserNey(rows, vocab_size), SlowKneserNey(rows, vocab_size, order=5)
    for row, losses in zip(rows, model.losses(rows), strict=True):
        expected = [-math.log(slow.probability(row[place], row[:place])) for place in range(1, len(row))]
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_probabilities_sum_to_one_on_a_large_vocabulary():
    vocab_size = 32768
    rows = skewed_rows(vocab_size, 100, 400)
    model = KneserNey(rows, vocab_size)
    contexts = [[], *(rows[place][:place] for place in range(1, 12)), [5] * 5, [vocab_size - 1] * 4]
    for context in contexts:
        assert abs(model.distribution(context).sum() - 1) < 1e-10


def test_the_order_of_the_rows_does_not_change_kneser_ney():
    rows = [[0, 1, 2, 3], [3, 2, 1, 0, 1], [5, 5, 5]]
    test = [[0, 1, 2, 5, 5], [4, 4]]
    forwards, backwards = KneserNey(rows, VOCAB_SIZE).losses(test), KneserNey(rows[::-1], VOCAB_SIZE).losses(test)
    for first, second in zip(forwards, backwards, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-14)


def test_no_context_reaches_before_the_start_of_its_row():
    model = KneserNey([[0, 1, 2, 3, 4, 5]], VOCAB_SIZE)
    together = model.losses([[0, 1, 2], [3, 4]])
    np.testing.assert_array_equal(together[1], model.losses([[3, 4]])[0])
    assert [len(losses) for losses in together] == [2, 1]


def test_longer_contexts_help_on_repetitive_text():
    row = [0, 1, 2, 0, 1, 3, 0, 1, 2, 0, 1, 3] * 20
    means = [np.mean(KneserNey([row], VOCAB_SIZE, order).losses([row])[0]) for order in (1, 2, 3, 5)]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.1 * means[0]


def test_unigram_adds_one_to_every_count():
    model = Unigram([[5, 0, 0, 1]], vocab_size=6)  # targets 0, 0 and 1; the first token is only context
    np.testing.assert_allclose(model.probabilities, [3 / 9, 2 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9], rtol=1e-15)
    np.testing.assert_allclose(model.losses([[1, 0, 4]])[0], [math.log(3), math.log(9)], rtol=1e-15)


@pytest.mark.parametrize("model", [Unigram, KneserNey])
def test_a_token_outside_the_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match="vocab_size=4 allows 0 to 3"):
        model([[0, 1, 4]], 4)
    with pytest.raises(ValueError, match="token ids -1 to 2"):
        model([[0, 1]], 4).losses([[2, -1]])


def test_training_rows_without_a_target_are_refused():
    with pytest.raises(ValueError, match="no training row has at least two tokens"):
        KneserNey([[1]], 4)
    with pytest.raises(ValueError, match="order=0 must be at least 1"):
        KneserNey([[1, 2]], 4, order=0)
