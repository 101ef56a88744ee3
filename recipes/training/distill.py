"""Distillation on logits: the forward KL divergence from a teacher to a student, by chunks of tokens.

In: the hidden states of both models at the same tokens, and both output matrices. Out: KL(teacher || student), summed
over the tokens, with its gradient for the student.

    KL = sum over v of p_v (log p_v - log q_v)      p: softmax of the teacher's logits, q: of the student's
    slope for the student's logit v: q_v - p_v      so the student moves towards the teacher wherever they differ

Forward means that the teacher's distribution is the one that is averaged over: a student that gives a token no chance
which the teacher finds likely pays for it. The teacher says more about each position than the one token that followed.

Source: distillation with a temperature, arXiv 1503.02531, section 2; on logits only, arXiv 2508.14444, section 4.
Temperature 1 is published for Nemotron-H (arXiv 2504.03624).

Logits are the largest tensor of a training step: with 131,072 tokens in the vocabulary and a row of 262,144 tokens, 128
GiB in float32 for one model. Here they are never whole. For one chunk of tokens after the other, both logits are
computed, the loss is added up and the gradient is carried to the hidden states and the output matrix, and the logits
are given up; nothing is computed twice, because the slope is known in closed form.

Left out: losses on hidden states or attention, reverse KL, a mixture with the cross-entropy of the data.

Letters: n token   d hidden size, of the model that is named   v entry of the vocabulary
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron.recipes.nemotron_h.checkpoint import load_tokenizer
from nemotron.recipes.nemotron_h.device import autocast
from nemotron.recipes.nemotron_h.model import NemotronH, at_least_float32
from nemotron.recipes.scoring.likelihood import group_losses, score_rows
from nemotron.recipes.training.batches import Batch, collate

BATCH_ROWS = 8
"""Held-out rows of one forward pass of the divergence, our choice; changes memory, not the result."""


class _ChunkedKL(torch.autograd.Function):
    """Computes the gradient together with the loss, while the logits of a chunk are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        temperature: float,
        chunk_tokens: int,
    ) -> Tensor:
        total = at_least_float32(hidden.new_zeros(()))
        slope_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        slope_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            # (n, v) of this chunk only; in at least float32, also when matrix products are bfloat16
            log_q = F.log_softmax(at_least_float32(F.linear(hidden[rows], head)) / temperature, dim=-1)
            log_p = F.log_softmax(at_least_float32(F.linear(teacher_hidden[rows], teacher_head)) / temperature, dim=-1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            slope = ((log_q.exp() - p) / temperature).to(hidden.dtype)  # of the loss, for the student's logits
            if slope_hidden is not None:
                slope_hidden[rows] = (slope @ head).to(hidden.dtype)
            if slope_head is not None:
                slope_head += (slope.t() @ hidden[rows]).to(head.dtype)
        ctx.save_for_backward(slope_hidden, slope_head)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        hidden, head = ctx.saved_tensors
        return (
            None if hidden is None else hidden * slope.to(hidden.dtype),
            None if head is None else head * slope.to(head.dtype),
            *[None] * 4,
        )


def kl_sum(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int,
) -> Tensor:
    """KL(teacher || student) in nats, summed over tokens and times temperature squared.

    The factor keeps the size of the gradient when the temperature changes (arXiv 1503.02531, section 2).

    Args:
        hidden: (n, d) the student's hidden states after its final norm; the loss has a gradient for them.
        head: (v, d) the student's output matrix; the loss has a gradient for it.
        teacher_hidden: (n, d) the teacher's, of the same tokens; d may be another number. No gradient.
        teacher_head: (v, d) the teacher's. No gradient.
        temperature: logits are divided by it before the softmax.
        chunk_tokens: tokens whose logits are in memory at a time; changes memory, not the result.
    Raises:
        ValueError: if the two models have not the same tokens or vocabulary.
    """
    if len(hidden) != len(teacher_hidden) or len(head) != len(teacher_head):
        raise ValueError(
            f"the student has {len(hidden)} tokens and a vocabulary of {len(head)}, the teacher {len(teacher_hidden)} "
            f"and {len(teacher_head)}; give both models the same tokens"
        )
    terms = _ChunkedKL.apply(hidden, head, teacher_hidden.detach(), teacher_head.detach(), temperature, chunk_tokens)
    return terms * temperature**2


def batch_kl_sum(
    student: NemotronH, teacher: NemotronH, batch: Batch, *, temperature: float, chunk_tokens: int
) -> Tensor:
    """`kl_sum` over the tokens of a batch that count: both models read the batch, and only the student learns."""
    tokens, segments, counts = batch.tokens[:, :-1], batch.segments[:, :-1], batch.in_loss[:, 1:]
    with torch.no_grad():
        teacher_hidden = teacher.backbone(tokens, segments)[counts]  # (n, d)
    hidden = student.backbone(tokens, segments)[counts]
    heads = student.lm_head.weight, teacher.lm_head.weight
    return kl_sum(hidden, heads[0], teacher_hidden, heads[1], temperature=temperature, chunk_tokens=chunk_tokens)


def check_same_tokenizer(teacher: Path, student: Path) -> None:
    """Raise ValueError if the models in two directories give a token id different meanings."""
    if load_tokenizer(teacher).to_str() != load_tokenizer(student).to_str():
        raise ValueError(
            f"the teacher {teacher} and the student {student} have different tokenizers; distill only into a model "
            f"that reads the same tokens, such as one that was pruned from the teacher"
        )


def held_out_losses(
    model: NemotronH, path: Path, shares: Mapping[str, float], *, batch_tokens: int, dtype: str, device: str
) -> dict[str, float]:
    """Source -> cross-entropy in nats per token that counts, and "all": their mean with the weights of `shares`.

    Args:
        path: Parquet file of rows with source, tokens and in_loss; each row is one text.
        shares: source -> weight; they sum to 1.
        batch_tokens: most tokens of one forward pass; changes memory, not the result.
    """
    rows = pq.read_table(path, columns=["source", "tokens", "in_loss"]).to_pydict()
    precision = autocast(dtype, device)
    score = partial(score_rows, model, batch_tokens=batch_tokens, device=device, precision=precision)
    losses = group_losses(score, rows["tokens"], rows["in_loss"], rows["source"])
    return losses | {"all": sum(shares[source] * loss for source, loss in losses.items())}


@torch.no_grad()
def held_out_divergences(
    model: NemotronH,
    teacher: NemotronH,
    path: Path,
    shares: Mapping[str, float],
    *,
    chunk_tokens: int,
    dtype: str,
    device: str,
) -> dict[str, float]:
    """Source -> KL(teacher || model) in nats per token that counts, and "all", as in `held_out_losses`."""
    table = pq.read_table(path)
    means: dict[str, float] = {}
    for source in dict.fromkeys(table["source"].to_pylist()):
        rows = table.filter(pc.equal(table["source"], source))
        batches = [collate(rows.slice(start, BATCH_ROWS)) for start in range(0, len(rows), BATCH_ROWS)]
        found = []
        for batch in batches:
            with autocast(dtype, device):
                kl = batch_kl_sum(model, teacher, batch.to(device), temperature=1.0, chunk_tokens=chunk_tokens)
            found.append(kl.item())
        means[source] = sum(found) / sum(batch.num_in_loss for batch in batches)
    return means | {"all": sum(shares[source] * value for source, value in means.items())}
