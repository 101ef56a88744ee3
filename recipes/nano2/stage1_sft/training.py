"""Fine-tune the base model on conversations: three parts, one loop, the loss on what the assistant writes alone.

In: the Dataset of data_curation.py (rows of tokens with a mask and document boundaries), and through it stage 0's
Checkpoint. Out: a Checkpoint: a Hugging Face directory with the chat template, the state to go on from, the loss curve.
Source: arXiv 2508.14444, section 3. Learning rate, batch size, number of epochs and masking are not disclosed: what
stands here is our choice or, where marked, that of another NVIDIA model.
Run: python -m nemotron.recipes.nano2.stage1_sft.training --scale tiny --dataset-path <directory>

Left out: sharding over devices, which rows of 128k tokens need.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import tyro
from pydantic import Field

from nemotron import Artifact, Scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.progress import TrainingProgress
from nemotron.recipes.nano2.chat import STOP_TOKENS
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage0_pretrain.training import Checkpoint as BaseCheckpoint
from nemotron.recipes.nano2.stage1_sft.data_curation import PARTS, Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config, save_checkpoint
from nemotron.recipes.nemotron_h.fingerprint import weight_fingerprint
from nemotron.recipes.nemotron_h.model import NemotronH, parameter_groups
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
    """Fine-tune the base model on curated conversations. A number left out is the one in sizes.py for the scale."""

    scale: Scale = "tiny"
    """Batch sizes and learning rate: tiny, small, medium or full."""
    seed: int = 1234
    """Only recorded: nothing in this step is random."""
    output_dir: Path | None = None
    """Where the Checkpoint goes; outputs/nano2/<scale>/stage1_sft/training if left out."""
    dataset_path: Path | None = None
    """Directory of the Dataset; read from the pipe if left out."""
    batch_sequences: int | None = None
    """Rows per optimizer step where several conversations share a row."""
    unpacked_batch_sequences: int | None = None
    """Rows per optimizer step of the second part, where a row is one conversation."""
    micro_batch_sequences: int | None = None
    """Rows per forward pass; changes memory, not the result."""
    learning_rate: float | None = None
    """Peak learning rate, from which it falls linearly."""
    min_learning_rate: float | None = None
    """Learning rate of the last step."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly from 0."""
    beta1: float = 0.9  # proxy: as in pretraining
    """AdamW: decay of the first moment."""
    beta2: float = 0.95  # proxy: as in pretraining
    """AdamW: decay of the second moment."""
    adam_eps: float = 1e-8  # proxy: NVIDIA's Megatron configurations
    """AdamW: term added to the denominator."""
    weight_decay: float = 0.1  # proxy: as in pretraining
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: float = 1.0  # proxy: NVIDIA's Megatron configurations
    """Gradients longer than this are shortened to it."""
    dtype: Literal["float64", "float32", "bfloat16"] | None = None
    """Arithmetic of the model; bfloat16 keeps float32 weights and computes matrix products in bfloat16."""
    device: str | None = None
    """Where to train: cpu, cuda, cuda:1, ..."""
    checkpoint_every_steps: int | None = None
    """Steps between two states that --resume can go on from."""
    validate_every_steps: int | None = None
    """Steps between two measurements of the validation loss."""
    validation_sequences: int | None = None
    """Validation conversations per family in each measurement."""
    resume: bool = False
    """Go on from the last state of an unfinished run in the same output directory."""

    def __post_init__(self) -> None:
        for name in (
            *("batch_sequences", "unpacked_batch_sequences", "micro_batch_sequences", "learning_rate", "adam_eps"),
            *("max_grad_norm", "checkpoint_every_steps", "validate_every_steps", "validation_sequences"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be greater than 0 and finite")
        for name in ("warmup_steps", "weight_decay", "min_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number that is not negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")


class Checkpoint(Artifact):
    """A fine-tuned model that chats, and where its training went."""

    num_steps: int = Field(gt=0)
    """Optimizer steps over all three parts."""
    num_parameters: int = Field(gt=0)
    training_loss: float
    """Loss of the last step, nats per token that the assistant wrote."""
    checkpoint_path: Path
    """Hugging Face directory: AutoModelForCausalLM.from_pretrained, and a tokenizer with the chat template."""
    training_state_path: Path
    """Optimizer moments, curve and position in the data after the last step."""
    curve_path: Path
    """Parquet, a row a step: step, phase (the part), batch (digest of its rows), tokens (that count in the loss), loss
    (nats per token), grad_norm (before clipping), learning_rate."""
    validation_curve_path: Path
    """Parquet: step, category (family), loss (nats per token)."""
    plot_path: Path
    dataset_path: Path
    """The Dataset that it was trained on."""


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, padded to the longest of them."""

    tokens: torch.Tensor
    """(b, t + 1) token ids; 0 where a row is padded."""
    in_loss: torch.Tensor
    """(b, t + 1) whether a token counts in the loss when it is predicted."""
    segments: torch.Tensor
    """(b, t + 1) number of the conversation; padding has one of its own."""

    def split(self, rows: int) -> Iterator["Batch"]:
        """The same in pieces of at most so many rows."""
        pieces = (tensor.split(rows) for tensor in (self.tokens, self.in_loss, self.segments))
        return (Batch(*piece) for piece in zip(*pieces, strict=True))

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        return Batch(self.tokens.to(device), self.in_loss.to(device), self.segments.to(device))

    @property
    def num_in_loss(self) -> int:
        """Tokens that count in the loss."""
        return int(self.in_loss[:, 1:].sum())

    @property
    def digest(self) -> str:
        """Of everything in it."""
        digest = hashlib.sha256()
        for tensor in (self.tokens, self.in_loss, self.segments):
            digest.update(tensor.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()[:16]


def collated(rows: list[dict[str, list[int]]]) -> Batch:
    """Rows of a Parquet file as one batch."""
    width = max(len(row["tokens"]) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    in_loss = torch.zeros(len(rows), width, dtype=torch.bool)
    segments = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        length = len(row["tokens"])
        tokens[index, :length] = torch.tensor(row["tokens"])
        in_loss[index, :length] = torch.tensor(row["in_loss"])
        segments[index, :length] = torch.tensor(row["segments"])
        segments[index, length:] = row["segments"][-1] + 1
    return Batch(tokens, in_loss, segments)


def read_batches(path: Path, batch_sequences: int, first_step: int) -> Iterator[Batch]:
    """Batches of one part in the order of its file, from the part's step `first_step` on; the last may be smaller."""
    for step, group in enumerate(pq.ParquetFile(path).iter_batches(batch_size=batch_sequences)):
        if step >= first_step:
            yield collated(group.to_pylist())


def loss_sum(model: NemotronH, batch: Batch) -> torch.Tensor:
    """Cross-entropy in nats, summed over the tokens that count: position i predicts i + 1 of the same conversation.

    Prompt tokens are masked here: they are read, and not predicted.
    """
    hidden = model.backbone(batch.tokens[:, :-1], segments=batch.segments[:, :-1])  # (b, t, d)
    counts = batch.in_loss[:, 1:]  # (b, t): whether the token after each position counts
    logits = model.lm_head(hidden[counts])
    labels = batch.tokens[:, 1:][counts]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # also when matrix products are bfloat16
    return F.cross_entropy(logits, labels, reduction="sum")


def learning_rate_at(step: int, num_steps: int, config: Config) -> float:
    """Learning rate of optimizer step `step` of `num_steps`, counted from 0 over all parts; `config` is resolved.

    Linear warmup, then a straight line down to min_learning_rate at the last step (our choice; not disclosed).
    """
    assert config.learning_rate and config.warmup_steps is not None and config.min_learning_rate is not None
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    remaining = (num_steps - 1 - step) / max(1, num_steps - config.warmup_steps)
    return config.min_learning_rate + remaining * (config.learning_rate - config.min_learning_rate)


def part_steps(dataset: Dataset, config: Config) -> dict[str, tuple[Path, int, int]]:
    """Part -> its file, rows per step and number of steps, in the order of training: every row is read once."""
    assert config.batch_sequences and config.unpacked_batch_sequences
    assert config.learning_rate and config.min_learning_rate is not None
    if config.min_learning_rate > config.learning_rate:
        raise ValueError(
            f"min_learning_rate={config.min_learning_rate} is above learning_rate={config.learning_rate}, which it "
            f"is to fall from; give a lower one"
        )
    files = (dataset.everything_path, dataset.tools_path, dataset.long_context_path)
    batches = (config.batch_sequences, config.unpacked_batch_sequences, config.batch_sequences)
    return {
        part: (path, batch, math.ceil(pq.read_metadata(path).num_rows / batch))
        for part, path, batch in zip(PARTS, files, batches, strict=True)
    }


def validation_batches(dataset: Dataset, conversations: int) -> dict[str, Batch]:
    """Family -> its first `conversations` validation conversations."""
    by_family: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(dataset.validation_path).to_pylist():
        by_family.setdefault(row["family"], []).append(row)
    return {family: collated(by_family[family][:conversations]) for family in sorted(by_family)}


@torch.no_grad()
def validation_losses(
    model: NemotronH, validation: dict[str, Batch], micro_batch_sequences: int, device: str
) -> dict[str, float]:
    """Family -> mean loss in nats per token that counts."""
    return {
        family: sum(loss_sum(model, piece.to(device)).item() for piece in batch.split(micro_batch_sequences))
        / batch.num_in_loss
        for family, batch in validation.items()
    }


def compared_config(config: Config) -> dict[str, Any]:
    """The fields of the config that the result depends on: all but places, and how often states are written."""
    places = ("output_dir", "dataset_path", "resume", "checkpoint_every_steps", "device")
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in places}


def main(config: Config) -> Checkpoint:
    """Train through the three parts and return the Checkpoint."""
    config = resolved(config, "stage1_sft", "training")
    assert config.output_dir and config.device and config.dtype and config.micro_batch_sequences
    assert config.checkpoint_every_steps and config.validate_every_steps and config.validation_sequences
    dataset = Dataset.load(path=config.dataset_path)
    base = BaseCheckpoint.load(path=dataset.base_checkpoint_path)
    parts = part_steps(dataset, config)
    total_steps = sum(steps for _, _, steps in parts.values())
    validation = validation_batches(dataset, config.validation_sequences)

    # With bfloat16 the weights stay in float32 and autocast computes the matrix products in bfloat16.
    weight_dtype = torch.float64 if config.dtype == "float64" else torch.float32
    autocast = torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    shape = load_config(base.checkpoint_path)
    refuse_what_does_not_fit(shape, scale=config.scale, dtype=config.dtype, device=config.device)
    model: NemotronH = load_checkpoint(base.checkpoint_path, device=config.device, dtype=weight_dtype)
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
        part_start = 0
        with TrainingProgress("fine-tuning", total_steps, first_step) as progress:
            for part, (path, batch_sequences, num_steps) in parts.items():
                for batch in read_batches(path, batch_sequences, first_step=max(0, first_step - part_start)):
                    # Every token of an answer weighs the same, in a short answer or a long one: sums over micro
                    # batches, divided by the tokens of the whole step that count.
                    optimizer.zero_grad()
                    loss = 0.0
                    num_in_loss = batch.num_in_loss
                    for micro_batch in batch.to(config.device).split(config.micro_batch_sequences):
                        with autocast:  # left after each use: inside, it keeps copies of the weights as they were
                            micro_loss = loss_sum(model, micro_batch) / num_in_loss
                        micro_loss.backward()
                        loss += micro_loss.item()
                    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
                    refuse_non_finite(step, loss, grad_norm)
                    learning_rate = learning_rate_at(step, total_steps, config)
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate
                    optimizer.step()

                    record.curve.append(
                        {"step": step, "phase": part, "batch": batch.digest, "tokens": num_in_loss,
                         "loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
                    )  # fmt: skip
                    step += 1
                    progress.update(step, loss=loss, learning_rate=learning_rate, tokens=batch.tokens.numel())
                    if step == 1:
                        record.weights["after step 1"] = weight_fingerprint(model)
                    if step % config.validate_every_steps == 0 or step == total_steps:
                        with autocast:
                            losses = validation_losses(model, validation, config.micro_batch_sequences, config.device)
                        record.validation += [{"step": step, "category": name, "loss": losses[name]} for name in losses]
                    if step % config.checkpoint_every_steps == 0 or step == total_steps:
                        write_training_state(work, identity, model, optimizer, record)
                part_start += num_steps

        record.weights["final"] = weight_fingerprint(model)
        save_checkpoint(model, dataset.tokenizer_path, work / "model", STOP_TOKENS)
        pq.write_table(pa.Table.from_pylist(record.curve), work / "curve.parquet")
        pq.write_table(pa.Table.from_pylist(record.validation), work / "validation_curve.parquet")
        plot_curve(record, work / "loss.svg")
        names = ("num_examples", "num_conversations", "sequence_length", "long_context_length")
        inputs = {name: getattr(dataset, name) for name in names}
        inputs |= {f"base model/{name}": value for name, value in record.weights["initial"].items()}
        (work / "ladder.json").write_text(
            json.dumps(training_ladder(compared_config(config), inputs, model, record), indent=1)
        )
        Checkpoint(
            path=work,
            num_steps=step,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            training_loss=record.curve[-1]["loss"],
            checkpoint_path=work / "model",
            training_state_path=work / "training_state",
            curve_path=work / "curve.parquet",
            validation_curve_path=work / "validation_curve.parquet",
            plot_path=work / "loss.svg",
            dataset_path=dataset.path,
            metrics={
                f"validation_loss/{row['category']}": row["loss"]
                for row in record.validation
                if row["step"] == total_steps
            },
        ).save(config)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"checkpoint": main(config)})
