"""The four files that pretraining is evaluated on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.curation.held_out import write_held_out_data
from nemotron.recipes.curation.long_context import recall_distances
from nemotron.recipes.curation.rows import TOKENS, read_column, read_token_rows
from nemotron.recipes.curation.tokenized import joined, write_part
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents, train_tokenizer
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.problems.families import generate_problems

LENGTH, LONG_LENGTH = 128, 512
SIZES = {"validation_sequences": 4, "long_validation_sequences": 3, "rows_per_distance": 2}
PROBLEMS = generate_problems(4, 0, "evaluation")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text to learn merges from"], 300)


def documents_of(tokenizer, texts, prefix="short"):
    """Documents of (category, split, text), each in a separate module, with splits and tokens."""
    tokens = encode_documents(tokenizer, [text for _, _, text in texts])
    return [
        (Document(f"{prefix}{n}", f"{prefix}{n}", category, text, "MIT", "a"), split, ids)
        for n, ((category, split, text), ids) in enumerate(zip(texts, tokens, strict=True))
    ]


@pytest.fixture(scope="module")
def documents(tokenizer):
    """Three short held-out documents of code, 40 of prose, and training documents whose text is all capitals."""
    code = [("code", "validation", f"x = {n}") for n in range(3)]
    prose = [("wiki", "validation", f"this is held-out document {n}\n" * 3) for n in range(40)]
    training = [(category, "train", "CAPITALS " * 50) for category in ("code", "wiki")]
    return documents_of(tokenizer, code + prose + training)


@pytest.fixture(scope="module")
def written(documents, tokenizer, tmp_path_factory):
    return write(tmp_path_factory.mktemp("held_out"), documents, tokenizer)


def write(path, documents, tokenizer, **changes):
    sizes = {"seed": 1, "sequence_length": LENGTH, "long_context_length": LONG_LENGTH, **SIZES, **changes}
    parts = joined(path / "parts", [write_part(path / "parts", 0, *zip(*documents, strict=True))])
    write_held_out_data(path, parts, tokenizer, PROBLEMS, **sizes)
    return path


def validation_rows(path, category):
    rows = zip(
        read_column(path / "validation.parquet", "category"), read_token_rows(path / "validation.parquet"), strict=True
    )
    return [tokens.tolist() for name, tokens in rows if name == category]


def test_validation_rows_are_the_held_out_documents_of_a_category_in_order(written, documents):
    held_out = [ids.tolist() for one, split, ids in documents if one.category == "code" and split != "train"]
    (row,) = validation_rows(written, "code")
    assert row == [token for tokens in held_out for token in [*tokens, END_OF_DOCUMENT]]


def test_validation_rows_have_the_sequence_length_and_their_number_is_limited(written, documents, tokenizer, tmp_path):
    assert [len(row) for row in validation_rows(written, "wiki")] == [LENGTH + 1] * 4
    unlimited = validation_rows(write(tmp_path, documents, tokenizer, validation_sequences=1000), "wiki")
    assert len(unlimited) > 4
    assert {len(row) for row in unlimited[:-1]} == {LENGTH + 1}
    assert 2 <= len(unlimited[-1]) <= LENGTH + 1
    held_out = [ids for one, split, ids in documents if one.category == "wiki" and split == "validation"]
    predicted = sum(len(row) - 1 for row in unlimited)
    assert predicted == sum(len(ids) + 1 for ids in held_out) - 1  # all but the very first token


def test_long_rows_have_the_long_length_and_their_number_is_limited(written):
    assert [len(row) for row in read_token_rows(written / "long_validation.parquet")] == [LONG_LENGTH + 1] * 3


def test_a_long_row_comes_from_a_single_document_where_one_is_long_enough(tokenizer, documents, tmp_path):
    long = documents_of(tokenizer, [("wiki", "validation", "a long document\n" * 100)], prefix="long")
    write(tmp_path, documents + long, tokenizer, long_validation_sequences=1)
    (row,) = read_token_rows(tmp_path / "long_validation.parquet")
    assert row.tolist() == long[0][2][: LONG_LENGTH + 1].tolist()


def test_short_documents_are_joined_by_a_blank_line_into_long_rows(written, tokenizer):
    text = tokenizer.decode(read_token_rows(written / "long_validation.parquet")[0].tolist())
    assert "\n\n" in text


def test_nothing_comes_from_the_training_split(written, tokenizer):
    for name in ("validation", "long_validation", "recall"):
        text = "".join(tokenizer.decode(row.tolist()) for row in read_token_rows(written / f"{name}.parquet"))
        assert "held-out" in text
        assert "CAPITALS" not in text


def test_problems_are_written_as_they_are(written):
    rows = pq.read_table(written / "problems.parquet").to_pylist()
    assert rows == [
        {"id": p.id, "question": p.question, "choices": list(p.choices), "correct": p.correct} for p in PROBLEMS
    ]


def test_recall_rows_end_in_the_digits_of_their_answer(written, tokenizer):
    rows = pq.read_table(written / "recall.parquet").to_pylist()
    assert [row["distance"] for row in rows] == [d for d in recall_distances(LENGTH, LONG_LENGTH) for _ in range(2)]
    for row in rows:
        assert row["answer_start"] == len(row["tokens"]) - 3
        assert tokenizer.decode(row["tokens"][-3:]).isdigit()
        assert 1 <= row["num_facts"] <= 4


@pytest.mark.parametrize("name", ["validation", "long_validation", "recall"])
def test_tokens_are_stored_as_32_bit_integers(written, name):
    assert pq.read_schema(written / f"{name}.parquet").field("tokens").type == TOKENS == pa.list_(pa.int32())
    assert read_token_rows(written / f"{name}.parquet")[0].dtype == np.int32


def test_a_category_without_held_out_text_is_refused(documents, tokenizer, tmp_path):
    without = [part for part in documents if (part[0].category, part[1]) != ("code", "validation")]
    with pytest.raises(ValueError, match="the validation split of category 'code' has 0 tokens and needs 2"):
        write(tmp_path, without, tokenizer)
