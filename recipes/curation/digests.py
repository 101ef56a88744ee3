"""Digests that order and select items in the same way on every machine."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa


def digest_of(*parts: str | int) -> str:
    """The sha256 of the parts, joined by "/", in hexadecimal.

    Sorting by it shuffles items reproducibly: the order of two items does not depend on the others.
    """
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def falls_into_share(share: float, *parts: str | int) -> bool:
    """Whether the digest of the parts is among the lowest `share` (0 to 1) of all digests."""
    return int(digest_of(*parts)[:16], 16) < share * 2**64


def sha256_of(values: Iterable[str]) -> str:
    """One sha256 of many strings in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{len(value)}:{value}".encode())
    return digest.hexdigest()


def sha256_of_ids(chunks: Iterable[pa.ListArray]) -> str:
    """One digest over the token ids of a column of lists, piece by piece; where a row ends does not matter."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.flatten().to_numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def sha256_of_rows(rows: Iterable[np.ndarray]) -> str:
    """One digest over the length and the token ids of every row."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + row.astype("<i4").tobytes())
    return digest.hexdigest()
