"""How likely a model finds every token of given rows: what all measures of the pretrained model are made of.

In: a causal model and rows of token ids of any lengths. Out: per row, the loss of every token after the first, and
whether the model would have chosen it.
Left out: generation. No measure here samples, so none depends on a seed.

Legend: b row of a batch  t position.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

Row = Sequence[int] | NDArray[np.integer]
"""Token ids."""


@dataclass(frozen=True)
class RowScores:
    """One row of t + 1 tokens; entry i of both arrays is about token i + 1."""

    losses: NDArray[np.float64]
    """(t,) minus log probability in nats."""
    is_greedy: NDArray[np.bool_]
    """(t,) the token is the most likely one."""


Score = Callable[[Sequence[Row]], list[RowScores]]
"""`score_rows` of one model, or anything that scores rows."""


@torch.inference_mode()
def score_rows(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    precision: AbstractContextManager[object] | None = None,
) -> list[RowScores]:
    """Scores of every row, in the order of the rows.

    Rows of similar length share a forward pass and are filled up at their end. In a causal model no position sees what
    follows it, so neither the filling nor the batch changes a score.

    Args:
        model: (b, t) token ids -> (b, t, vocab_size) logits, causal.
        rows: token ids, at least one each.
        batch_tokens: tokens in one forward pass, counting the filling; a longer row gets a pass of its own.
        device: where the model is.
        precision: entered around each forward pass, such as `torch.autocast`.
    Raises:
        ValueError: if a row is empty.
    """
    if any(len(row) == 0 for row in rows):
        raise ValueError("a row to score holds no token; leave it out")
    scores: list[RowScores | None] = [None] * len(rows)
    longest_first = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    while longest_first:
        longest = len(rows[longest_first[0]])
        num_rows = max(1, batch_tokens // longest)
        batch, longest_first = longest_first[:num_rows], longest_first[num_rows:]
        tokens = np.zeros((len(batch), longest), dtype=np.int64)  # 0 fills up
        for place, index in enumerate(batch):
            tokens[place, : len(rows[index])] = rows[index]
        losses, is_greedy = _score_batch(model, torch.from_numpy(tokens).to(device), precision or nullcontext())
        for place, index in enumerate(batch):
            targets = len(rows[index]) - 1
            scores[index] = RowScores(losses[place, :targets], is_greedy[place, :targets])
    return [row_scores for row_scores in scores if row_scores is not None]


def _score_batch(
    model: nn.Module, tokens: torch.Tensor, precision: AbstractContextManager[object]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Loss and greediness of tokens[:, 1:], both (b, t). tokens: (b, t + 1)."""
    b, length = tokens.shape
    targets = tokens[:, 1:]
    if length == 1:
        return np.zeros((b, 0)), np.zeros((b, 0), dtype=np.bool_)
    with precision:
        logits = model(tokens[:, :-1])
    # Softmax and logarithm at no less than float32, also when the model computes in bfloat16.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(b, length - 1)
    is_greedy = logits.argmax(dim=-1) == targets
    return losses.double().cpu().numpy(), is_greedy.cpu().numpy()
