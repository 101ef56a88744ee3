"""What a device can hold, checked before any work is done.

In: a device's name, a model's shape. Out: nothing, or a ValueError whose sentence says what to do.
"""

from typing import Any

import psutil
import torch

from nemotron.process import launched
from nemotron.recipes.nemotron_h.model import ModelConfig
from nemotron.recipes.nemotron_h.plan import count_parameters


def check_fits(shape: ModelConfig, *, dtype: str, device: str) -> None:
    """Raise ValueError if weights, gradients and optimizer moments alone exceed the memory of the device.

    Of several processes on GPUs, each holds its share of them, but all weights once, before they are sharded.
    """
    bytes_per_number = 8 if dtype == "float64" else 4
    weights = count_parameters(shape) * bytes_per_number
    present = device_memory_bytes(device)
    _, devices = launched() if torch.device(device).type == "cuda" else (0, 1)
    needed = max(4 * weights / devices, weights)  # weight, gradient and two moments
    if needed > present:
        more = "" if devices == 1 or needed == weights else ", or more processes"
        raise ValueError(
            f"training needs {needed / 2**30:,.0f} GiB for weights, gradients and moments, and {device} has "
            f"{present / 2**30:,.0f} GiB; use a smaller --scale{more}"
        )


def check_devices(shape: ModelConfig, train: Any, *others: Any) -> None:
    """Raise ValueError if training does not fit, or a step of the stage names a device that is not there.

    Args:
        train: Config of a stage's training, with dtype and device.
        others: Configs of its other steps, some of which have a device.
    """
    check_fits(shape, dtype=train.dtype, device=train.device)
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
