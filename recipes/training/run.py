"""The paperwork of a training run: what it records, resumes from and hands over. No arithmetic is done here.

In: a loop's config, model and optimizer, and the Dataset that it reads. Out: a Checkpoint: the Hugging Face directory,
the state to resume from, the curves and their plot, and the ladder: the numbers that a rerun must reproduce.

    with training_run(config, model, optimizer, dataset, total_steps) as run:
        for phase, batch in batches(dataset.path, phases, first_step=run.step):
            ...                                                     # loss, backward, clip, schedule, optimizer.step()
            run.note(phase.name, batch, learning_rate=..., loss=..., grad_norm=...)
            run.keep_state()
        run.save(dataset.tokenizer_path, inputs)
    return Checkpoint.load(config.output_dir)

The loop calls the run; the run never calls the loop. Which numbers are noted is up to the loop: curve, ladder and plot
take any. A loop that makes its own data (rollouts) or holds a second model (reference, teacher, reward) uses `Run`
unchanged, and seeds its draws with `run.step`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from nemotron import SCALES, Artifact, Scale
from nemotron.artifact import working_directory
from nemotron.config import flag_of
from nemotron.ladder import Ladder, Rung
from nemotron.lineage import log_curve
from nemotron.published import is_published
from nemotron.recipes.nemotron_h.checkpoint import save_checkpoint
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.training.batches import Batch
from nemotron.recipes.training.curve import plot_curve
from nemotron.recipes.training.distributed import (
    check_same,
    check_shared,
    from_first,
    is_first,
    model_on_first,
    wait_for_all,
)
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.memory import check_devices
from nemotron.recipes.training.progress import TrainingProgress
from nemotron.recipes.training.published import PublishedModel
from nemotron.recipes.training.state import (
    Record,
    check_before_work,
    check_no_unfinished_run,
    identity_of,
    is_finished,
    keep_last_states,
    read_training_state,
    remove_leftovers,
    write_training_state,
)
from nemotron.strict import short

StageConfig = TypeVar("StageConfig", bound=Any)


class Checkpoint(Artifact):
    """A trained model with its curves. One class for all stages; a stage subclasses it to add a field."""

    num_steps: int = Field(gt=0)
    """Steps of the loop over all phases; a stage may make several updates in one."""
    num_parameters: int = Field(gt=0)
    training_loss: float
    """Loss of the last step, nats per token that counts."""
    checkpoint_path: Path
    """Hugging Face directory: AutoModelForCausalLM.from_pretrained(checkpoint_path)."""
    training_state_path: Path | None
    """Weights, optimizer moments and record after the last step; None for a merge, which nothing has trained."""
    curve_path: Path
    """Parquet, a row per step: step (from 0), phase, batch (digest of its content), tokens (that count in the loss),
    and what the loop noted: learning_rate, loss (nats per token), grad_norm (before clipping)."""
    validation_curve_path: Path
    """Parquet: step (how many were done), category, loss (nats per token)."""
    plot_path: Path
    dataset_path: Path
    """What it was trained on: a Dataset or, in a stage with a reward model, the RewardModel. Of a merge: the Checkpoint
    that was merged with the one it started from."""
    tables_path: Path | None = None
    """Directory with what else the loop wrote down, <table>.parquet with a column `step`."""

    @classmethod
    def made_by(cls) -> str:
        """Nothing: every training step writes one."""
        return ""

    def check_scale(self, scale: Scale) -> None:
        """Raise ValueError if it was trained at another scale than `scale`, whose sizes are about to be used."""
        if self.producer_scale not in (None, scale):
            shown = self.producer_scale if self.producer_scale in SCALES else short(self.producer_scale)
            raise ValueError(f"scale={scale}, but {self.path} was trained at {shown}; use --scale {shown}")


Base = Checkpoint | PublishedModel
"""What a stage starts from: the Checkpoint of the stage before, or a model that was published."""


def base_checkpoint(
    path: Path | None, tokenizer_path: Path | None = None, *, made_by: str = "", scale: Scale | None = None
) -> Base:
    """The Checkpoint or published model that a stage starts from.

    Args:
        path: its directory; None reads a Checkpoint from the pipe.
        tokenizer_path: directory of the tokenizer with which data was curated for it; None if there is none yet.
        made_by: the command that makes such a Checkpoint, for the error if there is no directory.
        scale: of the step that starts from it; a warning says if the Checkpoint was trained at another one.
    Raises:
        ValueError: if there is no such directory, or the Checkpoint has another tokenizer.
    """
    if path is not None and not path.is_dir():
        raise ValueError(f"{path} holds no model; make one with {made_by}, or name one with --base-checkpoint-path")
    is_ours = path is None or not is_published(path)
    base: Base = Checkpoint.load(path=path, scale=scale) if is_ours else PublishedModel.load(path=path)
    if tokenizer_path is not None:
        ours, theirs = (directory / "tokenizer.json" for directory in (tokenizer_path, base.checkpoint_path))
        if ours.read_bytes() != theirs.read_bytes():
            raise ValueError(
                f"{ours} differs from {theirs}, so the data has the token ids of another model; curate it again"
            )
    return base


class Run:
    """A training run in progress: `step` of `total_steps` optimizer steps are done."""

    def __init__(
        self,
        config: Any,
        model: NemotronH,
        optimizer: torch.optim.Optimizer,
        dataset: Artifact,
        total_steps: int,
        work: Path,
        checkpoint_class: type[Artifact] = Checkpoint,
    ) -> None:
        self.config, self.model, self.optimizer, self.dataset = config, model, optimizer, dataset
        self.total_steps, self.work, self.checkpoint_class = total_steps, work, checkpoint_class
        self.identity = identity_of(config, dataset)
        check_same("the run", {"dataset": self.identity["dataset"], "code": self.identity["code"]})
        if config.resume:
            self.record = read_training_state(work, self.identity, model, optimizer)
            names = ("tokens", *self.record.numbers)
            log_curve(config, {row["step"] + 1: {name: row[name] for name in names} for row in self.record.curve})
        else:
            check_no_unfinished_run(work, flag_of(config, "resume"))
            self.record = Record(weights={"initial": weight_fingerprint(model)})
        remove_leftovers(work)
        self.progress = TrainingProgress("training", total_steps, self.step)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.record.curve)

    def is_due(self, every_steps: int) -> bool:
        """True every `every_steps` steps and after the last step."""
        return self.step % every_steps == 0 or self.step == self.total_steps

    def check_finite(self, **numbers: float) -> None:
        """Raise ValueError if one of the numbers is NaN or infinite; call it before the weights change."""
        if not all(map(math.isfinite, numbers.values())):
            found = " and ".join(f"{name}={value}" for name, value in numbers.items())
            raise ValueError(f"step {self.step}: {found}; delete {self.work} and start over with a lower learning_rate")

    def note(self, phase: str, batch: Batch, **numbers: float) -> None:
        """Record the step that was just done.

        Args:
            phase: name of the phase that it belongs to.
            batch: what it was trained on.
            numbers: the loop's own, the same names at every step, `loss` among them.
        Raises:
            ValueError: if a number is not finite, or the names are others than at the first step.
        """
        row = {"step": self.step, "phase": phase, "batch": batch.digest, "tokens": batch.num_in_loss, **numbers}
        expected = self.record.numbers if self.record.curve else list(numbers)
        if list(numbers) != expected or "loss" not in numbers or len(row) < len(numbers) + 4:
            raise ValueError(
                f"step {self.step} notes {', '.join(numbers)}; note the same names at every step, here "
                f"{', '.join(expected)}, with loss, and without step, phase, batch and tokens"
            )
        self.check_finite(**numbers)
        self.record.curve.append(row)
        speeds = self.progress.update(self.step, tokens=batch.num_in_loss, **numbers)
        # Speeds are shown and tracked; they are in no artifact, because no other run has the same ones.
        log_curve(self.config, {self.step: {"tokens": batch.num_in_loss, **speeds, **numbers}})
        if self.step == 1:
            self.record.weights["after step 1"] = weight_fingerprint(self.model)

    def note_validation(self, losses: Mapping[str, float]) -> None:
        """Record a measurement: category -> loss in nats per token."""
        self.check_finite(**losses)
        self.record.validation += [{"step": self.step, "category": name, "loss": losses[name]} for name in losses]
        log_curve(self.config, {self.step: {f"validation_loss/{name}": losses[name] for name in losses}})

    def note_rows(self, table: str, rows: Sequence[Mapping[str, str | int | float | bool]]) -> None:
        """Record rows of a table, which becomes <table>.parquet; call it before `note`, which ends the step.

        Args:
            table: a rung of the ladder, such as "rewards".
            rows: all rows of a table have the same columns, and `step` is none of them.
        Raises:
            ValueError: if a number is not finite, the columns are others than those of the first row, or the ladder has
                no such rung.
        """
        if table not in get_args(Rung):
            raise ValueError(f"step {self.step} notes the table {table}; name it after a rung of nemotron.ladder")
        noted = self.record.tables.setdefault(table, [])
        for row in rows:
            self.check_finite(**{name: value for name, value in row.items() if isinstance(value, float)})
            columns = list(noted[0]) if noted else ["step", *row]
            if ["step", *row] != columns or "step" in row:
                raise ValueError(
                    f"step {self.step} notes {', '.join(row)} in the table {table}; note the same columns in every "
                    f"row, here {', '.join(columns[1:])}, without step"
                )
            noted.append({"step": self.step, **row})

    def lap(self, part: str, tokens: int = 0) -> None:
        """Say that a part of a step ends here; at the end of the run, the share of time of each part is printed.

        Args:
            tokens: written or learned in it, for its speed, which is shown at every step.
        """
        self.progress.lap(part, tokens)

    def keep_state(self) -> None:
        """Write the state to resume from, if one is due.

        Raises:
            ValueError: if another run replaced the dataset meanwhile, so that batches of both may have been read.
        """
        if self.is_due(self.config.checkpoint_every_steps):
            self.dataset.check_unchanged()
            write_training_state(self.work, self.identity, self.model, self.optimizer, self.record)

    def save(
        self, tokenizer_path: Path, inputs: Mapping[str, Any], stop_ids: Sequence[int] = (), **fields: Any
    ) -> None:
        """Write the model, the curves, their plot and the ladder, and save the Checkpoint.

        Args:
            tokenizer_path: directory of the tokenizer that goes with the model.
            inputs: what the run was given, for the ladder.
            stop_ids: tokens that end a generation. Empty: the end-of-document token.
            fields: those that a subclass of Checkpoint adds.
        Raises:
            ValueError: if the run is not at its last step, or another run replaced the dataset meanwhile.
        """
        if self.step != self.total_steps:
            raise ValueError(f"{self.work} is at step {self.step} of {self.total_steps}; save it after the last step")
        assert issubclass(self.checkpoint_class, Checkpoint)  # a step that trains something else saves it itself
        self.dataset.check_unchanged()
        # The last state stays in the Checkpoint, for whoever wants to train on.
        keep_last_states(self.work, 1)
        record, work = self.record, self.work
        record.weights["final"] = weight_fingerprint(self.model)
        model = model_on_first(self.model)
        if model is None:
            return
        save_checkpoint(model, tokenizer_path, work / "model", stop_ids)
        pq.write_table(pa.Table.from_pylist(record.curve), work / "curve.parquet")
        pq.write_table(pa.Table.from_pylist(record.validation), work / "validation_curve.parquet")
        for name, rows in record.tables.items():
            (work / "tables").mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), work / "tables" / f"{name}.parquet")
        plot_curve(record, work / "loss.svg")
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.checkpoint_class(
            path=work,
            num_steps=self.step,
            num_parameters=num_parameters,
            training_loss=record.curve[-1]["loss"],
            checkpoint_path=work / "model",
            training_state_path=work / "training_state",
            curve_path=work / "curve.parquet",
            validation_curve_path=work / "validation_curve.parquet",
            plot_path=work / "loss.svg",
            tables_path=work / "tables" if record.tables else None,
            dataset_path=self.dataset.path,
            metrics={
                f"validation_loss/{row['category']}": row["loss"]
                for row in record.validation
                if row["step"] == self.total_steps
            },
            **fields,
        ).save(self.config, training_ladder(self.config, self.model.config, inputs, num_parameters, record))


@contextmanager
def training_run(
    config: Any,
    model: NemotronH,
    optimizer: torch.optim.Optimizer,
    dataset: Artifact,
    total_steps: int,
    checkpoint_class: type[Artifact] = Checkpoint,
) -> Iterator[Run]:
    """A run in the working directory of output_dir: from its beginning or, with `config.resume`, from its last state.

    Inside the block, torch computes with the number of threads that suits the scale (nemotron_h/threads.py), and layers
    are computed again in the backward pass if the config says so. Of several processes, the first one writes there; the
    others get a temporary directory, and leave the block after the first.

    Args:
        config: needs scale, output_dir, resume, checkpoint_every_steps and activation_checkpointing.
        checkpoint_class: what the step saves there; `run.save` saves a Checkpoint or a subclass of it.
    Raises:
        ValueError: if an unfinished run is there and `resume` is not set, or it had another dataset or config; or if
            one of several processes does not see the directory in which the first one writes.
    """
    directory = (
        working_directory(config.output_dir, checkpoint_class, keep_on_failure=True)
        if is_first()
        else TemporaryDirectory()
    )
    model.backbone.activation_checkpointing = config.activation_checkpointing
    with directory as work, threads_of(config.scale):
        check_shared(Path(work), config.output_dir)
        run = Run(config, model, optimizer, dataset, total_steps, Path(work), checkpoint_class)
        with run.progress:
            yield run
    wait_for_all()


def is_done(config: Any, dataset: Artifact) -> bool:
    """Whether `--resume` finds the run finished, so that there is nothing to train."""
    flag = flag_of(config, "resume")
    return config.resume and from_first(lambda: is_finished(config.output_dir, identity_of(config, dataset), flag))


def check_stage(config: StageConfig) -> StageConfig:
    """Refuse before any work what training or evaluation would refuse after hours of curation; return the config.

    A training that was interrupted goes on: its `resume` is set in the config that is returned.

    Args:
        config: of a stage, with the Configs of its steps, that of training as `train`; those with a device are checked,
            and those that can be resumed.
    Raises:
        ValueError: if a value does not fit, a device is missing (a plan needs none), or training's output_dir belongs
            to an unfinished run that training would not continue.
    """
    config = replace(config)  # checks it again, with the values assigned to its nested Configs since it was made
    if not getattr(config, "plan", False):
        check_devices(*vars(config).values())
    for name, step in list(vars(config).items()):
        if hasattr(step, "resume") and check_before_work(step):
            config = replace(config, **{name: replace(step, resume=True)})
    return config


def training_ladder(
    config: Any, shape: ModelConfig, inputs: Mapping[str, Any], num_parameters: int, record: Record
) -> Ladder:
    """What a run must reproduce, in the order in which it happens: the first entry that differs names the cause."""
    ladder = Ladder()
    ladder.add_config(config)
    # Every field: a changed epsilon would otherwise show only as a small difference of the first gradient's norm.
    ladder.add("config", {f"model/{name}": value for name, value in asdict(shape).items()})
    ladder.add("inputs", inputs)
    for row in record.curve:
        ladder.add("batch order", batch=row["batch"], at_step=row["step"])
    ladder.add("parameters", num_parameters=num_parameters)
    ladder.add("initial weights", record.weights["initial"])
    add_tables(ladder, record, [0])  # what the first step was made of comes before what it did
    for name in record.numbers:  # of the first step; the usual ones have their own rungs
        first = record.curve[0][name]
        if name in ("learning_rate", "loss", "grad_norm"):
            ladder.add(name, {name: first})  # type: ignore[arg-type]
        else:
            ladder.add("first step", {name: first})
    ladder.add("weights after step 1", record.weights["after step 1"], at_step=1)
    for row in record.curve:
        ladder.add("curve", {name: row[name] for name in record.numbers}, at_step=row["step"])
    add_tables(ladder, record, range(1, len(record.curve)))
    ladder.add("final weights", record.weights["final"], at_step=len(record.curve))
    for row in record.validation:
        ladder.add("validation", {f"validation_loss/{row['category']}": row["loss"]}, at_step=row["step"])
    return ladder


def add_tables(ladder: Ladder, record: Record, steps: Iterable[int]) -> None:
    """Add the rows of every table at these steps."""
    for step in steps:
        for name, rows in record.tables.items():
            values = [
                [value for column, value in row.items() if column != "step"] for row in rows if row["step"] == step
            ]
            if values:
                ladder.add(name, {name: values}, at_step=step)  # type: ignore[arg-type]
