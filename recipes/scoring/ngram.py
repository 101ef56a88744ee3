"""Two baselines for a language model: a unigram and an interpolated Kneser-Ney n-gram, both over token ids.

In: the token sequences that the model trained on. Out: losses in nats of the tokens of other rows.
As for the model, the first token of a row is only context and every later token is a target. No context reaches before
the start of its row; there, the context of the n-gram is padded with a boundary symbol.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (TR-10-98, Harvard, 1998),
section 3: modified Kneser-Ney smoothing, interpolated. The lowest order is interpolated with the uniform distribution,
so every token has a probability above 0 after every context, and the probabilities sum to 1.

Letters: w token  k order of an n-gram, its length in tokens  c count  d discount
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Rows = Sequence[ArrayLike]

# For an order whose counts give no valid discounts, as KenLM's --discount_fallback.
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
        """Negative log probability of every target in nats: a (t,) array for a row of t + 1 tokens."""
        return [-np.log(self.probabilities[_checked(row, self.vocab_size)[1:]]) for row in rows]


@dataclass(frozen=True)
class Level:
    """All n-grams of length k in the training rows, with their interpolation weights.

    An n-gram is identified by its index in `grams`, the sorted keys (first token) * (number of (k-1)-grams) + (index of
    the rest), so keys of any order and vocabulary fit in 64 bits. Contexts are identified in the same way.
    """

    grams: Ids
    discounted: Floats
    """Per n-gram: (c - d) / (sum of c over the n-grams with the same context)."""
    contexts: Ids
    weight: Floats
    """Per context: (sum of d) / (sum of c), the probability mass left to the order below."""
    discounts: tuple[float, float, float]
    """For counts of 1, of 2, and of 3 or more; shows whether they were computed or are the fallback."""


class KneserNey:
    """Modified Kneser-Ney smoothing, interpolated over the orders 1 to `order`.

    The highest order counts occurrences. A lower order counts how many different tokens were seen before its n-gram:
    a token that follows many contexts is a better guess in a new context than one that often follows a single context.
    Each order has its own three discounts, for counts of 1, of 2, and of 3 or more.

    Args:
        rows: training rows of token ids.
        vocab_size: number of token ids.
        order: length of the longest n-gram; 5 predicts a token from the four before it.
    Raises:
        ValueError: if no row has a target, if a token is outside the vocabulary, or if order is below 1.
    """

    def __init__(self, rows: Rows, vocab_size: int, order: int = 5) -> None:
        if order < 1:
            raise ValueError(f"order={order} must be at least 1")
        self.vocab_size = vocab_size
        self.order = order
        history = self._history(rows)
        if not len(history[0]):
            raise ValueError("no training row has at least two tokens, so there is nothing to count; give longer rows")

        # From the shortest n-gram to the longest. history[0] is the target w, history[1] the token before it, ...
        grams = [np.unique(history[0], return_index=True, return_inverse=True)]
        contexts = [(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros_like(history[0]))]
        for k in range(1, order):
            grams.append(_extend(history[k], grams[-1]))
            contexts.append(_extend(history[k], contexts[-1]))

        self.levels: list[Level] = []
        for k in range(order):
            keys, first, inverse = grams[k]
            if k == order - 1:
                counts = np.bincount(inverse, minlength=len(keys))
            else:  # the number of distinct longer n-grams that end in this one
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
        """Negative log probability of every target in nats: a (t,) array for a row of t + 1 tokens."""
        losses = -np.log(self._probabilities(self._history(rows)))
        ends = np.cumsum([max(0, len(np.asarray(row)) - 1) for row in rows])
        return np.split(losses, ends[:-1])

    def distribution(self, context: Sequence[int]) -> Floats:
        """(vocab_size,) probabilities of the token that follows `context`, the beginning of a row."""
        padded = [self.vocab_size] * self.order + _checked(context, self.vocab_size).tolist()
        tokens = np.arange(self.vocab_size)
        return self._probabilities([tokens, *(np.full_like(tokens, padded[-k]) for k in range(1, self.order))])

    def _history(self, rows: Rows) -> list[Ids]:
        """`order` arrays with one entry per target of all rows: array k has the token k positions before the target."""
        boundary = np.full(self.order, self.vocab_size)  # the first id outside the vocabulary; never a target
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
        """Interpolate upward from the uniform distribution. An unseen context keeps the value of the order below."""
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
    """Discounts for counts of 1, of 2, and of 3 or more.

    Chen and Goodman, section 3: with n_i n-grams of count i and Y = n_1 / (n_1 + 2 n_2), the discount of count i is
    i - (i + 1) Y n_(i+1) / n_i. In a small corpus an n_i may be 0 or a discount negative; then all three are
    `FALLBACK_DISCOUNTS`.
    """
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return discounts if min(discounts) >= 0 else FALLBACK_DISCOUNTS


def _checked(row: ArrayLike, vocab_size: int) -> Ids:
    """The row as an array, if all its ids are in the vocabulary."""
    tokens = np.asarray(row, dtype=np.int64)
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        raise ValueError(
            f"a row has token ids {tokens.min()} to {tokens.max()}, but vocab_size={vocab_size} allows 0 to "
            f"{vocab_size - 1}; take rows and vocab_size from the same dataset"
        )
    return tokens


def _extend(tokens: Ids, shorter: tuple[Ids, Ids, Ids]) -> tuple[Ids, Ids, Ids]:
    """Extend the n-grams by the token on their left.

    Returns:
        The sorted distinct keys, the first target of each, and for each target the index of the n-gram that ends there.
    """
    keys, _, inverse = shorter
    return np.unique(tokens * len(keys) + inverse, return_index=True, return_inverse=True)


def _index(sorted_keys: Ids, keys: Ids, shorter: Ids) -> Ids:
    """Index of each key in sorted_keys; -1 if it is not there or if its shorter n-gram is already -1."""
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where((shorter >= 0) & (sorted_keys[places] == keys), places, -1)
