"""Documents on their side of the split, in training order, and the token streams of their categories."""

from pathlib import Path

import numpy as np
import pytest

from nemotron.recipes.curation import tokenized
from nemotron.recipes.curation.rules import to_dataframe
from nemotron.recipes.curation.split import held_out_modules
from nemotron.recipes.curation.tokenized import joined, split_and_tokenize, streams_of, token_counts, write_part
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, train_tokenizer
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.documents import read_documents, read_values


def document(id, category="wiki", origin="a", module=None, text=None):
    return Document(id, module or id, category, text or f"Text of {id}.", "MIT", origin)


def tokenized_of(documents, directory, share=0.3, seed=1):
    """`split_and_tokenize` of a list: the documents of its files, their splits, the result and the tokenizer."""
    result, tokenizer = split_and_tokenize(
        to_dataframe(documents), directory, held_out_share=share, vocab_size=300, seed=seed
    )
    splits = [split for (split,) in read_values([result.facts_path], "split")]
    return list(read_documents(result.texts)), splits, result, tokenizer


def ids_of(documents, directory, seed=1):
    return [one.id for one in tokenized_of(documents, directory / str(seed), 0.5, seed)[0]]


MODULES = [document(f"m{number}::f{part}", module=f"m{number}") for number in range(20) for part in range(3)]


def test_problems_are_ordered_by_number_across_families(tmp_path):
    problems = ["math/lookup/000007", "math/arithmetic/000006", "math/arithmetic/000007", "math/lookup/000006"]
    documents = [document(id, "math", origin="procedural") for id in problems]
    assert ids_of(documents, tmp_path) == [
        "math/arithmetic/000006",
        "math/lookup/000006",
        "math/arithmetic/000007",
        "math/lookup/000007",
    ]


def test_other_documents_are_shuffled_by_the_seed_alone(tmp_path):
    ids = [one.id for one in MODULES]
    first, again = ids_of(MODULES, tmp_path / "a"), ids_of(MODULES[::-1], tmp_path / "b")
    other = ids_of(MODULES, tmp_path / "a", seed=2)
    assert first == again
    assert sorted(first) == sorted(ids)
    assert first != other
    assert ids not in (first, other)


def test_the_order_is_the_same_in_any_number_of_files(tmp_path, monkeypatch):
    whole, _, one, _ = tokenized_of(MODULES, tmp_path / "one")
    monkeypatch.setattr(tokenized, "FILE_BYTES", 200)
    parts, _, several, _ = tokenized_of(MODULES, tmp_path / "several")
    assert len(one.texts) == 1
    assert len(several.texts) > 4
    assert parts == whole
    assert token_counts(one) == token_counts(several)
    for split in ("train", "validation"):
        assert several.tokens_of(split, "wiki")[:].tolist() == one.tokens_of(split, "wiki")[:].tolist()


def test_all_documents_of_a_module_are_on_one_side_of_the_split(tmp_path):
    documents, splits, *_ = tokenized_of(MODULES, tmp_path)
    held_out = {one.module for one, split in zip(documents, splits, strict=True) if split == "validation"}
    assert held_out == held_out_modules(((one.module, "wiki") for one in MODULES), 0.3, seed=1)
    assert splits.count("validation") == 3 * len(held_out)


@pytest.mark.parametrize("file_bytes", [200, 1 << 20])
def test_tokens_decode_to_the_text_of_their_document(tmp_path, monkeypatch, file_bytes):
    monkeypatch.setattr(tokenized, "FILE_BYTES", file_bytes)
    mixed = [*MODULES, *(document(f"c{number}", "code-sft") for number in range(9))]
    documents, splits, result, tokenizer = tokenized_of(mixed, tmp_path)
    for split in ("train", "validation"):
        members = [one for one, side in zip(documents, splits, strict=True) if side == split]
        found = result.documents(split)
        assert [module for module, _ in found] == [one.module for one in members]
        assert [tokenizer.decode(tokens[:]) for _, tokens in found] == [one.text for one in members]
        code = [one.id for one in members if one.category == "code-sft"]
        assert [id for id, _ in result.documents(split, "code-sft", by="id")] == code
    assert found[0][1][2:5] == found[0][1][:][2:5]


def test_the_tokenizer_is_trained_on_a_sample_that_does_not_depend_on_the_order(tmp_path, monkeypatch):
    seen = []

    def train(texts, vocab_size):
        seen.append(sorted(texts))
        return train_tokenizer(seen[-1], vocab_size)

    monkeypatch.setattr(tokenized, "train_tokenizer", train)
    for number, (limit, documents) in enumerate([(300, MODULES), (300, MODULES[::-1]), (600, MODULES)]):
        monkeypatch.setattr(tokenized, "TOKENIZER_BYTES", limit)
        tokenized_of(documents, tmp_path / str(number))
    small, again, large = seen
    assert small == again
    assert 250 < sum(map(len, small)) <= 300
    assert set(small) < set(large)
    assert not {text[8:10] for text in small} <= {"m0", "m1", "m2"}  # not the first ones


def test_the_tokenizer_is_trained_on_the_training_split_only(tmp_path, monkeypatch):
    seen = []

    def train(texts, vocab_size):
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr(tokenized, "train_tokenizer", train)
    documents, splits, *_ = tokenized_of(MODULES, tmp_path)
    assert sorted(seen) == sorted(one.text for one, split in zip(documents, splits, strict=True) if split == "train")
    assert 0 < len(seen) < len(documents)


def encoded(category, split, *tokens):
    return document("a", category), split, np.array(tokens, np.int32)


def tokenized_documents(directory, parts):
    return joined(directory, [write_part(directory, 0, *zip(*parts, strict=True))])


def test_a_stream_joins_the_documents_of_one_category_and_split(tmp_path):
    documents = [
        encoded("wiki", "train", 5, 6),
        encoded("code", "train", 7),
        encoded("wiki", "validation", 8),
        encoded("wiki", "train", 9),
    ]
    streams = streams_of(
        tokenized_documents(tmp_path, [*documents, encoded("code", "validation", 3)]), "train", min_tokens=1
    )
    assert {name: stream.tokens[:].tolist() for name, stream in streams.items()} == {
        "code": [7, END_OF_DOCUMENT],
        "wiki": [5, 6, END_OF_DOCUMENT, 9, END_OF_DOCUMENT],
    }
    assert list(streams) == ["code", "wiki"]


def test_no_end_of_document_follows_a_document_of_a_chat_template(tmp_path):
    documents = tokenized_documents(tmp_path, [encoded(name, "train", 5, 6) for name in ("code", "code-sft")])
    streams = streams_of(documents, "train", min_tokens=1)
    assert {name: stream.tokens[:].tolist() for name, stream in streams.items()} == {
        "code": [5, 6, END_OF_DOCUMENT],
        "code-sft": [5, 6],
    }


def test_a_category_with_too_few_tokens_is_refused(tmp_path):
    documents = tokenized_documents(tmp_path, [encoded("wiki", "train", 5, 6)])
    assert len(streams_of(documents, "train", min_tokens=3)["wiki"].tokens) == 3
    with pytest.raises(ValueError, match="the train split of category 'wiki' has 3 tokens and needs 4; bring more"):
        streams_of(documents, "train", min_tokens=4)
    with pytest.raises(ValueError, match="the validation split of category 'wiki' has 0 tokens and needs 2"):
        streams_of(documents, "validation", min_tokens=2)


def test_token_counts_are_by_split_and_category(tmp_path: Path) -> None:
    documents = tokenized_documents(
        tmp_path,
        [encoded("wiki", "train", *range(3)), encoded("wiki", "train", *range(4)),
         encoded("code", "validation", *range(5))],
    )  # fmt: skip
    assert token_counts(documents) == {
        "train/code": {"num_documents": 0, "num_tokens": 0},
        "train/wiki": {"num_documents": 2, "num_tokens": 7},
        "validation/code": {"num_documents": 1, "num_tokens": 5},
        "validation/wiki": {"num_documents": 0, "num_tokens": 0},
    }
