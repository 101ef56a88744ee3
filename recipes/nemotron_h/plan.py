"""The cost of training a model: parameters, floating-point operations, memory and hours.

In: a `ModelConfig`. Out: numbers. Nothing is trained and no weight is allocated.
Run: python -c "from nemotron.recipes.nemotron_h.plan import *; print(count_parameters(PUBLISHED_12B))"

Left out: communication between devices, reading data, and operations outside matrix products. The latter are under
1 % of all operations; memory bandwidth limits them, and the assumed utilization accounts for their time.

Letters are those of `model.py`.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemotron.recipes.nemotron_h.model import (
    ATTENTION,
    MAMBA,
    MIXERS,
    MLP,
    PUBLISHED_12B,
    Layer,
    Linear,
    ModelConfig,
    NemotronH,
    RMSNorm,
    at_least_float32,
)

__all__ = [
    "HARDWARE",
    "PUBLISHED_12B",
    "LiveBytes",
    "bytes_saved_for_backward",
    "count_parameters",
    "floating_point_operations_per_token",
    "forward_operations_per_token",
    "memory_of_reading",
    "memory_of_step",
    "number_bytes",
    "training_hours",
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
        origin="peak: 1,024 times one H100; utilization: our assumption for a run with fused kernels and "
        "tensor parallelism, which this code does not have",
    ),
}


@cache
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


class Held(NamedTuple):
    """Bytes beyond weights, their gradients and the input, while a part of the model works."""

    kept: int
    """For the backward pass."""
    forward: int
    """Most in the forward pass."""
    backward: int
    """Most in the backward pass, what is kept included."""
    reading: int
    """Most in a forward pass after which there is no backward pass."""


def memory_of_step(
    shape: ModelConfig,
    dtype: str,
    rows: int,
    length: int,
    *,
    activation_checkpointing: bool = False,
    loss_chunk: int | None = None,
    devices: int = 1,
    scores: bool = False,
    documents: bool = False,
) -> dict[str, int]:
    """Most bytes that one device holds during a training step with AdamW, by part; the parts together are the peak.

    The peak is in a micro batch after the first of its step, when there are gradients already; a step of one micro
    batch needs less. What layers and loss hold is measured on one of each with fake tensors, which have no memory.

    Args:
        dtype: float64, float32 or bfloat16. bfloat16 means float32 weights under autocast, which computes products in
            bfloat16 from copies of the weights.
        rows: of one forward pass on one device.
        length: tokens of a row.
        activation_checkpointing: keep the input of each layer, and compute the layer again in the backward pass.
        loss_chunk: tokens whose logits are there at a time, computed again in the backward pass. None: all of them.
        devices: how many share weights, gradients and moments with FSDP2. A layer is whole while it works; embeddings
            and output matrix are one group, whole during the whole pass.
        scores: of a reward model, which has a head of one row and no loss over the vocabulary.
        documents: whether a row holds several, which a Mamba-2 layer keeps apart with a seventh more memory.
    """
    tokens, pattern = rows * length, shape.hybrid_override_pattern
    number = number_bytes(dtype)
    embeddings = shape.vocab_size * shape.hidden_size
    head = shape.hidden_size if scores else embeddings
    parameters = count_parameters(shape) - embeddings + head
    copies, head_copy = (2 * parameters, 2 * head) if dtype == "bfloat16" else (0, 0)
    measured = measured_tokens(shape, tokens)
    layers = {
        letter: _held(letter, shape, dtype, measured, tokens, documents) for letter in MIXERS if letter in pattern
    }
    loss_tokens = min(tokens, loss_chunk or tokens)
    residual = tokens * shape.hidden_size * number  # what a layer gives to the next
    loss = Held(0, head_copy, residual, 0) if scores else _held("loss", shape, dtype, measured, loss_tokens)

    # The loss or the backward pass of a layer is the peak. The bfloat16 copies are there until the forward pass ends,
    # and longer if the backward pass does not compute the layers again.
    if activation_checkpointing:
        activations = residual * (len(pattern) + 3)  # inputs of the layers, of the final norm and of the output matrix
        copies_after = 0
        at_layers = [residual * (at + 1) + layers[letter].backward for at, letter in enumerate(pattern)]
    else:
        activations = tokens * _activation_bytes_per_token(shape, dtype, documents) + residual
        copies_after = copies - head_copy
        kept = [layers[letter].kept for letter in reversed(pattern)]
        given_up = [0, *accumulate(kept)][::-1]  # by a layer and those after it
        at_layers = [
            activations + copies + layers[letter].backward - freed
            for letter, freed in zip(pattern, given_up, strict=False)
        ]
    # With chunks, the gradient of the output matrix is a sum: what it was, what is added, and the result.
    sums = 2 * (head_copy or head * number) if loss_tokens < tokens else 0
    at_loss = activations + max(copies - head_copy + loss.forward, copies_after + loss.backward + sums)
    peak = max(at_loss, *at_layers)
    gathered = 0
    if devices > 1:
        group = (embeddings + head) * number
        sizes = [number * _layer_parameters(letter, shape) for letter in pattern]
        pairs = [size + before for size, before in zip(sizes, [0, *sizes], strict=False)]
        # A layer is whole, the next one arrives, gradients leave, each with a buffer: three layers at a time, measured.
        at_work = [3 * pair // 2 for pair in pairs]
        gathered = -peak + max(
            2 * group,  # its weights when they arrive, its gradients when they leave: with a buffer of their size
            at_loss + group,
            activations + copies - head_copy + group + max(at_work),  # end of the forward pass
            max(map(add, at_layers, at_work)) + group + head * number,  # backward pass
        )
    share = -(-parameters // devices) * number
    return {
        "weights": share,
        **({"bfloat16 copies": copies} if copies else {}),
        "gradients": share,
        "optimizer moments": 2 * share,
        **({"gathered weights": gathered} if devices > 1 else {}),
        "activations": activations,
        "logits": at_loss - activations - copies,
        "backward pass of a layer": peak - at_loss,
    }


def memory_of_reading(shape: ModelConfig, dtype: str, tokens: int) -> int:
    """Most bytes beyond weights and states in a forward pass of so many tokens without a backward pass."""
    measured, residual = measured_tokens(shape, tokens), tokens * shape.hidden_size * number_bytes(dtype)
    letters = set(shape.hybrid_override_pattern)
    return residual + max(_held(letter, shape, dtype, measured, tokens).reading for letter in letters)


def number_bytes(dtype: str) -> int:
    """Bytes of a number of the weights; bfloat16 keeps them in float32."""
    return 8 if dtype == "float64" else 4


def measured_tokens(shape: ModelConfig, tokens: int) -> int:
    """How many tokens are measured: more are on a straight line, from 4,096 on in the published models."""
    return 2 * shape.chunk_size * max(1, min(tokens // (2 * shape.chunk_size), 16))


@cache
def _layer_parameters(letter: str, shape: ModelConfig) -> int:
    return sum(parameter.numel() for parameter in Layer(letter, shape, device="meta").parameters())


@cache
def _held(part: str, shape: ModelConfig, dtype: str, measured: int, tokens: int, documents: bool = False) -> Held:
    """What a layer, by its letter, or the loss holds for so many tokens, on the straight line through two lengths."""
    short, long = (_measure(part, shape, dtype, length, documents) for length in (measured // 2, measured))
    slopes = ((b - a) / (measured - measured // 2) for a, b in zip(short, long, strict=True))
    return Held(*(b + round(slope * (tokens - measured)) for b, slope in zip(long, slopes, strict=True)))


@cache
def _measure(part: str, shape: ModelConfig, dtype: str, tokens: int, documents: bool) -> Held:
    """What a layer or the loss holds in a forward and a backward pass of one row of so many tokens."""
    factory: dict[str, Any] = {"dtype": torch.float64 if dtype == "float64" else torch.float32}
    with FakeTensorMode(), LiveBytes() as live:
        if part == "loss":
            module: nn.Module = Linear(shape.hidden_size, shape.vocab_size, **factory)
            labels = torch.empty(tokens, dtype=torch.int64)
        else:
            module = Layer(part, shape, **factory)
        for parameter in module.parameters():
            parameter.grad = torch.empty_like(parameter)
        u = torch.empty(1, tokens, shape.hidden_size, requires_grad=True, **factory)
        segments = [torch.zeros(1, tokens, dtype=torch.int64)] if documents and part == MAMBA else []
        before = live.restart()
        precision = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.no_grad(), precision():
            module(u, *segments)
        reading = live.peak - before
        live.restart()
        with precision():
            y = module(u, *segments)
            if part == "loss":
                y = F.cross_entropy(at_least_float32(y)[0], labels, reduction="sum")
        forward = live.peak - before
        kept = live.restart() - before
        y.backward(torch.empty_like(y))
        return Held(kept, forward, live.peak - before, reading)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made inside it and are still there, and the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}  # id of a storage -> its bytes

    def restart(self) -> int:
        """Begin a new peak; return the bytes that are there now."""
        self.peak = self.now
        return self.now

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that is new, or has another size than before."""
        if id(storage) not in self._sizes:
            weakref.finalize(storage, self._add, id(storage), 0)
        self._add(id(storage), storage.nbytes())

    def _add(self, key: int, size: int) -> None:
        self.now += size - self._sizes.pop(key, 0)
        self.peak = max(self.peak, self.now)
        if size:
            self._sizes[key] = size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result


@cache
def _activation_bytes_per_token(config: ModelConfig, dtype: str, documents: bool) -> int:
    """Bytes per token that the layers save for the backward pass, measured on one layer of each kind with fake tensors.

    The bytes grow linearly with the sequence, so two lengths separate the share per token from the constant part.
    """
    short, long = 2 * config.chunk_size, 4 * config.chunk_size
    number: dict[str, Any] = {"dtype": torch.float64 if dtype == "float64" else torch.float32}
    saved = dict.fromkeys((short, long), 0)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        parts = {letter: Layer(letter, config, **number) for letter in MIXERS}
        norm = RMSNorm(config.hidden_size, config, **number)
        for length in saved:
            u = torch.empty(1, length, config.hidden_size, requires_grad=True, **number)
            segments = torch.zeros(1, length, dtype=torch.int64)
            for letter, part in parts.items():
                apart = partial(part, segments=segments) if documents and letter == MAMBA else part
                times = config.hybrid_override_pattern.count(letter)
                saved[length] += times * bytes_saved_for_backward(apart, u)
            saved[length] += bytes_saved_for_backward(norm, u)
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
