"""Documents to sequences of one length: concatenated, an end-of-document token after each, cut without a gap.

In: the token ids of the documents of one category. Out: rows of sequence_length + 1 tokens; the next row of a
category starts with the last token of this one, so that every token is predicted exactly once.
Source: NVIDIA's data preparation puts an end-of-document token after every plain-text document, none after one that a
chat template has closed already, and masks nothing across documents (Megatron-LM's packed dataset); so does this.

n tokens   L sequence length
"""

from collections.abc import Iterable, Sequence

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
