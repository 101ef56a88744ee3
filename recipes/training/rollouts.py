"""Rollouts: the replies that a policy draws to prompts, and how the learner reads them.

In: a policy, prompts. Out: `draw_replies` gives each prompt's replies; `Experience` holds them as padded tensors, with
what the loss needs for each token, and is split into optimizer steps and forward passes.

Letters:   g prompt   b reply   t position   n token of a reply that counts, in all replies together
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemotron.config import Dtype
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.rows import read_rows
from nemotron.recipes.nemotron_h.device import autocast
from nemotron.recipes.nemotron_h.generate import NUM_SLOTS, Continuation, Sampling, generate
from nemotron.recipes.nemotron_h.losses import by_chunks, logits_of, token_losses
from nemotron.recipes.nemotron_h.model import DecodingState, NemotronH
from nemotron.recipes.nemotron_h.workers import Workers
from nemotron.recipes.scoring.rewards import Prompt, Reward
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.distributed import (
    check_rows,
    filled,
    gathered,
    joined,
    rank_rows,
    rank_share,
    summed,
    whole_model,
    world,
)
from nemotron.recipes.training.grpo import TokenTerms
from nemotron.recipes.training.run import Run

AnyRecord = TypeVar("AnyRecord", bound=Any)

OF_PROMPTS = ("prompts", "prompt_lengths")  # the fields of Experience with a row for each prompt, not for each reply


def prompt_batches(path: Path, prompts_per_step: int, *, first_step: int) -> Iterator[list[Prompt]]:
    """The prompts of each step, in the order of the Parquet file, from `first_step` on.

    Raises:
        ValueError: if there are more processes than prompts in a step.
    """
    check_rows({"prompts": prompts_per_step})
    for table in read_rows(path, prompts_per_step, first_batch=first_step):
        rows = table.to_pylist()
        yield [
            Prompt(
                exercise_from_row({item.name: row[item.name] for item in fields(Exercise)}),
                row["thinking"],
                tuple(row["tokens"]),
            )
            for row in rows
        ]


def draw_replies(
    model: NemotronH,
    prompts: Sequence[Prompt],
    replies_per_prompt: int,
    sampling: Sampling,
    purpose: tuple[str | int, ...],
    workers: Workers | None = None,
    num_slots: int = NUM_SLOTS,
) -> list[Continuation]:
    """The replies to each prompt, those of a prompt next to each other; of several ranks, each writes a part of them.

    Args:
        workers: processes with the same model, which then write the replies.
        purpose: seed, step and the like. What is drawn depends on it, the prompt's id and the number of the reply.
        num_slots: replies that are written side by side, without workers; changes memory and speed, not the result.
    """
    model, own = whole_model(model), rank_share(prompts)
    rows = [prompt.tokens for prompt in own for _ in range(replies_per_prompt)]
    names = [(prompt.exercise.id, reply) for prompt in own for reply in range(replies_per_prompt)]
    seeds = [int(digest_of(*purpose, *name)[:15], 16) for name in names]
    if not rows:  # a last step may have fewer prompts than there are ranks
        return of_all_ranks([], Continuation)
    if workers:
        replies = workers.generate(rows, sampling, seeds)
    else:
        replies = generate(model, rows, sampling, seeds, num_slots=num_slots)
    return of_all_ranks(replies, Continuation)


def judged(
    judge: Callable[[Sequence[Prompt], Sequence[Continuation]], list[Reward]],
    prompts: Sequence[Prompt],
    replies: Sequence[Continuation],
) -> list[Reward]:
    """What each reply earns; of several ranks, each judges the replies to a part of the prompts, once for all."""
    size, own = len(replies) // len(prompts), rank_share(range(len(prompts)))
    mine = judge(prompts[own.start : own.stop], replies[own.start * size : own.stop * size]) if own else []
    return of_all_ranks(mine, Reward)


def of_all_ranks(mine: list[AnyRecord], kind: type[AnyRecord]) -> list[AnyRecord]:
    """Dataclass instances of this rank to those of all ranks, in the order of the ranks."""
    if world()[1] == 1:
        return mine
    return [kind(**each) for part in gathered([asdict(one) for one in mine]) for each in part]


@dataclass(frozen=True)
class Experience:
    """Prompts and the replies to them with what the loss needs, padded on the right to the longest of them.

    Every prompt has the same number of replies: those of the first prompt come first, then those of the second.
    """

    prompts: Tensor
    """(g, t) token ids; 0 where a row is padded."""
    prompt_lengths: Tensor
    """(g,) tokens of each prompt."""
    tokens: Tensor
    """(b, t) the tokens of each reply; 0 where a row is padded."""
    counts: Tensor
    """(b, t) whether the token counts in the loss; the end of turn does, padding does not."""
    lengths: Tensor
    """(b,) tokens of each reply."""
    advantages: Tensor
    """(b, t) that of the reply, at each of its tokens that count."""
    sampled_logprobs: Tensor
    """(b, t) under the policy, as the sampler computed them."""
    old_logprobs: Tensor
    """(b, t) under the policy, as the learner computes them before its first update of this step."""
    reference_logprobs: Tensor
    """(b, t) under the reference; 0 if there is none."""

    @property
    def num_tokens(self) -> int:
        """Tokens that count."""
        return int(self.counts.sum())

    @property
    def replies_per_prompt(self) -> int:
        """Replies to each prompt."""
        return len(self.tokens) // max(1, len(self.prompts))

    def replies_to(self, chosen: Tensor) -> Tensor:
        """Numbers of the rows that reply to the chosen prompts."""
        size = self.replies_per_prompt
        return (chosen[:, None] * size + torch.arange(size, device=chosen.device)).flatten()

    def of_prompts(self, chosen: Tensor) -> "Experience":
        """Some of the prompts with their replies, without padding that all of them have."""
        rows = self.replies_to(chosen)
        if not len(chosen):  # a rank that has fewer prompts than others
            rows, width, longest = chosen, 1, 2
        else:
            width, longest = int(self.prompt_lengths[chosen].max()), int(self.lengths[rows].max())
        if world()[1] > 1:  # a second column on every rank, so that each reads the replies in `token_logits`
            longest = max(longest, 2)
        tensors = {item.name: getattr(self, item.name)[rows] for item in fields(self) if item.name not in OF_PROMPTS}
        return Experience(
            prompts=self.prompts[chosen, :width],
            prompt_lengths=self.prompt_lengths[chosen],
            **{name: each if each.ndim == 1 else each[:, :longest] for name, each in tensors.items()},
        )

    def optimizer_steps(self, number: int) -> Iterator["Experience"]:
        """The prompts in `number` pieces of consecutive ones: what one optimizer step learns from; none is empty."""
        pieces = torch.arange(len(self.prompts), device=self.tokens.device).tensor_split(number)
        return (self.of_prompts(piece) for piece in pieces if len(piece))

    def micro_batches(self, number: int) -> Iterator[Tensor]:
        """Numbers of the prompts of each forward pass: at most `number`, with replies of similar length.

        Of several ranks, each has its own passes; one that has fewer gets passes without a prompt at the end.
        """
        longest = self.lengths.view(len(self.prompts), -1).amax(dim=1)
        return iter(rank_rows(longest.argsort(stable=True), number))

    def put(self, values: Tensor, chosen: Tensor, found: Tensor) -> None:
        """Write (n,) values of the tokens that count in replies to the chosen prompts into (b, t) `values`."""
        rows = self.replies_to(chosen)
        padded = values[rows]
        padded[self.counts[rows]] = found.to(values.dtype)
        values[rows] = padded

    def to(self, device: str) -> "Experience":
        """The same on another device."""
        return Experience(*(getattr(self, item.name).to(device) for item in fields(self)))

    def as_batch(self) -> Batch:
        """Prompts with their replies as a batch of training, whose digest identifies tokens and mask."""
        asked = self.prompts.repeat_interleave(self.replies_per_prompt, dim=0)
        present = torch.cat([
            torch.arange(asked.shape[1], device=asked.device)
            < self.prompt_lengths.repeat_interleave(self.replies_per_prompt)[:, None],
            torch.arange(self.tokens.shape[1], device=asked.device) < self.lengths[:, None],
        ], dim=1)  # fmt: skip
        in_loss = torch.cat([torch.zeros_like(asked, dtype=torch.bool), self.counts], dim=1)
        return Batch(torch.cat([asked, self.tokens], dim=1), in_loss, (~present).long())


def experience_of(
    prompts: Sequence[Prompt], replies: Sequence[Continuation], advantages: Tensor, *, learn_from_cut: bool
) -> Experience:
    """Prompts and replies as tensors; the log-probabilities of learner and reference are still 0.

    Args:
        prompts: each has its share of the replies, next to each other.
        advantages: (b,) one per reply.
        learn_from_cut: whether replies that the length limit ended count in the loss.
    """
    padded = partial(pad_sequence, batch_first=True)
    tokens = padded([torch.tensor(reply.tokens, dtype=torch.int64) for reply in replies])
    sampled = padded([torch.tensor(reply.logprobs, dtype=torch.float64) for reply in replies])
    lengths = torch.tensor([len(reply.tokens) for reply in replies])
    learned = torch.tensor([learn_from_cut or reply.finish == "stop" for reply in replies])
    counts = (torch.arange(tokens.shape[1]) < lengths[:, None]) & learned[:, None]
    return Experience(
        prompts=padded([torch.tensor(prompt.tokens) for prompt in prompts]),
        prompt_lengths=torch.tensor([len(prompt.tokens) for prompt in prompts]),
        tokens=tokens,
        counts=counts,
        lengths=lengths,
        advantages=advantages.to(torch.float64)[:, None] * counts,
        sampled_logprobs=sampled,
        old_logprobs=torch.zeros_like(sampled),
        reference_logprobs=torch.zeros_like(sampled),
    )


def token_states(model: NemotronH, experience: Experience) -> tuple[Tensor, Tensor]:
    """(n, d) hidden states at the position before each token that counts, and (n,) the tokens.

    Each prompt is read once, and all its replies go on from there: with 8 replies that are a third as long as their
    prompt, the model reads a third of the tokens.
    """
    state = DecodingState(model, len(experience.prompts))
    read = model.backbone(experience.prompts, state=state, num_new=experience.prompt_lengths)  # (g, t, d)
    rows = torch.arange(len(read), device=read.device)
    last = read[rows, experience.prompt_lengths - 1]  # (g, d) predicts the first token of each reply
    hidden = last.repeat_interleave(experience.replies_per_prompt, dim=0)[:, None]  # (b, 1, d)
    if experience.tokens.shape[1] > 1:
        state = state.repeat(experience.replies_per_prompt)
        hidden = torch.cat([hidden, model.backbone(experience.tokens[:, :-1], state=state)], dim=1)  # (b, t, d)
    counts = experience.counts  # padding is on the right, where nothing reads it
    return hidden[:, : counts.shape[1]][counts], experience.tokens[counts]


def token_logprobs(model: NemotronH, experience: Experience, temperature: float) -> Tensor:
    """(n,) natural logarithms of the probabilities at the temperature of the tokens that count."""
    return -token_losses(model.lm_head, *token_states(model, experience), temperature=temperature)


def logprobs_and_entropies(model: NemotronH, experience: Experience, temperature: float) -> tuple[Tensor, Tensor]:
    """(n,) each: as `token_logprobs`, and the entropy in nats of the distribution that each token is drawn from."""

    def both(hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = logits_of(model.lm_head, hidden, temperature)
        logprobs = logits.log_softmax(dim=-1)
        entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
        return torch.stack([-F.cross_entropy(logits, tokens, reduction="none"), entropies], dim=1)  # (n, 2)

    return by_chunks(both, model.lm_head, *token_states(model, experience)).unbind(dim=1)  # type: ignore[return-value]


class LearnerConfig(Protocol):
    """What the learner needs of a training step's Config."""

    temperature: float
    micro_batch_prompts: int
    dtype: Dtype
    device: str


def with_logprobs(
    experience: Experience, policy: NemotronH, reference: NemotronH | None, config: LearnerConfig
) -> tuple[Experience, float]:
    """The experience with the log-probabilities of policy and reference, and the policy's mean entropy in nats.

    The policy's are computed again by the learner: the ratio of the first update is then 1 up to rounding, however much
    the sampler's arithmetic differs.
    """
    old, old_reference = torch.zeros_like(experience.old_logprobs), torch.zeros_like(experience.old_logprobs)
    entropy = 0.0
    with torch.no_grad(), autocast(config.dtype, config.device):
        for chosen in experience.micro_batches(config.micro_batch_prompts):
            micro = experience.of_prompts(chosen)
            logprobs, entropies = logprobs_and_entropies(policy, micro, config.temperature)
            experience.put(old, chosen, logprobs)
            entropy += entropies.sum().item()
            if reference is not None:
                experience.put(old_reference, chosen, token_logprobs(reference, micro, config.temperature))
    mean_entropy = summed(entropy) / max(1, experience.num_tokens)
    return replace(experience, old_logprobs=filled(old), reference_logprobs=filled(old_reference)), mean_entropy


# What is written down -------------------------------------------------------------------------------------------------


def measured(
    prompts: Sequence[Prompt],
    replies: Sequence[Continuation],
    rewards: Sequence[Reward],
    experience: Experience,
    terms: Sequence[TokenTerms],
) -> dict[str, float]:
    """The numbers of a step: means over the replies, or over the tokens that count.

    Args:
        terms: of every forward pass of the step's updates.
    """
    size = len(replies) // len(prompts)
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    difference = (experience.sampled_logprobs - experience.old_logprobs)[experience.counts].abs()

    def mean(name: str) -> float:
        values = joined(torch.cat([getattr(one, name).detach().to(torch.float64) for one in terms]))
        return values.mean().item() if len(values) else 0.0

    return {
        "loss": mean("loss"),
        "reward": sum(reward.total for reward in rewards) / len(rewards),
        "groups_with_signal": sum(len({one.total for one in group}) > 1 for group in groups) / len(groups),
        "kl": mean("kl"),
        "clipped_low": mean("clipped_low"),
        "clipped_high": mean("clipped_high"),
        "reply_tokens": sum(len(reply.tokens) for reply in replies) / len(replies),
        "replies_cut": sum(reply.finish == "length" for reply in replies) / len(replies),
        "verifier_faults": sum(bool(reward.fault) for reward in rewards) / len(rewards),
        "sampler_difference": difference.max().item() if len(difference) else 0.0,
    }


def write_tables(
    run: Run,
    prompts: Sequence[Prompt],
    replies: Sequence[Continuation],
    rewards: Sequence[Reward],
    advantages: Tensor,
    decode: Callable[[Sequence[int]], str],
) -> None:
    """Write down what each verifier gave in this step and, in the first and the last step, every reply."""
    run.note_rows("rewards", reward_rows(prompts, rewards))
    if run.step in (0, run.total_steps - 1):
        run.note_rows("rollouts", rollout_rows(prompts, replies, rewards, advantages, decode))


def reward_rows(prompts: Sequence[Prompt], rewards: Sequence[Reward]) -> list[dict[str, str | int | float | bool]]:
    """A row for each verifier and part: the mean over the replies that it judged; the part "all" is the reward."""
    size = len(rewards) // len(prompts)
    earned: dict[tuple[str, str], list[float]] = {}
    for index, reward in enumerate(rewards):
        family = prompts[index // size].exercise.family
        for part, value in {"all": reward.total, "form": reward.form, **reward.parts}.items():
            earned.setdefault((family, part), []).append(value)
    return [
        {"verifier": family, "part": part, "replies": len(values), "mean": sum(values) / len(values)}
        for (family, part), values in sorted(earned.items())
    ]


def rollout_rows(
    prompts: Sequence[Prompt],
    replies: Sequence[Continuation],
    rewards: Sequence[Reward],
    advantages: Tensor,
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, str | int | float | bool]]:
    """A row for each reply: its prompt, whether that asks for thinking, ids and text, reward, and advantage."""
    size = len(replies) // len(prompts)
    return [
        {
            "prompt": prompts[index // size].exercise.id,
            "asked": prompts[index // size].exercise.messages[-1]["content"],
            "thinking": prompts[index // size].thinking,
            "tokens": " ".join(map(str, reply.tokens)),
            "text": decode(reply.tokens),
            "reward": reward.total,
            "advantage": advantage,
        }
        for index, (reply, reward, advantage) in enumerate(zip(replies, rewards, advantages.tolist(), strict=True))
    ]
