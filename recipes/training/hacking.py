"""Reward hacking: a policy that earns more from its reward model without being better.

In: the curve of a run, with a measure of the truth beside the reward. Out: what is wrong, in a few words, or None.
The rule: compare the mean of the last `window` steps with that of the first `window` steps. A rise of the reward is not
trusted if one of these happened too:

    the true measure fell by more than `rubric_fall`
    replies grew by more than `length_growth` times their length
    replies repeat themselves more: their share of repeated token pairs grew by more than `repetition_growth`

Reward models are over-optimized in this way (arXiv 2210.10760), and length is the easiest thing to exploit (arXiv
2310.03716). The bounds are our choice. Left out: a test whether a difference is larger than its standard error; the
window is what steadies it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from nemotron.recipes.nemotron_h.generate import Continuation


def repeated_share(replies: Sequence[Continuation]) -> float:
    """The share of all pairs of neighboring tokens that their own reply has had before, thoughts included."""
    pairs = [list(pairwise(reply.tokens)) for reply in replies]
    num_pairs, num_different = (sum(map(len, found)) for found in (pairs, map(set, pairs)))
    return 1 - num_different / max(1, num_pairs) if num_pairs else 0.0


def sign_of_hacking(
    curve: Sequence[Mapping[str, Any]],
    window: int,
    rubric_fall: float,
    length_growth: float,
    repetition_growth: float,
) -> str | None:
    """What shows that a reward is being exploited, or None; None too before the curve has two windows.

    Args:
        curve: a row per step with reward, rubric, reply_tokens and repetition.
        window: steps at either end.
    """
    if len(curve) < 2 * window:
        return None

    def change(name: str) -> tuple[float, float]:
        before, after = (sum(row[name] for row in part) / window for part in (curve[:window], curve[-window:]))
        return before, after

    reward, rubric, length, repetition = map(change, ("reward", "rubric", "reply_tokens", "repetition"))
    if reward[1] <= reward[0]:
        return None
    found = f"the reward rose from {reward[0]:.3f} to {reward[1]:.3f}, and"
    if rubric[1] < rubric[0] - rubric_fall:
        return f"{found} the rubric fell from {rubric[0]:.3f} to {rubric[1]:.3f}"
    if length[1] > length[0] * (1 + length_growth):
        return f"{found} replies grew from {length[0]:.1f} to {length[1]:.1f} tokens"
    if repetition[1] > repetition[0] + repetition_growth:
        return f"{found} the share of repetitions grew from {repetition[0]:.1%} to {repetition[1]:.1%}"
    return None
