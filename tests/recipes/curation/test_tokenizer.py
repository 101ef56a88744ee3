import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nemotron.recipes.curation.tokenizer import (
    END_OF_DOCUMENT,
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    encode_documents,
    save_tokenizer,
    train_tokenizer,
    vocabulary_digest,
)

TEXTS = [
    "The shortest path between two nodes of a graph has 12 or 120 edges.",
    "def path(graph, source, target):\n    return shortest(graph, source, target)\n",
    "What is 2024 - 1999? 25",
] * 3
TOKENIZER = train_tokenizer(TEXTS, 320)


@given(st.text())
def test_any_text_decodes_to_itself(text):
    [tokens] = encode_documents(TOKENIZER, [text])
    assert TOKENIZER.decode(tokens.tolist(), skip_special_tokens=False) == text


@given(st.text(alphabet="0123456789 a٣", max_size=20))
def test_every_digit_is_a_separate_token(text):
    pieces = [TOKENIZER.decode([token]) for token in encode_documents(TOKENIZER, [text])[0]]
    assert all(len(piece) == 1 for piece in pieces if set(piece) & set("0123456789"))


def test_the_special_tokens_have_their_published_ids():
    published = {"<unk>": 0, "<s>": 1, "</s>": 2, "<SPECIAL_10>": 10, "<SPECIAL_11>": 11, "<SPECIAL_12>": 12}
    assert {token: TOKENIZER.token_to_id(token) for token in published} == published
    assert [TOKENIZER.id_to_token(index) for index in range(13)] == list(SPECIAL_TOKENS)
    assert TOKENIZER.token_to_id("</s>") == END_OF_DOCUMENT


@pytest.mark.parametrize("text", [*SPECIAL_TOKENS, "a</s>b", "<s><SPECIAL_10>System"])
def test_a_text_that_spells_a_special_token_does_not_become_one(text):
    [tokens] = encode_documents(TOKENIZER, [text])
    assert tokens.min() >= len(SPECIAL_TOKENS)


def test_text_order_does_not_change_the_tokenizer():
    assert train_tokenizer(reversed(TEXTS), 320).to_str() == TOKENIZER.to_str()


def test_the_vocabulary_has_the_requested_size_unless_the_texts_have_too_few_pairs():
    assert TOKENIZER.get_vocab_size() == 320
    assert train_tokenizer(["ab"], 400).get_vocab_size() == MIN_VOCAB_SIZE + 1


def test_a_vocabulary_too_small_for_all_bytes_is_an_error():
    with pytest.raises(ValueError, match=rf"vocab_size={MIN_VOCAB_SIZE - 1}.* {MIN_VOCAB_SIZE}"):
        train_tokenizer(TEXTS, MIN_VOCAB_SIZE - 1)


def test_many_texts_are_encoded_in_order():
    texts = [f"text {number}" for number in range(2500)]
    encoded = encode_documents(TOKENIZER, texts)
    assert [TOKENIZER.decode(tokens.tolist()) for tokens in encoded] == texts


def test_the_digest_of_a_vocabulary_changes_with_a_token_and_with_an_id(tmp_path):
    digests = []
    for number, texts in enumerate((TEXTS, TEXTS[::-1], ["ab"] * 3 + ["cd"] * 2, ["cd"] * 3 + ["ab"] * 2)):
        save_tokenizer(train_tokenizer(texts, 271), tmp_path / str(number))
        digests.append(vocabulary_digest(tmp_path / str(number)))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3  # the last two have the same tokens, learned in another order


def test_transformers_reads_the_directory_and_agrees(tmp_path):
    from transformers import AutoTokenizer  # imported here because it takes seconds

    save_tokenizer(TOKENIZER, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == encode_documents(TOKENIZER, [text])[0].tolist()
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id) == (2, 2, 0, 0)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab() == TOKENIZER.get_vocab()


def test_a_text_begins_after_the_token_that_separates_documents(tmp_path):
    """Programs put bos_token before a text whose first token they score; another one would never have been trained."""
    from transformers import AutoTokenizer

    save_tokenizer(TOKENIZER, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).bos_token_id == END_OF_DOCUMENT
