"""How much memory a device has, and the precision in which a model computes on it.

In: a device's name, the dtype of a Config. Out: bytes, types, a context for the forward pass.
"""

import psutil
import torch


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
