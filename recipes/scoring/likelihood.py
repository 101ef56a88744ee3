"""How likely a model finds the tokens of given rows: the basis of all measures of the pretrained model.

In: a causal model and rows of token ids, of any lengths. Out: for each row, the loss of every token after the first,
and whether it is the model's most likely token.
Left out: generation. Nothing here samples, so no measure depends on a seed.

Letters: b row of a batch  t position
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
    """Scores of a row of t + 1 tokens. Entry i of both arrays is for token i + 1."""

    losses: NDArray[np.float64]
    """(t,) negative log probability of the token, in nats."""
    is_greedy: NDArray[np.bool_]
    """(t,) whether the token is the most likely one."""


Score = Callable[[Sequence[Row]], list[RowScores]]
"""Scores rows: `score_rows` with its model filled in, or a replacement."""


def group_losses(
    score: Score, rows: Sequence[Row], in_loss: Sequence[Sequence[bool]], groups: Sequence[str]
) -> dict[str, float]:
    """Mean loss in nats of the tokens that count, for each group of rows; the groups in the order of their first rows.

    Every token of a group weighs the same, whether its row has few tokens that count or many.

    Args:
        score: scores rows with the model.
        rows: token ids.
        in_loss: for each row, which of its tokens count. The first token of a row is never predicted.
        groups: for each row, the group that it belongs to.
    Raises:
        ValueError: if the arguments have different lengths, a first token counts, or no token of a group does.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row_scores, counted, group in zip(score(rows), in_loss, groups, strict=True):
        if len(counted) != len(row_scores.losses) + 1 or counted[0]:
            raise ValueError(
                f"in_loss of {len(counted)} tokens does not fit a row of {len(row_scores.losses) + 1} tokens whose "
                f"first is not predicted; give one value per token, False for the first"
            )
        chosen = row_scores.losses[np.asarray(counted[1:], dtype=np.bool_)]
        sums[group] = sums.get(group, 0.0) + float(chosen.sum())
        counts[group] = counts.get(group, 0) + len(chosen)
    for group, count in counts.items():
        if count == 0:
            raise ValueError(f"no token of the group {group!r} counts; leave the group out")
    return {group: sums[group] / counts[group] for group in sums}


@torch.inference_mode()
def score_rows(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    precision: AbstractContextManager[object] | None = None,
) -> list[RowScores]:
    """Score every row; the result has the order of `rows`.

    Rows of similar length share a forward pass and are padded at the end. In a causal model no position sees what
    follows it, so neither the padding nor the batch changes a score.

    Args:
        model: causal; maps (b, t) token ids to (b, t, vocab_size) logits.
        rows: token ids, at least one per row.
        batch_tokens: most tokens in one forward pass, counting padding. A longer row gets its own pass.
        device: device of the model.
        precision: context for each forward pass, such as `torch.autocast`.
    Raises:
        ValueError: if a row is empty.
    """
    for index, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"row {index} is empty; leave it out, or give at least one token")
    scores: list[RowScores | None] = [None] * len(rows)
    longest_first = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    while longest_first:
        longest = len(rows[longest_first[0]])
        num_rows = max(1, batch_tokens // longest)
        batch, longest_first = longest_first[:num_rows], longest_first[num_rows:]
        tokens = np.zeros((len(batch), longest), dtype=np.int64)  # padded with 0
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
    """Losses and is_greedy of tokens[:, 1:], both (b, t). tokens: (b, t + 1)."""
    b, length = tokens.shape
    targets = tokens[:, 1:]
    if length == 1:
        return np.zeros((b, 0)), np.zeros((b, 0), dtype=np.bool_)
    with precision:
        logits = model(tokens[:, :-1])
    # Softmax and logarithm in at least float32: bfloat16 would round a loss to two or three digits.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(b, length - 1)
    is_greedy = logits.argmax(dim=-1) == targets
    return losses.double().cpu().numpy(), is_greedy.cpu().numpy()
