from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.packing import TokenStream, best_fit, concatenate_documents, cut_once

END = 2
DOCUMENTS = st.lists(st.lists(st.integers(3, 20), max_size=12), min_size=1, max_size=12)


def documents_in(tokens):
    """The documents of a stream that ends with an end-of-document token."""
    documents, current = [], []
    for token in tokens:
        if token == END:
            documents.append(current)
            current = []
        else:
            current.append(token)
    assert not current
    return documents


@given(DOCUMENTS)
def test_documents_can_be_recovered_from_the_tokens(documents):
    assert documents_in(concatenate_documents(documents, END).tolist()) == documents


@given(DOCUMENTS)
def test_no_token_follows_templated_documents(documents):
    tokens = concatenate_documents(documents, None).tolist()
    assert tokens == [token for document in documents for token in document]


@given(DOCUMENTS, st.integers(1, 10))
def test_every_token_of_the_cut_rows_is_a_target_once(documents, length):
    tokens = concatenate_documents(documents, END)
    rows = cut_once(tokens, length)
    assert [token for row in rows for token in row[1:]] == tokens[1:].tolist()
    assert all(after[0] == before[-1] for before, after in pairwise(rows))
    assert all(len(row) == length + 1 for row in rows[:-1])
    assert all(2 <= len(row) <= length + 1 for row in rows)


@given(DOCUMENTS, st.lists(st.integers(1, 10), min_size=1, max_size=20))
def test_a_stream_gives_every_token_as_a_target_in_order_and_then_starts_over(documents, lengths):
    tokens = concatenate_documents(documents, END)
    stream = TokenStream(tokens)
    rows = [stream.next_row(length) for length in lengths]
    assert [len(row) for row in rows] == [length + 1 for length in lengths]
    targets = [token for row in rows for token in row[1:].tolist()]
    endless = np.tile(tokens, len(targets) // len(tokens) + 2).tolist()
    assert targets == endless[1 : len(targets) + 1]
    assert all(after[0] == before[-1] for before, after in pairwise(rows))
    assert stream.epochs == pytest.approx(sum(lengths) / len(tokens))


def test_rows_computed_by_hand():
    stream = TokenStream(concatenate_documents([[5, 6], [7]], END))
    assert stream.tokens.tolist() == [5, 6, 2, 7, 2]
    assert stream.next_row(3).tolist() == [5, 6, 2, 7]
    assert stream.next_row(3).tolist() == [7, 2, 5, 6]
    assert stream.epochs == 6 / 5
    assert [row.tolist() for row in cut_once(stream.tokens, 3)] == [[5, 6, 2, 7], [7, 2]]


def test_no_documents_give_no_rows():
    assert concatenate_documents([], END).tolist() == []
    assert cut_once(concatenate_documents([], END), 4) == []
    assert cut_once(np.array([7]), 4) == []


# --- whole conversations in one row ---


@given(lengths=st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_puts_every_document_into_exactly_one_row_with_room(lengths):
    rows = best_fit(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 50 for row in rows)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_best_fit_uses_at_most_eleven_ninths_of_the_optimal_rows(lengths):
    needed = -(-sum(lengths) // 50)
    assert len(best_fit(lengths, 50)) <= 11 / 9 * max(needed, sum(length > 25 for length in lengths)) + 4


def test_a_document_goes_into_the_fullest_row_that_has_room_for_it():
    assert best_fit([6, 7, 3, 2], 10) == [[1, 2], [0, 3]]  # 3 fills the row of 7, not the one of 6


@pytest.mark.parametrize("length", [0, 11])
def test_a_document_that_fits_no_row_is_an_error(length):
    with pytest.raises(ValueError, match=f"document 1 has {length} tokens, but a row holds 1 to 10"):
        best_fit([3, length], 10)
