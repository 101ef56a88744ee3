import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.digests import digest_of, falls_into_share, sha256_of, sha256_of_ids, sha256_of_rows
from nemotron.recipes.curation.rows import TOKENS


def test_digest_of_is_the_sha256_of_the_joined_parts():
    # printf '1/b' | sha256sum
    assert digest_of(1, "b") == "daa2ba1a2c0a874a6e8e7bdf8d24144bb8194392df702ccbecb4ab927638e885"


def test_a_share_of_0_has_no_digest_and_a_share_of_1_has_all():
    assert not any(falls_into_share(0.0, number) for number in range(100))
    assert all(falls_into_share(1.0, number) for number in range(100))


def test_about_the_share_asked_for_falls_into_it():
    assert 150 <= sum(falls_into_share(0.2, "seed", number) for number in range(1000)) <= 250


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_contains_a_smaller_one(number, one, other):
    smaller, larger = sorted((one, other))
    assert falls_into_share(larger, number) >= falls_into_share(smaller, number)


def test_sha256_of_hashes_each_value_after_its_length():
    assert sha256_of(["ab", "é"]) == hashlib.sha256("2:ab1:é".encode()).hexdigest()


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_only_equal_lists_have_equal_digests(one, other):
    assert (sha256_of(one) == sha256_of(other)) == (one == other)


IDS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=4)


def test_sha256_of_ids_hashes_the_ids_as_little_endian_32_bit_integers():
    column = pa.chunked_array([[[1, 2]], [[3]]], TOKENS)
    assert sha256_of_ids(column.chunks) == hashlib.sha256(bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])).hexdigest()


@given(IDS, st.integers(0, 4))
def test_neither_chunks_nor_the_ends_of_rows_change_sha256_of_ids(rows, split):
    whole = pa.chunked_array([[[token for row in rows for token in row]]], TOKENS)
    chunked = pa.chunked_array([rows[:split], rows[split:]], TOKENS)
    assert sha256_of_ids(chunked.chunks) == sha256_of_ids(whole.chunks)


def test_a_slice_of_a_column_is_hashed_without_the_rest():
    column = pa.chunked_array([[[1, 2], [3], [4]]], TOKENS)
    assert sha256_of_ids(column.slice(1, 1).chunks) == sha256_of_ids([pa.array([[3]], TOKENS)])


def test_sha256_of_rows_hashes_each_row_after_its_length():
    expected = hashlib.sha256(bytes([2, *[0] * 7, 1, 0, 0, 0, 2, 0, 0, 0])).hexdigest()
    assert sha256_of_rows([np.array([1, 2], np.int32)]) == sha256_of_rows([np.array([1, 2])]) == expected


@given(IDS, IDS)
def test_only_equal_rows_have_equal_digests(one, other):
    digests = [sha256_of_rows(np.array(row, np.int32) for row in rows) for rows in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_sha256_of_rows_sees_where_a_row_ends():
    assert sha256_of_rows([np.array([1, 2])]) != sha256_of_rows([np.array([1]), np.array([2])])
