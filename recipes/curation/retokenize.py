"""Text that another tokenizer encoded, in the tokens of a given one.

In: token ids of one tokenizer. Out: those of another for the same text; documents stay apart. A published model has
another tokenizer than the one with which pretraining encoded its text.
"""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents


def retokenized(tokens: Sequence[int] | np.ndarray, theirs: Tokenizer, ours: Tokenizer) -> np.ndarray:
    """(n,) int32 ids of the same text; END_OF_DOCUMENT separates documents before and after.

    Args:
        tokens: ids of `theirs`; may begin and end inside a document.
        ours: has END_OF_DOCUMENT at the same id, as the chat format requires it.
    """
    ids = np.asarray(tokens, np.int32)
    ends = np.flatnonzero(ids == END_OF_DOCUMENT)
    parts = [part[part != END_OF_DOCUMENT].tolist() for part in np.split(ids, ends + 1)]
    # A part that begins or ends inside a character has no text for it.
    texts = [text.strip("\ufffd") for text in theirs.decode_batch(parts, skip_special_tokens=False)]
    encoded = encode_documents(ours, texts)
    end = np.array([END_OF_DOCUMENT], np.int32)
    pieces = [piece for one in encoded[:-1] for piece in (one, end)]
    return np.concatenate([*pieces, encoded[-1]])
