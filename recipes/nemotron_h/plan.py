"""The cost of training a model: parameters, floating-point operations, memory and hours.

In: a `ModelConfig`. Out: numbers. Nothing is trained and no weight is allocated.
Run: python -c "from nemotron.recipes.nemotron_h.plan import *; print(count_parameters(PUBLISHED_12B))"

Left out: communication between devices, reading data, and operations outside matrix products. The latter are under
1 % of all operations; memory bandwidth limits them, and the assumed utilization accounts for their time.

Letters are those of `model.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    "bytes_saved_for_backward",
    "count_parameters",
    "floating_point_operations_per_token",
    "forward_operations_per_token",
    "memory_of_step",
    "training_hours",
    "training_memory_bytes",
]


@dataclass(frozen=True)
class Hardware:
    """Peak speed of a machine, and the share of it that a training step reaches."""

    peak_operations_per_second: float
    """For dense matrix products in the dtype that the machine's name gives."""
    utilization: float
    """Share of the peak, 0 to 1."""
    origin: str
    """Source of both numbers."""


HARDWARE: dict[str, Hardware] = {
    "2 processor cores, float32": Hardware(
        peak_operations_per_second=1.6e11,
        utilization=0.5,
        origin="measured: benchmarks/training_step.py on one core of an AMD EPYC 9004, its peak doubled",
    ),
    "1 NVIDIA H100 SXM, bfloat16": Hardware(
        peak_operations_per_second=989e12,
        utilization=0.2,
        origin="peak: NVIDIA's data sheet, half of its 1,979 teraFLOPS with sparsity; utilization: our assumption for "
        "plain PyTorch without fused kernels",
    ),
    "1,024 NVIDIA H100 SXM, bfloat16": Hardware(
        peak_operations_per_second=1024 * 989e12,
        utilization=0.4,
        origin="peak: 1,024 times one H100; utilization: our assumption for a run with fused kernels and sharding, "
        "which this code does not have",
    ),
}


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters, counted on the model itself, which is built without allocating its weights."""
    return sum(parameter.numel() for parameter in NemotronH(config, device="meta").parameters())


def forward_operations_per_token(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """Floating-point operations of the forward pass per token, by kind of layer; a multiply-add counts as two.

    The scan computes whole (i, j) matrices, including the masked half. Attention kernels skip the masked half, so only
    (t + 1) / 2 positions per query count on average.
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
        + 2 * h * i * p  # read within the chunk
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
    """Operations of forward and backward pass per token: the backward pass has two products per forward product."""
    return 3 * sum(forward_operations_per_token(config, sequence_length).values())


def training_memory_bytes(
    config: ModelConfig, *, micro_batch_sequences: int, sequence_length: int, dtype: str
) -> dict[str, int]:
    """Peak memory of one training step with AdamW on one device without sharding, by part.

    Args:
        dtype: float64, float32 or bfloat16. bfloat16 means float32 weights under autocast, which computes products in
            bfloat16 from copies of the weights that it keeps during the step.
    """
    parameters = count_parameters(config)
    number = 8 if dtype == "float64" else 4
    # Bytes per logit. The loss holds two numbers for each: its log-softmax, and the logit or its gradient. With
    # bfloat16 both are float32, and the bfloat16 logit is held as well.
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


def memory_of_step(
    shape: ModelConfig,
    dtype: str,
    rows: int,
    length: int,
    *,
    activation_checkpointing: bool = False,
    loss_chunk: int | None = None,
    devices: int = 1,
) -> dict[str, int]:
    """Most bytes that one device holds during a training step with AdamW, by part.

    Args:
        rows: of one forward pass on one device.
        length: tokens of a row.
        activation_checkpointing: keep the input of each layer, and compute the layer again in the backward pass.
        loss_chunk: tokens whose logits are there at a time. None: all of them.
        devices: how many share weights, gradients and moments.
    """
    parts = training_memory_bytes(shape, micro_batch_sequences=rows, sequence_length=length, dtype=dtype)
    if activation_checkpointing:
        stream = rows * length * shape.hidden_size * (8 if dtype == "float64" else 4)
        kinds = [replace(shape, hybrid_override_pattern=letter) for letter in MIXERS]
        one = max(_activation_bytes_per_token(kind, dtype) for kind in kinds)
        parts["activations"] = stream * (len(shape.hybrid_override_pattern) + 3) + rows * length * one
    if loss_chunk is not None and loss_chunk < rows * length:
        parts["logits"] = parts["logits"] * loss_chunk // (rows * length)
    shared = ("weights", "gradients", "optimizer moments")
    return {part: size // devices if part in shared else size for part, size in parts.items()}


@cache
def _activation_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes per token that the layers save for the backward pass, measured on one layer of each kind with fake tensors.

    The bytes grow linearly with the sequence, so two lengths separate the share per token from the constant part.
    """
    short, long = 2 * config.chunk_size, 4 * config.chunk_size
    number: dict[str, Any] = {"dtype": torch.float64 if dtype == "float64" else torch.float32}
    saved = dict.fromkeys((short, long), 0)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        parts = [(Layer(letter, config, **number), config.hybrid_override_pattern.count(letter)) for letter in MIXERS]
        for part, times in [*parts, (RMSNorm(config.hidden_size, config, **number), 1)]:
            for length in saved:
                u = torch.empty(1, length, config.hidden_size, requires_grad=True, **number)
                saved[length] += times * bytes_saved_for_backward(part, u)
    return (saved[long] - saved[short]) // (long - short)


def bytes_saved_for_backward(function: Callable[[Any], Any], argument: torch.Tensor) -> int:
    """Bytes of all tensors that the call saves for the backward pass; tensors that share storage count once."""
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        function(argument)
    return sum(storage.nbytes() for storage in saved.values())


def training_hours(operations: float, hardware: str) -> float:
    """Hours that this many floating-point operations take on the machine of that name in `HARDWARE`."""
    machine = HARDWARE[hardware]
    return operations / (machine.peak_operations_per_second * machine.utilization) / 3600
