"""What training a shape takes: parameters, floating-point operations, memory, hours.

In: a `ModelConfig`. Out: numbers; nothing is trained and no weight has memory.
Run: python -c "from nemotron.recipes.nemotron_h.plan import *; print(count_parameters(PUBLISHED_12B))"

Left out: communication between devices, reading data, and every operation that is not part of a matrix product: the
others are under one in a hundred and wait for memory, which the assumed utilisation stands for.

Letters as in `model.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nemotron.recipes.nemotron_h.model import (
    ATTENTION,
    MAMBA,
    MIXERS,
    MLP,
    PUBLISHED_12B,
    Layer,
    ModelConfig,
    NemotronH,
    RMSNorm,
)

__all__ = [
    "HARDWARE",
    "PUBLISHED_12B",
    "bytes_kept_for_backward",
    "count_parameters",
    "floating_point_operations_per_token",
    "forward_operations_per_token",
    "training_hours",
    "training_memory_bytes",
]


@dataclass(frozen=True)
class Hardware:
    """What a machine promises, and which share of it a training step gets."""

    peak_operations_per_second: float
    """Of dense matrix products in the arithmetic that the name says."""
    utilisation: float
    origin: str


HARDWARE: dict[str, Hardware] = {
    "2 processor cores, float32": Hardware(
        peak_operations_per_second=1.6e11,
        utilisation=0.5,
        origin="measured: benchmarks/training_step.py on one core of an AMD EPYC 9004, its peak doubled",
    ),
    "1 NVIDIA H100 SXM, bfloat16": Hardware(
        peak_operations_per_second=989e12,
        utilisation=0.2,
        origin="peak: NVIDIA's data sheet, half of its 1,979 teraFLOPS with sparsity; utilisation: our assumption for "
        "plain PyTorch without fused kernels",
    ),
    "1,024 NVIDIA H100 SXM, bfloat16": Hardware(
        peak_operations_per_second=1024 * 989e12,
        utilisation=0.4,
        origin="peak: as one of them; utilisation: our assumption for the fused kernels and the sharding that such a "
        "run has and this code does not",
    ),
}


def count_parameters(config: ModelConfig) -> int:
    """Number of trained numbers, counted on the model itself without giving it memory."""
    return sum(parameter.numel() for parameter in NemotronH(config, device="meta").parameters())


def forward_operations_per_token(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """Floating-point operations of the forward pass, per token, by part; a multiplication and an addition are two.

    Within a chunk the scan multiplies whole squares, also their masked half. Attention counts what is not masked: on
    average (t + 1) / 2 positions, as its kernels skip the rest.
    """
    d, t = config.hidden_size, sequence_length
    h, p, g, n = config.mamba_num_heads, config.mamba_head_dim, config.n_groups, config.ssm_state_size
    i = min(config.chunk_size, t)
    inner = config.mamba_inner_size
    q = config.num_attention_heads * config.head_dim
    k = config.num_key_value_heads * config.head_dim
    one_layer = {
        MAMBA: 2 * d * (inner + config.mamba_conv_size + h)  # in_proj
        + 2 * config.conv_kernel * config.mamba_conv_size  # convolution
        + 2 * g * n * i  # C B^T
        + 2 * h * i * p  # read what the chunk wrote
        + 2 * h * p * n  # write the state
        + 2 * h * p * n  # read the state
        + 2 * inner * d,  # out_proj
        MLP: 2 * d * config.intermediate_size * 2,  # up_proj, down_proj
        ATTENTION: 2 * d * (q + 2 * k)  # q_proj, k_proj, v_proj
        + 2 * q * (t + 1) / 2 * 2  # queries with keys, weights with values
        + 2 * q * d,  # o_proj
    }
    names = {MAMBA: "mamba", MLP: "mlp", ATTENTION: "attention"}
    layers = {names[letter]: config.hybrid_override_pattern.count(letter) * one_layer[letter] for letter in names}
    return layers | {"logits": 2 * d * config.vocab_size}


def floating_point_operations_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Of forward and backward pass: every product of the forward pass has two in the backward pass."""
    return 3 * sum(forward_operations_per_token(config, sequence_length).values())


def training_memory_bytes(
    config: ModelConfig, *, micro_batch_sequences: int, sequence_length: int, dtype: str
) -> dict[str, int]:
    """Memory that one training step with AdamW needs at its peak, by part, on one device without sharding.

    Args:
        dtype: float64, float32 or bfloat16; bfloat16 means float32 weights whose products autocast computes in
            bfloat16, from copies that it keeps until the step.
    """
    parameters = count_parameters(config)
    number = 8 if dtype == "float64" else 4
    # The logits twice (logarithms of the softmax, and the logits or their gradient), in bfloat16 and float32 with it.
    logit = {"float64": 16, "float32": 8, "bfloat16": 10}[dtype]
    tokens = micro_batch_sequences * sequence_length
    return {
        "weights": parameters * number,
        **({"bfloat16 copies": parameters * 2} if dtype == "bfloat16" else {}),
        "gradients": parameters * number,
        "optimizer moments": 2 * parameters * number,
        "activations": tokens * _activation_bytes_per_token(config, dtype),
        "logits": tokens * config.vocab_size * logit,
    }


@cache
def _activation_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """What the layers keep for the backward pass, measured by running one of each kind on tensors without memory.

    It grows linearly with the sequence, so two lengths tell the share of one token apart from what is kept once.
    """
    short, long = 2 * config.chunk_size, 4 * config.chunk_size
    number: dict[str, Any] = {"dtype": torch.float64 if dtype == "float64" else torch.float32}
    kept = dict.fromkeys((short, long), 0)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        parts = [(Layer(letter, config, **number), config.hybrid_override_pattern.count(letter)) for letter in MIXERS]
        for part, times in [*parts, (RMSNorm(config.hidden_size, config, **number), 1)]:
            for length in kept:
                u = torch.empty(1, length, config.hidden_size, requires_grad=True, **number)
                kept[length] += times * bytes_kept_for_backward(part, u)
    return (kept[long] - kept[short]) // (long - short)


def bytes_kept_for_backward(function: Callable[[Any], Any], argument: torch.Tensor) -> int:
    """Bytes of every tensor that calling the function keeps for the backward pass, each memory counted once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        function(argument)
    return sum(storage.nbytes() for storage in kept.values())


def training_hours(operations: float, hardware: str) -> float:
    """Hours that so many floating-point operations take on one of `HARDWARE`."""
    machine = HARDWARE[hardware]
    return operations / (machine.peak_operations_per_second * machine.utilisation) / 3600
