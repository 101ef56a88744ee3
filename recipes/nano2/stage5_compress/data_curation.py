"""Collect what compression reads: a calibration set, and the blend of text on which the pruned model is distilled.

In: the Checkpoint of the stage before, the teacher; through it, the Datasets of fine-tuning and pretraining. Out: a
Dataset: calibration rows, a file of rows for each length of the schedule, validation rows, the exam's exercises.
Source: arXiv 2508.14444, section 4. Published: 1,024 calibration samples; 70 % reasoning data of fine-tuning and 30 %
of pretraining (table 11); rows of 8,192, then 49,152, then 262,144 tokens.
Run: python -m nemotron.recipes.nano2.stage5_compress.data_curation --scale tiny --base-checkpoint-path <directory>

Nothing is generated or filtered: every row is made of rows that an earlier stage curated. Conversations lie end to end
as one stream, which is cut into rows of equal length; attention and state do not cross from one to the next.
Left out: what the published blend has inside of its two parts, which is unknown to us.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Artifact, StageConfig, print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
    Fraction,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    published,
)
from nemotron.ladder import Ladder
from nemotron.lineage import origin_by_step
from nemotron.pipe import step_process
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer, save_chat_tokenizer
from nemotron.recipes.curation.blending import BlendShare, blend_order
from nemotron.recipes.curation.digests import sha256_of, sha256_of_ids
from nemotron.recipes.curation.packing import TokenStream
from nemotron.recipes.curation.retokenize import retokenized
from nemotron.recipes.curation.rows import (
    PIECE_ROWS,
    TOKENS,
    Phase,
    Row,
    planned_phase,
    read_chunks,
    read_rows,
    rows_per_shard,
    write_files,
    write_rows,
)
from nemotron.recipes.curation.rules import progress
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset as PretrainingDataset
from nemotron.recipes.nano2.stage1_sft.data_curation import EVERYTHING, LONG_CONTEXT
from nemotron.recipes.nano2.stage1_sft.data_curation import Dataset as FineTuningDataset
from nemotron.recipes.nemotron_h.checkpoint import load_tokenizer
from nemotron.recipes.sources.exercises.exercise import exercise_to_row
from nemotron.recipes.sources.exercises.families import exam_exercises
from nemotron.recipes.training.distill import check_same_tokenizer
from nemotron.recipes.training.run import Base, Checkpoint, base_checkpoint

SFT, PRETRAINING = "sft", "pretraining"
"""The two sources of the blend."""
PHASES = ("phase2", "phase3")
"""The phases of pretraining whose rows are read: those of better text, which have one blend."""


@dataclass
class Config(ScaledConfig):
    """Collect the data of compression."""

    seed: int = 1234
    """Picks the exercises of the exam; the rows are in the order in which the earlier stages wrote them."""
    output_dir: Path = output_below("nano2", "stage5_compress", "data_curation")
    """Where the Dataset goes."""
    base_checkpoint_path: Path | None = input_path()
    """Directory of the teacher, a Checkpoint or a published model; read from the pipe if left out."""
    fine_tuning_path: Path | None = input_path()
    """Directory of stage 1's Dataset, curated for the same tokenizer; that of the teacher if left out."""
    pretraining_path: Path | None = input_path()
    """Directory of stage 0's Dataset, encoded again if its tokenizer is another; that of the teacher if left out."""
    student_path: Path | None = input_path()
    """Directory of a Checkpoint to distill into; if left out, the search makes one."""
    calibration_samples: PositiveInt = by_scale(tiny=16, small=64, medium=256, full=published(1024, "section 4"))
    """Rows of the first length on which importance is measured; training does not start with them."""
    reasoning_share: Fraction = at_every_scale(published(0.7, "section 4, table 11"))
    """Share of the rows that are conversations of fine-tuning; the others are text of pretraining."""
    lengths: tuple[PositiveInt, ...] = by_scale(
        tiny=(128, 256, 512),
        small=(256, 512, 1024),
        medium=(2048, 8192, 16_384),
        full=published((8192, 49_152, 262_144), "section 4"),
    )
    """Predicted tokens of a row in each part of distillation."""
    sequences: tuple[PositiveInt, ...] = by_scale(
        tiny=(64, 8, 4),
        small=(1280, 96, 32),
        medium=(48_000, 1600, 200),
        full=published((13_427_734, 508_626, 3_814), "section 4, about 60B and 50B, 25B, and 1B tokens"),
    )
    """Rows of each part."""
    validation_rows: PositiveInt = by_scale(tiny=2, small=16, medium=64, full=our_choice(256))
    """Held-out rows of each family of exercises and of each category of text, at most."""
    exercises_per_family: PositiveInt = by_scale(tiny=2, small=50, medium=200, full=our_choice(500))
    """Evaluation exercises of each family."""

    def check(self) -> None:
        if len(self.lengths) != len(self.sequences) or not self.lengths:
            raise ValueError(
                f"lengths={self.lengths} and sequences={self.sequences} must name the same parts, at least one; give "
                f"one number of sequences for each length"
            )
        if list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths={self.lengths} must be different, from the shortest up")
        shares = {SFT: self.reasoning_share, PRETRAINING: 1 - self.reasoning_share}
        for number in (self.calibration_samples, *self.sequences):
            order = blend_order(shares, min(number, 10_000))
            for name, share in shares.items():
                if share and name not in order:
                    raise ValueError(
                        f"reasoning_share={self.reasoning_share} gives no row of {name} among {number}; give more "
                        f"rows, or another share"
                    )


@dataclass
class Inputs(StageConfig):
    """Where the whole stage writes, and what it starts from."""

    output_dir: Path = output_below("nano2", "stage5_compress")
    """Where the artifacts go, one folder per step."""
    base_checkpoint_path: Path = input_path("nano2", "stage4_rlhf", "merging")
    """Directory of the teacher: the Checkpoint of the stage before, or a published model."""
    fine_tuning_path: Path | None = input_path()
    """Directory of stage 1's Dataset, curated for the teacher's tokenizer; needed for a published model."""
    pretraining_path: Path | None = input_path()
    """Directory of stage 0's Dataset, of any tokenizer; needed for a published model."""


def inputs_of(config: Inputs) -> dict[str, Any]:
    """What the whole stage hands to this step."""
    return {item.name: getattr(config, item.name) for item in fields(Inputs) if item.metadata.get("input")}


class Dataset(Artifact):
    """What compression reads."""

    num_examples: int = Field(gt=0)
    """Rows of all parts."""
    base_checkpoint_path: Path
    """The teacher."""
    fine_tuning_path: Path
    """The Dataset that the conversations are from."""
    pretraining_path: Path
    """The Dataset that the text is from."""
    tokenizer_path: Path
    """The teacher's tokenizer, with the chat template."""
    phases: list[Phase]
    """The parts of distillation, in order. The columns of their files: source (sft or pretraining), tokens, in_loss
    (whether a token is predicted from its own text: the first one of a conversation is not), segments."""
    calibration_path: Path
    """Rows of the same columns, on which importance is measured."""
    validation_path: Path
    """Held-out rows of the same columns; of a conversation, what the assistant writes counts."""
    exercises_path: Path
    """Evaluation exercises of every family."""
    blend: dict[str, dict[str, BlendShare]]
    """Part -> source, and category of text: its rows, and how often its tokens were read."""
    student_path: Path | None = None
    """The model to distill into; None: the one that the search makes."""
    reasoning_share: float
    """Of the blend that was asked for: the weight of conversations in a mean over both sources."""

    def counts(self) -> dict[str, int]:
        """What a step that reads this Dataset records in its ladder as inputs."""
        return {"num_examples": self.num_examples, **{phase.name: phase.num_sequences for phase in self.phases}}

    def shares(self) -> dict[str, float]:
        """Source -> its weight in a mean over both."""
        return {SFT: self.reasoning_share, PRETRAINING: 1 - self.reasoning_share}

    def base(self) -> Base:
        """The teacher.

        Raises:
            ValueError: if it is not the one that the data was collected for, or has another tokenizer.
        """
        return base_checkpoint(self.base_checkpoint_path, self.tokenizer_path)


def planned_phases(config: Config) -> list[Phase]:
    """The parts of distillation, from the shortest rows to the longest."""
    return [
        planned_phase(f"length_{length}", number, length)
        for length, number in zip(config.lengths, config.sequences, strict=True)
    ]


ROW_COLUMNS = {"source": pa.string(), "tokens": TOKENS, "in_loss": pa.list_(pa.bool_()), "segments": TOKENS}


class Rows:
    """Rows of any length out of the streams of an earlier stage; a stream that is read to its end starts over.

    Args:
        weights: name of a stream -> its share of the rows.
        tokens: name of a stream -> its tokens, end to end.
        documents: name of a stream -> for each token, the number of its text, which no attention crosses.
    """

    def __init__(
        self, source: str, weights: dict[str, float], tokens: dict[str, np.ndarray], documents: dict[str, np.ndarray]
    ) -> None:
        self.source, self.weights = source, weights
        self.tokens = {name: TokenStream(values) for name, values in tokens.items()}
        self.documents = {name: TokenStream(values) for name, values in documents.items()}

    def next_rows(self, number: int, length: int) -> Iterator[Row]:
        """The next `number` rows of `length` predicted tokens, at every point close to the shares of the streams."""
        for name in blend_order(self.weights, number):
            tokens, documents = (streams[name].next_row(length) for streams in (self.tokens, self.documents))
            starts = np.concatenate([[False], documents[1:] != documents[:-1]])
            yield {"source": self.source, "tokens": tokens, "in_loss": ~starts, "segments": np.cumsum(starts)}

    @property
    def epochs(self) -> float:
        """How often the tokens of all streams were read so far, on average."""
        num_tokens = sum(len(stream.tokens) for stream in self.tokens.values())
        return sum(stream.num_read for stream in self.tokens.values()) / num_tokens


def conversations_of(dataset: FineTuningDataset, part: str) -> Rows:
    """The conversations of one part of fine-tuning, in training order."""
    (phase,) = (phase for phase in dataset.phases if phase.name == part)
    tokens, segments, first = [], [], 0
    for table in read_rows(phase.paths(dataset.path), PIECE_ROWS, columns=["tokens", "segments"]):
        tokens += [chunk.flatten().to_numpy() for chunk in table["tokens"].chunks]
        for row in table["segments"]:
            segments.append(first + row.values.to_numpy())
            first = int(segments[-1][-1]) + 1
    return Rows(SFT, {part: 1.0}, {part: np.concatenate(tokens)}, {part: np.concatenate(segments).astype(np.int64)})


Encode = Callable[[np.ndarray], np.ndarray]
"""Token ids of pretraining -> those of the teacher for the same text."""


def encoder(dataset: PretrainingDataset, tokenizer_path: Path) -> Encode:
    """The ids unchanged if the teacher has the tokenizer of pretraining, else those of the teacher's tokenizer."""
    ours, theirs = tokenizer_path / "tokenizer.json", dataset.tokenizer_path / "tokenizer.json"
    if ours.read_bytes() == theirs.read_bytes():
        return np.asarray
    progress.print(f"the text is encoded again, with {ours}")
    return partial(
        retokenized, theirs=load_tokenizer(dataset.tokenizer_path), ours=load_chat_tokenizer(CHAT, tokenizer_path)
    )


def text_of(dataset: PretrainingDataset, encode: Encode = np.asarray) -> Rows:
    """The text of PHASES, each category a stream; the shares of the categories are those of its rows."""
    rows: dict[str, list[np.ndarray]] = {}
    for phase in dataset.phases:
        if phase.name in PHASES:
            for table in read_rows(phase.paths(dataset.path), PIECE_ROWS, columns=["category", "tokens"]):
                for category, row in zip(table["category"].to_pylist(), table["tokens"], strict=True):
                    rows.setdefault(category, []).append(row.values.to_numpy()[:-1])  # its last begins the next row
    total = sum(map(len, rows.values()))
    tokens = {category: encode(np.concatenate(rows[category])) for category in sorted(rows)}
    return Rows(
        PRETRAINING,
        {category: len(rows[category]) / total for category in tokens},
        tokens,
        {category: np.zeros(len(values), np.int64) for category, values in tokens.items()},
    )


def validation_rows(
    fine_tuning: FineTuningDataset, pretraining: PretrainingDataset, number: int, encode: Encode = np.asarray
) -> Iterator[Row]:
    """Held-out rows of both earlier stages: the first `number` of each family and of each category."""
    for source, dataset, column in ((SFT, fine_tuning, "family"), (PRETRAINING, pretraining, "category")):
        taken: dict[str, int] = {}
        for row in pq.read_table(dataset.validation_path).to_pylist():
            kind, tokens = row[column], row["tokens"]
            if taken.get(kind, 0) < number:
                taken[kind] = taken.get(kind, 0) + 1
                tokens = encode(tokens).tolist() if source == PRETRAINING else tokens
                segments = row.get("segments", [0] * len(tokens))
                yield {"source": source, "tokens": tokens, "segments": segments,
                       "in_loss": row.get("in_loss", [False] + [True] * (len(tokens) - 1))}  # fmt: skip


def digests_of(paths: Sequence[Path]) -> dict[str, str]:
    """What identifies files of rows in a ladder."""
    digests = {name: sha256_of_ids(read_chunks(paths, name)) for name in ("tokens", "segments")}
    in_loss = (counts for chunk in read_chunks(paths, "in_loss") for counts in chunk.flatten().to_pylist())
    digests["in_loss"] = sha256_of(str(int(counts)) for counts in in_loss)
    sources = (source for chunk in read_chunks(paths, "source") for source in chunk.to_pylist())
    return digests | {"source": sha256_of(sources)}


def origin(base: Base, dataset_class: type[FineTuningDataset] | type[PretrainingDataset]) -> Path:
    """The directory of the Dataset that the teacher was trained on.

    Raises:
        ValueError: if it was not, as a published model, or the directory is gone.
    """
    flag = "--fine-tuning-path" if dataset_class is FineTuningDataset else "--pretraining-path"
    try:
        return origin_by_step(base, dataset_class.__module__)
    except ValueError as error:
        raise ValueError(f"{error}, or name such a Dataset with {flag}") from None


def main(config: Config) -> Dataset:
    """Collect the data and return the Dataset."""
    made_by = f"python -m nemotron.recipes.nano2.stage4_rlhf --scale {config.scale}"
    base = base_checkpoint(config.base_checkpoint_path, made_by=made_by, scale=config.scale)
    load_chat_tokenizer(CHAT, base.checkpoint_path)  # refuses a base model, whose pruning has no exam
    fine_tuning = FineTuningDataset.load(
        path=config.fine_tuning_path or origin(base, FineTuningDataset), scale=config.scale
    )
    pretraining = PretrainingDataset.load(
        path=config.pretraining_path or origin(base, PretrainingDataset), scale=config.scale
    )
    base_checkpoint(base.path, fine_tuning.tokenizer_path)  # refuses a teacher that reads other token ids
    if config.student_path is not None:
        check_same_tokenizer(base.checkpoint_path, Checkpoint.load(path=config.student_path).checkpoint_path)
    with working_directory(config.output_dir, Dataset) as work:
        save_chat_tokenizer(CHAT, base.checkpoint_path, work / "tokenizer")
        parts = {part: conversations_of(fine_tuning, part) for part in (EVERYTHING, LONG_CONTEXT)}
        encode = encoder(pretraining, work / "tokenizer") if config.pretraining_path else np.asarray
        text = text_of(pretraining, encode)
        shares = {SFT: config.reasoning_share, PRETRAINING: 1 - config.reasoning_share}

        # The blend: at every point of a file, close to 70 and 30 percent. Every stream reads on where the last file
        # stopped. Rows longer than those of fine-tuning are made of its part with long context.
        phases = planned_phases(config)
        files = {"calibration": (config.calibration_samples, config.lengths[0])}
        files |= {phase.name: (phase.num_sequences, phase.sequence_length) for phase in phases}
        paths = {name: [work / f"{name}.parquet"] for name in ("calibration", "validation")}
        paths |= {phase.name: phase.paths(work) for phase in phases}
        blend: dict[str, dict[str, BlendShare]] = {}
        ladder = Ladder()
        ladder.add_config(config)
        for name, (number, length) in files.items():
            talk = parts[LONG_CONTEXT if length > fine_tuning.sequence_length else EVERYTHING]
            sources = {SFT: talk, PRETRAINING: text}
            order = blend_order(shares, number)
            before = {source: rows.epochs for source, rows in sources.items()}
            rows_of = {source: rows.next_rows(order.count(source), length) for source, rows in sources.items()}
            rows = (next(rows_of[source]) for source in order)
            write_files(paths[name], rows, rows_per_shard(length), **ROW_COLUMNS)
            blend[name] = {
                source: BlendShare(weight=shares[source], num_sequences=order.count(source),
                                   epochs=sources[source].epochs - before[source])
                for source in sources
            }  # fmt: skip
            ladder.add("blend", {name: {source: share.num_sequences for source, share in blend[name].items()}})
            shown = ", ".join(f"{source} {share.num_sequences:,} ({share.epochs:.2g} epochs)"
                              for source, share in blend[name].items())  # fmt: skip
            progress.print(f"{name}: {number:,} rows of {length:,} tokens: {shown}")
        held_out = validation_rows(fine_tuning, pretraining, config.validation_rows, encode)
        write_rows(work / "validation.parquet", held_out, **ROW_COLUMNS)
        for name in (*files, "validation"):
            ladder.add("token ids", {name: digests_of(paths[name])})
        exercises = exam_exercises(config.exercises_per_family, config.seed)
        columns = dict.fromkeys(exercise_to_row(exercises[0]), pa.string())
        write_rows(work / "exercises.parquet", map(exercise_to_row, exercises), **columns)
        ladder.add("exercises", sha256=sha256_of(one.id for one in exercises))
        Dataset(
            path=work,
            num_examples=sum(config.sequences),
            base_checkpoint_path=base.path,
            fine_tuning_path=fine_tuning.path,
            pretraining_path=pretraining.path,
            tokenizer_path=work / "tokenizer",
            phases=phases,
            calibration_path=work / "calibration.parquet",
            validation_path=work / "validation.parquet",
            exercises_path=work / "exercises.parquet",
            blend=blend,
            student_path=config.student_path,
            reasoning_share=config.reasoning_share,
        ).save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
