"""DPO: make the chosen reply of each pair likelier than the rejected one, measured against a reference model.

In: log-probabilities of the tokens of pairs of replies to one prompt, under the model that is trained and under the
reference. Out: the loss of every pair, and what the two models say about it. The mean over pairs is taken in the loop
that calls this.

What is here, and where it comes from:

- DPO (arXiv 2305.18290), equation 7. A reply's reward is beta times how much likelier the policy finds it than the
  reference does; the loss is that of Bradley and Terry on the two rewards, as for a reward model (preference.py).
- Length: the paper sums log-probabilities over the tokens of a reply, and so does NVIDIA's NeMo RL by default
  (`preference_average_log_probs: False`). The mean over tokens is the other choice: Tulu 3 (arXiv 2411.15124), an
  option of NeMo RL, `sigmoid_norm` in TRL. With it a reply's reward does not grow with its length.
- NLL of the chosen reply, a term that keeps it likely: DPO alone may lower both replies. Weight 0 in NeMo RL's default
  (`sft_loss_weight`), 0.2 in the experiment of Nemotron 3 Nano's appendix C. Summed or averaged as the other terms are,
  which is NeMo RL's default too.

The paper of Nano 2 (arXiv 2508.14444) says that it used DPO, and gives neither beta nor the handling of length nor this
term. The proxy for beta is 0.05, NeMo RL's default.

Left out: labels that may be wrong (label smoothing), IPO and the other losses on the same rewards, the reward-aware
losses of NeMo-Aligner.

Letters:   p pair   b reply   t position   n token of a reply that counts
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


def reply_logprobs(logprobs: Tensor, counts: Tensor, *, per_token: bool) -> Tensor:
    """(n,) log-probabilities of the tokens that count to (b,) log-probabilities of the replies.

    Args:
        logprobs: (n,) reply after reply, each from its first token to its last.
        counts: (b, t) which positions those tokens are at; a reply without one has a log-probability of 0.
        per_token: the mean over a reply's tokens; else their sum, which is the log-probability of the reply.
    """
    padded = logprobs.new_zeros(counts.shape).masked_scatter(counts, logprobs)  # (b, t)
    total = padded.sum(dim=1)
    return total / counts.sum(dim=1).clamp(min=1) if per_token else total


class PairTerms(NamedTuple):
    """What the objective computes for each pair, (p,) each; only the loss has a gradient."""

    loss: Tensor
    """To be minimized: the preference loss, and the weighted NLL of the chosen reply."""
    preference_loss: Tensor
    """-log of the probability that the chosen reply is the better one; ln 2 if policy and reference agree."""
    chosen_reward: Tensor
    """beta (policy - reference) of the chosen reply."""
    rejected_reward: Tensor
    """The same of the rejected reply."""
    margin: Tensor
    """Reward of the chosen reply less that of the rejected one."""


def dpo_objective(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    nll_weight: float = 0.0,
) -> PairTerms:
    """The loss of each pair: -log sigmoid(beta ((chosen - reference) - (rejected - reference))) + nll_weight NLL.

    Args:
        chosen: (p,) log-probability of each chosen reply under the model that is trained, with a gradient.
        rejected: (p,) that of the rejected reply to the same prompt.
        reference_chosen: (p,) of the chosen reply under the model that training started from, summed or averaged in
            the same way.
        reference_rejected: (p,) of the rejected reply.
        beta: how much a difference from the reference is worth; the larger, the less the policy moves.
        nll_weight: weight of the chosen reply's negative log-probability; 0 is plain DPO.
    """
    chosen_reward = beta * (chosen - reference_chosen)
    rejected_reward = beta * (rejected - reference_rejected)
    margin = chosen_reward - rejected_reward
    preference_loss = -F.logsigmoid(margin)  # log(sigmoid(margin)) is -infinity in float32 below -89
    loss = preference_loss - nll_weight * chosen
    return PairTerms(
        loss=loss,
        preference_loss=preference_loss.detach(),
        chosen_reward=chosen_reward.detach(),
        rejected_reward=rejected_reward.detach(),
        margin=margin.detach(),
    )
