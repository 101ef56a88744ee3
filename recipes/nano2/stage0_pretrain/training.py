"""Pretrain the base model: four phases of text, one loop, AdamW with a warmup-stable-decay schedule.

In: the Dataset of data_curation.py (packed token sequences, one file per phase, in training order).
Out: a Checkpoint: a Hugging Face directory, the state to resume from, the loss curve and its plot.
Source: arXiv 2508.14444, sections 2.4 to 2.6. A number that the paper does not give is marked where it is defined.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.training --scale tiny --dataset-path <directory>

Left out: FP8 matrix products, and one sequence split over devices. The published run needs them, a laptop does not.

b batch   t position
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import print_complete
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
    proxy,
    published,
    switch,
)
from nemotron.recipes.curation.rows import Phase
from nemotron.recipes.nano2.models import BATCH_SEQUENCES, CHECKPOINTING, DEVICES, DTYPES, MODELS
from nemotron.recipes.nano2.stage0_pretrain.data_curation import LONG_CONTEXT, Dataset
from nemotron.recipes.nano2.stage0_pretrain.report import write_sample
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.losses import token_losses
from nemotron.recipes.nemotron_h.model import Linear, NemotronH, initialize, parameter_groups
from nemotron.recipes.training.batches import TrainingPhase, batches
from nemotron.recipes.training.distributed import (
    clip_gradients,
    model_on_first,
    rank_rows,
    shard,
    summed,
    training_process,
)
from nemotron.recipes.training.memory import check_fits
from nemotron.recipes.training.run import Checkpoint, is_done, training_run

TOKENS_PER_STEP = 768 * 8192  # derived: published batch times published length; the paper prints 736 * 8192 tokens


@dataclass
class Config(ScaledConfig):
    """Pretrain the base model on a curated dataset."""

    seed: int = 1234
    """Seed of the initial weights and of the sample at the end."""
    output_dir: Path = output_below("nano2", "stage0_pretrain", "training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""

    # Batches. A large batch gives a gradient with little noise; the micro batch is what fits into memory at once.
    batch_sequences: PositiveInt = by_scale(**BATCH_SEQUENCES)
    """Sequences per optimizer step."""
    micro_batch_sequences: PositiveInt = by_scale(tiny=8, small=8, medium=8, full=our_choice(1))
    """Sequences per forward pass; changes memory, not the result."""

    # Schedule: warmup, plateau, decay. Smaller models tolerate a higher learning rate.
    learning_rate: PositiveFloat = by_scale(tiny=4e-3, small=2e-3, medium=1e-3, full=published(4.5e-4, "section 2.5"))
    """Peak learning rate, held from the end of the warmup to the start of the decay."""
    min_learning_rate: NonNegativeFloat = by_scale(
        tiny=4e-5, small=2e-5, medium=1e-5, full=published(4.5e-6, "section 2.5")
    )
    """Learning rate at the end of the decay."""
    warmup_steps: NonNegativeInt = by_scale(
        tiny=5, small=30, medium=200, full=proxy(8_400_000_000 // TOKENS_PER_STEP, "Nemotron 3 Nano, 8.4B tokens")
    )
    """Steps over which the learning rate rises linearly from 0."""
    decay_frac: BelowOne = at_every_scale(published(0.18, "the last 3.6T of 20T tokens"))
    """Share of the steps of phases 1 to 3, at their end, over which the learning rate falls."""

    # The long-context phase: longer sequences (64 times at full, 4 at tiny) and fewer of them, for as many tokens per
    # step. At tiny and small its rate is above that at the end of the decay; else so few steps change nothing.
    long_context_batch_sequences: PositiveInt = by_scale(tiny=2, small=2, medium=32, full=published(12, "section 2.6"))
    """Sequences per optimizer step in the long-context phase."""
    long_context_micro_batch_sequences: PositiveInt = by_scale(tiny=1, small=2, medium=1, full=our_choice(1))
    """Sequences per forward pass in the long-context phase; tiny takes a batch in two pieces."""
    long_context_learning_rate: PositiveFloat = by_scale(
        tiny=4e-4, small=2e-4, medium=1e-5, full=published(4.5e-6, "section 2.6")
    )
    """Constant learning rate of the long-context phase."""
    cut_long_context: bool = False
    """Cut the long sequences to the length of the others: the same tokens without the long context, as a control."""

    # AdamW scales the update of each weight by running averages of its gradient and of the squared gradient.
    beta1: BelowOne = at_every_scale(published(0.9, "section 2.5"))
    """AdamW: decay of the first moment."""
    beta2: BelowOne = at_every_scale(published(0.95, "section 2.5"))
    """AdamW: decay of the second moment."""
    adam_eps: PositiveFloat = at_every_scale(proxy(1e-8, "NVIDIA's Megatron configurations"))
    """AdamW: term added to the denominator."""
    weight_decay: NonNegativeFloat = at_every_scale(published(0.1, "section 2.5"))
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: PositiveFloat = at_every_scale(proxy(1.0, "NVIDIA's Megatron configurations"))
    """If the norm of all gradients together is above this, they are scaled down to it."""

    # Arithmetic and place.
    dtype: Dtype = by_scale(**DTYPES)
    """Arithmetic; bfloat16 keeps the weights in float32 and computes matrix products in bfloat16."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""
    compile: bool = False
    """Compile the layers with torch.compile; the numbers change in their last digits."""

    # What is recorded on the way.
    checkpoint_every_steps: PositiveInt = by_scale(
        tiny=35, small=400, medium=500, full=our_choice(1000), recorded=False
    )
    """Steps between two states from which a run can be resumed."""
    validate_every_steps: PositiveInt = by_scale(tiny=50, small=250, medium=500, full=our_choice(1000))
    """Steps between two measurements of the validation loss."""
    validation_sequences: PositiveInt = by_scale(tiny=8, small=32, medium=256, full=our_choice(1024))
    """Validation sequences per category in each measurement."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from its last state."""

    def check(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}, from which "
                f"the learning rate falls; give a lower one"
            )


def training_phases(config: Config, phases: Sequence[Phase]) -> list[TrainingPhase]:
    """The phases of a Dataset with the batches that they are read in.

    Raises:
        ValueError: if warmup and decay overlap, or long sequences cannot be cut to the length of the others.
    """
    batch, micro_batch = config.batch_sequences, config.micro_batch_sequences
    long_batch, long_micro_batch = config.long_context_batch_sequences, config.long_context_micro_batch_sequences
    base_length = phases[0].sequence_length
    chosen = []
    for phase in phases:
        if phase.name != LONG_CONTEXT:
            chosen.append(TrainingPhase(phase, batch, micro_batch))
            continue
        if config.cut_long_context and phase.sequence_length % base_length:
            raise ValueError(
                f"cut_long_context: {base_length} does not divide {phase.sequence_length} tokens; curate with a "
                f"long_context_length that is a multiple of sequence_length"
            )
        cut_to = base_length if config.cut_long_context else None
        rows_per_sequence = phase.sequence_length // (cut_to or phase.sequence_length)
        chosen.append(TrainingPhase(phase, long_batch, long_micro_batch * rows_per_sequence, cut_to))
    num_steps = base_steps(chosen)
    decay_steps = round(config.decay_frac * num_steps)
    if config.warmup_steps + decay_steps > num_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} and the decay over the last {decay_steps} of {num_steps} steps "
            f"overlap; give at most {num_steps - decay_steps} warmup steps"
        )
    return chosen


def base_steps(phases: Sequence[TrainingPhase]) -> int:
    """Optimizer steps of phases 1 to 3 together: those before the long-context phase."""
    return sum(phase.num_steps for phase in phases if phase.name != LONG_CONTEXT)


def learning_rate_at(step: int, num_steps: int, config: Config) -> float:
    """Learning rate of optimizer step `step`, counted from 0 over all phases; phases 1 to 3 have `num_steps`.

    Warmup-stable-decay (published), then the constant rate of the long-context phase (published). The decay has the
    shape 1 - sqrt(share of the decay that is over) (proxy: Nemotron 3 Super; Nano 2's shape is unknown to us).
    """
    # The long-context phase: constant.
    if step >= num_steps:
        return config.long_context_learning_rate
    # Warmup: Adam's averages over few batches are unreliable, so the first steps are small.
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    # Plateau: the loss falls steadily, and the schedule need not know the end of the run yet.
    decay_steps = round(config.decay_frac * num_steps)
    decayed_steps = step + 1 - (num_steps - decay_steps)
    if decayed_steps <= 0:
        return config.learning_rate
    # Decay: with smaller and smaller steps the noise of single batches averages out.
    remaining = 1 - math.sqrt(decayed_steps / decay_steps)
    return config.min_learning_rate + remaining * (config.learning_rate - config.min_learning_rate)


def loss_sum(backbone: Callable[[torch.Tensor], torch.Tensor], head: Linear, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over a (b, t + 1) batch: the model at position i predicts token i + 1."""
    labels = tokens[:, 1:]
    return token_losses(head, backbone(tokens[:, :-1]).flatten(0, 1), labels.flatten()).sum()


def validation_sequences(dataset: Dataset, sequences: int) -> dict[str, torch.Tensor]:
    """Category -> (n, t + 1) token ids of its first `sequences` complete validation sequences."""
    # Complete ones only: a token with less context is harder to predict, so shorter rows would raise the loss.
    table = pq.read_table(dataset.validation_path, columns=["category", "tokens"])
    by_category: dict[str, list[list[int]]] = {}
    for category, tokens in zip(table["category"].to_pylist(), table["tokens"].to_pylist(), strict=True):
        if len(tokens) == dataset.sequence_length + 1:
            by_category.setdefault(category, []).append(tokens)
    return {category: torch.tensor(by_category[category][:sequences]) for category in sorted(by_category)}


@torch.no_grad()
def validation_losses(
    backbone: Callable[[torch.Tensor], torch.Tensor], head: Linear, validation: dict[str, torch.Tensor], config: Config
) -> dict[str, float]:
    """Category -> mean loss in nats per token over its sequences."""
    losses = {}
    for category, sequences in validation.items():
        pieces = rank_rows(sequences, config.micro_batch_sequences)
        total = summed(sum(loss_sum(backbone, head, piece.to(config.device)).item() for piece in pieces))
        losses[category] = total / sequences[:, 1:].numel()
    return losses


def main(config: Config) -> Checkpoint:
    """Train through the four phases and return the Checkpoint."""
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    phases = training_phases(config, dataset.phases)
    num_base_steps = base_steps(phases)
    shape = replace(MODELS[config.scale], vocab_size=dataset.vocab_size)
    check_fits(shape, config, [phase.forward_pass(documents=False) for phase in phases])
    if is_done(config, dataset):
        return Checkpoint.load(config.output_dir)

    # Model and optimizer (section 2.5). The weights are float32 or wider: bfloat16 cannot hold the small updates.
    model = NemotronH(shape, device=config.device, dtype=weight_dtype(config.dtype))
    initialize(model, config.seed)
    shard(model)
    backbone = torch.compile(model.backbone) if config.compile else model.backbone
    precision = autocast(config.dtype, config.device)
    betas = (config.beta1, config.beta2)
    parameters = parameter_groups(model, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=config.adam_eps)  # lr: see below

    # Phase 1 reads diverse text, phases 2 and 3 better text (section 2.3). The long-context phase then reads longer
    # sequences, so that the model learns to use what is far back (section 2.6). Curation has put all in training order.
    validation = validation_sequences(dataset, config.validation_sequences)
    total_steps = sum(phase.num_steps for phase in phases)
    with training_run(config, model, optimizer, dataset, total_steps) as run:
        for phase, batch in batches(dataset.path, phases, first_step=run.step):
            # The loss is the mean of -log(probability of the right next token), in nats. backward() adds its slope for
            # each weight to the weight's gradient. What does not fit into memory goes through the model in pieces. Each
            # sum is divided by the tokens of the whole step: a mean of means gives tokens of small pieces more weight.
            optimizer.zero_grad()
            loss = 0.0
            for micro_batch in rank_rows(batch.to(config.device), phase.micro_batch_sequences):
                with precision:
                    micro_loss = loss_sum(backbone, model.lm_head, micro_batch.tokens) / batch.num_in_loss
                micro_loss.backward()
                loss += micro_loss.item()
            loss = summed(loss)

            # Clipping. A rare bad batch gives a gradient of large norm; scaled down, it cannot move the weights far.
            grad_norm = clip_gradients(model, config.max_grad_norm)
            run.check_finite(loss=loss, grad_norm=grad_norm)

            # Schedule: warmup, plateau, decay; learning_rate_at says why. Then move every weight against its gradient.
            learning_rate = learning_rate_at(run.step, num_base_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

            # Record, validation and state. note() counts the step: run.step is one higher from here.
            run.note(phase.name, batch, learning_rate=learning_rate, loss=loss, grad_norm=grad_norm)
            if run.is_due(config.validate_every_steps):
                with precision:
                    run.note_validation(validation_losses(backbone, model.lm_head, validation, config))
            run.keep_state()
        write_sample(model_on_first(model), dataset, config.seed, run.work / "sample.txt")
        run.save(dataset.tokenizer_path, dataset.counts())
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
