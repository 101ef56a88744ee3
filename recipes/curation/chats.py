"""Conversations as token ids in files, and rows that several of them share, packed by their lengths alone.

In: encoded conversations, a file of them at a time. Out: the files of a part of fine-tuning, rows in training order.
What is held of each conversation are its id, its category and how many tokens its chats have, and of each row a digest
while rows are ordered. Which chats share a row follows from the lengths, so a file of rows is a list of slices of the
files of tokens, and is made by itself: anywhere, in any order, and with no more in memory than its own rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat, EncodedChat
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.conversations import Length
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.packing import TokenFiles, best_fit, write_tokens
from nemotron.recipes.curation.rows import Phase, num_rows, planned_phase, rows_per_group, rows_per_shard
from nemotron.recipes.curation.rules import FilterReport, Rule, kept_by
from nemotron.recipes.sources.conversations import Conversation, stored_conversations
from nemotron.recipes.sources.dataframes import Task, rows_of, run_tasks

ROW_COLUMNS = {"tokens": pa.list_(pa.int32()), "in_loss": pa.list_(pa.bool_()), "segments": pa.list_(pa.int32())}
FACTS = pa.schema(
    {
        **dict.fromkeys(("id", "category"), pa.string()),
        **dict.fromkeys(("is_emptied", "is_cut", "in_tools", "in_long_context"), pa.bool_()),
        "longest": pa.int32(),
        "lengths": pa.list_(pa.int32()),
    }
)
"""The columns of the record of conversations: `EncodedConversation`, and lengths in place of tokens."""


@dataclass(frozen=True)
class EncodedConversation:
    """What a conversation becomes: a chat for each turn that can be learned."""

    id: str
    category: str
    turns: list[EncodedChat]
    cut: EncodedChat | None
    """One more chat, with a trace that is cut."""
    is_emptied: bool
    """Whether its trace was emptied."""
    in_tools: bool
    in_long_context: bool
    """Whether it is repeated in these parts, if it is not too long."""


class Chats:
    """All chats, in the order of the files and conversations, without their tokens.

    Attributes:
        facts: a row for each conversation, the columns of FACTS except lengths.
        conversation: (c,) the number of each chat's conversation.
        lengths: (c,) int32, tokens.
        files, starts: (c,) the number of the file that has a chat, and the place in it.
        is_cut: (c,) whether a chat is one with a cut trace.
    """

    def __init__(self, directory: Path, num_files: int) -> None:
        self.directory = directory
        tables = [pq.read_table(directory / "facts" / file_name(number)) for number in range(num_files)]
        self.facts = pa.concat_tables([table.drop_columns("lengths") for table in tables])
        lengths = [table["lengths"].combine_chunks() for table in tables]
        num_chats = np.concatenate([column.value_lengths().to_numpy() for column in lengths])
        of_files = [column.flatten().to_numpy() for column in lengths]
        self.lengths = np.concatenate(of_files)
        self.conversation = np.repeat(np.arange(len(self.facts)), num_chats)
        self.files = np.repeat(np.arange(num_files, dtype=np.int32), list(map(len, of_files)))
        self.starts = np.concatenate([np.cumsum(own, dtype=np.int64) - own for own in of_files])
        self.is_cut = np.zeros(len(self.lengths), dtype=bool)
        self.is_cut[np.cumsum(num_chats)[self.column("is_cut")] - 1] = True

    def column(self, name: str) -> np.ndarray:
        """A column of `facts`."""
        return self.facts[name].to_numpy()

    def of_category(self, category: str) -> np.ndarray:
        """(n,) bool, which conversations are of this category."""
        return pc.equal(self.facts["category"], category).to_numpy()

    def kept_by(self, rule: Rule[Length], among: np.ndarray, reports: dict[str, FilterReport]) -> np.ndarray:
        """(n,) bool, which of the conversations `among` the rule keeps."""
        kept = among.copy()
        lengths = starmap(Length, rows_of(self.facts.filter(among), "id", "longest"))
        kept[among] = kept_by(lengths, [rule], reports)
        return kept

    def packed(self, chosen: np.ndarray, capacity: int) -> list[list[int]]:
        """The numbers of the chosen chats that share a row, each chat whole, at most `capacity` tokens in a row.

        Args:
            chosen: (c,) bool.
        """
        numbers = np.flatnonzero(chosen)
        return [numbers[members].tolist() for members in best_fit(self.lengths[numbers].tolist(), capacity)]


def file_name(number: int) -> str:
    """The name of a file of facts, tokens or slices."""
    return f"{number:05d}.parquet"


def encode_files(
    paths: Sequence[Path],
    encode: Callable[[Conversation, Tokenizer, ChatFormat], EncodedConversation],
    format: ChatFormat,
    tokenizer_path: Path,
    directory: Path,
) -> Chats:
    """The chats of all conversations, with their tokens in files.

    Args:
        paths: files of `stored_conversations`.
        format: used with the template that the tokenizer brings, if it brings one.
        directory: where the files go.
    """

    def encode_file(task: Task) -> Task:
        given = load_chat_tokenizer(format, tokenizer_path), format_of(format, tokenizer_path)
        conversations = stored_conversations([Path(task["path"])])
        write_chats(directory, task["number"], (encode(one, *given) for one in conversations))
        return {}

    run_tasks(encode_file, [{"path": str(path), "number": number} for number, path in enumerate(paths)])
    return Chats(directory, len(paths))


def write_chats(directory: Path, number: int, conversations: Iterable[EncodedConversation]) -> None:
    """Write the tokens and the facts of a file of conversations."""
    facts = []

    def tokens() -> Iterator[np.ndarray]:
        for one in conversations:
            chats = [*one.turns, *([one.cut] if one.cut else [])]
            columns = {name: getattr(one, name) for name in FACTS.names if hasattr(one, name)}
            lengths = [len(chat.ids) for chat in chats]
            longest = max(lengths[: len(one.turns)])
            facts.append({**columns, "is_cut": one.cut is not None, "longest": longest, "lengths": lengths})
            for chat in chats:
                assert len(chat.ids) == len(chat.in_loss)
                assert not chat.in_loss[0]  # nothing predicts the first token
                # One number for a token and whether it counts in the loss.
                yield 2 * np.array(chat.ids, dtype=np.int32) + np.array(chat.in_loss, dtype=np.int32)

    write_tokens(directory / "tokens" / file_name(number), tokens())
    (directory / "facts").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(facts, schema=FACTS), directory / "facts" / file_name(number))


def write_packed_rows(
    directory: Path, name: str, chats: Chats, rows: Sequence[Sequence[int]], sequence_length: int, seed: int
) -> Phase:
    """Write the rows of a part in a shuffled order that depends only on their tokens, the seed and the part.

    Args:
        directory: of the Dataset.
        name: of the part.
        rows: the numbers of the chats of each row.
    """
    phase = planned_phase(name, len(rows), sequence_length)
    paths = phase.paths(directory)
    members = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    starts = np.cumsum(sizes) - sizes

    def tasks(order: np.ndarray) -> list[Task]:
        """One for each file of rows in this order; which slices it has is in a file too."""
        planned = []
        for number, path in enumerate(paths):
            size = rows_per_shard(sequence_length)
            own = order[number * size : (number + 1) * size]
            row = np.repeat(np.arange(len(own)), sizes[own])
            within = np.arange(len(row)) - np.searchsorted(row, row)
            chosen = members[starts[own][row] + within]
            table = {"row": row, "file": chats.files[chosen], "start": chats.starts[chosen]}
            slices = chats.directory / "slices" / name / file_name(number)
            slices.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({**table, "length": chats.lengths[chosen]}), slices)
            task = {"path": str(path), "slices": str(slices), "tokens": str(chats.directory / "tokens")}
            planned.append({**task, "seed": seed, "name": name, "group_rows": rows_per_group(sequence_length)})
        return planned

    found = run_tasks(row_digests, tasks(np.arange(len(rows))))
    digests = np.array([digest for result in found for digest in result.pop("digests")], dtype="S64")
    run_tasks(write_row_file, tasks(np.argsort(digests, kind="stable")))
    return phase


def row_digests(task: Task) -> Task:
    """A digest of the tokens of each row of a file."""
    slices = pq.read_table(task["slices"])
    tokens = read_slices(slices, Path(task["tokens"]))
    tokens >>= 1
    rows = np.split(tokens, row_ends(slices))[:-1]  # without what is after the last end
    return {"digests": [digest_of(task["seed"], task["name"], *row.tolist()) for row in rows]}


def write_row_file(task: Task) -> Task:
    """Write one file of rows: the columns of ROW_COLUMNS."""
    slices = pq.read_table(task["slices"])
    row, lengths = slices["row"].to_numpy(), slices["length"].to_numpy()
    segments = (np.arange(len(row)) - np.searchsorted(row, row)).astype(np.int32)
    values, ends = read_slices(slices, Path(task["tokens"])), np.concatenate([[0], row_ends(slices)])
    path = Path(task["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, pa.schema(ROW_COLUMNS)) as writer:
        for first in range(0, len(ends) - 1, task["group_rows"]):
            starts = ends[first : first + task["group_rows"] + 1]
            own = slice(*np.searchsorted(row, [first, first + task["group_rows"]]))
            group = values[starts[0] : starts[-1]]
            columns = (group >> 1, (group & 1).astype(bool), np.repeat(segments[own], lengths[own]))
            offsets = pa.array((starts - starts[0]).astype(np.int32))
            arrays = [pa.ListArray.from_arrays(offsets, pa.array(column)) for column in columns]
            writer.write_table(pa.table(arrays, schema=pa.schema(ROW_COLUMNS)))
    return {}


def row_ends(slices: pa.Table) -> np.ndarray:
    """(r,) where in the tokens of the slices each row ends; none if there is no row."""
    row = slices["row"].to_numpy()
    last = np.flatnonzero(np.diff(row, append=row[-1:] + 1))
    return np.cumsum(slices["length"].to_numpy(), dtype=np.int64)[last]


def read_slices(slices: pa.Table, directory: Path) -> np.ndarray:
    """(n,) int32, what `write_chats` wrote of the slices, end to end.

    They are read in the order of the files, so that no part of a file is read twice.
    """
    files, starts, lengths = (slices[name].to_numpy() for name in ("file", "start", "length"))
    places = np.cumsum(lengths, dtype=np.int64) - lengths
    values = np.empty(int(lengths.sum()), dtype=np.int32)
    for number in np.unique(files):
        path = directory / file_name(number)
        tokens = TokenFiles([path], [num_rows([path])])
        own = np.flatnonzero(files == number)
        for index in own[np.argsort(starts[own], kind="stable")]:
            start, place, length = int(starts[index]), int(places[index]), int(lengths[index])
            values[place : place + length] = tokens[start : start + length]
    return values
