"""How much of the raw data a run takes: `apply_scale(count, scale)`.

In: the number of raw documents that a stage declares, and the scale. Out: how many of them to take. It is applied once
per stage. The sizes of batches and schedules at each scale are in the Config of each step (nemotron/config.py).
"""

from typing import Literal, get_args

Scale = Literal["tiny", "small", "medium", "full"]
SCALES: tuple[Scale, ...] = get_args(Scale)

_PERCENT: dict[Scale, int] = {"tiny": 1, "small": 10, "medium": 30, "full": 100}
_TINY_MAX_ROWS = 10_000  # a tiny stage stays fast, however large the corpus is


def apply_scale(count: int, scale: Scale) -> int:
    """Number of rows out of `count` that a run at `scale` takes, rounded down.

    tiny takes 1 % and at most 10,000, small 10 %, medium 30 %, full all. The result is at least 1 if count is, never
    more than count, and never smaller for a larger count.

    Args:
        count: rows there are, >= 0.
        scale: one of SCALES.
    Raises:
        ValueError: for an unknown scale, or a count that is not an integer or is negative.
    """
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r} is unknown; pick one of {', '.join(SCALES)}")
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"count={count!r} is not an integer; give a number of rows")
    if count < 0:
        raise ValueError(f"count={count} is negative; give a number of rows")
    rows = max(count * _PERCENT[scale] // 100, min(count, 1))
    return min(rows, _TINY_MAX_ROWS) if scale == "tiny" else rows
