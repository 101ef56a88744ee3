"""The Nemotron-H architecture: Mamba-2, squared-ReLU and attention layers in the order that a pattern string gives.

In: token ids (b, t). Out: next-token logits (b, t, vocab_size).
Several documents may share a row (`segments`), and a row may be read in pieces (`DecodingState`).
Sources: arXiv 2504.03624 and 2508.14444 section 2.1 (architecture), arXiv 2405.21060 (Mamba-2); the initialisation and
the order of gate and norm as in NVIDIA's Megatron-LM (megatron/core/ssm/mamba_mixer.py).
Run: python -c "from nemotron.recipes.nemotron_h.plan import *; print(count_parameters(PUBLISHED_12B))"

Left out: mixture-of-experts layers, dropout, tied embeddings and biases of linear layers (the published models have
none), and fused kernels.

Every parameter is named as in the published checkpoints, so `state_dict()` is what `checkpoint.py` writes.

Letters, here and in every shape comment:

    b  sequence of the batch               A  (h)           decay rate of a head, < 0      paper: A, scalar per head
    t  position in the sequence            B  (b, t, g, n)  what a position writes         paper: B, like keys
    c  chunk of the sequence               C  (b, t, g, n)  what a position reads          paper: C, like queries
    i, j  position in a chunk: i reads     D  (h)           weight of the skip             paper: D
          what j wrote, j <= i             dt (b, t, h)     step size, > 0                 paper: Delta
    d  hidden size                         x  (b, t, h, p)  what is written                paper: X, like values
    h  head          p  size of a head     y  (b, t, h, p)  what is read                   paper: Y
    g  group of heads that share B and C   z  (b, t, h * p) gate of the output
    r  head within its group, h = g * r    state (b, h, p, n)                              paper: H
    n  size of the state
"""

import hashlib
import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The letters of hybrid_override_pattern, as in the published configurations.
MAMBA, MLP, ATTENTION = "M", "-", "*"


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one Nemotron-H model; the fields are spelled as in the published config.json.

    Raises:
        ValueError: if a size is no positive integer, one does not divide another, or the pattern has another letter.
    """

    vocab_size: int
    hidden_size: int
    hybrid_override_pattern: str
    """One letter per layer: M Mamba-2, - MLP, * attention."""
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mamba_num_heads: int
    mamba_head_dim: int
    n_groups: int
    ssm_state_size: int
    conv_kernel: int = 4
    chunk_size: int = 128
    """Positions that the scan handles at once; changes speed and memory, not the result."""
    layer_norm_epsilon: float = 1e-5
    initializer_range: float | None = None
    """Standard deviation of the initial weights; None is sqrt(0.8 / hidden_size), our derivation,
    which gives the values in NVIDIA's Megatron-LM configurations of the 8B, 12B and 56B."""
    max_position_embeddings: int = 131072
    """Written into config.json for tools that ask; there is no positional embedding that it could limit."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
                raise ValueError(f"{field.name}={value!r} must be of type {getattr(kind, '__name__', kind)}")
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"{field.name}={value} must be greater than 0")
        unknown = sorted(set(self.hybrid_override_pattern) - {MAMBA, MLP, ATTENTION})
        if unknown or not self.hybrid_override_pattern:
            raise ValueError(
                f"hybrid_override_pattern={self.hybrid_override_pattern!r} must be made of the letters "
                f"{MAMBA!r} (Mamba-2), {MLP!r} (MLP) and {ATTENTION!r} (attention)"
            )
        for whole, part in (("num_attention_heads", "num_key_value_heads"), ("mamba_num_heads", "n_groups")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part}={getattr(self, part)} does not divide {whole}={getattr(self, whole)}; pick a divisor"
                )

    @property
    def initial_std(self) -> float:
        """Standard deviation of the initial weights: published 0.0125 at 5120, 0.014 at 4096, 0.0099 at 8192."""
        return self.initializer_range or math.sqrt(0.8 / self.hidden_size)

    @property
    def mamba_inner_size(self) -> int:
        """Channels of x and z: heads times head size, which the published 9B does not tie to the hidden size."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_conv_size(self) -> int:
        """Channels that the convolution runs over: x, B and C side by side."""
        return self.mamba_inner_size + 2 * self.n_groups * self.ssm_state_size


# Published: 2508.14444 table 1. Its text says Mamba head size 64; the released weights have 80, which is also the only
# one of the two that gives the 12.31 and 8.89 billion parameters of the model cards.
PUBLISHED_12B = ModelConfig(
    vocab_size=131072,
    hidden_size=5120,
    hybrid_override_pattern="M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
    intermediate_size=20480,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    mamba_num_heads=128,
    mamba_head_dim=80,
    n_groups=8,
    ssm_state_size=128,
)
# Published: pruned from the 12B, so hidden_size no longer is half of mamba_inner_size.
PUBLISHED_9B = ModelConfig(
    vocab_size=131072,
    hidden_size=4480,
    hybrid_override_pattern="M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    intermediate_size=15680,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    mamba_num_heads=128,
    mamba_head_dim=80,
    n_groups=8,
    ssm_state_size=128,
)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already: norms and the scan never run in less."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Linear(nn.Module):
    """Product with a matrix, no bias. torch's own would draw numbers that nobody uses."""

    def __init__(self, in_size: int, out_size: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Embedding(nn.Module):
    """One row of a matrix per token id."""

    def __init__(self, rows: int, size: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size, **factory))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class CausalConv(nn.Module):
    """Convolution of every channel with a kernel of its own; a position sees itself and the ones before it."""

    def __init__(self, channels: int, kernel_size: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, **factory))  # the last one meets the present
        self.bias = nn.Parameter(torch.empty(channels, **factory))

    def forward(self, x: Tensor, segments: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        """(b, t, channels) to the same, at least float32.

        Args:
            segments: (b, t) the document of each position; one does not see another. None: all are of one.
            before: (b, k - 1, channels) what stands before the first position; zeros if left out.
        """
        _, t, _ = x.shape
        k = self.weight.shape[-1]
        x, weight, y = at_least_float32(x), at_least_float32(self.weight), at_least_float32(self.bias)
        padded = F.pad(x, (0, 0, k - 1, 0)) if before is None else torch.cat([before, x], dim=1)
        for tap in range(k):  # k shifted products: torch's own convolution is many times slower in float64
            seen = padded[:, tap : tap + t]
            if segments is not None and tap < k - 1:  # the last tap is the position itself
                seen = seen * (F.pad(segments, (k - 1, 0), value=-1)[:, tap : tap + t] == segments)[..., None]
            y = torch.addcmul(y, seen, weight[:, 0, tap])
        return y


class RMSNorm(nn.Module):
    """Divide by the root of the mean square over each group of channels, then scale every channel."""

    def __init__(self, size: int, config: ModelConfig, *, num_groups: int = 1, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, **factory))
        self.num_groups = num_groups
        self.epsilon = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        groups = at_least_float32(x).unflatten(-1, (self.num_groups, -1))  # (..., groups, channels of one)
        groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.epsilon)
        return (groups.flatten(-2) * self.weight).to(self.weight.dtype)


def ssd_scan_sequential(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """State-space scan, one position after the other: the definition that `ssd_scan_chunked` is tested against.

    Mamba-2 (arXiv 2405.21060), section 2: state = exp(dt * A) * state + dt * x B^T, y = state C + D * x.

    Args and returns: as `ssd_scan_chunked`.
    """
    b, t, h, p = x.shape
    r = h // B.shape[2]
    B, C = B.repeat_interleave(r, dim=2), C.repeat_interleave(r, dim=2)  # (b, t, h, n)
    state = x.new_zeros(b, h, p, B.shape[3]) if initial_state is None else initial_state
    outputs = []
    for position in range(t):
        if segments is not None and position > 0:
            state = state * (segments[:, position] == segments[:, position - 1])[:, None, None, None]
        step = dt[:, position, :, None]  # (b, h, 1)
        written = (step * x[:, position])[..., None] * B[:, position, :, None]
        state = torch.exp(step * A[:, None])[..., None] * state + written
        outputs.append((state @ C[:, position, :, :, None])[..., 0] + D[:, None] * x[:, position])
    return torch.stack(outputs, dim=1), state


def ssd_scan_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunked state-space scan; equals `ssd_scan_sequential` up to rounding.

    Mamba-2 (arXiv 2405.21060), section 6: within a chunk every position reads every earlier one through a matrix of
    decays, as in attention; between chunks only the state passes.

    Args:
        x: (b, t, h, p). dt: (b, t, h) step sizes after softplus, > 0. A: (h), < 0. B, C: (b, t, g, n). D: (h).
        chunk_size: positions per chunk; changes speed, not the result. The last chunk is padded in here.
        initial_state: (b, h, p, n) state before the first position; zeros if left out.
        segments: (b, t) the document of each position, those of one side by side: the state does not pass from one to
            the next. None: all positions are of one document. The first of a row goes on from `initial_state`.
    Returns:
        (b, t, h, p) outputs and the (b, h, p, n) state after the last position.
    Raises:
        ValueError: if chunk_size is below 1, or there is no position.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    b, t, h, p = x.shape
    if t == 0:
        raise ValueError("a scan of 0 positions; give at least 1")
    g, n = B.shape[2:]
    r = h // g
    i = min(chunk_size, t)  # positions of a chunk
    c = -(-t // i)
    skip = D[:, None] * x
    if padding := c * i - t:  # with a step size of 0 a position neither writes nor decays
        x, B, C = (F.pad(tensor, (0, 0, 0, 0, 0, padding)) for tensor in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, padding))
        if segments is not None:
            segments = torch.cat([segments, segments[:, -1:].expand(b, padding)], dim=1)

    written = (x * dt[..., None]).view(b, c, i, g, r, p)
    B = B.reshape(b, c, i, g, n).transpose(2, 3)  # (b, c, g, j, n)
    C = C.reshape(b, c, i, g, n).transpose(2, 3)  # (b, c, g, i, n)
    # Logarithm of the decay from the start of the chunk up to each position.
    log_decay = (dt * A).view(b, c, i, g, r).permute(0, 1, 3, 4, 2).cumsum(-1)  # (b, c, g, r, i)

    # Within a chunk, one matrix a head: i reads j through C_i B_j and the decay of the positions after j up to i.
    # Masked before the exponential, whose gradient would be infinite times 0; in place, the matrices are large.
    future = torch.full((i, i), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    if segments is not None:  # every other document is as unreadable as the future
        segments = segments.view(b, c, i)
        # (b, c) the document of the state before each chunk; initial_state is of the row's first document
        before = torch.cat([segments[:, :1, 0], segments[:, :-1, -1]], dim=1)
        future = future.where(segments[..., :, None] == segments[..., None, :], -math.inf)[:, :, None, None]
    decay = (log_decay[..., :, None] + (-log_decay)[..., None, :]).add_(future).exp_()  # (b, c, g, r, i, j)
    read = (C @ B.mT)[:, :, :, None] * decay  # (b, c, g, r, i, j)
    y = (read @ written.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)  # (b, c, i, g, r, p)

    # What a chunk adds to the state by its end, and the state before each chunk; the heads of a group side by side.
    to_end = (log_decay[..., -1:] - log_decay).exp().permute(0, 1, 4, 2, 3)  # (b, c, j, g, r)
    if segments is not None:
        to_end = to_end * (segments == segments[..., -1:])[..., None, None]
    added = B.mT @ (written * to_end[..., None]).transpose(2, 3).flatten(-2)  # (b, c, g, n, r * p)
    over_chunk = log_decay[..., -1].exp().repeat_interleave(p, dim=-1)[..., None, :]  # (b, c, g, 1, r * p)
    if segments is not None:
        over_chunk = over_chunk * (segments[..., -1] == before)[..., None, None, None]
    state = x.new_zeros(b, g, n, r * p) if initial_state is None else initial_state.reshape(b, g, r * p, n).mT
    states = []
    for chunk in range(c):
        states.append(state)
        state = torch.addcmul(added[:, chunk], over_chunk[:, chunk], state)

    # What each position reads of the state before its chunk.
    carried = (C @ torch.stack(states, dim=1)).unflatten(-1, (r, p)).transpose(2, 3)  # (b, c, i, g, r, p)
    from_start = log_decay.exp().permute(0, 1, 4, 2, 3)  # (b, c, i, g, r)
    if segments is not None:
        from_start = from_start * (segments == before[..., None])[..., None, None]
    y = torch.addcmul(y, from_start[..., None], carried)
    return y.reshape(b, c * i, h, p)[:, :t] + skip, state.mT.reshape(b, h, p, n)


@torch.no_grad()
def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> Tensor:
    """One position of the scan, for decoding; equals `ssd_scan_sequential` on one position up to rounding.

    Args:
        x: (b, h, p). dt: (b, h). A: (h). B, C: (b, g, n). D: (h). As in `ssd_scan_chunked`, without the positions.
        state: (b, h, p, n); updated in place, so that no gradient passes, not through the output either.
    Returns:
        (b, h, p) output.
    """
    b, h, p = x.shape
    g, n = B.shape[1:]
    heads_of_group = state.view(b, g, -1, n)  # (b, g, r * p, n): the heads of a group side by side
    written = (x * dt[..., None]).view(b, g, -1)
    state.mul_(torch.exp(dt * A)[..., None, None])
    heads_of_group.addcmul_(written[..., None], B[:, :, None])
    y = torch.einsum("bgkn,bgn->bgk", heads_of_group, C)
    return torch.addcmul(y.view(b, h, p), D[:, None], x)


@dataclass
class MambaState:
    """What a Mamba-2 layer knows of the tokens before: as much after a million of them as after one."""

    window: Tensor
    """(b, k - 1, channels) what the convolution reads of the last positions."""
    ssm: Tensor
    """(b, h, p, n) state of the scan."""

    def read(self, xBC: Tensor, num_new: Tensor | None) -> None:
        """Move the window on over (b, t, channels) new positions, of which `num_new` (b,) are no padding."""
        b, t, channels = xBC.shape
        past = self.window.shape[1]
        if num_new is None and t == 1:
            self.window = torch.cat([self.window[:, 1:], xBC], dim=1)
            return
        first = torch.full((b,), t, device=xBC.device) if num_new is None else num_new
        places = first[:, None] + torch.arange(past, device=xBC.device)  # (b, k - 1)
        positions = torch.cat([self.window, xBC], dim=1)
        self.window = positions.gather(1, places[..., None].expand(b, past, channels))


@dataclass
class AttentionState:
    """Keys and values of the tokens before; grows with them."""

    keys: Tensor
    """(b, key heads, capacity, head_dim); what lies beyond `lengths` is no key yet."""
    values: Tensor
    lengths: Tensor
    """(b,) tokens read."""

    def extended(self, k: Tensor, v: Tensor, num_new: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Take in the keys and values of t new positions; all so far, and which of them each new position may read."""
        b, heads, t, size = k.shape
        new = self.lengths[:, None] + torch.arange(t, device=k.device)  # (b, t) where each position stands in its row
        used = int(new[:, -1].max()) + 1
        if used > self.keys.shape[2]:  # room for twice as many, so that growing is rare
            room = (0, 0, 0, 2 * used - self.keys.shape[2])
            self.keys, self.values = F.pad(self.keys, room), F.pad(self.values, room)
        index = new[:, None, :, None].expand(b, heads, t, size)
        self.keys.scatter_(2, index, k)
        self.values.scatter_(2, index, v)
        self.lengths = self.lengths + (t if num_new is None else num_new)
        readable = torch.arange(used, device=k.device) <= new[:, None, :, None]  # (b, 1, t, used)
        return self.keys[:, :, :used], self.values[:, :, :used], readable


class DecodingState:
    """What the layers carry from one call of the model to the next, so that no token is read twice.

    For use under torch.no_grad(): with gradients it would keep the graph of every token that it has read.

    Args:
        model: for the shapes.
        batch_size: rows, each a sequence of its own.
    """

    def __init__(self, model: "NemotronH", batch_size: int) -> None:
        config, weight = model.config, model.lm_head.weight
        at_least = torch.promote_types(weight.dtype, torch.float32)
        b = batch_size
        self.layers: list[MambaState | AttentionState | None] = []
        for letter in config.hybrid_override_pattern:
            if letter == MAMBA:
                window = weight.new_zeros(b, config.conv_kernel - 1, config.mamba_conv_size)
                heads = (config.mamba_num_heads, config.mamba_head_dim)
                ssm = weight.new_zeros(b, *heads, config.ssm_state_size, dtype=at_least)
                self.layers.append(MambaState(window, ssm))
            elif letter == ATTENTION:
                keys = weight.new_zeros(b, config.num_key_value_heads, 0, config.head_dim)
                lengths = torch.zeros(b, dtype=torch.int64, device=weight.device)
                self.layers.append(AttentionState(keys, keys, lengths))
            else:
                self.layers.append(None)

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences but `rows`, (rows to keep,) indices."""
        for layer in self.layers:
            if layer is not None:
                for name, tensor in vars(layer).items():
                    setattr(layer, name, tensor[rows])

    def num_bytes(self, kind: type) -> int:
        """Memory of the layers of one kind, `MambaState` or `AttentionState`."""
        tensors = [tensor for layer in self.layers if isinstance(layer, kind) for tensor in vars(layer).values()]
        return sum(tensor.nbytes for tensor in tensors)


class Mamba2Mixer(nn.Module):
    """Mamba-2: a short convolution, the state-space scan, a gate, a norm per group of heads."""

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        inner, channels, heads = config.mamba_inner_size, config.mamba_conv_size, config.mamba_num_heads
        self.config = config
        self.in_proj = Linear(config.hidden_size, inner + channels + heads, **factory)
        self.conv1d = CausalConv(channels, config.conv_kernel, **factory)
        self.dt_bias = nn.Parameter(torch.empty(heads, **factory))
        self.A_log = nn.Parameter(torch.empty(heads, **factory))
        self.D = nn.Parameter(torch.empty(heads, **factory))
        self.norm = RMSNorm(inner, config, num_groups=config.n_groups, **factory)
        self.out_proj = Linear(inner, config.hidden_size, **factory)

    def forward(
        self,
        u: Tensor,
        segments: Tensor | None = None,
        state: MambaState | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor:
        """(b, t, d) to (b, t, d); see `NemotronH.forward` for the others."""
        b, t, _ = u.shape
        h, p = self.config.mamba_num_heads, self.config.mamba_head_dim
        g, n = self.config.n_groups, self.config.ssm_state_size
        z, xBC, dt = self.in_proj(u).split([h * p, self.config.mamba_conv_size, h], dim=-1)
        with torch.autocast(u.device.type, enabled=False):
            dt = F.softplus(at_least_float32(dt) + self.dt_bias)
            if num_new is not None:  # with a step size of 0 a position neither writes nor decays
                dt = dt * (torch.arange(t, device=u.device) < num_new[:, None])[..., None]
            window = None if state is None else state.window
            x, B, C = F.silu(self.conv1d(xBC, segments, window)).split([h * p, g * n, g * n], dim=-1)
            x, B, C = x.view(b, t, h, p), B.view(b, t, g, n), C.view(b, t, g, n)
            A, D = -torch.exp(at_least_float32(self.A_log)), at_least_float32(self.D)
            if state is not None and t == 1:
                y = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state.ssm)[:, None]
            else:
                before = None if state is None else state.ssm
                y, after = ssd_scan_chunked(x, dt, A, B, C, D, self.config.chunk_size, before, segments)
            if state is not None:
                state.ssm = state.ssm if t == 1 else after
                state.read(xBC, num_new)
            y = self.norm(y.flatten(2) * F.silu(at_least_float32(z)))  # gate first, then norm
        return self.out_proj(y)


class SquaredReluMLP(nn.Module):
    """Two matrices with relu(x)^2 between them; no gate."""

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, **factory)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, **factory)

    def forward(self, u: Tensor, segments: None = None, state: None = None, num_new: None = None) -> Tensor:
        """(b, t, d) to (b, t, d), each position by itself."""
        return self.down_proj(F.relu(self.up_proj(u)).square())


class Attention(nn.Module):
    """Causal attention; several query heads share a key and value head. No positional embedding: Mamba-2 sees order."""

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, **factory)
        self.k_proj = Linear(config.hidden_size, keys, **factory)
        self.v_proj = Linear(config.hidden_size, keys, **factory)
        self.o_proj = Linear(queries, config.hidden_size, **factory)

    def forward(
        self,
        u: Tensor,
        segments: Tensor | None = None,
        state: AttentionState | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor:
        """(b, t, d) to (b, t, d); see `NemotronH.forward` for the others."""
        q, k, v = (
            projection(u).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (b, heads, t, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None  # (b, 1, t, keys), True where a query may read a key; None: every one up to its own
        if segments is not None:
            mask = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
        if state is not None:
            k, v, mask = state.extended(k, v, num_new)
            if q.shape[2] == 1:  # the queries that share a key stand side by side, as if they were positions: faster
                q = q.view(k.shape[0], k.shape[1], -1, self.head_dim)
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                return self.o_proj(y.reshape(u.shape[0], 1, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


MIXERS: dict[str, type[nn.Module]] = {MAMBA: Mamba2Mixer, MLP: SquaredReluMLP, ATTENTION: Attention}


class Layer(nn.Module):
    """One letter of the pattern: u + mixer(norm(u))."""

    def __init__(self, letter: str, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config, **factory)
        self.mixer = MIXERS[letter](config, **factory)

    def forward(
        self,
        u: Tensor,
        segments: Tensor | None = None,
        state: MambaState | AttentionState | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor:
        """(b, t, d) to (b, t, d)."""
        return u + self.mixer(self.norm(u), segments, state, num_new)


class Backbone(nn.Module):
    """Embedding, the layers, the last norm."""

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.embeddings = Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(Layer(letter, config, **factory) for letter in config.hybrid_override_pattern)
        self.norm_f = RMSNorm(config.hidden_size, config, **factory)

    def forward(
        self,
        input_ids: Tensor,
        segments: Tensor | None = None,
        state: DecodingState | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor:
        """(b, t) to (b, t, d); arguments and errors as for `NemotronH.forward`."""
        if input_ids.shape[1] == 0:
            raise ValueError(f"input_ids of shape {tuple(input_ids.shape)} hold no token; give at least one a row")
        if segments is not None and state is not None:
            raise ValueError("segments and state exclude each other: a row read in pieces is one document; give one")
        if num_new is not None and state is None:
            raise ValueError("num_new says what a state keeps and no state is given; give one, or leave num_new out")
        u = self.embeddings(input_ids)
        for index, layer in enumerate(self.layers):
            u = layer(u, segments, state.layers[index] if state else None, num_new)
        return self.norm_f(u)


class NemotronH(nn.Module):
    """The language model. Its weights are uninitialised memory until `initialize` or `load_checkpoint` fills them."""

    def __init__(
        self, config: ModelConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, device=device, dtype=dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, device=device, dtype=dtype)

    def forward(
        self,
        input_ids: Tensor,
        segments: Tensor | None = None,
        state: DecodingState | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor:
        """(b, t) token ids to (b, t, vocab_size) logits in the parameters' dtype.

        Args:
            segments: (b, t) the document, 0 or more, of each position, those of one side by side; neither attention nor
                the convolution nor the scan's state passes from one to another. None: a row is one document.
            state: what the rows have read so far; they go on from there, and it is updated. Not with `segments`.
            num_new: (b,) how many of the t tokens of each row are its own; what follows is padding, which no state
                keeps. None: all are. Only with `state`.

        Raises:
            ValueError: if t is 0, `segments` come with `state`, or `num_new` without.
        """
        return self.lm_head(self.backbone(input_ids, segments, state, num_new))


def purpose_generator(seed: int, purpose: str) -> torch.Generator:
    """A random generator of its own for each purpose, so that one more draw for one of them moves no other."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@torch.no_grad()
def initialize(model: NemotronH, seed: int) -> None:
    """Fill every parameter as NVIDIA's Megatron-LM does for the published models.

    Matrices: normal with standard deviation sqrt(0.8 / hidden_size), those that write to the residual stream divided
    by sqrt(num_layers). Mamba-2: A uniform in [1, 16], dt log-uniform in [0.001, 0.1], D 1, convolution as in torch.

    Every number is drawn in float64 on the processor by a generator named after the parameter and then cast: the same
    weights with every instruction set, and a new parameter leaves the others as they are.
    """
    config = model.config
    std = config.initial_std
    residual_std = std / math.sqrt(len(config.hybrid_override_pattern))
    for name, parameter in model.named_parameters():
        generator = purpose_generator(seed, f"initial weights/{name}")
        uniform = partial(_uniform, parameter.shape, generator)
        owner, _, kind = name.rpartition("mixer.")[2].rpartition(".")
        if kind == "A_log":
            drawn = uniform(1, 16).apply_(math.log)
        elif kind == "dt_bias":
            drawn = uniform(math.log(0.001), math.log(0.1)).apply_(initial_dt_bias)
        elif kind == "D" or "norm" in owner:
            drawn = torch.ones(parameter.shape, dtype=torch.float64)
        elif owner == "conv1d":  # torch's default, kaiming-uniform with a = sqrt(5), is this for one channel a kernel
            drawn = uniform(-1 / math.sqrt(config.conv_kernel), 1 / math.sqrt(config.conv_kernel))
        else:
            assert parameter.ndim == 2, name
            writes_to_residual_stream = owner in ("out_proj", "o_proj", "down_proj")
            drawn = torch.empty(parameter.shape, dtype=torch.float64)
            drawn.normal_(0, residual_std if writes_to_residual_stream else std, generator=generator)
        parameter.copy_(drawn)


def _uniform(shape: torch.Size, generator: torch.Generator, low: float, high: float) -> Tensor:
    # Not uniform_(low, high): it fuses the two operations where the processor can, and then differs in the last bit.
    return torch.rand(shape, dtype=torch.float64, generator=generator).mul_(high - low).add_(low)


def initial_dt_bias(log_dt: float) -> float:
    """The x with softplus(x) = exp(log_dt), at least 1e-4. From `math`: torch's expm1 differs in the last bit, too."""
    dt = max(math.exp(log_dt), 1e-4)
    return dt + math.log(-math.expm1(-dt))


def parameter_groups(model: NemotronH, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices and convolution kernels decay; norms, biases, A_log, D and dt_bias do not.

    Megatron-LM's rule: what has one dimension does not decay. So the embedding and the depthwise kernels do.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
