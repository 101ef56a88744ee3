"""Fine-tune the base model on conversations: three parts, one loop, the loss on what the assistant writes.

In: the Dataset of data_curation.py (rows of tokens with a loss mask and conversation numbers), and through it stage 0's
Checkpoint. Out: a Checkpoint: a Hugging Face directory with the chat template, the state to resume from, the curve.
Source: arXiv 2508.14444, section 3. Learning rate, batch size, number of epochs and masking are not disclosed: the
values here are our choice or, where marked, those of another NVIDIA model.
Run: python -m nemotron.recipes.nano2.stage1_sft.training --scale tiny --dataset-path <directory>

Left out: a row that is split over devices.

b batch   t position   d hidden size
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    same_as,
    switch,
)
from nemotron.recipes.curation.rows import Phase
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import CHECKPOINTING, DEVICES, DTYPES
from nemotron.recipes.nano2.stage1_sft.data_curation import TOOLS, Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.losses import token_losses
from nemotron.recipes.nemotron_h.model import NemotronH, parameter_groups
from nemotron.recipes.training.batches import Batch, TrainingPhase, batches, collate
from nemotron.recipes.training.distributed import clip_gradients, rank_rows, shard, summed, training_process
from nemotron.recipes.training.memory import check_fits
from nemotron.recipes.training.run import Checkpoint, base_checkpoint, is_done, training_run


@dataclass
class Config(ScaledConfig):
    """Fine-tune the base model on curated conversations."""

    seed: int = 1234
    """Recorded, and not used: nothing in this step is random."""
    output_dir: Path = output_below("nano2", "stage1_sft", "training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""

    # Batches, counted in rows. Several conversations share a row, except in the second part.
    batch_sequences: PositiveInt = by_scale(
        tiny=1, small=10, medium=16, full=proxy(64, "Nemotron 3 Nano, of 256k tokens")
    )
    """Rows per optimizer step where several conversations share a row."""
    unpacked_batch_sequences: PositiveInt = by_scale(tiny=2, small=20, medium=128, full=our_choice(2048))
    """Rows per optimizer step of the second part, where a row is one conversation."""
    micro_batch_sequences: PositiveInt = by_scale(tiny=1, small=10, medium=1, full=our_choice(1))
    """Rows per forward pass; changes memory, not the result."""

    # Schedule. At full scale the peak is a ninth of that of pretraining, to keep what the model knows.
    learning_rate: PositiveFloat = by_scale(
        tiny=5e-3, small=2e-3, medium=proxy(5e-5, "Nemotron 3 Nano"), full=proxy(5e-5, "Nemotron 3 Nano")
    )
    """Peak learning rate, from which it falls linearly."""
    min_learning_rate: NonNegativeFloat = by_scale(tiny=3e-5, small=1e-5, medium=5e-7, full=our_choice(5e-7))
    """Learning rate of the last step."""
    warmup_steps: NonNegativeInt = by_scale(tiny=10, small=30, medium=100, full=proxy(800, "Nemotron 3 Nano"))
    """Steps over which the learning rate rises linearly from 0."""

    # AdamW, as in pretraining.
    beta1: BelowOne = at_every_scale(same_as(0.9, "pretraining"))
    """AdamW: decay of the first moment."""
    beta2: BelowOne = at_every_scale(same_as(0.95, "pretraining"))
    """AdamW: decay of the second moment."""
    adam_eps: PositiveFloat = at_every_scale(proxy(1e-8, "NVIDIA's Megatron configurations"))
    """AdamW: term added to the denominator."""
    weight_decay: NonNegativeFloat = at_every_scale(same_as(0.1, "pretraining"))
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

    # What is recorded on the way.
    checkpoint_every_steps: PositiveInt = by_scale(
        tiny=80, small=300, medium=500, full=our_choice(1000), recorded=False
    )
    """Steps between two states from which a run can be resumed."""
    validate_every_steps: PositiveInt = by_scale(tiny=80, small=200, medium=500, full=our_choice(1000))
    """Steps between two measurements of the validation loss."""
    validation_sequences: PositiveInt = by_scale(tiny=2, small=8, medium=32, full=our_choice(32))
    """Validation conversations per family in each measurement."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from its last state."""

    def check(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}, from which "
                f"the learning rate falls; give a lower one"
            )


def training_parts(config: Config, phases: Sequence[Phase]) -> list[TrainingPhase]:
    """The three parts in the order of training: every row is read once (our choice; not disclosed).

    Raises:
        ValueError: if the warmup is longer than the run.
    """
    rows = {TOOLS: config.unpacked_batch_sequences}  # one short conversation per row, so more rows per step
    micro_batch = config.micro_batch_sequences
    parts = [TrainingPhase(part, rows.get(part.name, config.batch_sequences), micro_batch) for part in phases]
    num_steps = sum(part.num_steps for part in parts)
    if config.warmup_steps >= num_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps}, and the dataset has rows for {num_steps} steps; give fewer warmup "
            f"steps, or curate more conversations"
        )
    return parts


def learning_rate_at(step: int, num_steps: int, config: Config) -> float:
    """Learning rate of optimizer step `step` of `num_steps`, counted from 0 over all parts.

    Linear warmup, then a straight line down to min_learning_rate at the last step (our choice; not disclosed).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    remaining = (num_steps - 1 - step) / max(1, num_steps - config.warmup_steps)
    return config.min_learning_rate + remaining * (config.learning_rate - config.min_learning_rate)


def loss_sum(model: NemotronH, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats, summed over tokens that count: position i predicts token i + 1 of its conversation.

    Prompt tokens are masked here: the model reads them and does not learn to predict them.
    """
    # Segments keep the conversations of one row apart: attention and state do not cross from one to the next.
    hidden = model.backbone(batch.tokens[:, :-1], segments=batch.segments[:, :-1])  # (b, t, d)
    counts = batch.in_loss[:, 1:]  # (b, t): whether the token after each position counts
    # Logits only for the positions that count: with a vocabulary of 131,072 they are the largest tensor.
    labels = batch.tokens[:, 1:][counts]
    return token_losses(model.lm_head, hidden[counts], labels).sum()


def validation_batches(dataset: Dataset, conversations: int) -> dict[str, Batch]:
    """Family -> its first `conversations` validation conversations."""
    table = pq.read_table(dataset.validation_path)
    by_family: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_family.setdefault(row["family"], []).append(row)
    return {
        family: collate(pa.Table.from_pylist(by_family[family][:conversations], schema=table.schema))
        for family in sorted(by_family)
    }


@torch.no_grad()
def validation_losses(model: NemotronH, validation: dict[str, Batch], config: Config) -> dict[str, float]:
    """Family -> mean loss in nats per token that counts."""
    losses = {}
    for family, batch in validation.items():
        pieces = rank_rows(batch.to(config.device), config.micro_batch_sequences)
        losses[family] = summed(sum(loss_sum(model, piece).item() for piece in pieces)) / batch.num_in_loss
    return losses


def main(config: Config) -> Checkpoint:
    """Train through the three parts and return the Checkpoint."""
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    base = base_checkpoint(dataset.base_checkpoint_path, dataset.tokenizer_path)
    parts = training_parts(config, dataset.phases)
    total_steps = sum(part.num_steps for part in parts)
    check_fits(load_config(base.checkpoint_path), config, [part.forward_pass(documents=True) for part in parts])
    if is_done(config, dataset):
        return Checkpoint.load(config.output_dir)

    # The weights of stage 0, and a new optimizer: the old moments describe other data at another learning rate.
    model = load_checkpoint(base.checkpoint_path, device=config.device, dtype=weight_dtype(config.dtype))
    shard(model)
    precision = autocast(config.dtype, config.device)
    betas = (config.beta1, config.beta2)
    parameters = parameter_groups(model, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=config.adam_eps)  # lr: see below

    # Part 1 reads everything; part 2 tool calling, unpacked; part 3 long context and reasoning cut short. Parts 2 and
    # 3 repeat a share of the rest (section 3).
    validation = validation_batches(dataset, config.validation_sequences)
    with training_run(config, model, optimizer, dataset, total_steps) as run:
        for part, batch in batches(dataset.path, parts, first_step=run.step):
            # Loss and gradient. The sum over each micro batch is divided by the tokens that count in the whole step:
            # every token of an answer weighs the same, in a short answer and in a long one.
            optimizer.zero_grad()
            loss = 0.0
            for micro_batch in rank_rows(batch.to(config.device), part.micro_batch_sequences):
                with precision:
                    micro_loss = loss_sum(model, micro_batch) / batch.num_in_loss
                micro_loss.backward()
                loss += micro_loss.item()
            loss = summed(loss)

            # Clipping: batches differ in how many tokens count, and a small one gives a noisy gradient.
            grad_norm = clip_gradients(model, config.max_grad_norm)
            run.check_finite(loss=loss, grad_norm=grad_norm)

            # Schedule: a straight line down over all three parts, so that the last part changes the model least.
            learning_rate = learning_rate_at(run.step, total_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

            # Record, validation and state. note() counts the step: run.step is one higher from here.
            run.note(part.name, batch, learning_rate=learning_rate, loss=loss, grad_norm=grad_norm)
            if run.is_due(config.validate_every_steps):
                with precision:
                    run.note_validation(validation_losses(model, validation, config))
            run.keep_state()
        # The ladder also names the weights that were read: if they differ, the cause is in stage 0.
        weights = {f"base model/{name}": value for name, value in run.record.weights["initial"].items()}
        run.save(dataset.tokenizer_path, dataset.counts() | weights, CHAT.stop_ids)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
