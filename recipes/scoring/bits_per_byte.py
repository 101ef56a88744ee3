"""Bits per byte: how well a model predicts text, in a unit that does not depend on the tokenizer.

In: the losses of the tokens of rows (from a model or from an n-gram), the rows, the tokenizer. Out: bits per byte.
Source: the sum of -log2 p over the tokens divided by the bytes that they stand for (Gao et al., "The Pile",
arXiv 2101.00027, section 3.1).

A special token stands for no text: its loss is left out, it has no bytes, and what follows is still conditioned on it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from nemotron.recipes.scoring.likelihood import Row


@dataclass(frozen=True)
class BitsPerByte:
    """One measurement and what it was taken over."""

    bits: float
    num_bytes: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes


def token_byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """(vocab_size,) bytes that each token stands for; 0 for special tokens.

    A byte-level vocabulary writes each byte as one printable character, so a token has as many bytes as characters.

    Raises:
        ValueError: if a token holds a character that stands for no byte.
    """
    alphabet = set(ByteLevel.alphabet())
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        if token in special:
            continue
        if not set(token) <= alphabet:
            raise ValueError(f"token {index} {token!r} is not byte-level; train the tokenizer with data_curation.py")
        lengths[index] = len(token)
    return lengths


def bits_per_byte(
    losses: Iterable[NDArray[np.float64]], rows: Sequence[Row], byte_lengths: NDArray[np.int64]
) -> BitsPerByte:
    """Bits per byte over all targets of the rows.

    Args:
        losses: per row of t + 1 tokens the (t,) losses in nats of its tokens after the first.
        rows: the rows of token ids.
        byte_lengths: (vocab_size,) of `token_byte_lengths`.
    Raises:
        ValueError: if no target stands for text.
    """
    nats: list[float] = []
    num_bytes = 0
    for row, row_losses in zip(rows, losses, strict=True):
        target_bytes = byte_lengths[np.asarray(row, dtype=np.int64)[1:]]
        nats += row_losses[target_bytes > 0].tolist()
        num_bytes += int(target_bytes.sum())
    if not num_bytes:
        raise ValueError(f"the {len(rows)} rows hold no text to measure; use more sources so that some are held out")
    return BitsPerByte(math.fsum(nats) / math.log(2), num_bytes, len(nats))
