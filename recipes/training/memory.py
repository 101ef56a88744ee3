"""What a training needs on each device, as lines for `--plan`: memory by part, and the fewest cards with enough.

In: a model's shape, the Config of a training step, its forward passes. Out: text. Nothing is run.
Run: python -m nemotron.recipes.nano2.stage0_pretrain --scale medium --plan --devices 8

Left out: stages 2 to 4, whose memory depends on how long the replies become; the CUDA context and fragmentation, for
which a card's gigabytes are counted as 10^9 bytes, 3 to 7 % less than it reports.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from nemotron.recipes.nemotron_h.losses import chunk_tokens
from nemotron.recipes.nemotron_h.model import ModelConfig
from nemotron.recipes.nemotron_h.plan import count_parameters, memory_of_step

# Gigabytes, from NVIDIA's data sheets. B200: 1,440 GB in a DGX with eight.
CARDS = {
    "RTX 4090, 24 GB": 24,
    "A100, 40 GB": 40,
    "L40S, 48 GB": 48,
    "A100 or H100, 80 GB": 80,
    "H200, 141 GB": 141,
    "B200, 180 GB": 180,
}


class Pass(NamedTuple):
    """One kind of forward and backward pass of a training."""

    batch_rows: int
    """Rows of an optimizer step, over all devices."""
    micro_batch_rows: int
    """Rows of a pass on one device, at most."""
    length: int
    """Tokens of a row."""

    def rows(self, devices: int) -> int:
        """Rows of a pass on each of so many devices."""
        return min(self.micro_batch_rows, math.ceil(self.batch_rows / devices))


def check_device_count(passes: Sequence[Pass], devices: int) -> None:
    """Raise ValueError if there are more devices than rows in the largest batch."""
    most = max(one.batch_rows for one in passes)
    if devices > most:
        raise ValueError(
            f"devices={devices}, and the largest batch has {most} rows, so some devices would never have one; give at "
            f"most {most}, or use larger batches"
        )


def memory_of_pass(
    shape: ModelConfig, train: Any, one: Pass, devices: int, beside: Sequence[ModelConfig] = ()
) -> dict[str, int]:
    """`memory_of_step` for a pass of the step whose Config is `train`.

    Args:
        beside: shapes of the models that are there and do not learn.
    """
    parts = memory_of_step(
        shape,
        train.dtype,
        one.rows(devices),
        one.length,
        activation_checkpointing=train.activation_checkpointing,
        loss_chunk=chunk_tokens(shape.vocab_size),
        devices=devices,
    )
    others = sum(whole_weights(other, train.dtype) for other in beside) // devices
    return parts | ({"other models": others} if beside else {})


def whole_weights(shape: ModelConfig, dtype: str) -> int:
    """Bytes of all weights, which each device holds once: before they are sharded."""
    return count_parameters(shape) * (8 if dtype == "float64" else 4)


def fewest_devices(
    shape: ModelConfig, train: Any, one: Pass, device_bytes: int, beside: Sequence[ModelConfig] = ()
) -> int | None:
    """The fewest devices of this size on which a pass fits; None if it does not on as many as the batch has rows."""
    for devices in range(1, one.batch_rows + 1):
        needed = sum(memory_of_pass(shape, train, one, devices, beside).values())
        if max(needed, whole_weights(shape, train.dtype)) <= device_bytes:
            return devices
    return None


def memory_lines(
    shape: ModelConfig, train: Any, passes: Sequence[Pass], devices: int, beside: Sequence[ModelConfig] = ()
) -> list[str]:
    """Memory of each device by part, and the fewest cards, with a column for each kind of pass.

    Raises:
        ValueError: if there are more devices than rows in the largest batch.
    """
    check_device_count(passes, devices)
    kinds = list(dict.fromkeys(passes))
    needs = [memory_of_pass(shape, train, one, devices, beside) for one in kinds]
    again = train.activation_checkpointing

    def line(name: str, cells: Sequence[str]) -> str:
        return f"    {name:<28}" + "".join(f"{cell:>20}" for cell in cells)

    def gib(sizes: Sequence[int]) -> list[str]:
        return [f"{size / 2**30:,.2f} GiB" for size in sizes]

    place = "on one device" if devices == 1 else f"on each of {devices} devices, with FSDP2"
    lines = [
        f"  memory of a training step {place}, layers {'computed again' if again else 'kept'} for the backward pass",
        line("rows x tokens", [f"{one.rows(devices):,} x {one.length:,}" for one in kinds]),
        *(line(part, gib([parts[part] for parts in needs])) for part in needs[0]),
        line("together", gib([sum(parts.values()) for parts in needs])),
    ]
    if devices > 1:
        lines.append(line("all weights, at the start", gib([whole_weights(shape, train.dtype)] * len(kinds))))
    lines += ["", "  fewest cards with enough memory"]
    for card, gigabytes in CARDS.items():
        found = [fewest_devices(shape, train, one, gigabytes * 10**9, beside) for one in kinds]
        lines.append(line(card, ["-" if number is None else f"{number:,}" for number in found]))
    return lines
