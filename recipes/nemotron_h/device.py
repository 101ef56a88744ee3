"""What a device can hold, checked before any work is done.

In: a device's name, a model's shape. Out: nothing, or a ValueError whose sentence says what to do.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import psutil
import torch

from nemotron.recipes.nemotron_h.losses import chunk_tokens
from nemotron.recipes.nemotron_h.model import ModelConfig
from nemotron.recipes.nemotron_h.plan import count_parameters, memory_of_step

MOST_DEVICES = 1024  # our choice: as many are tried in the sentence that says what would fit


def check_fits(
    shape: ModelConfig,
    config: Any,
    passes: Sequence[tuple[int, int]] = ((1, 1),),
    beside: Sequence[ModelConfig] = (),
) -> None:
    """Raise ValueError if a training step needs more memory than the device has; the sentence says what would fit.

    The memory is that of the plan (`memory_of_step`). In a run of several processes it is that of each of them; there
    the copy of the whole model that writes replies is left out, and a reward model counts as if it were sharded.

    Args:
        shape: of the model that learns.
        config: of the step, with dtype, device and activation_checkpointing.
        passes: rows of a forward pass and tokens of a row, for each kind of pass; the largest decides.
        beside: shapes of the models that are in memory and do not learn.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if several else 1
    present = device_memory_bytes(config.device)
    if torch.device(config.device).type == "cpu":  # all processes of this machine share it
        present //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    number = 8 if config.dtype == "float64" else 4
    whole = count_parameters(shape) * number
    tokens = max(rows * length for rows, length in passes)
    if more_than_needed(shape, tokens, sum(map(count_parameters, beside))) <= present:
        return

    def parts_of(again: bool, most_rows: int, devices: int) -> dict[str, int]:
        step = partial(memory_of_step, shape, config.dtype, activation_checkpointing=again, devices=devices)
        found = [step(min(rows, most_rows), t, loss_chunk=chunk_tokens(shape.vocab_size)) for rows, t in passes]
        others = sum(map(count_parameters, beside)) * number // devices
        parts = max(found, key=lambda parts: sum(parts.values())) | ({"other models": others} if others else {})
        return parts if sum(parts.values()) >= whole else {"weights before they are sharded": whole}

    def fits(again: bool, most_rows: int, devices: int) -> bool:
        return sum(parts_of(again, most_rows, devices).values()) <= present

    again, rows = config.activation_checkpointing, max(rows for rows, _ in passes)
    if fits(again, rows, processes):
        return
    # What would fit: the same with layers computed again, then fewer rows, then more devices.
    ways = ["--activation-checkpointing"] if not again and fits(True, rows, processes) else []
    beside_it = "" if again else " and --activation-checkpointing"
    sizes = (rows >> halvings for halvings in range(1, rows.bit_length()))
    if fewer := next((size for size in sizes if fits(True, size, processes)), None):
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in vars(config) if "micro_batch" in name)
        ways.append(f"{fewer} instead of {rows} rows per forward pass (a smaller {flags}){beside_it}")
    counts = (processes << doublings for doublings in range(1, MOST_DEVICES.bit_length()))
    if more := next((count for count in counts if fits(True, rows, count)), None):
        ways.append(f"{more} such devices with torchrun{beside_it}")
    parts = parts_of(again, rows, processes)
    listed = ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items())
    raise ValueError(
        f"training needs {in_gib(sum(parts.values()))} GiB ({listed}), and {config.device} has {in_gib(present)} GiB; "
        f"use {', or '.join([*ways, 'a smaller --scale'])}"
    )


def more_than_needed(shape: ModelConfig, tokens: int, others: int) -> int:
    """A rough number of bytes, above those of any training step: small models need not wait for the exact one.

    Args:
        tokens: of a forward pass.
        others: parameters of the models beside the one that learns.
    """
    heads = shape.mamba_num_heads * (shape.chunk_size + shape.mamba_head_dim)
    widest = max(heads, shape.intermediate_size, 4 * shape.hidden_size, 2 * shape.mamba_conv_size)
    layers = 60 * widest * len(shape.hybrid_override_pattern)  # numbers for each token; 5 times what is held, or more
    return 8 * (5 * count_parameters(shape) + others + tokens * (layers + 4 * shape.vocab_size))


def in_gib(size: int) -> str:
    """Bytes in GiB, with a digit after the point below 10."""
    gib = size / 2**30
    return f"{gib:,.0f}" if gib >= 10 else f"{gib:.1f}"


def check_devices(shape: ModelConfig, train: Any, *others: Any) -> None:
    """Raise ValueError if training does not fit, or a step of the stage names a device that is not there.

    Rows are not known before curation: here each has one token. The step itself checks again with those that it reads.

    Args:
        train: Config of a stage's training, with dtype, device and activation_checkpointing.
        others: Configs of its other steps, some of which have a device.
    """
    check_fits(shape, train)
    for config in others:
        if hasattr(config, "device"):
            device_memory_bytes(config.device)


def device_memory_bytes(device: str) -> int:
    """Total memory of the device; for "cuda" without a number, of the current CUDA device.

    Raises:
        ValueError: if this machine has no such device.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind == "cuda":
        count = torch.cuda.device_count()
        if (torch.device(device).index or 0) >= count:
            raise ValueError(f"device={device}: this machine has {count} CUDA devices; use --device cpu or another one")
        return torch.cuda.get_device_properties(device).total_memory
    if kind != "cpu":
        raise ValueError(f"device={device} is not supported; use cpu, cuda or cuda:<number>")
    return psutil.virtual_memory().total


def weight_dtype(dtype: str) -> torch.dtype:
    """Type of the weights: with bfloat16 they stay in float32, and only matrix products are computed in bfloat16."""
    return torch.float64 if dtype == "float64" else torch.float32


def autocast(dtype: str, device: str) -> torch.autocast:
    """The context in which a model computes its matrix products in `dtype`.

    Leave it after each forward pass: inside, it caches bfloat16 copies of the weights, which the optimizer makes stale.

    With bfloat16 on a GPU, products of float32 numbers, such as those of the scan, may from now on round their inputs
    to 11 significant bits (TF32, eight times as fast); those of bfloat16 have 8. With other types they may not.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = dtype == "bfloat16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16")
