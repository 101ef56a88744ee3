import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from nemotron.recipes.scoring.bits_per_byte import bits_per_byte, token_byte_lengths


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the end; größer äöü äöü größer"] * 5, trainer)
    return tokenizer


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_token_byte_lengths_add_up_to_the_bytes_of_the_text(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if not any(token in text for token in special):
        assert token_byte_lengths(tokenizer)[tokens].sum() == len(text.encode())


def test_only_special_tokens_have_no_bytes(tokenizer):
    lengths = token_byte_lengths(tokenizer)
    assert np.flatnonzero(lengths == 0).tolist() == [0, 1, 2]
    assert lengths.max() > 1


def test_a_character_vocabulary_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "日": 1}, unk_token="a"))
    with pytest.raises(ValueError, match="token 1 '日' is not byte-level"):
        token_byte_lengths(tokenizer)


def test_bits_per_byte_of_hand_written_rows():
    # Token 0 is special, tokens 1 and 2 have one and three bytes. Targets with text: 1, 2 and 1, with 1, 2 and 5 bits.
    nats = [np.array([1.0, 100.0, 2.0]) * math.log(2), np.array([5.0]) * math.log(2)]
    measured = bits_per_byte(nats, [[2, 1, 0, 2], [2, 1]], np.array([0, 1, 3]))
    assert (measured.num_bytes, measured.num_tokens) == (5, 3)
    assert measured.bits_per_byte == pytest.approx(8 / 5, rel=1e-15)


def test_how_text_is_split_into_rows_does_not_change_bits_per_byte():
    # Each row starts with the last token of the row before, so every token is a target once.
    byte_lengths = np.array([0, 1, 2, 3])
    row, losses = [1, 2, 3, 1, 2, 3, 3], np.array([0.1, 0.7, 1.3, 0.2, 0.9, 2.5])
    whole = bits_per_byte([losses], [row], byte_lengths)
    assert bits_per_byte([losses[:2], losses[2:]], [row[:3], row[2:]], byte_lengths) == whole


def test_rows_without_text_are_refused():
    with pytest.raises(ValueError, match="the 1 rows have no text to measure; use more sources"):
        bits_per_byte([np.array([1.0])], [[1, 0]], np.array([0, 1]))


def test_an_added_word_has_bytes(tokenizer):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens([AddedToken("cat", special=False)])
    assert token_byte_lengths(copy)[copy.token_to_id("cat")] == 3
