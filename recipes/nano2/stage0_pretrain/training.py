"""Pretrain the base model: four phases of text, one loop, AdamW under a warmup-stable-decay schedule.

In: the Dataset of data_curation.py (packed token sequences, one file a phase, already in training order).
Out: a Checkpoint: a Hugging Face directory, the state to go on from, the whole loss curve and a plot of it.
Source: arXiv 2508.14444, sections 2.4 to 2.6; what the paper leaves open is marked where it stands.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.training --scale tiny --dataset-path <directory>

Left out: FP8 matrix products and sharding over devices, which the published run needs and one laptop does not.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import tyro
from pydantic import Field
from tokenizers import Tokenizer

from nemotron import Artifact, Scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.progress import TrainingProgress
from nemotron.recipes.nano2.sizes import SIZES, phase_steps, resolved
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import save_checkpoint
from nemotron.recipes.nemotron_h.fingerprint import weight_fingerprint
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH, initialize, parameter_groups
from nemotron.recipes.training.curve import plot_curve
from nemotron.recipes.training.device import refuse_what_does_not_fit
from nemotron.recipes.training.ladder import training_ladder
from nemotron.recipes.training.state import (
    Identity,
    Record,
    already_finished,
    read_training_state,
    refuse_non_finite,
    refuse_unfinished_run,
    write_training_state,
)


@dataclass
class Config:
    """Pretrain the base model on a curated dataset. A number left out is the one in sizes.py for the scale."""

    scale: Scale = "tiny"
    """Model and batch sizes: tiny, small, medium or full."""
    seed: int = 1234
    """Seed of the initial weights and of the sample at the end."""
    output_dir: Path | None = None
    """Where the Checkpoint goes; outputs/nano2/<scale>/stage0_pretrain/training if left out."""
    dataset_path: Path | None = None
    """Directory of the Dataset; read from the pipe if left out."""
    num_steps: int | None = None
    """Optimizer steps of phases 1 to 3; the dataset must hold the sequences for them."""
    batch_sequences: int | None = None
    """Sequences per optimizer step."""
    micro_batch_sequences: int | None = None
    """Sequences per forward pass; divides batch_sequences and changes memory, not the result."""
    learning_rate: float | None = None
    """Peak learning rate, held from the end of the warmup to the start of the decay."""
    min_learning_rate: float | None = None
    """Learning rate at the end of the decay."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly from 0."""
    decay_frac: float = 0.18  # published: the last 3.6T of 20T tokens
    """Share of num_steps, at their end, over which the learning rate falls."""
    long_context_steps: int | None = None
    """Optimizer steps of the long-context phase."""
    long_context_batch_sequences: int | None = None
    """Sequences per optimizer step in the long-context phase."""
    long_context_micro_batch_sequences: int | None = None
    """Sequences per forward pass in the long-context phase."""
    long_context_learning_rate: float | None = None
    """Constant learning rate of the long-context phase."""
    cut_long_context_to: int | None = None
    """Cut each long sequence into pieces of so many tokens: the same tokens without the long context, as a control."""
    beta1: float = 0.9  # published
    """AdamW: decay of the first moment."""
    beta2: float = 0.95  # published
    """AdamW: decay of the second moment."""
    adam_eps: float = 1e-8  # proxy: NVIDIA's Megatron configurations; the paper's value is unknown to us
    """AdamW: term added to the denominator."""
    weight_decay: float = 0.1  # published
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: float = 1.0  # proxy: NVIDIA's Megatron configurations
    """Gradients longer than this are shortened to it."""
    dtype: Literal["float64", "float32", "bfloat16"] | None = None
    """Arithmetic of the model; bfloat16 keeps float32 weights and computes matrix products in bfloat16."""
    device: str | None = None
    """Where to train: cpu, cuda, cuda:1, ..."""
    compile: bool = False
    """Compile the model with torch.compile; the numbers change in their last digits."""
    checkpoint_every_steps: int | None = None
    """Steps between two states that --resume can go on from."""
    validate_every_steps: int | None = None
    """Steps between two measurements of the validation loss."""
    validation_sequences: int | None = None
    """Validation sequences per category in each measurement."""
    resume: bool = False
    """Go on from the last state of an unfinished run in the same output directory."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be greater than 0 and finite")
        for name in ("warmup_steps", "long_context_steps", "weight_decay", "min_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number that is not negative")
        for name in ("beta1", "beta2", "decay_frac"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")


_POSITIVE = (
    *("num_steps", "batch_sequences", "micro_batch_sequences", "learning_rate", "adam_eps", "max_grad_norm"),
    *("long_context_batch_sequences", "long_context_micro_batch_sequences", "long_context_learning_rate"),
    *("cut_long_context_to", "checkpoint_every_steps", "validate_every_steps", "validation_sequences"),
)


class Checkpoint(Artifact):
    """A trained base model, and where its training went."""

    num_steps: int = Field(gt=0)
    """Optimizer steps over all four phases."""
    num_parameters: int = Field(gt=0)
    training_loss: float
    """Loss of the last step, nats per token."""
    checkpoint_path: Path
    """Hugging Face directory: AutoModelForCausalLM.from_pretrained(checkpoint_path)."""
    training_state_path: Path
    """Optimizer moments, curve and position in the data after the last step."""
    curve_path: Path
    """Parquet, a row a step: step, phase, batch (digest of its tokens), tokens (predicted in this step), loss (nats per
    token), grad_norm (before clipping), learning_rate."""
    validation_curve_path: Path
    """Parquet: step, category, loss (nats per token)."""
    plot_path: Path
    sample: str
    """Text that the final model wrote after the first tokens of a held-out document."""
    dataset_path: Path
    """The Dataset that it was trained on."""


def decay_length(config: Config) -> int:
    """Optimizer steps over which the learning rate falls, the last ones before the long-context phase."""
    assert config.num_steps
    return round(config.decay_frac * config.num_steps)


def learning_rate_at(step: int, config: Config) -> float:
    """Learning rate of optimizer step `step`, counted from 0 over all four phases; `config` is resolved.

    Warmup-stable-decay (published) with the shape 1 - sqrt(elapsed share of the decay) (proxy: Nemotron 3 Super; the
    shape that Nano 2 used is unknown to us), then the constant rate of the long-context phase (published).
    """
    assert config.num_steps and config.learning_rate and config.long_context_learning_rate
    assert config.warmup_steps is not None and config.min_learning_rate is not None
    if step >= config.num_steps:
        return config.long_context_learning_rate
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    decay_steps = decay_length(config)
    decayed_steps = step + 1 - (config.num_steps - decay_steps)
    if decayed_steps <= 0:
        return config.learning_rate
    remaining = 1 - math.sqrt(decayed_steps / decay_steps)
    return config.min_learning_rate + remaining * (config.learning_rate - config.min_learning_rate)


@dataclass(frozen=True)
class Phase:
    """One stretch of training: the steps, sequences and tokens that are taken from its file."""

    name: str
    num_steps: int
    batch_sequences: int
    micro_batch_sequences: int
    sequence_length: int
    """Tokens of a sequence in the file, less the one that is only a label."""
    cut_to: int
    """Tokens of a sequence in a batch: sequence_length, or a divisor of it."""

    @property
    def batch_tokens(self) -> int:
        """Tokens that one optimizer step learns to predict."""
        return self.batch_sequences * self.sequence_length


def training_phases(config: Config, sequence_length: int, long_context_length: int) -> list[Phase]:
    """The four phases in their order; `config` is resolved, lengths are in tokens.

    Raises:
        ValueError: if micro batches do not divide the batch, cut_long_context_to does not divide its length, or the
            warmup and the decay of the learning rate overlap or the decay would rise.
    """
    assert config.num_steps and config.batch_sequences and config.micro_batch_sequences
    assert config.long_context_batch_sequences and config.long_context_micro_batch_sequences
    assert config.long_context_steps is not None
    assert config.warmup_steps is not None and config.learning_rate and config.min_learning_rate is not None
    batch, micro = config.batch_sequences, config.micro_batch_sequences
    long_batch, long_micro = config.long_context_batch_sequences, config.long_context_micro_batch_sequences
    cut_to = config.cut_long_context_to or long_context_length
    phases = [
        Phase(name, steps, batch, micro, sequence_length, sequence_length)
        for name, steps in phase_steps(config.num_steps).items()
    ]
    phases.append(Phase("long_context", config.long_context_steps, long_batch, long_micro, long_context_length, cut_to))
    for phase in phases:
        if phase.batch_sequences % phase.micro_batch_sequences:
            raise ValueError(
                f"{phase.name}: micro_batch_sequences={phase.micro_batch_sequences} does not divide "
                f"batch_sequences={phase.batch_sequences}; pick a divisor of {phase.batch_sequences}"
            )
    if long_context_length % cut_to:
        raise ValueError(
            f"cut_long_context_to={cut_to} does not divide long_context_length={long_context_length}; pick a divisor"
        )
    decay_steps = decay_length(config)
    if config.warmup_steps + decay_steps > config.num_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} and the decay over the last {decay_steps} of "
            f"num_steps={config.num_steps} overlap; give at most {config.num_steps - decay_steps} warmup steps"
        )
    if config.min_learning_rate > config.learning_rate:
        raise ValueError(
            f"min_learning_rate={config.min_learning_rate} is above learning_rate={config.learning_rate}, which it "
            f"is to fall from; give a lower one"
        )
    return phases


def phase_files(dataset: Dataset, phases: list[Phase]) -> dict[str, Path]:
    """Name of every phase -> its Parquet file of sequences.

    Raises:
        ValueError: if a file holds fewer sequences than the phase takes.
    """
    files = {
        "phase1": dataset.phase1_path,
        "phase2": dataset.phase2_path,
        "phase3": dataset.phase3_path,
        "long_context": dataset.long_context_path,
    }
    for phase in phases:
        held, needed = pq.read_metadata(files[phase.name]).num_rows, phase.num_steps * phase.batch_sequences
        if held < needed:
            raise ValueError(
                f"{phase.name}: {phase.num_steps} steps of {phase.batch_sequences} sequences need {needed} sequences, "
                f"and {files[phase.name]} holds {held}; curate with the same steps and batch, or lower them here"
            )
    return files


def read_batches(path: Path, phase: Phase, first_step: int) -> Iterator[torch.Tensor]:
    """Batches of one phase in the order of its file, from the phase's step `first_step` on.

    Yields:
        (b, t + 1) int64 token ids; consecutive sequences of a document share one token, so that each is a label once.
        t is cut_to and b as many sequences as make batch_tokens.
    """
    held = np.empty((0, phase.sequence_length + 1), dtype=np.int64)
    step = 0
    for group in pq.ParquetFile(path).iter_batches(batch_size=phase.batch_sequences, columns=["tokens"]):
        rows = group.column("tokens").flatten().to_numpy().reshape(-1, phase.sequence_length + 1)
        held = np.concatenate([held, rows])
        while len(held) >= phase.batch_sequences and step < phase.num_steps:
            batch, held = held[: phase.batch_sequences], held[phase.batch_sequences :]
            if step >= first_step:
                yield torch.from_numpy(batch).unfold(1, phase.cut_to + 1, phase.cut_to).flatten(0, 1)
            step += 1


def loss_sum(model: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over a (b, t + 1) batch: the token at position i predicts the one at i + 1."""
    logits = model(tokens[:, :-1])
    labels = tokens[:, 1:]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # also when matrix products are bfloat16
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def validation_sequences(dataset: Dataset, sequences: int) -> dict[str, torch.Tensor]:
    """Category -> (n, t + 1) token ids of its first `sequences` whole validation sequences."""
    table = pq.read_table(dataset.validation_path, columns=["category", "tokens"])
    by_category: dict[str, list[list[int]]] = {}
    for category, tokens in zip(table["category"].to_pylist(), table["tokens"].to_pylist(), strict=True):
        if len(tokens) == dataset.sequence_length + 1:
            by_category.setdefault(category, []).append(tokens)
    return {category: torch.tensor(by_category[category][:sequences]) for category in sorted(by_category)}


@torch.no_grad()
def validation_losses(
    model: Callable[[torch.Tensor], torch.Tensor],
    validation: dict[str, torch.Tensor],
    micro_batch_sequences: int,
    device: str,
) -> dict[str, float]:
    """Category -> mean loss in nats per token over its sequences."""
    losses = {}
    for category, sequences in validation.items():
        micro_batches = sequences.split(micro_batch_sequences)
        losses[category] = sum(loss_sum(model, batch.to(device)).item() for batch in micro_batches)
        losses[category] /= sequences[:, 1:].numel()
    return losses


def compared_config(config: Config) -> dict[str, Any]:
    """The fields of the config that the result depends on: all but places, and how often states are written."""
    places = ("output_dir", "dataset_path", "resume", "checkpoint_every_steps", "device")
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in places}


def write_sample(model: NemotronH, dataset: Dataset, seed: int) -> str:
    """Sixteen tokens of a held-out sequence and what the model writes after them."""
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path / "tokenizer.json"))
    prompt = pq.read_table(dataset.validation_path, columns=["tokens"])["tokens"][0].as_py()[:16]
    (continuation,) = generate(model, [prompt], Sampling(max_new_tokens=48, temperature=0.7), seeds=[seed])
    return tokenizer.decode(continuation.tokens)


def main(config: Config) -> Checkpoint:
    """Train through the four phases and return the Checkpoint."""
    config = resolved(config, "stage0_pretrain", "training")
    assert config.output_dir and config.device and config.dtype and config.validation_sequences
    assert config.checkpoint_every_steps and config.validate_every_steps
    dataset = Dataset.load(path=config.dataset_path)
    phases = training_phases(config, dataset.sequence_length, dataset.long_context_length)
    files = phase_files(dataset, phases)
    validation = validation_sequences(dataset, config.validation_sequences)
    total_steps = sum(phase.num_steps for phase in phases)

    # With bfloat16 the weights stay in float32 and autocast computes the matrix products in bfloat16.
    shape = replace(SIZES[config.scale].model, vocab_size=dataset.vocab_size)
    refuse_what_does_not_fit(shape, scale=config.scale, dtype=config.dtype, device=config.device)
    weight_dtype = torch.float64 if config.dtype == "float64" else torch.float32
    autocast = torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    model = NemotronH(shape, device=config.device, dtype=weight_dtype)
    initialize(model, config.seed)
    forward = torch.compile(model) if config.compile else model
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=0.0,  # set before every step
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
    )

    identity: Identity = {"dataset": dataset.digest, "config": compared_config(config)}
    if config.resume and already_finished(config.output_dir, identity):
        return Checkpoint.load(config.output_dir)
    with working_directory(config.output_dir, Checkpoint, keep_on_failure=True) as work:
        if config.resume:
            record = read_training_state(work, identity, model, optimizer)
        else:
            refuse_unfinished_run(work)
            record = Record(weights={"initial": weight_fingerprint(model)})

        step = first_step = len(record.curve)
        phase_start = 0
        with TrainingProgress("pretraining", total_steps, first_step) as progress:
            for phase in phases:
                for batch in read_batches(files[phase.name], phase, first_step=max(0, first_step - phase_start)):
                    # Every token weighs the same: sums over micro batches, divided by the tokens of the whole step.
                    optimizer.zero_grad()
                    loss = 0.0
                    for micro_batch in batch.to(config.device).chunk(
                        phase.batch_sequences // phase.micro_batch_sequences
                    ):
                        with autocast:  # left after each use: inside, it keeps copies of the weights as they were
                            micro_loss = loss_sum(forward, micro_batch) / phase.batch_tokens
                        micro_loss.backward()
                        loss += micro_loss.item()
                    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
                    refuse_non_finite(step, loss, grad_norm)
                    learning_rate = learning_rate_at(step, config)
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate
                    optimizer.step()

                    digest = hashlib.sha256(batch.numpy().tobytes()).hexdigest()[:16]
                    record.curve.append(
                        {"step": step, "phase": phase.name, "batch": digest, "tokens": phase.batch_tokens,
                         "loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
                    )  # fmt: skip
                    step += 1
                    progress.update(step, loss=loss, learning_rate=learning_rate, tokens=phase.batch_tokens)
                    if step == 1:
                        record.weights["after step 1"] = weight_fingerprint(model)
                    if step % config.validate_every_steps == 0 or step == total_steps:
                        with autocast:
                            losses = validation_losses(
                                forward, validation, phases[0].micro_batch_sequences, config.device
                            )
                        record.validation += [{"step": step, "category": name, "loss": losses[name]} for name in losses]
                    if step % config.checkpoint_every_steps == 0 or step == total_steps:
                        write_training_state(work, identity, model, optimizer, record)
                phase_start += phase.num_steps

        record.weights["final"] = weight_fingerprint(model)
        save_checkpoint(model, dataset.tokenizer_path, work / "model")
        pq.write_table(pa.Table.from_pylist(record.curve), work / "curve.parquet")
        pq.write_table(pa.Table.from_pylist(record.validation), work / "validation_curve.parquet")
        plot_curve(record, work / "loss.svg")
        names = ("num_examples", "num_documents", "vocab_size", "sequence_length", "long_context_length")
        inputs = {name: getattr(dataset, name) for name in names}
        (work / "ladder.json").write_text(
            json.dumps(training_ladder(compared_config(config), inputs, model, record), indent=1)
        )
        checkpoint = Checkpoint(
            path=work,
            num_steps=step,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            training_loss=record.curve[-1]["loss"],
            checkpoint_path=work / "model",
            training_state_path=work / "training_state",
            curve_path=work / "curve.parquet",
            validation_curve_path=work / "validation_curve.parquet",
            plot_path=work / "loss.svg",
            sample=write_sample(model, dataset, config.seed),
            dataset_path=dataset.path,
            metrics={
                f"validation_loss/{row['category']}": row["loss"]
                for row in record.validation
                if row["step"] == total_steps
            },
        )
        checkpoint.save(config)
    print(f"sample: {checkpoint.sample!r}", file=sys.stderr)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"checkpoint": main(config)})
