"""What a device can hold, and what is refused before any work is done.

In: a device's name, a model's shape. Out: nothing, or one sentence that says what to do.
"""

import os

import torch

from nemotron.recipes.nemotron_h.model import ModelConfig
from nemotron.recipes.nemotron_h.plan import count_parameters


def refuse_what_does_not_fit(shape: ModelConfig, *, scale: str, dtype: str, device: str) -> None:
    """Raise ValueError if weights, gradients and optimizer moments alone exceed the memory of the device."""
    bytes_per_number = 8 if dtype == "float64" else 4
    needed = 4 * count_parameters(shape) * bytes_per_number  # weight, gradient and two moments
    present = device_memory_bytes(device)
    if needed > present:
        raise ValueError(
            f"scale={scale} needs {needed / 2**30:,.0f} GiB for weights, gradients and moments, and "
            f"{device} has {present / 2**30:,.0f} GiB; take a smaller scale, or look at it with --plan"
        )


def device_memory_bytes(device: str) -> int:
    """Memory of the device that a tensor on it would use.

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
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
