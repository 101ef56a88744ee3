"""Attention within documents against each document alone, and against a mask over all scores."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from nemotron.recipes.nemotron_h import attention
from nemotron.recipes.nemotron_h.attention import (
    BLOCK,
    attend,
    attend_within_documents,
    document_lengths,
    document_mask,
    repeated_keys,
)
from nemotron.recipes.nemotron_h.plan import bytes_saved_for_backward

ROWS = st.integers(1, 400).flatmap(
    lambda t: st.lists(st.lists(st.integers(0, t), max_size=5), min_size=1, max_size=3).map(lambda cuts: (t, cuts))
)
"""A length, and for each row the positions at which documents begin."""


@pytest.fixture(autouse=True)
def no_short_rows(monkeypatch):
    """Rows of a few tokens take the way of long ones."""
    monkeypatch.setattr(attention, "SHORT_ROW", 0)


def segments_of(t, cuts):
    starts = torch.zeros(len(cuts), t + 1, dtype=torch.int64)
    for row, positions in enumerate(cuts):
        starts[row, positions] = 1
    return starts[:, :t].cumsum(1)


def heads_of(b, t, seed=0, **factory):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, 4, t, 8), (b, 2, t, 8), (b, 2, t, 8))  # two query heads share a key-value head
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(**factory) for shape in shapes]


def masked(q, k, v, segments):
    """All scores, and a mask over them."""
    mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    return F.scaled_dot_product_attention(q, *repeated_keys(q, k, v), attn_mask=mask)


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_attention_within_documents_is_that_of_a_mask_with_its_gradients(drawn):
    segments = segments_of(*drawn)
    heads = [x.requires_grad_() for x in heads_of(*segments.shape)]
    weights = torch.linspace(-1, 1, heads[0].numel(), dtype=torch.float64).view(heads[0].shape)
    found, expected = (function(*heads, segments) for function in (attend_within_documents, masked))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((y * weights).sum(), heads) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_the_blocks_of_a_document_mask_are_those_of_all_scores(drawn):
    """A block that is listed without need costs time; one that is missing loses keys."""
    segments = segments_of(*drawn)
    b, t = segments.shape
    found = document_mask(segments)

    def may_read(row, head, query, key):
        return (key <= query) & (segments[row, query] == segments[row, key])

    expected = create_block_mask(may_read, b, None, t, t, device="cpu", BLOCK_SIZE=BLOCK)
    assert found.shape == expected.shape
    assert ((found.to_dense() > 0) >= (expected.to_dense() > 0)).all()
    first = [[row[query] for query in range(0, t, BLOCK)] for row in first_keys(segments)]
    listed = found.to_dense()[:, 0].tolist()
    for row, queries in zip(first, listed, strict=True):
        for block, (start, blocks) in enumerate(zip(row, queries, strict=True)):
            assert [bool(each) for each in blocks] == [start // BLOCK <= key <= block for key in range(len(blocks))]


def first_keys(segments):
    """The first position of each position's document."""
    return [[row.index(document) for document in row] for row in segments.tolist()]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # then it is plain arithmetic
@pytest.mark.parametrize("cuts", [[[]], [[1, 130, 256], [5]], [[300], [128], [0]]])
def test_flex_attention_with_the_document_mask_is_attention_within_documents(cuts):
    segments = segments_of(320, cuts)
    heads = heads_of(len(cuts), 320, dtype=torch.float32)
    found = flex_attention(*heads, block_mask=document_mask(segments), enable_gqa=True)
    torch.testing.assert_close(found, attend_within_documents(*heads, segments), rtol=1e-5, atol=1e-5)


class OnGpu(torch.Tensor):
    """A tensor of the processor that says it is on a GPU, to see which kernel is called there."""

    @property
    def device(self):
        return torch.device("cuda")


def test_bfloat16_on_a_gpu_takes_flex_attention_and_other_types_do_not(monkeypatch):
    called = []

    def kernel(q, k, v, *, block_mask, enable_gqa):
        called.append((block_mask.seq_lengths, enable_gqa))
        return q

    monkeypatch.setattr(attention, "compiled_flex_attention", lambda: kernel)
    segments = torch.zeros(2, 8, dtype=torch.int64)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        q, k = (torch.zeros(2, heads, 8, 16, dtype=dtype).as_subclass(OnGpu) for heads in (4, 2))
        assert attend_within_documents(q, k, k, segments).shape == q.shape
    assert called == [((8, 8), True)]


def test_the_gpu_kernels_that_need_it_get_a_key_head_for_each_query_head(monkeypatch):
    heads = []

    def kernel(q, k, v, *, attn_mask, is_causal, enable_gqa):
        heads.append((k.shape[1], v.shape[1], enable_gqa, is_causal))
        return q

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", kernel)
    for place, dtype, is_masked in (
        (OnGpu, torch.bfloat16, False),
        (OnGpu, torch.bfloat16, True),
        (OnGpu, torch.float32, False),
        (torch.Tensor, torch.bfloat16, True),
    ):
        q, k = (torch.zeros(2, number, 8, 16, dtype=dtype).as_subclass(place) for number in (4, 2))
        attend(q, k, k, torch.ones(2, 1, 8, 8, dtype=torch.bool) if is_masked else None)
    assert heads == [(2, 2, True, True), (4, 4, False, False), (4, 4, False, True), (2, 2, True, False)]


@pytest.mark.parametrize("is_masked", [False, True])
def test_repeated_keys_give_what_shared_keys_give(is_masked):
    q, k, v = heads_of(2, 9)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = mask | torch.eye(9, dtype=torch.bool) if is_masked else None
    found = attend(q, *repeated_keys(q, k, v), mask)
    torch.testing.assert_close(found, attend(q, k, v, mask), rtol=1e-13, atol=1e-13)


def test_documents_of_all_rows_are_counted_one_after_the_other():
    assert document_lengths(torch.tensor([[0, 0, 1, 2], [2, 2, 2, 0]])) == [2, 1, 1, 3, 1]


@pytest.mark.parametrize(("t", "calls"), [(8, 1), (9, 4)])
def test_short_rows_take_one_call_with_a_mask(monkeypatch, t, calls):
    monkeypatch.setattr(attention, "SHORT_ROW", 8)
    counted = []
    monkeypatch.setattr(attention, "attend", lambda *arguments: counted.append(arguments) or attend(*arguments))
    segments = segments_of(t, [[3], [1]])
    heads = heads_of(2, t)
    found = attend_within_documents(*heads, segments)
    torch.testing.assert_close(found, masked(*heads, segments), rtol=1e-13, atol=1e-13)
    assert len(counted) == calls


def test_no_score_is_kept_for_the_backward_pass():
    segments = segments_of(400, [[100, 130], [7]])
    q, k, v = (x.requires_grad_() for x in heads_of(2, 400))
    kept = bytes_saved_for_backward(lambda q: attend_within_documents(q, k, v, segments), q)
    assert kept < 4 * (q.nbytes + 2 * k.nbytes)
    assert bytes_saved_for_backward(lambda q: masked(q, k, v, segments), q) > 2 * 400 * 400 * 8
