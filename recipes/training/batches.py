"""Rows of token ids to batches, in the order of their files.

In: the phases of a Dataset, each a list of Parquet files of rows. Out: a `Batch` for every optimizer step.
Nothing is shuffled here: curation wrote the rows in training order, so the number of steps done is the position.

b batch   t position
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemotron.recipes.curation.rows import Phase, read_rows
from nemotron.recipes.training.distributed import check_rows
from nemotron.recipes.training.memory import Pass


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, padded to the longest of them."""

    tokens: torch.Tensor
    """(b, t + 1) int64 token ids, 0 where a row is padded."""
    in_loss: torch.Tensor
    """(b, t + 1) whether a token counts in the loss when it is predicted."""
    segments: torch.Tensor
    """(b, t + 1) number of a token's document within its row; padding has the number after the last document's."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(self.tokens[rows], self.in_loss[rows], self.segments[rows])

    def split(self, rows: int) -> Iterator["Batch"]:
        """The batch in pieces of at most `rows` rows: what one forward pass takes."""
        pieces = (tensor.split(rows) for tensor in (self.tokens, self.in_loss, self.segments))
        return (Batch(*piece) for piece in zip(*pieces, strict=True))

    def to(self, device: str) -> "Batch":
        """The batch on another device; a GPU copies it from pinned memory while it still computes."""
        on_gpu = torch.device(device).type == "cuda"
        tensors = (self.tokens, self.in_loss, self.segments)
        return Batch(*((each.pin_memory() if on_gpu else each).to(device, non_blocking=on_gpu) for each in tensors))

    def cut(self, length: int) -> "Batch":
        """Each row cut into rows of `length` predicted tokens; the same tokens are predicted, with less context."""
        tensors = (self.tokens, self.in_loss, self.segments)
        return Batch(*(tensor.unfold(1, length + 1, length).flatten(0, 1) for tensor in tensors))

    @property
    def num_in_loss(self) -> int:
        """Tokens that are predicted and count in the loss."""
        return int(self.in_loss[:, 1:].sum())

    @property
    def digest(self) -> str:
        """Identifies the content: the tokens; mask and segments too unless all tokens count and a row is one text."""
        digest = hashlib.sha256()
        identifying = (
            (self.tokens,)
            if self.in_loss.all() and not self.segments.any()
            else (self.tokens, self.in_loss, self.segments)
        )
        for tensor in identifying:
            digest.update(tensor.to(torch.int64).cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TrainingPhase:
    """One stretch of training: a phase of the Dataset and the batches that it is read in."""

    data: Phase
    batch_sequences: int
    """Rows per optimizer step; the last step of a phase takes what is left."""
    micro_batch_sequences: int
    """Rows per forward pass, counted after the cut if rows are cut."""
    cut_to: int | None = None
    """Predicted tokens of a row, if rows are cut."""

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def num_steps(self) -> int:
        """Optimizer steps in which every row is read once."""
        return math.ceil(self.data.num_sequences / self.batch_sequences)

    @property
    def rows(self) -> int:
        """Rows of its largest batch."""
        rows = min(self.batch_sequences, self.data.num_sequences)
        return rows * self.data.sequence_length // self.cut_to if self.cut_to else rows

    @property
    def length(self) -> int:
        """Predicted tokens of the longest row in a forward pass."""
        return self.cut_to or self.data.sequence_length

    def forward_pass(self, *, documents: bool) -> Pass:
        """Its forward and backward passes, for their memory.

        Args:
            documents: whether the model keeps the documents of a row apart.
        """
        return Pass(self.batch_sequences, self.micro_batch_sequences, self.length, documents=documents)


def batches(
    directory: Path, phases: Sequence[TrainingPhase], first_step: int = 0
) -> Iterator[tuple[TrainingPhase, Batch]]:
    """The batches of all phases, one after the other, from optimizer step `first_step` on.

    Args:
        directory: of the Dataset.
        first_step: steps already done, counted over all phases; above 0 for a resumed run.
    Raises:
        ValueError: if there are more processes than rows in the largest batch.
    """
    check_rows({phase.name: phase.rows for phase in phases})
    # Whole batches are skipped unread: a resumed run is where it was without reading what it trained on.
    for phase in phases:
        for table in read_rows(phase.data.paths(directory), phase.batch_sequences, first_batch=max(0, first_step)):
            batch = collate(table)
            yield phase, batch.cut(phase.cut_to) if phase.cut_to else batch
        first_step -= phase.num_steps


def collate(table: pa.Table) -> Batch:
    """Rows of a Parquet file as one batch, shorter rows padded on the right.

    Args:
        table: the column tokens, and maybe in_loss (else every token counts) and segments (else a row is one document).
    Raises:
        ValueError: for a row without tokens, or with a mask or segments of another length.
    """
    # Rows lie flat in memory, one after the other; the mask puts them into a rectangle without a loop over rows.
    lengths = pc.list_value_length(table["tokens"]).to_numpy()
    for name in [name for name in ("tokens", "in_loss", "segments") if name in table.column_names]:
        if table[name].null_count or pc.list_value_length(table[name]).to_numpy().tolist() != lengths.tolist():
            raise ValueError(f"a row has no {name}, or another number of them than of tokens; curate the data again")
    present = np.arange(lengths.max()) < lengths[:, None]  # (b, t + 1)

    def padded(column: str, otherwise: np.ndarray) -> np.ndarray:
        """(b, t + 1) the column's values where a row has tokens, zeros after them."""
        if column not in table.column_names:
            return otherwise
        values = np.zeros_like(otherwise)
        values[present] = pc.list_flatten(table[column]).to_numpy()
        return values

    tokens = padded("tokens", np.zeros(present.shape, np.int64))
    in_loss = padded("in_loss", present)
    segments = padded("segments", np.zeros(present.shape, np.int64))
    segments = np.where(present, segments, segments.max(axis=1, keepdims=True) + 1)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(in_loss), torch.from_numpy(segments))
