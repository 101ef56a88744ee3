"""Documents with their token ids and their side of the train/validation split.

In: documents that every rule kept. Out: the same in training order, each with its split and its tokens; the tokenizer;
and the tokens of a category as one stream, from which training rows are read.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nemotron.recipes.curation.categories import TEMPLATED
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.packing import TokenStream, concatenate_documents
from nemotron.recipes.curation.split import held_out_modules
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents, train_tokenizer
from nemotron.recipes.sources import Document


class TokenizedDocument(NamedTuple):
    """A document that every filter kept, on its side of the split."""

    document: Document
    split: Literal["train", "validation"]
    tokens: np.ndarray
    """(n,) int32 token ids, without an end-of-document token."""


def split_and_tokenize(
    documents: Iterable[Document], *, held_out_share: float, vocab_size: int, seed: int
) -> tuple[list[TokenizedDocument], Tokenizer]:
    """The documents in training order with their split and tokens, and the tokenizer of the training split.

    Args:
        held_out_share: share of the modules whose documents go to the validation split.
        vocab_size: number of tokens in the tokenizer's vocabulary.
        seed: picks the validation modules and the order.
    """

    def training_order(document: Document) -> tuple[str, str]:
        # Generated problems grow harder with their number; everything else comes in an arbitrary but stable order.
        number = document.id.rpartition("/")[2]
        return number if document.origin == "procedural" else digest_of(seed, document.id), document.id

    documents = sorted(documents, key=training_order)
    modules = ((document.module, document.category) for document in documents)
    held_out = held_out_modules(modules, held_out_share, seed)
    training = (document.text for document in documents if document.module not in held_out)
    tokenizer = train_tokenizer(training, vocab_size)
    tokens = encode_documents(tokenizer, [document.text for document in documents])
    tokenized = [
        TokenizedDocument(document, "validation" if document.module in held_out else "train", ids)
        for document, ids in zip(documents, tokens, strict=True)
    ]
    return tokenized, tokenizer


def streams_of(documents: Sequence[TokenizedDocument], split: str, min_tokens: int) -> dict[str, TokenStream]:
    """Category -> the tokens of its documents in one split, concatenated.

    Raises:
        ValueError: if a category has fewer tokens than `min_tokens`.
    """
    streams = {}
    for category in sorted({one.document.category for one in documents}):
        members = (one.tokens for one in documents if one.document.category == category and one.split == split)
        tokens = concatenate_documents(members, None if category in TEMPLATED else END_OF_DOCUMENT)
        if len(tokens) < min_tokens:
            raise ValueError(
                f"the corpus is too small: the {split} split of category {category!r} has {len(tokens)} tokens and "
                f"needs {min_tokens}; bring more documents{' or lower --sequence-length' if split == 'train' else ''}"
            )
        streams[category] = TokenStream(tokens)
    return streams


def token_counts(documents: Sequence[TokenizedDocument]) -> dict[str, dict[str, int]]:
    """ "<split>/<category>" -> the number of its documents and of their tokens."""
    counts = {}
    for split in ("train", "validation"):
        for category in sorted({one.document.category for one in documents}):
            members = [len(one.tokens) for one in documents if (one.split, one.document.category) == (split, category)]
            counts[f"{split}/{category}"] = {"num_documents": len(members), "num_tokens": sum(members)}
    return counts
