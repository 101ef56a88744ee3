"""Cross-entropy and log-probabilities by chunks of tokens, so that the logits of a batch are never whole.

In: hidden states after the final norm, the output matrix, the tokens that follow. Out: a number for each token.

Logits are the largest tensor of a training step: with 131,072 tokens in the vocabulary, a row of 524,288 tokens has 256
GiB of them in float32, and the loss holds them twice. Here they exist for one chunk at a time. The backward pass
computes the logits of each chunk again: one more product with the output matrix, and nothing of size v is kept.

Left out: the KL divergence of distillation, whose slope is known in closed form (recipes/training/distill.py).

Letters: n token   d hidden size   v entry of the vocabulary
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nemotron.recipes.nemotron_h.model import Linear, at_least_float32

LOGITS_AT_A_TIME = 2**27
"""Numbers in the logits of one chunk, our choice: 0.5 GiB in float32. Changes memory and speed, not the result."""


def chunk_tokens(vocab_size: int) -> int:
    """Tokens whose logits are in memory at a time."""
    return max(1, LOGITS_AT_A_TIME // vocab_size)


def token_losses(head: Linear, hidden: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """(n,) cross-entropies in nats: how unlikely each token is to the model at the temperature.

    Args:
        head: the output matrix.
        hidden: (n, d) states at the position before each token.
        tokens: (n,) token ids.
    """

    def losses(hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(head, hidden, temperature), tokens, reduction="none")

    return by_chunks(losses, head, hidden, tokens)


def logits_of(head: Linear, hidden: Tensor, temperature: float = 1.0) -> Tensor:
    """(n, v) logits in at least float32, also when products are bfloat16: a softmax over so many needs the precision.

    In bfloat16, which has 8 significant bits, a loss would have two or three digits.
    """
    logits = at_least_float32(head(hidden))
    return logits if temperature == 1 else logits / temperature


def by_chunks(compute: Callable[[Tensor, Tensor], Tensor], head: Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """What `compute` gives for chunks of (n, d) hidden states and (n,) tokens, joined; each chunk's logits fit.

    With a single chunk nothing is computed again.
    """
    size = chunk_tokens(len(head.weight))
    if len(hidden) <= size:
        return compute(hidden, tokens)
    chunks = zip(hidden.split(size), tokens.split(size), strict=True)
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # nothing here is random
    return torch.cat([again(compute, *chunk) for chunk in chunks])
