"""Documents to sequences of one length, in the two ways of the recipe.

Pretraining: concatenated, an end-of-document token after each, cut without a gap. In: the token ids of the documents of
one category. Out: rows of sequence_length + 1 tokens; the next row of a category starts with the last token of this
one, so that every token is predicted exactly once.
Source: NVIDIA's data preparation puts an end-of-document token after every plain-text document, none after one that a
chat template has closed already, and masks nothing across documents (Megatron-LM's packed dataset); so does this.

Fine-tuning: whole conversations side by side in rows that are filled as well as they can be; none is cut, and none sees
another. In: their token ids and which of them count in the loss. Out: rows with the number of the conversation that
each token belongs to.

n tokens   L sequence length
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


def concatenate_documents(documents: Iterable[Sequence[int]], end_of_document: int | None) -> np.ndarray:
    """(n,) int32: every document followed by the end-of-document token, or by nothing if that is None."""
    end = [] if end_of_document is None else [end_of_document]
    pieces = [np.asarray([*document, *end], dtype=np.int32) for document in documents]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


def cut_once(tokens: np.ndarray, sequence_length: int) -> list[np.ndarray]:
    """Rows of L + 1 tokens, each starting with the last token of the row before; the last one may be shorter.

    Every token but the very first is the target of one prediction. Fewer than two tokens give no row.
    """
    return [tokens[start : start + sequence_length + 1] for start in range(0, len(tokens) - 1, sequence_length)]


class TokenStream:
    """The tokens of one category in a fixed order, read in rows; after the last token the first one follows.

    Args:
        tokens: (n,) token ids, documents and their end-of-document tokens.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.num_read = 0

    @property
    def epochs(self) -> float:
        """How often the tokens were read so far."""
        return self.num_read / len(self.tokens)

    def next_row(self, sequence_length: int) -> np.ndarray:
        """(L + 1,) the next tokens; the last one is the first of the next row."""
        places = np.arange(self.num_read, self.num_read + sequence_length + 1) % len(self.tokens)
        self.num_read += sequence_length
        return self.tokens[places]


@dataclass
class PackedRow:
    """Conversations side by side."""

    tokens: list[int] = field(default_factory=list)
    in_loss: list[bool] = field(default_factory=list)
    """Whether each token counts in the loss when it is predicted."""
    segments: list[int] = field(default_factory=list)
    """Number of the conversation in this row, from 0, that each token belongs to."""

    def append(self, tokens: Sequence[int], in_loss: Sequence[bool]) -> None:
        """Add one conversation.

        Raises:
            ValueError: if there is not one entry of `in_loss` a token, or the first token, which no token of its own
                conversation could predict, counts.
        """
        if len(tokens) != len(in_loss) or (in_loss and in_loss[0]):
            raise ValueError(f"{len(tokens)} tokens with {len(in_loss)} marks, of which the first must be False")
        number = self.segments[-1] + 1 if self.segments else 0
        self.tokens += tokens
        self.in_loss += in_loss
        self.segments += [number] * len(tokens)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which documents share a row: each goes into the fullest row that has room for it, the longest document first.

    Best-fit decreasing: no row needs to be cut, and few tokens of a row stay empty.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a row.
    Returns:
        The indices of the documents of each row; every index stands in exactly one row.
    Raises:
        ValueError: if a document is empty or longer than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (empty tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise ValueError(f"document {index} has {length} tokens, and a row holds 1 to {capacity}")
        place = bisect_left(room, (length, 0))
        if place == len(room):
            rows.append([index])
            insort(room, (capacity - length, len(rows) - 1))
        else:
            empty, row = room.pop(place)
            rows[row].append(index)
            insort(room, (empty - length, row))
    return rows
