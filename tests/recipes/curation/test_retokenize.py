"""Text in the tokens of another tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from nemotron.recipes.curation.retokenize import retokenized
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, train_tokenizer

TEXTS = ["The road was slow.", "Grüße an </s> alle", "def f(x):\n    return x"]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    return train_tokenizer(["the slow road was the road"] * 5, 290), train_tokenizer(
        ["def return Grüße x x x"] * 5, 300
    )


def ids(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*tokenizer.encode(text).ids, END_OF_DOCUMENT]]


def test_the_same_documents_are_in_the_same_order(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    theirs, ours = tokenizers
    found = retokenized(ids(theirs, TEXTS), theirs, ours)
    assert found.dtype == np.int32
    assert found.tolist() == ids(ours, TEXTS)
    assert found.tolist() != ids(theirs, TEXTS)


def test_a_stream_may_begin_and_end_inside_of_a_document(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    theirs, ours = tokenizers
    whole = ids(theirs, TEXTS)
    found = retokenized(whole[1:-3], theirs, ours).tolist()
    assert found.count(END_OF_DOCUMENT) == 2
    assert ours.decode(found) in "".join(TEXTS)


def test_half_a_character_is_left_out(tokenizers: tuple[Tokenizer, Tokenizer]) -> None:
    theirs, ours = tokenizers
    half = theirs.encode("ü").ids[1:]
    assert half
    found = retokenized([*half, *theirs.encode("ber").ids], theirs, ours).tolist()
    assert ours.decode(found) == "ber"
