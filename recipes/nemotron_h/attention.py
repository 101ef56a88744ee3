"""Causal attention without a matrix of all scores: over whole rows, within the documents of a row, or behind a mask.

In: queries, keys and values of all heads; query heads may share a key-value head. Out: what each query reads.

A (t, t) matrix of scores is too large: for a row of 16,384 tokens and 8 heads, 4 GiB in bfloat16. The kernels that
torch calls here work on one block of it at a time, and skip what lies in the future. Long rows of several documents
have no mask either:

- In bfloat16 on a GPU, one call of `flex_attention` knows from a list of blocks which of them hold a document's keys.
- Elsewhere, each document is a separate call. Short rows take one call with a mask, which is small.

Letters:   b row   t position   h query head   g key-value head   p size of a head
"""

from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

SHORT_ROW = 512  # positions, our choice: the mask of a row has 256 KiB at most
BLOCK = 128  # positions; the smallest block of flex_attention's kernel on every card


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(b, h, t, p) what each query reads.

    Args:
        q: (b, h, t, p). k, v: (b, g, keys, p).
        mask: (b, 1, t, keys), True where a query may read a key. None: every key up to its own position.
    """
    # On a GPU, the kernel for masks and for float32 needs a key head for each query head; without it, all scores are
    # held. The kernels of the processor, and that for bfloat16 without a mask, share keys.
    if q.device.type == "cuda" and (mask is not None or q.dtype == torch.float32):
        k, v = repeated_keys(q, k, v)
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)


def repeated_keys(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the queries."""
    times = q.shape[1] // k.shape[1]
    return k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def attend_within_documents(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    """(b, h, t, p) what each query reads of its own document, up to its own position.

    Args:
        q: (b, h, t, p). k, v: (b, g, t, p).
        segments: (b, t) document of each position; the positions of a document are contiguous.
    """
    if q.device.type == "cuda" and q.dtype == torch.bfloat16:
        shared = q.shape[1] != k.shape[1]
        read: Tensor = compiled_flex_attention()(q, k, v, block_mask=document_mask(segments), enable_gqa=shared)
        return read
    b, t = segments.shape
    if t <= SHORT_ROW:
        mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
        return attend(q, k, v, mask)
    lengths = document_lengths(segments)
    # All rows one after the other, (1, heads, b * t, p), and then document by document.
    queries, keys, values = (x.transpose(0, 1).flatten(1, 2)[None].split(lengths, dim=2) for x in (q, k, v))
    pieces = [attend(*document) for document in zip(queries, keys, values, strict=True)]
    return torch.cat(pieces, dim=2)[0].unflatten(1, (b, t)).transpose(0, 1)


def document_starts(segments: Tensor) -> Tensor:
    """(b, t) whether a document begins at a position; each row begins with one."""
    return F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)


def document_lengths(segments: Tensor) -> list[int]:
    """Tokens of each document, row after row."""
    starts = [*document_starts(segments).flatten().nonzero()[:, 0].tolist(), segments.numel()]
    return [end - start for start, end in pairwise(starts)]


def document_mask(segments: Tensor) -> BlockMask:
    """The blocks of keys that each block of queries may read, from the documents alone: no (t, t) matrix is built.

    They are consecutive: from the block in which the document of the first query begins, to the block of the queries.
    """
    t = segments.shape[1]
    positions = torch.arange(t, device=segments.device)
    first_key = torch.where(document_starts(segments), positions, 0).cummax(dim=1).values  # (b, t)
    blocks = torch.arange(-(-t // BLOCK), device=segments.device)
    first = first_key[:, ::BLOCK] // BLOCK  # (b, blocks of queries)
    number = blocks - first + 1
    indices = (first[..., None] + blocks).clamp(max=len(blocks) - 1)  # (b, blocks of queries, blocks of keys)

    def may_read(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (segments[row, query] == segments[row, key])

    return BlockMask.from_kv_blocks(
        number[:, None].int(), indices[:, None].int(), BLOCK_SIZE=BLOCK, mask_mod=may_read, seq_lengths=(t, t)
    )


@cache
def compiled_flex_attention() -> Any:
    """flex_attention is a kernel only if it is compiled; else it holds all scores."""
    return torch.compile(flex_attention)
