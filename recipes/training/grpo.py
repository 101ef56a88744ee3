"""GRPO: how much better each reply is than the others of its prompt, and the loss that makes the better ones likelier.

In: rewards of groups of replies, and log-probabilities of the replies' tokens. Out: advantages, and the loss of every
token. What is summed over which tokens is decided in the loop that calls this.

What is here, and where it comes from:

- GRPO (arXiv 2402.03300): a reply is compared with the others of its prompt, so no second model estimates values; the
  ratio of new to old probability is clipped as in PPO (arXiv 1707.06347); KL to a reference by the estimator k3.
- RLOO (arXiv 2402.14740): a reply is compared with the mean of the others, without itself.
- DAPO (arXiv 2503.14476): the two clip bounds may differ; every token of an optimizer step weighs the same.
- Dr. GRPO (arXiv 2503.20783): dividing by the standard deviation of a group can be switched off.

Left out: GRPO's mean over each reply, and Dr. GRPO's constant denominator; DAPO's drawing of further prompts until
every group has a signal, and its penalty for nearly too long replies; a value model; correcting the loss for a sampler
whose log-probabilities differ from the learner's.

Letters:   g group: the replies to one prompt   s reply of a group   n token of a reply that counts
"""

from typing import NamedTuple

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, *, leave_one_out: bool, divide_by_deviation: bool) -> Tensor:
    """(g, s) rewards to (g, s) advantages: how much better a reply is than the others of its group.

    A group without differences has advantages of exactly 0, and so has a group of one reply.

    Args:
        leave_one_out: compare with the mean of the other replies; else with the mean of all, the reply included.
        divide_by_deviation: divide by the standard deviation of the group (with s - 1) where it is positive.
    """
    s = rewards.shape[1]
    differs = rewards.amax(dim=1, keepdim=True) > rewards.amin(dim=1, keepdim=True)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = torch.where(differs, advantages, 0)  # the mean of equal numbers may round
    if leave_one_out and s > 1:
        advantages = advantages * s / (s - 1)  # r - (sum - r) / (s - 1)
    if divide_by_deviation and s > 1:
        advantages = advantages / torch.where(differs, rewards.std(dim=1, keepdim=True), 1)
    return advantages


class TokenTerms(NamedTuple):
    """What the objective computes for each token, (n,) each."""

    loss: Tensor
    """To be minimized."""
    kl: Tensor
    """Estimate of the KL divergence from the reference; 0 without a reference."""
    clipped_low: Tensor
    """Whether the ratio is below its lower bound and the advantage negative, which then gives no gradient."""
    clipped_high: Tensor
    """Whether the ratio is above its upper bound and the advantage positive, which then gives no gradient."""


def grpo_objective(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    reference_logprobs: Tensor | None = None,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> TokenTerms:
    """The loss of each token: -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + kl_weight KL.

    Args:
        logprobs: (n,) of the tokens under the model that is trained, with a gradient.
        old_logprobs: (n,) under the model that wrote the replies, before the first update of this step.
        advantages: (n,) that of its reply, for every token.
        reference_logprobs: (n,) under the model that training started from; None leaves out the KL.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        # k3: its mean over the model's own tokens is KL(model || reference), and it is never negative. That holds for
        # its value; its mean gradient is not that of this KL, but that of KL(reference || model).
        log_ratio = reference_logprobs - logprobs
        kl = torch.exp(log_ratio) - log_ratio - 1
        loss = loss + kl_weight * kl
    return TokenTerms(
        loss=loss,
        kl=kl.detach(),
        clipped_low=(ratio < 1 - clip_low) & (advantages < 0),
        clipped_high=(ratio > 1 + clip_high) & (advantages > 0),
    )
