"""Losses and gradients of a small random model on fixed inputs, by as many ranks as torchrun's variables say.

In: those variables. Out: a line of JSON: for each kind of loss the loss, the norm of the gradients, and the gradients
after clipping; what the ranks told each other.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain import training as pretraining
from nemotron.recipes.nano2.stage1_sft import training as fine_tuning
from nemotron.recipes.nano2.stage2_rlvr import training as rlvr
from nemotron.recipes.nano2.stage3_dpo import training as dpo
from nemotron.recipes.nano2.stage4_rlhf import reward_model
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.scorer import Scorer
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.distill import batch_kl_sum
from nemotron.recipes.training.distributed import (
    clip_gradients,
    from_first,
    gathered,
    joined,
    rank_rows,
    rank_share,
    shard,
    summed,
    terms_of_all,
    training_process,
    whole,
    whole_model,
    whole_on_first,
    world,
)  # fmt: skip
from nemotron.recipes.training.pairs import Pairs
from nemotron.recipes.training.rollouts import experience_of, with_logprobs

SHAPE = replace(MODELS["tiny"], vocab_size=40, hybrid_override_pattern="M*-M")
MAX_NORM = 1e-3


@dataclass
class Config:
    """What this program needs of a training step's Config."""

    device: str = "cpu"


def model_of(seed: int) -> NemotronH:
    model = NemotronH(SHAPE, dtype=torch.float64)
    initialize(model, seed)
    return model


def tokens_of(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


def clipped(model: Any, loss: float) -> dict[str, Any]:
    norm = clip_gradients(model, MAX_NORM)
    parts = [whole(parameter.grad).flatten() for parameter in model.parameters()]
    gradients = torch.cat(parts)
    return {"loss": loss, "norm": norm, "clipped": gradients.norm().item(), "gradients": gradients.tolist()}


def rows_loss(loss_sum: Any, batch: Batch) -> dict[str, Any]:
    model, loss = model_of(1), 0.0
    shard(model)
    for piece in rank_rows(batch, 1):
        part = loss_sum(model, piece) / batch.num_in_loss
        part.backward()
        loss += part.item()
    return clipped(model, summed(loss))


def pairs_loss() -> dict[str, Any]:
    policy, tokens = model_of(1), tokens_of(8, 12, 2)
    shard(policy)
    in_loss = torch.arange(12) >= 4 + torch.arange(8)[:, None] % 3
    pairs = Pairs(Batch(tokens, in_loss, torch.zeros_like(tokens)), torch.zeros(8, dtype=torch.float64))
    config = dpo.Config(micro_batch_pairs=1)
    pairs = dpo.with_reference(policy, pairs, config)
    pairs = replace(pairs, reference=pairs.reference - torch.arange(8) / 10)
    terms = []
    for chosen in pairs.by_length(1):
        terms.append(dpo.pair_terms(policy, pairs.take(chosen), config))
        (terms[-1].loss.sum() / len(pairs)).backward()
    losses = torch.cat([each.loss for each in terms_of_all(terms)])
    return clipped(policy, losses.mean().item())


def replies_loss() -> dict[str, Any]:
    policy, reference = model_of(1), model_of(3)
    shard(policy)
    shard(reference)
    prompts = [Prompt(None, False, tuple(tokens_of(1, 3 + index, index)[0].tolist())) for index in range(4)]
    lengths = [1, 1, 5, 2, 6, 3, 1, 4]  # the replies to the first prompt have one token
    replies = [
        Continuation(tokens_of(1, length, 9 + index)[0].tolist(), [0.0] * length, [False] * length, "stop")
        for index, length in enumerate(lengths)
    ]
    experience = experience_of(prompts, replies, torch.arange(8.0) - 3, learn_from_cut=True)
    config = rlvr.Config(micro_batch_prompts=1)
    experience, entropy = with_logprobs(experience, policy, reference, config)
    terms = []
    for chosen in experience.micro_batches(1):
        terms.append(rlvr.token_terms(policy, experience.of_prompts(chosen), config))
        (terms[-1].loss.sum() / experience.num_tokens).backward()
    losses = torch.cat([each.loss for each in terms_of_all(terms)])
    return clipped(policy, losses.sum().item() + entropy)


def scores_loss() -> dict[str, Any]:
    scorer = Scorer(model_of(1), 5)
    shard(scorer)
    texts = [tokens_of(1, 2 + index, index)[0].tolist() for index in range(8)]
    chosen, rejected, losses = texts[:4], texts[4:], []
    for rows in reward_model.by_length(chosen, rejected, 1):
        better, worse = [chosen[row] for row in rows], [rejected[row] for row in rows]
        loss, _ = reward_model.pair_loss(scorer, better, worse, reward_model.Config())
        (loss.sum() / 4).backward()
        losses.append(loss.detach())
    found = clipped(scorer, joined(torch.cat(losses)).mean().item())
    scores = whole_model(scorer).score(torch.tensor([texts[0]]), torch.tensor([2]))
    return {**found, "loss": found["loss"] + scores.item()}


def distillation_loss(batch: Batch) -> dict[str, Any]:
    student, teacher, loss = model_of(1), model_of(3), 0.0
    shard(student)
    shard(teacher)
    for piece in rank_rows(batch, 1):
        part = batch_kl_sum(student, teacher, piece, temperature=1.0, chunk_tokens=3) / batch.num_in_loss
        part.backward()
        loss += part.item()
    return clipped(student, summed(loss))


with training_process(Config()):
    rank, _ = world()
    tokens = tokens_of(7, 10, 0)
    segments = (torch.arange(10) >= 6).long().expand(7, -1)
    every = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
    masked = Batch(tokens, tokens % 3 == 0, segments)
    model = model_of(1)
    shard(model)
    pieces = [len(piece) for piece in rank_rows(every, 2)]
    found = {
        "rows": rows_loss(
            lambda model, piece: pretraining.loss_sum(model.backbone, model.lm_head, piece.tokens), every
        ),
        "masked rows": rows_loss(fine_tuning.loss_sum, masked),
        "pairs": pairs_loss(),
        "replies": replies_loss(),
        "scores": scores_loss(),
        "distillation": distillation_loss(masked),
        "rows of rank": pieces,
        "passes": len(pieces),
        "gathered": gathered({"rank": rank}),
        "from first": from_first(lambda: ["first", 0.1]),
        "summed": summed(rank + 0.1),
        "joined": joined(torch.full((rank,), float(rank))).tolist(),
        "share": list(rank_share(range(8))),
        "whole": [each.sum().item() for each in whole_on_first(model.state_dict()).values()],
        "whole model": whole_model(model)(tokens[:2]).sum().item(),
    }

print(json.dumps(found))
