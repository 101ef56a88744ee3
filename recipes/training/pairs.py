"""Pairs: a better and a worse try of the same task, as rows of tokens, and their order in training.

In: the tries of tasks, as tries.py plays and judges them. Out: rows in twos, the chosen try and then the rejected one,
in a table that `collate` (batches.py) turns into a batch; `Pairs` is that batch with the reference's log-probabilities.

The row of a try holds its turns one after another. Each turn is a segment: it sees its own prompt and no other turn. In
the loss are the tokens that the policy wrote, the end of the turn included; neither the prompt nor the tools' answers.

Letters:   p pair   b row: 2 p is the chosen try of pair p, 2 p + 1 the rejected one   t position
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import torch
from torch import Tensor

from nemotron.recipes.training.batches import Batch, collate
from nemotron.recipes.training.tries import Try

ROW_COLUMNS = {
    "id": pa.string(), "number": pa.int32(), "level": pa.int32(), "tokens": pa.list_(pa.int32()),
    "in_loss": pa.list_(pa.bool_()), "segments": pa.list_(pa.int32()),
}  # fmt: skip
"""Id of the task, number of the try, how far it got (tries.LEVELS), and what `collate` reads."""


def by_task(tries: Sequence[Try]) -> dict[str, list[Try]]:
    """The tries of each task, by its id, in their order."""
    return {id: list(members) for id, members in groupby(tries, key=lambda one: one.prompt.exercise.id)}


def pairs_of(tries: Sequence[Try], *, graded: bool, at_most: int) -> list[tuple[Try, Try]]:
    """Chosen and rejected tries of one task: the first right one with the first wrong one, the second with the second.

    Args:
        tries: of one task; those that could not be judged are left out.
        graded: also pair tries of which none is right, if one got further than the other: the furthest with the one
            that got least far. Else, every chosen try is right and every rejected one wrong.
        at_most: pairs of the task.
    Raises:
        ValueError: if chosen and rejected are the same, which a verifier must judge alike.
    """
    judged = [one for one in tries if not one.fault]
    right, wrong = [one for one in judged if one.right], [one for one in judged if not one.right]
    wrong.sort(key=lambda one: one.level)  # stable, so of equal ones the first
    pairs = list(zip(right, wrong, strict=False))
    if graded and not right and wrong and wrong[0].level < wrong[-1].level:
        pairs = [(max(wrong, key=lambda one: one.level), wrong[0])]
    for chosen, rejected in pairs:
        if chosen.tokens == rejected.tokens:
            raise ValueError(
                f"tries {chosen.number} and {rejected.number} of {chosen.prompt.exercise.id} say the same, and one is "
                "judged to be better; a verifier must judge the same conversation alike, so correct it"
            )
    return pairs[:at_most]


def try_row(one: Try) -> dict[str, object]:
    """The turns of a try as one row, each a segment."""
    tokens: list[int] = []
    in_loss: list[bool] = []
    segments: list[int] = []
    for number, turn in enumerate(one.turns):
        written = list(turn.reply.tokens)
        tokens += [*turn.prompt, *written]
        in_loss += [False] * len(turn.prompt) + [True] * len(written)
        segments += [number] * (len(turn.prompt) + len(written))
    return {
        "id": one.prompt.exercise.id, "number": one.number, "level": one.level, "tokens": tokens, "in_loss": in_loss,
        "segments": segments,
    }  # fmt: skip


def pair_rows(pairs: Sequence[tuple[Try, Try]]) -> list[dict[str, object]]:
    """The rows of the pairs, chosen before rejected."""
    return [try_row(one) for pair in pairs for one in pair]


@dataclass(frozen=True)
class Pairs:
    """Pairs to learn from."""

    batch: Batch
    """(2 p, t + 1), chosen and rejected in turns."""
    reference: Tensor
    """(2 p,) log-probability of each try under the reference; 0 until it is computed."""

    @classmethod
    def from_table(cls, table: pa.Table) -> "Pairs":
        """The pairs in the rows of a table; the reference is still 0."""
        columns = {name: kind for name, kind in ROW_COLUMNS.items() if name in ("tokens", "in_loss", "segments")}
        if not len(table):
            empty = torch.zeros(0, 2, dtype=torch.int64)
            return cls(Batch(empty, empty.bool(), empty), torch.zeros(0, dtype=torch.float64))
        chosen = table.select(list(columns)).cast(pa.schema(list(columns.items())))
        return cls(collate(chosen), torch.zeros(len(table), dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.batch.tokens) // 2

    def to(self, device: str) -> "Pairs":
        """The same on another device."""
        return Pairs(self.batch.to(device), self.reference.to(device))

    def take(self, chosen: Tensor) -> "Pairs":
        """The pairs with these numbers, without padding that all of them have."""
        rows = torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()
        lengths = self.lengths[rows]
        longest = int(lengths.max()) if len(rows) else 2
        tensors = (self.batch.tokens, self.batch.in_loss, self.batch.segments)
        return Pairs(Batch(*(tensor[rows, :longest] for tensor in tensors)), self.reference[rows])

    @property
    def lengths(self) -> Tensor:
        """(2 p,) tokens of each row, up to the last one in the loss: every turn ends with what the policy wrote."""
        t = self.batch.in_loss.shape[1]
        last = self.batch.in_loss.long().flip(1).argmax(dim=1)
        return t - last

    @property
    def num_written(self) -> Tensor:
        """(2 p,) tokens of each try that the policy wrote."""
        return self.batch.in_loss.sum(dim=1)

    def optimizer_steps(self, number: int) -> Iterator["Pairs"]:
        """The pairs in `number` pieces of consecutive pairs; if there are fewer pairs, the last pieces are empty."""
        return (self.take(piece) for piece in torch.arange(len(self)).tensor_split(number))

    def by_length(self, pairs: int) -> Iterator[Tensor]:
        """Numbers of the pairs of each forward pass: at most `pairs`, of similar length, so that little is padding."""
        longer = self.lengths.view(-1, 2).amax(dim=1) if len(self) else torch.zeros(0)
        return (piece for piece in longer.argsort(stable=True).split(pairs) if len(piece))
