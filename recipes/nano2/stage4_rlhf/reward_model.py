"""Train a reward model: which of two replies is better, learned from pairs.

In: the Dataset of data_curation.py, and through it the Checkpoint of the stage before, whose backbone it starts from.
Out: a RewardModel: a directory with backbone and head, the state to resume from, the curve, the scores of the held-out
pairs, their reliability as table and plot.
Source: arXiv 2508.14444, section 3. Published: a reward model made from a Qwen model. Which one, and how it was trained
is undisclosed. Here it is the model itself (our choice), with Bradley and Terry's loss (../../training/preference.py).
Run: python -m nemotron.recipes.nano2.stage4_rlhf.reward_model --scale tiny --dataset-path <directory>

Left out: margins from the strength of a label; a penalty that keeps scores near 0, because rewards are compared within
a group of replies only; several attributes, as in HelpSteer2.

p pair   b reply: the chosen ones, then the rejected ones   t position
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Artifact, print_complete
from nemotron.config import (
    BelowOne,
    Dtype,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    same_as,
    switch,
)
from nemotron.recipes.curation.rows import read_rows
from nemotron.recipes.nano2.models import CHECKPOINTING, DEVICES, DTYPES
from nemotron.recipes.nano2.stage4_rlhf.data_curation import Dataset
from nemotron.recipes.nano2.stage4_rlhf.report import plot_reliability, reliability_table
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.model import ModelConfig, parameter_groups
from nemotron.recipes.nemotron_h.scorer import Scorer, padded, save_scorer, scores_of
from nemotron.recipes.sources.preferences import STRONGEST
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.curve import plot_curve
from nemotron.recipes.training.distributed import (
    check_rows,
    clip_gradients,
    is_first,
    joined,
    rank_rows,
    shard,
    training_process,
    whole_model,
)
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.memory import Needs, Pass, Scoring, check_fits, longest
from nemotron.recipes.training.preference import (
    expected_calibration_error,
    preference_accuracy,
    preference_loss,
    reliability,
)
from nemotron.recipes.training.run import Run, is_done, training_ladder, training_run
from nemotron.recipes.training.state import keep_last_states
from nemotron.terminal import print_markdown

NUM_BINS = 5  # our choice: of the reliability, from 50 to 100 % in steps of 10


@dataclass
class Config(ScaledConfig):
    """Train the reward model on pairs."""

    seed: int = 1234
    """Seed of the head's first weights."""
    output_dir: Path = output_below("nano2", "stage4_rlhf", "reward_model")
    """Where the RewardModel goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""

    # Batches and updates.
    pairs_per_step: PositiveInt = by_scale(tiny=10, small=32, medium=64, full=our_choice(64))
    """Pairs of one optimizer step; each pair is used once."""
    micro_batch_pairs: PositiveInt = by_scale(tiny=10, small=8, medium=4, full=our_choice(1))
    """Pairs per forward pass; changes memory, not the result."""
    learning_rate: PositiveFloat = by_scale(tiny=1e-3, small=2e-3, medium=5e-6, full=our_choice(2e-6))
    """Learning rate after the warmup; it falls linearly to 0."""
    warmup_steps: NonNegativeInt = by_scale(tiny=2, small=10, medium=20, full=our_choice(20))
    """Steps over which the learning rate rises linearly from 0."""
    beta1: BelowOne = at_every_scale(same_as(0.9, "stage 1"))
    """AdamW: decay of the first moment."""
    beta2: BelowOne = at_every_scale(same_as(0.95, "stage 1"))
    """AdamW: decay of the second moment."""
    # A comparison gives many weights almost no gradient. With a small term AdamW divides it by itself, rounding error
    # included, and scores at tiny differed between machines 500 times as much as the weights from which it started.
    adam_eps: PositiveFloat = by_scale(tiny=1e-6, small=1e-8, medium=1e-8, full=our_choice(1e-8))
    """AdamW: term added to the denominator."""
    weight_decay: NonNegativeFloat = at_every_scale(our_choice(0.01))
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: PositiveFloat = at_every_scale(our_choice(1.0))
    """If the norm of all gradients together is above this, they are scaled down to it."""

    # Arithmetic, place and state.
    dtype: Dtype = by_scale(**(DTYPES | {"small": "float32"}))
    """Arithmetic of the model; bfloat16 keeps the weights in float32. At small float32 is faster on a processor."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""
    checkpoint_every_steps: PositiveInt = by_scale(tiny=10, small=50, medium=100, full=our_choice(100), recorded=False)
    """Steps between two states from which a run can be resumed."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from its last state."""

    def needs(self, shape: ModelConfig, pair_tokens: int) -> Needs:
        """What training holds and does, for replies of at most so many tokens with their prompts."""
        learning = Pass(self.pairs_per_step, self.micro_batch_pairs, pair_tokens, pairs=True, scores=True)
        held_out = Scoring(self.pairs_per_step, pair_tokens, 2, 0, 2 * self.micro_batch_pairs, copied=True)
        return Needs([learning, held_out])


class RewardModel(Artifact):
    """A reward model and what it says about held-out pairs."""

    num_steps: int = Field(gt=0)
    reward_model_path: Path
    """Directory that `load_scorer` reads: a Hugging Face checkpoint and the head beside it."""
    training_state_path: Path
    """Weights, optimizer moments and record after the last step."""
    curve_path: Path
    """Parquet, a row per step: step, phase, batch, tokens (here: pairs), learning_rate, loss (nats per pair),
    accuracy, grad_norm."""
    plot_path: Path
    """The curve."""
    held_out_scores_path: Path
    """Parquet, a row per held-out pair: id, noisy, strength, chosen and rejected (scores)."""
    reliability_path: Path
    """Markdown: held-out accuracy, and how often the model is right by how sure it is."""
    reliability_plot_path: Path
    dataset_path: Path


def learning_rate_at(step: int, total_steps: int, config: Config) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then linear decay to 0 after the last step."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * (1 - step / total_steps)


def batch_of(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> Batch:
    """The chosen replies, then the rejected ones, as a batch whose digest identifies them; each pair counts as one."""
    tokens, lengths = padded([*chosen, *rejected])
    places, rows = torch.arange(tokens.shape[1]), torch.arange(len(tokens))
    in_loss = (places == lengths[:, None] - 1) & (rows < len(chosen))[:, None]
    return Batch(tokens, in_loss, (places >= lengths[:, None]).long())


def by_length(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], at_most: int) -> list[list[int]]:
    """The pairs in groups of a similar length, so that little of a forward pass is padding; of several ranks, each has
    its own."""
    rows = sorted(range(len(chosen)), key=lambda row: max(len(chosen[row]), len(rejected[row])))
    return [piece.tolist() for piece in rank_rows(torch.tensor(rows), at_most)]


def pair_loss(
    scorer: Scorer, chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """(p,) losses, and (p,) by how much the chosen reply of each pair scores more."""
    with autocast(config.dtype, config.device):
        scores = scorer.score(*padded([*chosen, *rejected], config.device))  # (b,): both replies in one forward pass
    terms = preference_loss(*scores.tensor_split(2))
    return terms.loss, terms.difference


def held_out_rows(scorer: Scorer, dataset: Dataset, config: Config) -> list[dict[str, Any]]:
    """The scores of both replies of every held-out pair."""
    pairs = pq.read_table(dataset.held_out_pairs_path).to_pylist()
    tokens = [pair[f"{name}_tokens"] for name in ("chosen", "rejected") for pair in pairs]
    with autocast(config.dtype, config.device):
        scores = scores_of(scorer, tokens, batch_rows=2 * config.micro_batch_pairs)
    chosen, rejected = (half.tolist() for half in scores.split(len(pairs)))
    return [
        {**{name: pair[name] for name in ("id", "noisy", "strength")}, "chosen": better, "rejected": worse}
        for pair, better, worse in zip(pairs, chosen, rejected, strict=True)
    ]


def held_out_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracy, of all pairs, of those whose label is not noise and by strength; loss; calibration.

    A label that is noise says the opposite of the rubric, so a good model is wrong on it.
    """
    difference = torch.tensor([row["chosen"] - row["rejected"] for row in rows], dtype=torch.float64)
    clean = torch.tensor([not row["noisy"] for row in rows])
    strength = torch.tensor([row["strength"] for row in rows])
    groups = {"all": torch.ones_like(clean), "clean": clean}
    groups |= {f"strength {number}": clean & (strength == number) for number in range(1, STRONGEST + 1)}
    metrics = {
        f"accuracy/{name}": preference_accuracy(difference[group]) for name, group in groups.items() if group.any()
    }
    if clean.any():
        share = metrics["accuracy/clean"]
        metrics["accuracy_error/clean"] = math.sqrt(share * (1 - share) / int(clean.sum()))
    return metrics | {
        "loss": preference_loss(difference, torch.zeros_like(difference)).loss.mean().item(),
        "calibration_error": expected_calibration_error(reliability(difference, num_bins=NUM_BINS)),
    }


def save(run: Run, scorer: Scorer, dataset: Dataset, config: Config) -> None:
    """Measure the reward model on held-out pairs, write what it is and what was measured, and save the RewardModel."""
    dataset.check_unchanged()
    keep_last_states(run.work, 1)
    work, record = run.work, run.record
    record.weights["final"] = weight_fingerprint(scorer)
    scorer = whole_model(scorer)
    if not is_first():
        return
    rows = held_out_rows(scorer, dataset, config)
    metrics = held_out_metrics(rows)
    run.check_finite(**metrics)
    difference = torch.tensor([row["chosen"] - row["rejected"] for row in rows], dtype=torch.float64)
    bins = reliability(difference, num_bins=NUM_BINS)
    dtype = scorer.lm_head.weight.dtype
    language_model = load_checkpoint(dataset.base().checkpoint_path, dtype=dtype)
    save_scorer(scorer, language_model, dataset.tokenizer_path, work / "model")
    pq.write_table(pa.Table.from_pylist(record.curve), work / "curve.parquet")
    pq.write_table(pa.Table.from_pylist(rows), work / "held_out_scores.parquet")
    plot_curve(record, work / "loss.svg", unit="pair")
    plot_reliability(bins, metrics, work / "reliability.svg")
    table = reliability_table(bins, metrics)
    (work / "reliability.md").write_text(table, encoding="utf-8", newline="\n")
    num_parameters = sum(parameter.numel() for parameter in scorer.parameters())
    ladder = training_ladder(config, scorer.config, dataset.counts(), num_parameters, record)
    ladder.add("predictions", {name: [row[name] for row in rows] for name in ("chosen", "rejected")})
    ladder.add("metrics", metrics)
    ladder.add("headline", {"accuracy/clean": metrics["accuracy/clean"]})
    RewardModel(
        path=work,
        num_steps=run.step,
        reward_model_path=work / "model",
        training_state_path=work / "training_state",
        curve_path=work / "curve.parquet",
        plot_path=work / "loss.svg",
        held_out_scores_path=work / "held_out_scores.parquet",
        reliability_path=work / "reliability.md",
        reliability_plot_path=work / "reliability.svg",
        dataset_path=dataset.path,
        metrics=metrics,
    ).save(config, ladder)
    print_markdown(table)


def main(config: Config) -> RewardModel:
    """Train on every pair once and return the RewardModel."""
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    base = dataset.base()
    total_steps = math.ceil(dataset.num_pairs / config.pairs_per_step)
    shape = load_config(base.checkpoint_path)
    most = max(longest(dataset.pairs_path, f"{name}_tokens") for name in ("chosen", "rejected"))
    check_fits(shape, config, *config.needs(shape, most))
    if is_done(config, dataset):
        return RewardModel.load(config.output_dir)

    # The backbone of the policy, with a new head in place of its output matrix.
    model = load_checkpoint(base.checkpoint_path, device=config.device, dtype=weight_dtype(config.dtype))
    scorer = Scorer(model, config.seed)
    shard(scorer)
    parameters = parameter_groups(scorer, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, betas=(config.beta1, config.beta2), eps=config.adam_eps)

    check_rows({"pairs": config.pairs_per_step})
    with training_run(config, scorer, optimizer, dataset, total_steps, RewardModel) as run:
        for table in read_rows(dataset.pairs_path, config.pairs_per_step, first_batch=run.step):
            chosen, rejected = (table[f"{name}_tokens"].to_pylist() for name in ("chosen", "rejected"))

            # The loss: how unlikely the labels are, if sigmoid(difference of scores) is the probability of a label.
            optimizer.zero_grad()
            losses, differences = [], []
            for rows in by_length(chosen, rejected, config.micro_batch_pairs):
                better, worse = [chosen[row] for row in rows], [rejected[row] for row in rows]
                loss, difference = pair_loss(scorer, better, worse, config)
                # Divided by all pairs of the step, so that micro batches add up to one batch.
                (loss.sum() / len(chosen)).backward()
                losses.append(loss.detach())
                differences.append(difference)

            # Update: clipped gradient, warmup and decay.
            grad_norm = clip_gradients(scorer, config.max_grad_norm)
            run.check_finite(grad_norm=grad_norm)
            learning_rate = learning_rate_at(run.step, total_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

            # Record and state.
            loss, difference = joined(torch.cat(losses)), joined(torch.cat(differences))
            numbers = {"loss": loss.mean().item(), "accuracy": preference_accuracy(difference)}
            run.note("pairs", batch_of(chosen, rejected), learning_rate=learning_rate, **numbers, grad_norm=grad_norm)
            run.keep_state()
        save(run, scorer, dataset, config)
    return RewardModel.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"rewardmodel": main(config)})
