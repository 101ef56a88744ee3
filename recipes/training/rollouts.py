"""Rollouts: the replies that a policy draws to prompts, and how the learner reads them.

In: a policy, prompts. Out: `draw_replies` gives each prompt's replies; `Experience` holds them as padded tensors, with
what the loss needs for each token, and is split into optimizer steps and forward passes.

Position i of a row predicts token i + 1, so everything about a token of a reply is at the position before it.

Letters:   b reply   t position   n token of a reply that counts, in all rows together
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.rows import read_rows
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH, at_least_float32
from nemotron.recipes.scoring.rewards import Prompt, Reward
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.grpo import TokenTerms
from nemotron.recipes.training.run import Run


def prompt_batches(path: Path, prompts_per_step: int, *, first_step: int) -> Iterator[list[Prompt]]:
    """The prompts of each step, in the order of the Parquet file, from `first_step` on."""
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
) -> list[Continuation]:
    """The replies to each prompt, those of a prompt next to each other.

    Args:
        purpose: seed, step and the like. What is drawn depends on it, the prompt's id and the number of the reply.
    """
    rows = [prompt.tokens for prompt in prompts for _ in range(replies_per_prompt)]
    names = [(prompt.exercise.id, reply) for prompt in prompts for reply in range(replies_per_prompt)]
    seeds = [int(digest_of(*purpose, *name)[:15], 16) for name in names]
    return generate(model, rows, sampling, seeds)


@dataclass(frozen=True)
class Experience:
    """Replies with what the loss needs, padded on the right to the longest of them."""

    tokens: Tensor
    """(b, t + 1) prompt and reply; 0 where a row is padded."""
    counts: Tensor
    """(b, t) whether the predicted token belongs to the reply and counts in the loss; the end of turn does."""
    lengths: Tensor
    """(b,) tokens of prompt and reply."""
    advantages: Tensor
    """(b, t) that of the reply, at each of its tokens."""
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

    def rows(self, chosen: Tensor) -> "Experience":
        """Some of the rows, without padding that all of them have."""
        longest = int(self.lengths[chosen].max())
        cut = {}
        for item in fields(self):
            values = getattr(self, item.name)[chosen]
            width = longest if item.name == "tokens" else longest - 1
            cut[item.name] = values if item.name == "lengths" else values[:, :width]
        return Experience(**cut)

    def optimizer_steps(self, number: int) -> Iterator["Experience"]:
        """The rows in `number` pieces of consecutive rows: what one optimizer step learns from; no piece is empty."""
        pieces = torch.arange(len(self.tokens), device=self.tokens.device).tensor_split(number)
        return (self.rows(piece) for piece in pieces if len(piece))

    def by_length(self, rows: int) -> Iterator[Tensor]:
        """Numbers of the rows of each forward pass: at most `rows`, of similar length, so that little is padding."""
        return iter(self.lengths.argsort(stable=True).split(rows))

    def put(self, values: Tensor, rows: Tensor, found: Tensor) -> None:
        """Write (n,) values of these rows' tokens that count, where (b, t) `values` has them."""
        padded = values.new_zeros(self.counts.shape)
        padded[self.counts] = found.to(values.dtype)
        values[rows, : padded.shape[1]] = padded

    def to(self, device: str) -> "Experience":
        """The same on another device."""
        return Experience(*(getattr(self, item.name).to(device) for item in fields(self)))

    def as_batch(self) -> Batch:
        """The replies as a batch of training, whose digest identifies tokens and mask."""
        in_loss = F.pad(self.counts, (1, 0))
        present = torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]
        return Batch(self.tokens, in_loss, (~present).long())


def experience_of(
    prompts: Sequence[Prompt], replies: Sequence[Continuation], advantages: Tensor, *, learn_from_cut: bool
) -> Experience:
    """The replies as tensors; the log-probabilities of learner and reference are still 0.

    Args:
        prompts: each has its share of the replies, next to each other.
        advantages: (b,) one per reply.
        learn_from_cut: whether replies that the length limit ended count in the loss.
    """
    asked = [prompt.tokens for prompt in prompts for _ in range(len(replies) // len(prompts))]
    lengths = torch.tensor([len(prompt) + len(reply.tokens) for prompt, reply in zip(asked, replies, strict=True)])
    tokens = torch.zeros(len(replies), int(lengths.max()), dtype=torch.int64)
    counts = torch.zeros(len(replies), tokens.shape[1] - 1, dtype=torch.bool)
    sampled = torch.zeros(counts.shape, dtype=torch.float64)
    for row, (prompt, reply) in enumerate(zip(asked, replies, strict=True)):
        end = len(prompt) + len(reply.tokens)
        tokens[row, :end] = torch.tensor([*prompt, *reply.tokens])
        sampled[row, len(prompt) - 1 : end - 1] = torch.tensor(reply.logprobs, dtype=torch.float64)
        counts[row, len(prompt) - 1 : end - 1] = learn_from_cut or reply.finish == "stop"
    spread = advantages.to(torch.float64)[:, None] * counts
    return Experience(tokens, counts, lengths, spread, sampled, torch.zeros_like(sampled), torch.zeros_like(sampled))


def token_logits(model: NemotronH, experience: Experience, temperature: float) -> tuple[Tensor, Tensor]:
    """(n, v) logits at the temperature for the tokens that count, and (n,) the tokens."""
    hidden = model.backbone(experience.tokens[:, :-1])  # padding is on the right, where nothing reads it
    logits = at_least_float32(model.lm_head(hidden[experience.counts]))
    return logits / temperature, experience.tokens[:, 1:][experience.counts]


def logprobs_of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """(n,) natural logarithms of the probabilities of the tokens."""
    return -F.cross_entropy(logits, tokens, reduction="none")


def entropies(logits: Tensor) -> Tensor:
    """(n,) entropies in nats of the distributions with (n, v) logits."""
    logprobs = logits.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


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
        values = torch.cat([getattr(one, name).detach().to(torch.float64) for one in terms])
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
    """A row for each reply: its prompt, ids and text, reward, and advantage."""
    size = len(replies) // len(prompts)
    return [
        {
            "prompt": prompts[index // size].exercise.id,
            "asked": prompts[index // size].exercise.messages[-1]["content"],
            "tokens": " ".join(map(str, reply.tokens)),
            "text": decode(reply.tokens),
            "reward": reward.total,
            "advantage": advantage,
        }
        for index, (reply, reward, advantage) in enumerate(zip(replies, rewards, advantages.tolist(), strict=True))
    ]
