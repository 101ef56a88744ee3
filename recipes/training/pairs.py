"""Pairs: a better and a worse try of the same task, as rows of tokens, and their order in training.

In: the tries of tasks, as tries.py plays and judges them. Out: rows in twos, the chosen try and then the rejected one,
in a table that `collate` (batches.py) turns into a batch; `Pairs` is that batch with the reference's log-probabilities.

The row of a try holds its turns one after another. Each turn is a segment: it sees its own prompt and no other turn. In
the loss are the tokens that the policy wrote, the end of the turn included; neither the prompt nor the tools' answers.

Letters:   p pair   b row: 2 p is the chosen try of pair p, 2 p + 1 the rejected one   t position
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from nemotron.recipes.nemotron_h.losses import token_losses
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.sources.exercises.workplace import kind_of
from nemotron.recipes.training.batches import Batch, collate
from nemotron.recipes.training.distributed import gathered, rank_rows
from nemotron.recipes.training.dpo import PairTerms, reply_logprobs
from nemotron.recipes.training.run import Run
from nemotron.recipes.training.tries import Try
from nemotron.terminal import print_line

ROW_COLUMNS = {
    "id": pa.string(), "number": pa.int32(), "level": pa.int32(), "tokens": pa.list_(pa.int32()),
    "in_loss": pa.list_(pa.bool_()), "segments": pa.list_(pa.int32()),
}  # fmt: skip
"""Id of the task, number of the try, how far it got (tries.LEVELS), and what `collate` reads."""


ROUNDING = 1e-6
"""A margin up to this is none: at the start of a round, policy and reference differ by rounding alone."""


def by_task(tries: Sequence[Try]) -> dict[str, list[Try]]:
    """The tries of each task, by its id, in their order."""
    return {id: list(members) for id, members in groupby(tries, key=lambda one: one.prompt.exercise.id)}


def pairs_of(tries: Sequence[Try], *, graded: bool, at_most: int) -> list[tuple[Try, Try]]:
    """Chosen and rejected tries of one task: right ones in their order with wrong ones, those that got least far first.

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


def check_pairs(table: pa.Table, vocab_size: int) -> None:
    """Check that the rows of a table are pairs that a model with so many token ids can learn from.

    Raises:
        ValueError: if a row has no partner, or two rows are not a better and a worse try of one task.
    """
    rows = table.to_pylist()
    if len(rows) % 2:
        raise ValueError(f"the pairs have {len(rows)} rows, and a pair has two; curate the data again")
    for number, (chosen, rejected) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        fault = ""
        if chosen["id"] != rejected["id"]:
            fault = f"pairs a try of {chosen['id']} with one of {rejected['id']}"
        elif chosen["tokens"] == rejected["tokens"]:
            fault = "has a chosen and a rejected try that say the same"
        elif chosen["level"] <= rejected["level"]:
            fault = "has a chosen try that got no further than the rejected one"
        elif not all(0 <= token < vocab_size for row in (chosen, rejected) for token in row["tokens"]):
            fault = f"has a token id that is none of the {vocab_size} of the model"
        elif not (any(chosen["in_loss"]) and any(rejected["in_loss"])):
            fault = "has a try of which no token counts"
        if fault:
            raise ValueError(f"pair {number} (task {chosen['id']}) {fault}; curate the data again")


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
        """Numbers of the pairs of each forward pass: at most `pairs`, of similar length, so that little is padding.

        Of several processes, each has its own passes; one that has fewer gets passes without a pair at the end.
        """
        longer = self.lengths.view(-1, 2).amax(dim=1) if len(self) else torch.zeros(0)
        return iter(rank_rows(longer.argsort(stable=True), pairs) if len(self) else [])


def try_logprobs(model: NemotronH, batch: Batch, *, per_token: bool) -> Tensor:
    """(b,) log-probability of each try: of all that the policy wrote in it, each turn after its own prompt.

    Args:
        per_token: divide by the number of tokens that the policy wrote.
    """
    counts = batch.in_loss[:, 1:]  # (b, t) position i predicts token i + 1
    hidden = model.backbone(batch.tokens[:, :-1], segments=batch.segments[:, :-1])  # (b, t, d)
    logprobs = -token_losses(model.lm_head, hidden[counts], batch.tokens[:, 1:][counts])  # (n,)
    return reply_logprobs(logprobs, counts, per_token=per_token)


# What is written down -------------------------------------------------------------------------------------------------


def pairs_of_round(run: Run, tries: Sequence[Try], number: int, *, graded: bool, at_most: int) -> pa.Table:
    """The rows of the pairs of a round, in the order of the tasks; tasks without a pair are counted and named.

    A round in which no task has one is reported, and nothing is learned from it.

    Args:
        tries: of several processes, those of this one; the table has the pairs of all.
        number: of the round, from 1.
    """
    found: list[Any] = []
    for members in by_task(tries).values():
        pairs = pairs_of(members, graded=graded, at_most=at_most)
        found.append((len(members), task_row(members, len(pairs)), pair_rows(pairs)))
    found = [each for part in gathered(found) for each in part]
    num_tries, tasks = sum(each[0] for each in found), [each[1] for each in found]
    without = [task["task"] for task in tasks if not task["pairs"]]
    solved = sum(task["right"] for task in tasks) / num_tries
    print_line(f"round {number}: {solved:.0%} of {num_tries:,} tries are right")
    if len(without) == len(tasks):
        print_line(f"round {number}: no task has both a better and a worse try, so nothing is learned from them")
    elif without:
        print_line(f"round {number}: {len(without):,} of {len(tasks):,} tasks have no pair, the first is {without[0]}")
    run.note_rows("tries", tasks)
    rows = [row for each in found for row in each[2]]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(ROW_COLUMNS.items())))


def task_row(tries: Sequence[Try], pairs: int) -> dict[str, str | int | float | bool]:
    """What came of the tries of a task."""
    exercise = tries[0].prompt.exercise
    return {
        "task": exercise.id,
        "kind": kind_of(exercise),
        "levels": " ".join(str(one.level) for one in tries),
        "right": sum(one.right for one in tries),
        "faults": sum(bool(one.fault) for one in tries),
        "pairs": pairs,
    }


def write_round(run: Run, table: pa.Table, decode: Callable[[Sequence[int]], str], *, is_shown: bool) -> None:
    """Write down the pairs of a round: which they are, and their texts if the round is shown."""
    rows = table.to_pylist()
    run.note_rows(
        "rewards",
        [
            {"task": chosen["id"], "chosen": chosen["number"], "rejected": rejected["number"],
             "chosen_level": chosen["level"], "rejected_level": rejected["level"]}
            for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
        ],
    )  # fmt: skip
    if is_shown:
        texts = [{"task": row["id"], "level": row["level"], "text": decode(row["tokens"])} for row in rows]
        run.note_rows("rollouts", texts)


def measured(pairs: Pairs, terms: Sequence[PairTerms], beta: float) -> dict[str, float]:
    """The numbers of a step: means over its pairs, 0 if it has none.

    Args:
        terms: of every forward pass of the step.
        beta: with which the rewards were computed.
    """

    def mean(values: Sequence[Tensor]) -> float:
        joined = torch.cat([value.detach().to(torch.float64) for value in values]) if values else torch.zeros(0)
        return joined.mean().item() if len(joined) else 0.0

    reference = [mean([column]) for column in pairs.reference.view(-1, 2).unbind(dim=1)]
    written = pairs.num_written.to(torch.float64).view(-1, 2)
    chosen, rejected = (mean([getattr(one, name) for one in terms]) for name in ("chosen_reward", "rejected_reward"))
    return {
        "loss": mean([one.loss for one in terms]),
        "preference_loss": mean([one.preference_loss for one in terms]),
        "accuracy": mean([one.margin > ROUNDING for one in terms]),
        "margin": mean([one.margin for one in terms]),
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprob": reference[0] + chosen / beta,
        "rejected_logprob": reference[1] + rejected / beta,
        "chosen_tokens": mean([written[:, 0]]),
        "rejected_tokens": mean([written[:, 1]]),
        "pairs": float(len(pairs)),
    }
