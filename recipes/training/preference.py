"""Bradley and Terry's model of preferences: the loss of a reward model, and how far its probabilities can be trusted.

In: scores of the chosen and the rejected reply of each pair. Out: the loss of every pair, the share of pairs that the
scores order as the labels do, and a comparison of stated with observed probabilities.

What is here, and where it comes from:

- The probability that one reply is better than another is sigmoid(score - other score) (Bradley and Terry, Biometrika
  39, 1952). Only differences count: a constant added to all scores of a prompt changes nothing.
- The loss is the negative logarithm of the probability of the label (arXiv 2203.02155, equation 1).
- Reliability bins of equal width, and the expected calibration error (arXiv 1706.04599).

Left out: InstructGPT's mean over all pairs of a ranking of more than two replies; a margin by which scores should
differ (arXiv 2307.09288, equation 2); a penalty that centers the scores; a model of pairs that are equally good.

Letters:   p pair   k bin
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PreferenceTerms(NamedTuple):
    """What the loss computes for each pair, (p,) each; only the loss has a gradient."""

    loss: Tensor
    """To be minimized."""
    difference: Tensor
    """Score of the chosen reply less that of the rejected one."""


def preference_loss(chosen: Tensor, rejected: Tensor) -> PreferenceTerms:
    """The loss of each pair: -log sigmoid(chosen - rejected).

    Args:
        chosen: (p,) scores of the chosen replies, with a gradient.
        rejected: (p,) scores of the rejected replies to the same prompts.
    """
    difference = chosen - rejected
    return PreferenceTerms(loss=-F.logsigmoid(difference), difference=difference.detach())


def preference_accuracy(difference: Tensor) -> float:
    """Share of the pairs that the scores order as the labels do; equal scores count half, as a coin would do.

    Args:
        difference: (p,) score of the chosen reply less that of the rejected one.
    Raises:
        ValueError: if there is no pair.
    """
    return _rightness(difference).mean().item()


class Reliability(NamedTuple):
    """How sure the model is and how often it is right, (k,) for bins of equal width from 1/2 to 1."""

    num_pairs: Tensor
    confidence: Tensor
    """Mean probability that the reply with the larger score is the better one; 0 where the bin is empty."""
    share_right: Tensor
    """Share of the pairs in which it is the chosen one; equal scores count half; 0 where the bin is empty."""


def reliability(difference: Tensor, *, num_bins: int) -> Reliability:
    """Pairs by the model's confidence, sigmoid(|difference|), which is from 1/2 to 1.

    In a pair the chosen reply comes first, so the share of pairs whose first reply is better is 1 at every probability
    and says nothing. The reply that the model prefers may be the chosen one or not.

    Args:
        difference: (p,) score of the chosen reply less that of the rejected one.
        num_bins: the last bin includes 1.
    Raises:
        ValueError: if there is no pair or no bin, or a difference is not finite.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} must be 1 or more")
    right = _rightness(difference)
    confidence = torch.sigmoid(difference.double().abs())
    index = ((2 * confidence - 1) * num_bins).long().clamp(max=num_bins - 1)
    inside = index == torch.arange(num_bins, device=index.device)[:, None]  # (k, p)
    num_pairs = inside.sum(dim=1)

    def mean_of(values: Tensor) -> Tensor:
        return torch.where(inside, values, 0).sum(dim=1) / num_pairs.clamp(min=1)

    return Reliability(num_pairs, mean_of(confidence), mean_of(right))


def expected_calibration_error(bins: Reliability) -> float:
    """Mean distance between confidence and share right, each bin weighted by its pairs; 0 if they agree in every bin.

    The number depends on the bins: many bins with few pairs each make it larger by chance alone.
    """
    distances = (bins.confidence - bins.share_right).abs()
    return ((distances * bins.num_pairs).sum() / bins.num_pairs.sum()).item()


def _rightness(difference: Tensor) -> Tensor:
    """(p,) 1 where the chosen reply has the larger score, 1/2 where the scores are equal, 0 elsewhere; float64."""
    if not difference.numel():
        raise ValueError("there is no pair to measure the scores on; hold out at least one")
    if not difference.isfinite().all():
        raise ValueError("a difference of scores is not finite; look for the NaN or the infinity in the reward model")
    return (difference.double().sign() + 1) / 2
