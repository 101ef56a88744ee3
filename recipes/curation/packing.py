"""Pack token ids into rows: documents for pretraining, conversations for fine-tuning.

Pretraining: documents are concatenated, with an end-of-document token after each, and cut into rows without gaps. In:
the token ids of the documents of one category. Out: rows of sequence_length + 1 tokens; each row starts with the last
token of the row before, so every token is predicted exactly once. Which tokens a row has follows from the number of
rows before it, so any of them can be made without the others.
Source: NVIDIA's data preparation adds an end-of-document token after every plain-text document but not after one that a
chat template has already closed, and does not mask across documents (Megatron-LM's packed dataset). This does the same.

Fine-tuning: whole conversations share a row, without cutting any of them and with little empty space. In: their
lengths. Out: which of them share a row; `chats.py` writes the rows.

Letters: n tokens  L sequence length
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOKENS_PER_GROUP = 1 << 16  # our choice: what is read at least of a file of tokens
MAX_CACHED_GROUPS = 64  # our choice: 16 MB


def concatenate_documents(documents: Iterable[Sequence[int] | np.ndarray], end_of_document: int | None) -> np.ndarray:
    """(n,) int32: the documents, each followed by the end-of-document token unless that is None."""
    end = [] if end_of_document is None else [end_of_document]
    pieces = [np.asarray(piece, dtype=np.int32) for document in documents for piece in (document, end)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


def cut_once(tokens: np.ndarray, sequence_length: int) -> list[np.ndarray]:
    """Rows of L + 1 tokens, each starting with the last token of the row before; the last row may be shorter.

    Every token except the first is the target of exactly one prediction. Fewer than two tokens give no row.
    """
    return [tokens[start : start + sequence_length + 1] for start in range(0, len(tokens) - 1, sequence_length)]


class TokenFiles:
    """The tokens of one category in Parquet files, end to end; any part of them can be read without the rest.

    Args:
        paths: files that `write_tokens` wrote, in order.
        counts: how many tokens each has.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]) -> None:
        self.paths, self.counts = list(paths), list(counts)
        self.ends = list(accumulate(counts))
        self._groups: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        """(n,) int32, the tokens from `part.start` up to `part.stop`."""
        start, stop, _ = part.indices(len(self))
        pieces = [np.zeros(0, dtype=np.int32)]
        file = bisect_right(self.ends, start)
        while start < stop:
            first = self.ends[file] - self.counts[file]
            group, offset = divmod(start - first, TOKENS_PER_GROUP)
            piece = self._group(file, group)[offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
            file += start == self.ends[file]
        return np.concatenate(pieces)

    def _group(self, file: int, group: int) -> np.ndarray:
        """The tokens of one row group; the last few that were read are kept."""
        key = file, group
        if key not in self._groups:
            with pq.ParquetFile(self.paths[file]) as opened:
                self._groups[key] = opened.read_row_group(group).column(0).to_numpy()
        self._groups.move_to_end(key)
        if len(self._groups) > MAX_CACHED_GROUPS:
            self._groups.popitem(last=False)
        return self._groups[key]


def write_tokens(path: Path, pieces: Iterable[np.ndarray]) -> None:
    """Write a file of `TokenFiles`, in which the pieces lie end to end; about a row group of them is in memory."""

    def groups() -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        size = 0
        for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= TOKENS_PER_GROUP:
                tokens = np.concatenate(waiting)
                size %= TOKENS_PER_GROUP
                yield tokens[: len(tokens) - size]
                waiting = [tokens[len(tokens) - size :]]
        yield np.concatenate([np.zeros(0, dtype=np.int32), *waiting])

    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, pa.schema({"token": pa.int32()}), use_dictionary=False) as writer:
        for tokens in groups():
            writer.write_table(pa.table({"token": tokens}), row_group_size=TOKENS_PER_GROUP)


def write_token_rows(directory: Path, rows: Iterable[Sequence[int]]) -> TokenFiles:
    """Write rows of token ids to one file each; each is what one process holds at a time."""
    counts = []
    for number, row in enumerate(rows):
        write_tokens(directory / f"{number:05d}.parquet", [np.asarray(row, dtype=np.int32)])
        counts.append(len(row))
    return TokenFiles([directory / f"{number:05d}.parquet" for number in range(len(counts))], counts)


def slices_of(start: int, number: int, total: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each stretch of `total` tokens that holds the next `number` tokens from a place on.

    After the last token comes the first one again.

    Args:
        start: the place, counted from the first time that the first token was read.
    """
    while number:
        place = start % total
        stop = min(total, place + number)
        yield place, stop
        start, number = start + stop - place, number - (stop - place)


def rows_from(tokens: np.ndarray | TokenFiles, start: int, num_rows: int, sequence_length: int) -> np.ndarray:
    """(n, L + 1) rows, each starting with the last token of the row before, from a place of a stream on."""
    if not num_rows:
        return np.zeros((0, sequence_length + 1), dtype=np.int32)
    slices = slices_of(start, num_rows * sequence_length + 1, len(tokens))
    flat = np.concatenate([tokens[first:stop] for first, stop in slices])
    return np.lib.stride_tricks.sliding_window_view(flat, sequence_length + 1)[::sequence_length]


class TokenStream:
    """The tokens of one category in a fixed order, read row by row; after the last token it starts over.

    Args:
        tokens: (n,) token ids, documents and their end-of-document tokens.
    """

    def __init__(self, tokens: np.ndarray | TokenFiles) -> None:
        self.tokens = tokens
        self.num_read = 0

    @property
    def epochs(self) -> float:
        """How many times the tokens have been read so far."""
        return self.num_read / len(self.tokens)

    def next_row(self, sequence_length: int) -> np.ndarray:
        """(L + 1,) the next tokens; the last one is also the first of the next row."""
        (row,) = rows_from(self.tokens, self.num_read, 1, sequence_length)
        self.num_read += sequence_length
        return row


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Choose which documents share a row: each goes into the fullest row that has room, the longest document first.

    Best-fit decreasing: no document is cut, and few tokens of a row stay empty.

    Args:
        lengths: number of tokens of each document.
        capacity: maximum number of tokens of a row.
    Returns:
        The indices of the documents of each row; every index is in exactly one row.
    Raises:
        ValueError: if a document is empty or longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (empty tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"document {index} has {length} tokens, but a row holds 1 to {capacity}; drop it first")
        place = bisect_left(room, (length, 0))
        if place == len(room):
            rows.append([index])
            insort(room, (capacity - length, len(rows) - 1))
        else:
            empty, row = room.pop(place)
            rows[row].append(index)
            insort(room, (empty - length, row))
    return rows
