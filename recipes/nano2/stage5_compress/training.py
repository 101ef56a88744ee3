"""Distill the teacher into the pruned model: forward KL on logits, with rows that grow longer.

In: the pruned Checkpoint of search.py, and through it the Dataset and the teacher. Out: a Checkpoint: a Hugging Face
directory, the state to resume from, the curve. Its dataset_path is the pruned Checkpoint.
Source: arXiv 2508.14444, section 4. Published: the loss, KL(teacher || student) on logits only; rows of 8,192, 49,152
and 262,144 tokens. Learning rate and batch are not disclosed: the proxies are those of Nemotron Elastic, which was
distilled from the same 12B. Temperature 1 is that of Nemotron-H.
Run: python -m nemotron.recipes.nano2.stage5_compress.training --scale tiny --checkpoint-path <directory>

This is the fourth act of compression; search.py has the three before it. The divergence, and how it is computed without
holding the logits, is in ../../training/distill.py. The final stages of the published chain (DPO, GRPO, a short
distillation by this module, RLHF, a merge) are in final.py.
Left out: a row that is split over devices, without which one of 262,144 tokens does not fit.

b batch   t position
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from nemotron.recipes.nano2.stage5_compress.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.model import NemotronH, parameter_groups
from nemotron.recipes.training.batches import TrainingPhase, batches
from nemotron.recipes.training.distill import batch_kl_sum, check_same_tokenizer, held_out_divergences, held_out_losses
from nemotron.recipes.training.distributed import clip_gradients, rank_rows, shard, summed, training_process
from nemotron.recipes.training.memory import check_fits
from nemotron.recipes.training.run import Checkpoint, is_done, training_run

ELASTIC = "Nemotron Elastic, distilled from the same 12B"


@dataclass
class Config(ScaledConfig):
    """Distill the teacher into the pruned model."""

    seed: int = 1234
    """Recorded, and not used: nothing in this step is random."""
    output_dir: Path = output_below("nano2", "stage5_compress", "training")
    """Where the Checkpoint goes."""
    checkpoint_path: Path | None = input_path()
    """Directory of the pruned Checkpoint; read from the pipe if left out."""
    dataset_path: Path | None = input_path()
    """Directory of a Dataset that names a model to distill into, in place of a pruned Checkpoint; see final.py."""

    # Objective.
    temperature: PositiveFloat = at_every_scale(proxy(1.0, "Nemotron-H"))
    """Temperature of both softmaxes."""

    # Batches: fewer rows where rows are longer.
    batch_sequences: tuple[PositiveInt, ...] = by_scale(
        tiny=(4, 2, 1),
        small=(16, 8, 4),
        medium=(64, 16, 8),
        full=proxy((1536, 512, 48), f"{ELASTIC}; the last is ours"),
    )
    """Rows per optimizer step in each part."""
    micro_batch_sequences: tuple[PositiveInt, ...] = by_scale(
        tiny=(4, 2, 1), small=(16, 8, 4), medium=(4, 1, 1), full=our_choice((1, 1, 1))
    )
    """Rows per forward pass in each part; changes memory, not the result."""
    chunk_tokens: PositiveInt = at_every_scale(our_choice(1024), recorded=False)
    """Tokens whose logits are in memory at a time; changes memory, not the result."""

    # Schedule over all parts.
    learning_rate: PositiveFloat = by_scale(tiny=4e-3, small=2e-3, medium=1e-4, full=proxy(9e-5, ELASTIC))
    """Peak learning rate, from which it falls linearly."""
    min_learning_rate: NonNegativeFloat = by_scale(
        tiny=4e-5, small=2e-5, medium=1e-5, full=proxy(1e-5, "NVIDIA Model-Optimizer's tutorial of pruning the 9B")
    )
    """Learning rate of the last step."""
    warmup_steps: NonNegativeInt = by_scale(tiny=2, small=5, medium=60, full=proxy(60, ELASTIC))
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
    dtype: Dtype = by_scale(**(DTYPES | {"small": "float32"}))
    """Arithmetic; bfloat16 keeps the weights in float32 and computes matrix products in bfloat16."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""

    # What is recorded on the way.
    checkpoint_every_steps: PositiveInt = by_scale(tiny=40, small=50, medium=200, full=our_choice(200), recorded=False)
    """Steps between two states from which a run can be resumed."""
    validate_every_steps: PositiveInt = by_scale(tiny=8, small=16, medium=100, full=our_choice(500))
    """Steps between two measurements of the validation loss."""
    batch_tokens: PositiveInt = at_every_scale(our_choice(8192), recorded=False)
    """Most tokens of one forward pass of the validation; changes memory, not the result."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from its last state."""

    def check(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}, from which "
                f"the learning rate falls; give a lower one"
            )
        if self.checkpoint_path is not None and self.dataset_path is not None:
            raise ValueError(
                f"checkpoint_path={self.checkpoint_path} and dataset_path={self.dataset_path} both name a model to "
                f"distill into; give one of them"
            )


def training_parts(phases: Sequence[Phase], config: Any) -> list[TrainingPhase]:
    """The parts of the schedule of lengths with the batches that they are read in.

    Args:
        config: with batch_sequences, micro_batch_sequences and warmup_steps: that of this step, or of the control.
    Raises:
        ValueError: if there are not as many batch sizes as lengths, or the warmup is longer than the run.
    """
    sizes = {name: getattr(config, name) for name in ("batch_sequences", "micro_batch_sequences")}
    for name, given in sizes.items():
        if len(given) != len(phases):
            raise ValueError(f"{name}={given} and the data has {len(phases)} lengths of rows; give one number for each")
    parts = [TrainingPhase(*one) for one in zip(phases, *sizes.values(), strict=True)]
    num_steps = sum(part.num_steps for part in parts)
    if config.warmup_steps >= num_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps}, and the dataset has rows for {num_steps} steps; give fewer warmup "
            f"steps, or more rows"
        )
    return parts


def learning_rate_at(step: int, num_steps: int, config: Any) -> float:
    """Learning rate of optimizer step `step` of `num_steps`, counted from 0 over all parts.

    Linear warmup, then a straight line down to min_learning_rate at the last step (our choice; not disclosed).

    Args:
        config: with learning_rate, min_learning_rate and warmup_steps: that of this step, or of the control.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    remaining = (num_steps - 1 - step) / max(1, num_steps - config.warmup_steps)
    return config.min_learning_rate + remaining * (config.learning_rate - config.min_learning_rate)


def validation_losses(student: NemotronH, teacher: NemotronH, dataset: Dataset, config: Config) -> dict[str, float]:
    """Held-out cross-entropy by source, and "kl": the divergence from the teacher; all in nats per token."""
    held_out = dataset.validation_path, dataset.shares()
    losses = held_out_losses(student, *held_out, batch_tokens=config.batch_tokens, dtype=config.dtype,
                             device=config.device)  # fmt: skip
    kl = held_out_divergences(student, teacher, *held_out, chunk_tokens=config.chunk_tokens, dtype=config.dtype,
                              device=config.device)  # fmt: skip
    return {source: losses[source] for source in dataset.shares()} | {"kl": kl["all"]}


def inputs_of(config: Config) -> tuple[Checkpoint | Dataset, Dataset, Checkpoint]:
    """What the run reads: the pruned Checkpoint, or a Dataset that names a student; the Dataset; the student.

    Raises:
        ValueError: if it is a Dataset that names none.
    """
    if config.dataset_path is None:
        pruned = Checkpoint.load(
            path=config.checkpoint_path, scale=config.scale, made_by="nemotron.recipes.nano2.stage5_compress.search"
        )
        return pruned, Dataset.load(path=pruned.dataset_path, given=pruned), pruned
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    if dataset.student_path is None:
        raise ValueError(
            f"{dataset.path} names no model to distill into; give the pruned Checkpoint with --checkpoint-path, or "
            f"collect the data with --student-path"
        )
    return dataset, dataset, Checkpoint.load(path=dataset.student_path)


def main(config: Config) -> Checkpoint:
    """Distill through the schedule of lengths and return the Checkpoint."""
    given, dataset, pruned = inputs_of(config)
    base = dataset.base()
    check_same_tokenizer(base.checkpoint_path, pruned.checkpoint_path)
    parts = training_parts(dataset.phases, config)
    total_steps = sum(part.num_steps for part in parts)
    shapes = load_config(pruned.checkpoint_path), load_config(base.checkpoint_path)
    check_fits(shapes[0], config, [part.forward_pass(documents=True) for part in parts], shapes[1:])
    if is_done(config, given):
        return Checkpoint.load(config.output_dir)

    # The teacher, which stays as it is, and the student, which was sliced out of it; a new optimizer.
    dtype = weight_dtype(config.dtype)
    teacher, student = (
        shard(load_checkpoint(one.checkpoint_path, device=config.device, dtype=dtype)) for one in (base, pruned)
    )
    parameters = parameter_groups(student, config.weight_decay)  # decay for matrices only
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=config.adam_eps)  # lr: see below

    with training_run(config, student, optimizer, given, total_steps) as run:
        for part, batch in batches(dataset.path, parts, first_step=run.step):
            # Loss and gradient: at every token, how far the student's distribution is from the teacher's. The logits
            # exist for chunk_tokens positions at a time. The sum is divided by the tokens of the whole step.
            optimizer.zero_grad()
            loss = 0.0
            for piece in rank_rows(batch.to(config.device), part.micro_batch_sequences):
                with autocast(config.dtype, config.device):
                    kl = batch_kl_sum(student, teacher, piece, temperature=config.temperature,
                                      chunk_tokens=config.chunk_tokens)  # fmt: skip
                (kl / batch.num_in_loss).backward()
                loss += kl.item() / batch.num_in_loss
            loss = summed(loss)

            # Clipping: the first steps mend what pruning broke, with large gradients.
            grad_norm = clip_gradients(student, config.max_grad_norm)
            run.check_finite(loss=loss, grad_norm=grad_norm)

            # Schedule: a straight line down over all parts, so that the longest rows change the model least.
            learning_rate = learning_rate_at(run.step, total_steps, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

            # Record, validation and state. note() counts the step: run.step is one higher from here.
            run.note(part.name, batch, learning_rate=learning_rate, loss=loss, grad_norm=grad_norm)
            if run.is_due(config.validate_every_steps):
                run.note_validation(validation_losses(student, teacher, dataset, config))
            run.keep_state()
        run.save(dataset.tokenizer_path, {**dataset.counts(), **given.metrics}, CHAT.stop_ids)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
