"""Bits per byte: how well a model predicts text, in a unit that does not depend on the tokenizer.

In: rows of token ids, the losses of their tokens (from a model or an n-gram), the tokenizer. Out: bits per byte.
Source: the sum of -log2 p over the tokens, divided by the bytes of text that they encode (Gao et al., "The Pile",
arXiv 2101.00027, section 3.1).

A special token encodes no text: its loss is left out and it has no bytes. The tokens after it are still predicted from
it.
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
    """One measurement, and the text it covers."""

    bits: float
    num_bytes: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes


def token_byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """(vocab_size,) number of bytes that each token encodes; 0 for special tokens.

    A byte-level vocabulary spells each byte as one printable character, so a token has as many bytes as characters.

    Raises:
        ValueError: if a token has a character that does not encode a byte.
    """
    alphabet = set(ByteLevel.alphabet())
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        if token in special:
            continue
        if not set(token) <= alphabet:
            raise ValueError(
                f"token {index} {token!r} is not byte-level; use the tokenizer that data_curation.py trains"
            )
        lengths[index] = len(token)
    return lengths


def bits_per_byte(
    losses: Iterable[NDArray[np.float64]], rows: Sequence[Row], byte_lengths: NDArray[np.int64]
) -> BitsPerByte:
    """Bits per byte over all targets; every token of a row but the first is a target.

    Args:
        losses: for each row of t + 1 tokens, the (t,) losses of its targets in nats.
        rows: rows of token ids.
        byte_lengths: (vocab_size,) from `token_byte_lengths`.
    Raises:
        ValueError: if no target encodes text.
    """
    nats: list[float] = []
    num_bytes = 0
    for row, row_losses in zip(rows, losses, strict=True):
        target_bytes = byte_lengths[np.asarray(row, dtype=np.int64)[1:]]
        nats += row_losses[target_bytes > 0].tolist()
        num_bytes += int(target_bytes.sum())
    if not num_bytes:
        raise ValueError(
            f"the {len(rows)} rows have no text to measure; use more sources, so that some text is held out"
        )
    return BitsPerByte(math.fsum(nats) / math.log(2), num_bytes, len(nats))
