"""Documents on their side of the split, in training order, and the token streams of their categories."""

import numpy as np
import pytest

from nemotron.recipes.curation import tokenized
from nemotron.recipes.curation.split import held_out_modules
from nemotron.recipes.curation.tokenized import TokenizedDocument, split_and_tokenize, streams_of, token_counts
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, train_tokenizer
from nemotron.recipes.sources import Document


def document(id, category="wiki", origin="a", module=None, text=None):
    return Document(id, module or id, category, text or f"Text of {id}.", "MIT", origin)


def ids_of(documents, seed=1):
    tokenized_documents, _ = split_and_tokenize(documents, held_out_share=0.5, vocab_size=300, seed=seed)
    return [one.document.id for one in tokenized_documents]


MODULES = [document(f"m{number}::f{part}", module=f"m{number}") for number in range(20) for part in range(3)]


def test_problems_are_ordered_by_number_across_families():
    problems = ["math/lookup/000007", "math/arithmetic/000006", "math/arithmetic/000007", "math/lookup/000006"]
    documents = [document(id, "math", origin="procedural") for id in problems]
    assert ids_of(documents) == [
        "math/arithmetic/000006",
        "math/lookup/000006",
        "math/arithmetic/000007",
        "math/lookup/000007",
    ]


def test_other_documents_are_shuffled_by_the_seed_alone():
    ids = [one.id for one in MODULES]
    assert ids_of(MODULES) == ids_of(MODULES[::-1])
    assert sorted(ids_of(MODULES)) == sorted(ids)
    assert ids_of(MODULES, seed=1) != ids_of(MODULES, seed=2)
    assert ids not in (ids_of(MODULES, seed=1), ids_of(MODULES, seed=2))


def test_all_documents_of_a_module_are_on_one_side_of_the_split():
    documents, _ = split_and_tokenize(MODULES, held_out_share=0.3, vocab_size=300, seed=1)
    held_out = {one.document.module for one in documents if one.split == "validation"}
    assert held_out == held_out_modules(((one.module, "wiki") for one in MODULES), 0.3, seed=1)
    assert sum(one.split == "validation" for one in documents) == 3 * len(held_out)


def test_tokens_decode_to_the_text_of_their_document():
    documents, tokenizer = split_and_tokenize(MODULES, held_out_share=0.3, vocab_size=300, seed=1)
    for one in documents:
        assert one.tokens.dtype == np.int32
        assert tokenizer.decode(one.tokens.tolist()) == one.document.text


def test_the_tokenizer_is_trained_on_the_training_split_only(monkeypatch):
    seen = []

    def train(texts, vocab_size):
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr(tokenized, "train_tokenizer", train)
    documents, _ = split_and_tokenize(MODULES, held_out_share=0.3, vocab_size=300, seed=1)
    assert seen == [one.document.text for one in documents if one.split == "train"]
    assert 0 < len(seen) < len(documents)


def encoded(category, split, *tokens):
    return TokenizedDocument(document("a", category), split, np.array(tokens, np.int32))


def test_a_stream_joins_the_documents_of_one_category_and_split():
    documents = [
        encoded("wiki", "train", 5, 6),
        encoded("code", "train", 7),
        encoded("wiki", "validation", 8),
        encoded("wiki", "train", 9),
    ]
    streams = streams_of([*documents, encoded("code", "validation", 3)], "train", min_tokens=1)
    assert {name: stream.tokens.tolist() for name, stream in streams.items()} == {
        "code": [7, END_OF_DOCUMENT],
        "wiki": [5, 6, END_OF_DOCUMENT, 9, END_OF_DOCUMENT],
    }
    assert list(streams) == ["code", "wiki"]


def test_no_end_of_document_follows_a_document_of_a_chat_template():
    documents = [encoded(name, "train", 5, 6) for name in ("code", "code-sft")]
    streams = streams_of(documents, "train", min_tokens=1)
    assert {name: stream.tokens.tolist() for name, stream in streams.items()} == {
        "code": [5, 6, END_OF_DOCUMENT],
        "code-sft": [5, 6],
    }


def test_a_category_with_too_few_tokens_is_refused():
    documents = [encoded("wiki", "train", 5, 6)]
    assert len(streams_of(documents, "train", min_tokens=3)["wiki"].tokens) == 3
    with pytest.raises(ValueError, match="the train split of category 'wiki' has 3 tokens and needs 4; bring more"):
        streams_of(documents, "train", min_tokens=4)
    with pytest.raises(ValueError, match="the validation split of category 'wiki' has 0 tokens and needs 2"):
        streams_of(documents, "validation", min_tokens=2)


def test_token_counts_are_by_split_and_category() -> None:
    documents = [
        TokenizedDocument(document("a"), "train", np.arange(3)),
        TokenizedDocument(document("b"), "train", np.arange(4)),
        TokenizedDocument(document("c", "code"), "validation", np.arange(5)),
    ]
    assert token_counts(documents) == {
        "train/code": {"num_documents": 0, "num_tokens": 0},
        "train/wiki": {"num_documents": 2, "num_tokens": 7},
        "validation/code": {"num_documents": 1, "num_tokens": 5},
        "validation/wiki": {"num_documents": 0, "num_tokens": 0},
    }
