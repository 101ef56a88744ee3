"""pass@k: how likely at least one of k replies is right; and paired differences between two models."""

import math
from collections.abc import Sequence
from typing import NamedTuple


def pass_at_k(num_replies: int, num_right: int, k: int) -> float:
    """The share of all choices of k of the replies that hold a right one (arXiv 2107.03374): 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: if there are fewer than k replies.
    """
    if not 1 <= k <= num_replies:
        raise ValueError(f"k={k} must be from 1 to the {num_replies} replies; draw more replies")
    return 1 - math.comb(num_replies - num_right, k) / math.comb(num_replies, k)


class Paired(NamedTuple):
    """The mean difference of paired measurements."""

    difference: float
    standard_error: float


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Paired:
    """The mean of after - before, each pair on the same exercise, and its standard error (with n - 1)."""
    differences = [a - b for a, b in zip(after, before, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((one - mean) ** 2 for one in differences) / max(1, n - 1)
    return Paired(mean, math.sqrt(variance / n))
