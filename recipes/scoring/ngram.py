"""Two baselines that a language model has to beat: a unigram and an interpolated Kneser-Ney n-gram over token ids.

In: training rows, the token sequences that the model trained on. Out: losses in nats of the tokens of any other rows.
A row's first token is context only and every later token is a target, for the model and for the baselines alike.
Neither sees further back than the row's start, where the n-gram's context is filled up with a boundary symbol.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (TR-10-98, Harvard, 1998),
section 3: modified Kneser-Ney smoothing, interpolated. The lowest order is interpolated with the uniform distribution,
so that every token of the vocabulary has a probability above 0 after every context and the probabilities sum to 1.

Legend: w token, k order of an n-gram (its length in tokens), c count, d discount.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Rows = Sequence[ArrayLike]

# Used for an order whose count-of-counts give no valid discounts: KenLM's --discount_fallback.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


class Unigram:
    """Token frequencies, smoothed by adding one to every count (Laplace): (c + 1) / (all tokens + vocab_size)."""

    def __init__(self, rows: Rows, vocab_size: int) -> None:
        counts = np.zeros(vocab_size, dtype=np.int64)
        for row in rows:
            counts += np.bincount(_checked(row, vocab_size)[1:], minlength=vocab_size)
        self.vocab_size = vocab_size
        self.probabilities: Floats = (counts + 1) / (counts.sum() + vocab_size)

    def losses(self, rows: Rows) -> list[Floats]:
        """Minus log probability, in nats, of every target: for a row of t + 1 tokens an array of t."""
        return [-np.log(self.probabilities[_checked(row, self.vocab_size)[1:]]) for row in rows]


@dataclass(frozen=True)
class Level:
    """All seen n-grams of one length k and what interpolation needs of them.

    An n-gram is identified by its index in `grams`, the sorted keys (first token) * (number of (k-1)-grams) + (index of
    the rest), so keys of any order and vocabulary fit in 64 bits; a context is identified in the same way.
    """

    grams: Ids
    discounted: Floats
    """(c - d) / (sum of c over the n-grams with the same context), per n-gram."""
    contexts: Ids
    weight: Floats
    """Sum of d / sum of c, per context: the probability mass that the order below distributes."""
    discounts: tuple[float, float, float]


class KneserNey:
    """Modified Kneser-Ney smoothing, interpolated over the orders 1 to `order`.

    The highest order counts occurrences; an order below counts in how many different contexts of one token more its
    n-gram was seen. Each order has its own three discounts, for counts of 1, of 2 and of 3 or more.

    Args:
        rows: training rows of token ids.
        vocab_size: number of token ids.
        order: tokens in the longest n-gram; 5 predicts a token from the four before it.
    Raises:
        ValueError: if no row holds a target, a token lies outside of the vocabulary, or order is below 1.
    """

    def __init__(self, rows: Rows, vocab_size: int, order: int = 5) -> None:
        if order < 1:
            raise ValueError(f"order={order} must be at least 1")
        self.vocab_size = vocab_size
        self.order = order
        history = self._history(rows)
        if not len(history[0]):
            raise ValueError("an n-gram needs training rows of at least two tokens, there are none")

        # From the shortest n-gram to the longest: w is the target, history[1] the token before it, and so on.
        grams = [np.unique(history[0], return_index=True, return_inverse=True)]
        contexts = [(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros_like(history[0]))]
        for k in range(1, order):
            grams.append(_extended(history[k], grams[-1]))
            contexts.append(_extended(history[k], contexts[-1]))

        self.levels: list[Level] = []
        for k in range(order):
            keys, first, inverse = grams[k]
            if k == order - 1:
                counts = np.bincount(inverse, minlength=len(keys))
            else:  # distinct longer n-grams that end in this one
                longer_first = grams[k + 1][1]
                counts = np.bincount(inverse[longer_first], minlength=len(keys))
            discounts = modified_discounts(counts)
            discount = np.array([0.0, *discounts])[np.minimum(counts, 3)]
            context_keys, _, context_inverse = contexts[k]
            context = context_inverse[first]
            total = np.bincount(context, weights=counts, minlength=len(context_keys))
            weight = np.bincount(context, weights=discount, minlength=len(context_keys)) / total
            self.levels.append(Level(keys, (counts - discount) / total[context], context_keys, weight, discounts))

    def losses(self, rows: Rows) -> list[Floats]:
        """Minus log probability, in nats, of every target: for a row of t + 1 tokens an array of t."""
        losses = -np.log(self._probabilities(self._history(rows)))
        ends = np.cumsum([max(0, len(np.asarray(row)) - 1) for row in rows])
        return np.split(losses, ends[:-1])

    def distribution(self, context: Sequence[int]) -> Floats:
        """(vocab_size,) probabilities of the token after a row that begins with `context`."""
        padded = [self.vocab_size] * self.order + _checked(context, self.vocab_size).tolist()
        tokens = np.arange(self.vocab_size)
        return self._probabilities([tokens, *(np.full_like(tokens, padded[-k]) for k in range(1, self.order))])

    def _history(self, rows: Rows) -> list[Ids]:
        """For every target of all rows: [the target, the token before it, ..., order - 1 tokens before it]."""
        boundary = np.full(self.order, self.vocab_size)  # one id behind the vocabulary; never a target
        padded: list[Ids] = [np.empty(0, dtype=np.int64)]
        places: list[Ids] = [np.empty(0, dtype=np.int64)]
        end = 0
        for row in rows:
            tokens = _checked(row, self.vocab_size)
            padded += [boundary, tokens]
            first_target = end + self.order + 1
            end += self.order + len(tokens)
            places.append(np.arange(first_target, end))
        flat, targets = np.concatenate(padded), np.concatenate(places)
        return [flat[targets - k] for k in range(self.order)]

    def _probabilities(self, history: list[Ids]) -> Floats:
        """Interpolates upwards from the uniform distribution; an unseen context passes the order below on."""
        probability = np.full(len(history[0]), 1 / self.vocab_size)
        gram = np.zeros_like(history[0])
        context = np.zeros_like(history[0])
        for k, level in enumerate(self.levels):
            below = self.levels[k - 1] if k else None
            gram = _index(level.grams, history[k] * (len(below.grams) if below else 1) + gram, gram)
            if below:
                context = _index(level.contexts, history[k] * len(below.contexts) + context, context)
            seen = context >= 0
            higher = np.where(gram >= 0, level.discounted[gram], 0.0) + level.weight[context] * probability
            probability = np.where(seen, higher, probability)
        return probability


def modified_discounts(counts: Ids) -> tuple[float, float, float]:
    """Discounts for counts of 1, 2, and 3 or more, from how many n-grams have the counts 1, 2, 3 and 4.

    Chen and Goodman, section 3: with n_i n-grams of count i and Y = n_1 / (n_1 + 2 n_2), the discount of count i is
    i - (i + 1) Y n_(i+1) / n_i. A small corpus may lack one of these counts or give a discount below 0; then the three
    are `FALLBACK_DISCOUNTS`.
    """
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return discounts if min(discounts) >= 0 else FALLBACK_DISCOUNTS


def _checked(row: ArrayLike, vocab_size: int) -> Ids:
    tokens = np.asarray(row, dtype=np.int64)
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        raise ValueError(
            f"a row holds token ids {tokens.min()} to {tokens.max()} and vocab_size={vocab_size} allows 0 to "
            f"{vocab_size - 1}; take the rows and the vocab_size from the same dataset"
        )
    return tokens


def _extended(tokens: Ids, shorter: tuple[Ids, Ids, Ids]) -> tuple[Ids, Ids, Ids]:
    """N-grams one token longer to the left: sorted distinct keys, where each is first, which one each target ends."""
    keys, _, inverse = shorter
    return np.unique(tokens * len(keys) + inverse, return_index=True, return_inverse=True)


def _index(sorted_keys: Ids, keys: Ids, shorter: Ids) -> Ids:
    """Index of each key, or -1 where it is unseen or its shorter n-gram was."""
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where((shorter >= 0) & (sorted_keys[places] == keys), places, -1)
