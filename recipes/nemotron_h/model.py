"""The Nemotron-H architecture: Mamba-2, squared-ReLU MLP and attention layers in the order of a pattern string.

In: token ids (b, t). Out: next-token logits (b, t, vocab_size).
A row can hold several documents (`segments`), or can be read in pieces (`DecodingState`).
Run: python -c "from nemotron.recipes.nemotron_h.plan import *; print(count_parameters(PUBLISHED_12B))"

Where to start: `Layer` adds to the residual stream once, `Mamba2Mixer` is the layer that differs from a transformer,
`ssd_scan_sequential` defines what it computes, and `ssd_scan_chunked` computes the same result in parallel.

Sources: arXiv 2504.03624 and 2508.14444 section 2.1 (architecture), arXiv 2405.21060 (Mamba-2). The initial weights and
the order of gate and norm follow NVIDIA's Megatron-LM (megatron/core/ssm/mamba_mixer.py).

Left out: mixture-of-experts layers and fused kernels; also dropout, tied embeddings and biases of linear layers, which
the published models do not have.

Every parameter has its name in the published checkpoints, so `state_dict()` is what `checkpoint.py` writes.

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
    n  size of the state                   u  (b, t, d)     residual stream
    k  positions that the convolution sees; in attention q, k and v are queries, keys and values
"""

import copy
import hashlib
import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nemotron.recipes.nemotron_h.attention import attend, attend_within_documents
from nemotron.strict import short

# Letters of hybrid_override_pattern, as in the published configurations.
MAMBA, MLP, ATTENTION = "M", "-", "*"

# Limits, our choice. A damaged or made-up config.json must not keep a machine busy or overflow a number of 64 bits. The
# largest published Nemotron-H model has 118 layers and a hidden size of 8,192.
MAX_LAYERS = 1000
MAX_SIZE = 1 << 20
OTHER_LIMITS = {"chunk_size": 1 << 16, "conv_kernel": 64, "max_position_embeddings": 1 << 31}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Nemotron-H model. Field names are those of the published config.json.

    Raises:
        ValueError: if a field has the wrong type, is not positive or is above its limit, if the pattern is empty, too
            long or has an unknown letter, or if the key-value heads or groups do not divide their heads.
    """

    vocab_size: int
    hidden_size: int
    hybrid_override_pattern: str
    """One letter per layer: M for Mamba-2, - for MLP, * for attention."""
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mamba_num_heads: int
    mamba_head_dim: int
    n_groups: int
    ssm_state_size: int
    # These three are published for every size: NVIDIA's Megatron-LM, and transformers.
    conv_kernel: int = 4
    chunk_size: int = 128
    """Positions that the scan handles at once. Changes speed and memory, not the result."""
    layer_norm_epsilon: float = 1e-5
    initializer_range: float | None = None
    """Standard deviation of the initial weights. None means sqrt(0.8 / hidden_size): our derivation, which
    reproduces the values in NVIDIA's Megatron-LM configurations of the 8B, 12B and 56B."""
    max_position_embeddings: int = 131072
    """Context length. `generate` stops there; the model has no positional embedding that would limit it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
                raise ValueError(f"{field.name}={short(value)} must be of type {getattr(kind, '__name__', kind)}")
            if isinstance(value, int | float) and not 0 < value < math.inf:
                raise ValueError(f"{field.name}={short(value)} must be greater than 0 and finite")
            if isinstance(value, int) and value > (limit := OTHER_LIMITS.get(field.name, MAX_SIZE)):
                raise ValueError(f"{field.name}={short(value)} must be at most {limit:,}")
        pattern = self.hybrid_override_pattern
        if not pattern or set(pattern) - {MAMBA, MLP, ATTENTION}:
            raise ValueError(
                f"hybrid_override_pattern={short(pattern)} must be made of the letters {MAMBA!r} (Mamba-2), {MLP!r} "
                f"(MLP) and {ATTENTION!r} (attention)"
            )
        if len(pattern) > MAX_LAYERS:
            raise ValueError(
                f"hybrid_override_pattern has {len(pattern):,} layers; it must have at most {MAX_LAYERS:,}"
            )
        for one, other in (
            ("num_attention_heads", "head_dim"),
            ("mamba_num_heads", "mamba_head_dim"),
            ("n_groups", "ssm_state_size"),
        ):
            if (product := getattr(self, one) * getattr(self, other)) > MAX_SIZE:
                raise ValueError(f"{one} times {other} is {product:,}; it must be at most {MAX_SIZE:,}")
        for whole, part in (("num_attention_heads", "num_key_value_heads"), ("mamba_num_heads", "n_groups")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{part}={getattr(self, part)} does not divide {whole}={getattr(self, whole)}; pick a divisor"
                )

    @property
    def initial_std(self) -> float:
        """Standard deviation of the initial weights; published by hidden size: 5120 0.0125, 4096 0.014, 8192 0.0099."""
        return self.initializer_range or math.sqrt(0.8 / self.hidden_size)

    @property
    def mamba_inner_size(self) -> int:
        """Channels of x and of z. Not always twice the hidden size: in the published 9B it is not."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_conv_size(self) -> int:
        """Channels of the convolution: x, B and C concatenated."""
        return self.mamba_inner_size + 2 * self.n_groups * self.ssm_state_size


# Published: 2508.14444 table 1, and NVIDIA's configurations of these models in Megatron-LM and Megatron-Bridge. The
# fields that are not named here have their defaults, as there. The paper's text gives a Mamba head size of 64, the
# configurations 80; only 80 yields the 8.89 billion parameters of the 9B's model card.
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
# Published: pruned from the 12B. Pruning narrowed hidden_size, so it is no longer half of mamba_inner_size.
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
    """Cast bfloat16 to float32 and leave float64 as it is, so that a float64 model is float64 throughout."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# The modules below replace those of torch.nn, whose constructors fill their weights from the global random generator.
# Here the weights stay unset until `initialize` or `load_checkpoint`. `**factory` is device and dtype, as in torch.


class Linear(nn.Module):
    """Matrix product without a bias."""

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
    """Depthwise causal convolution: each channel has its own kernel over its position and the k - 1 before it."""

    def __init__(self, channels: int, kernel_size: int, **factory: Any) -> None:
        super().__init__()
        # (channels, 1, k) as in torch.nn.Conv1d; the last tap multiplies the position itself
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(channels, **factory))

    def forward(self, x: Tensor, segments: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        """(b, t, channels) to the same shape, in at least float32.

        Args:
            segments: (b, t) document of each position, which sees only its own document. None: one document per row.
            before: (b, k - 1, channels) inputs at the positions before those of x. None: zeros.
        """
        _, t, _ = x.shape
        k = self.weight.shape[-1]
        x, weight, y = at_least_float32(x), at_least_float32(self.weight), at_least_float32(self.bias)
        padded = F.pad(x, (0, 0, k - 1, 0)) if before is None else torch.cat([before, x], dim=1)
        for tap in range(k):  # a sum of k shifted products: torch's own convolution is many times slower in float64
            seen = padded[:, tap : tap + t]
            if segments is not None and tap < k - 1:  # the last tap is the position itself
                seen = seen * (F.pad(segments, (k - 1, 0), value=-1)[:, tap : tap + t] == segments)[..., None]
            y = torch.addcmul(y, seen, weight[:, 0, tap])
        return y


class RMSNorm(nn.Module):
    """Divide each group of channels by its root mean square, then scale every channel.

    The mean square is taken in float32: bfloat16 has 8 significant bits, so a long sum would lose most of its terms.
    """

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
    """State-space scan, one position after another. It defines the layer; `ssd_scan_chunked` is tested against it.

    Mamba-2 (arXiv 2405.21060), section 2, for every head:

        state_t = exp(dt_t A) state_(t-1) + dt_t x_t B_t^T        forget a share, then write x under the key B
        y_t     = state_t C_t + D x_t                             read with the query C, then add the skip

    Arguments and results are those of `ssd_scan_chunked`, without `chunk_size`.
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

    Mamba-2 (arXiv 2405.21060), section 6. Unrolled, the recurrence is attention with a decay instead of a softmax:

        y_i = sum over j <= i of (C_i . B_j) exp(dt_(j+1) A + ... + dt_i A) dt_j x_j  +  D x_i

    The t x t matrix is too large, and t sequential steps too slow. So every position reads the earlier positions of
    its chunk through a small matrix, and everything before the chunk through the state.

    Args:
        x: (b, t, h, p). dt: (b, t, h) step sizes after softplus, > 0. A: (h), < 0. B, C: (b, t, g, n). D: (h).
        chunk_size: positions per chunk; changes speed, not the result. The last chunk is padded here.
        initial_state: (b, h, p, n) state before the first position. None: zeros.
        segments: (b, t) document of each position; the positions of a document are contiguous. No state passes from one
            document to the next; the first document of a row continues `initial_state`. None: one document per row.
    Returns:
        (b, t, h, p) outputs and the (b, h, p, n) state after the last position.
    Raises:
        ValueError: if chunk_size is below 1 or x has no positions.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    b, t, h, p = x.shape
    if t == 0:
        raise ValueError(f"x of shape {tuple(x.shape)} has no positions; give at least one")
    g, n = B.shape[2:]
    r = h // g
    i = min(chunk_size, t)  # positions in a chunk
    c = -(-t // i)
    skip = D[:, None] * x
    if padding := c * i - t:  # a position with step size 0 writes nothing and does not decay the state
        x, B, C = (F.pad(tensor, (0, 0, 0, 0, 0, padding)) for tensor in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, padding))
        if segments is not None:
            segments = torch.cat([segments, segments[:, -1:].expand(b, padding)], dim=1)

    written = (x * dt[..., None]).view(b, c, i, g, r, p)
    B = B.reshape(b, c, i, g, n).transpose(2, 3)  # (b, c, g, j, n)
    C = C.reshape(b, c, i, g, n).transpose(2, 3)  # (b, c, g, i, n)
    # Logarithm of the decay from the start of the chunk to each position: products of decays become sums.
    log_decay = (dt * A).view(b, c, i, g, r).permute(0, 1, 3, 4, 2).cumsum(-1)  # (b, c, g, r, i)

    # 1. Within a chunk, one (i, j) matrix per head: C_i . B_j times the decay from j to i, whose logarithm is a
    # difference of two sums. Future positions are masked before the exponential: it could overflow there, with a
    # gradient of infinity times 0. The operations are in place, because these matrices are large.
    future = torch.full((i, i), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    if segments is not None:  # other documents are masked like the future
        segments = segments.view(b, c, i)
        # (b, c) document of the state before each chunk; initial_state belongs to the first document of the row
        before = torch.cat([segments[:, :1, 0], segments[:, :-1, -1]], dim=1)
        future = future.where(segments[..., :, None] == segments[..., None, :], -math.inf)[:, :, None, None]
    decay = (log_decay[..., :, None] + (-log_decay)[..., None, :]).add_(future).exp_()  # (b, c, g, r, i, j)
    read = (C @ B.mT)[:, :, :, None] * decay  # (b, c, g, r, i, j)
    y = (read @ written.permute(0, 1, 3, 4, 2, 5)).permute(0, 1, 4, 2, 3, 5)  # (b, c, i, g, r, p)

    # 2. What each chunk adds to the state by its end: each write decays from its position to the end of the chunk. The
    # heads of a group share B, so they are columns of one product.
    to_end = (log_decay[..., -1:] - log_decay).exp().permute(0, 1, 4, 2, 3)  # (b, c, j, g, r)
    if segments is not None:
        to_end = to_end * (segments == segments[..., -1:])[..., None, None]
    added = B.mT @ (written * to_end[..., None]).transpose(2, 3).flatten(-2)  # (b, c, g, n, r * p)

    # 3. The state before each chunk: the only loop, over c chunks instead of t positions.
    over_chunk = log_decay[..., -1].exp().repeat_interleave(p, dim=-1)[..., None, :]  # (b, c, g, 1, r * p)
    if segments is not None:
        over_chunk = over_chunk * (segments[..., -1] == before)[..., None, None, None]
    state = x.new_zeros(b, g, n, r * p) if initial_state is None else initial_state.reshape(b, g, r * p, n).mT
    states = []
    for chunk in range(c):
        states.append(state)
        state = torch.addcmul(added[:, chunk], over_chunk[:, chunk], state)

    # 4. What each position reads from the state before its chunk, decayed from the start of the chunk to the position.
    carried = (C @ torch.stack(states, dim=1)).unflatten(-1, (r, p)).transpose(2, 3)  # (b, c, i, g, r, p)
    from_start = log_decay.exp().permute(0, 1, 4, 2, 3)  # (b, c, i, g, r)
    if segments is not None:
        from_start = from_start * (segments == before[..., None])[..., None, None]
    y = torch.addcmul(y, from_start[..., None], carried)
    return y.reshape(b, c * i, h, p)[:, :t] + skip, state.mT.reshape(b, h, p, n)


# The states are not dataclasses: FSDP copies dataclass arguments, and what a layer writes into a copy is lost.


class MambaState:
    """What a Mamba-2 layer keeps of the tokens so far: the same number of bytes after one token or a million."""

    def __init__(self, window: Tensor, ssm: Tensor) -> None:
        self.window = window
        """(b, k - 1, channels) inputs of the convolution at the last positions."""
        self.ssm = ssm
        """(b, h, p, n) state of the scan."""

    def advance_window(self, xBC: Tensor, num_new: Tensor | None) -> None:
        """Move the window past (b, t, channels) new positions, of which the first `num_new` (b,) are not padding."""
        b, t, channels = xBC.shape
        past = self.window.shape[1]
        first = torch.full((b,), t, device=xBC.device) if num_new is None else num_new
        places = first[:, None] + torch.arange(past, device=xBC.device)  # (b, k - 1)
        positions = torch.cat([self.window, xBC], dim=1)
        self.window = positions.gather(1, places[..., None].expand(b, past, channels))


class AttentionState:
    """Keys and values of the tokens so far; grows with them."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        self.keys = keys
        """(b, key-value heads, capacity, head_dim); positions from `lengths` on are not filled yet."""
        self.values = values
        """Same shape as `keys`."""
        self.lengths = lengths
        """(b,) tokens read."""

    def append(self, k: Tensor, v: Tensor, num_new: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Store the keys and values of t new positions.

        Args:
            k, v: (b, key-value heads, t, head_dim).
            num_new: (b,) positions of each row that are not padding. None: all.
        Returns:
            All keys and values so far, and the (b, 1, t, keys) mask that is True where a new position may read a key.
        """
        b, heads, t, size = k.shape
        new = self.lengths[:, None] + torch.arange(t, device=k.device)  # (b, t) index of each position in its row
        used = int(new[:, -1].max()) + 1
        if used > self.keys.shape[2]:  # twice the room needed, so that growing is rare
            room = (0, 0, 0, 2 * used - self.keys.shape[2])
            self.keys, self.values = F.pad(self.keys, room), F.pad(self.values, room)
        index = new[:, None, :, None].expand(b, heads, t, size)
        # In place without gradients only: a layer that is computed again reads the keys and values of before.
        scatter = Tensor.scatter if torch.is_grad_enabled() else Tensor.scatter_
        self.keys = scatter(self.keys, 2, index, k.to(self.keys.dtype))
        self.values = scatter(self.values, 2, index, v.to(self.values.dtype))
        self.lengths = self.lengths + (t if num_new is None else num_new)
        readable = torch.arange(used, device=k.device) <= new[:, None, :, None]  # (b, 1, t, used)
        return self.keys[:, :, :used], self.values[:, :, :used], readable


class DecodingState:
    """What the layers keep from one call of the model to the next, so that no token is read twice.

    Outside of torch.no_grad() it holds the autograd graph of every token it has read, and gradients flow through it.

    Args:
        model: the model that will use the state; gives the shapes, device and dtype.
        batch_size: number of rows, each an independent sequence.
    """

    def __init__(self, model: "NemotronH", batch_size: int) -> None:
        config, weight = model.config, model.lm_head.weight
        zeros = partial(torch.zeros, dtype=weight.dtype, device=weight.device)  # of a sharded weight, no share of it
        at_least = torch.promote_types(weight.dtype, torch.float32)
        b = batch_size
        self.layers: list[MambaState | AttentionState | None] = []
        for letter in config.hybrid_override_pattern:
            if letter == MAMBA:
                window = zeros(b, config.conv_kernel - 1, config.mamba_conv_size)
                heads = (config.mamba_num_heads, config.mamba_head_dim)
                # At least float32: a bfloat16 state would round away small writes, token after token.
                ssm = zeros(b, *heads, config.ssm_state_size, dtype=at_least)
                self.layers.append(MambaState(window, ssm))
            elif letter == ATTENTION:
                keys = zeros(b, config.num_key_value_heads, 0, config.head_dim)
                lengths = torch.zeros(b, dtype=torch.int64, device=weight.device)
                self.layers.append(AttentionState(keys, keys, lengths))
            else:
                self.layers.append(None)

    def repeat(self, times: int) -> "DecodingState":
        """The state of every row so many times, next to each other, for rows that begin alike and go on differently."""
        repeated = copy.copy(self)
        repeated.layers = [copy.copy(layer) for layer in self.layers]
        for layer in filter(None, repeated.layers):
            vars(layer).update({name: each.repeat_interleave(times, dim=0) for name, each in vars(layer).items()})
        return repeated

    def num_bytes(self, kind: type) -> int:
        """Memory of all layer states of one kind, `MambaState` or `AttentionState`."""
        tensors = [tensor for layer in self.layers if isinstance(layer, kind) for tensor in vars(layer).values()]
        return sum(tensor.nbytes for tensor in tensors)


class Mamba2Mixer(nn.Module):
    """Mamba-2 (arXiv 2405.21060, section 7): a short convolution, the state-space scan, a gate, a norm per group.

    Unlike Mamba-1, one product computes z, x, B, C and dt from u at once, and A is one number per head.
    """

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
        """(b, t, d) to (b, t, d); the other arguments are those of `NemotronH.forward`."""
        b, t, _ = u.shape
        h, p = self.config.mamba_num_heads, self.config.mamba_head_dim
        g, n = self.config.n_groups, self.config.ssm_state_size
        z, xBC, dt = self.in_proj(u).split([h * p, self.config.mamba_conv_size, h], dim=-1)
        # Decays multiply along the sequence, and so do their rounding errors: no bfloat16 from here to out_proj.
        with torch.autocast(u.device.type, enabled=False):
            # Positive, and not clamped: the published limits 0.001 and 0.1 apply to initial step sizes only.
            dt = F.softplus(at_least_float32(dt) + self.dt_bias)
            if num_new is not None:  # a position with step size 0 writes nothing and does not decay the state
                dt = dt * (torch.arange(t, device=u.device) < num_new[:, None])[..., None]
            window = None if state is None else state.window
            x, B, C = F.silu(self.conv1d(xBC, segments, window)).split([h * p, g * n, g * n], dim=-1)
            x, B, C = x.view(b, t, h, p), B.view(b, t, g, n), C.view(b, t, g, n)
            # A is learned as a logarithm, so that it is negative for every value: the state decays and cannot blow up.
            A, D = -torch.exp(at_least_float32(self.A_log)), at_least_float32(self.D)
            before = None if state is None else state.ssm
            y, after = ssd_scan_chunked(x, dt, A, B, C, D, self.config.chunk_size, before, segments)
            if state is not None:
                state.ssm = after
                state.advance_window(xBC, num_new)
            y = self.norm(y.flatten(2) * F.silu(at_least_float32(z)))  # gate first, then norm
        return self.out_proj(y)


class SquaredReluMLP(nn.Module):
    """Two matrices with relu(x)^2 between them, without a gate (arXiv 2504.03624; squared ReLU: arXiv 2109.08668)."""

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, **factory)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, **factory)

    def forward(self, u: Tensor, segments: None = None, state: None = None, num_new: None = None) -> Tensor:
        """(b, t, d) to (b, t, d), each position independently; the other arguments are not used."""
        relu = F.relu(self.up_proj(u))
        return self.down_proj(relu * relu)  # relu.square() would run in float32 under CUDA autocast


class Attention(nn.Module):
    """Causal grouped-query attention without positional embedding.

    Several query heads share one key-value head, so decoding keeps fewer keys and values. The published models have no
    positional embedding: the Mamba-2 layers already see the order of the tokens.
    """

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
        """(b, t, d) to (b, t, d); the other arguments are those of `NemotronH.forward`."""
        q, k, v = (
            projection(u).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (b, heads, t, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if segments is not None:
            y = attend_within_documents(q, k, v, segments)
        elif state is not None:
            y = attend(q, *state.append(k, v, num_new))
        else:
            y = attend(q, k, v)
        return self.o_proj(y.transpose(1, 2).flatten(2))


MIXERS: dict[str, type[nn.Module]] = {MAMBA: Mamba2Mixer, MLP: SquaredReluMLP, ATTENTION: Attention}


class Layer(nn.Module):
    """One letter of the pattern: u + mixer(norm(u)). No norm touches the residual stream itself."""

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
        *,
        recompute: bool = False,
    ) -> Tensor:
        """(b, t, d) to (b, t, d).

        Args:
            recompute: keep only u for the backward pass, which computes the layer again. The numbers are the same.
        """
        if not recompute:
            return u + self.mixer(self.norm(u), segments, state, num_new)
        before = state and copy.copy(state)

        def added(u: Tensor) -> tuple[Tensor, MambaState | AttentionState | None]:
            after = before and copy.copy(before)  # computed again, the layer must find the state of the first time
            return u + self.mixer(self.norm(u), segments, after, num_new), after

        u, after = checkpoint(added, u, use_reentrant=False, preserve_rng_state=False)  # nothing in a layer is random
        if state:
            vars(state).update(vars(after))
        return u


class Backbone(nn.Module):
    """Embedding, layers and final norm: everything but the output matrix."""

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.embeddings = Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(Layer(letter, config, **factory) for letter in config.hybrid_override_pattern)
        self.norm_f = RMSNorm(config.hidden_size, config, **factory)
        self.activation_checkpointing = False
        """Whether the backward pass computes each layer again, instead of keeping what is inside of it: about a third
        more operations, and memory for one layer and the residual stream before each. The numbers are the same."""

    def forward(
        self,
        input_ids: Tensor,
        segments: Tensor | None = None,
        state: DecodingState | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor:
        """(b, t) token ids to (b, t, d); arguments and errors are those of `NemotronH.forward`."""
        if input_ids.shape[1] == 0:
            raise ValueError(f"input_ids of shape {tuple(input_ids.shape)} hold no tokens; give at least one per row")
        if segments is not None and state is not None:
            raise ValueError("segments and state are both given; give one: a row read in pieces holds one document")
        if num_new is not None and state is None:
            raise ValueError("num_new is given without state; give a DecodingState as well, or leave num_new out")
        if not len(input_ids):  # one of several processes may have no row, and the others need its share of the weights
            return self.forward(input_ids.new_zeros(1, 1))[:0].expand(-1, input_ids.shape[1], -1)
        u = self.embeddings(input_ids)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            u = layer(u, segments, state.layers[index] if state else None, num_new, recompute=recompute)
        return self.norm_f(u)


class NemotronH(nn.Module):
    """The language model. Its weights are uninitialized memory until `initialize` or `load_checkpoint` fills them."""

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
            segments: (b, t) document number of each position, 0 or more; the positions of a document are contiguous.
                Attention, convolution and scan do not cross from one document to another. None: one document per row.
            state: what the rows have read so far. The rows continue from it; the call updates it. Not with `segments`.
            num_new: (b,) how many of the t tokens of each row to read; the rest is padding, which leaves no trace in
                the state. None: all. Only with `state`.

        Raises:
            ValueError: if t is 0, if `segments` and `state` are both given, or if `num_new` is given without `state`.
        """
        return self.lm_head(self.backbone(input_ids, segments, state, num_new))


def purpose_generator(seed: int, purpose: str) -> torch.Generator:
    """A separate random generator for each purpose, so that one more draw for one purpose does not change another."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@torch.no_grad()
def initialize(model: NemotronH, seed: int) -> None:
    """Fill every parameter as NVIDIA's Megatron-LM does for the published models.

    Matrices: normal with standard deviation sqrt(0.8 / hidden_size). Those that write to the residual stream are
    divided by sqrt(num_layers), so that the stream does not grow with depth.
    Mamba-2: A uniform in [1, 16], dt log-uniform in [0.001, 0.1], D 1, convolution as in torch. A and dt set how fast a
    head forgets; the ranges give the heads memories of different lengths.

    Every number is drawn in float64 on the CPU by a generator named after the parameter, then cast. So the weights are
    the same with every CPU instruction set, and adding a parameter does not change the others.
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
        elif owner == "conv1d":  # torch's default, kaiming-uniform with a = sqrt(5), for kernels of one channel
            drawn = uniform(-1 / math.sqrt(config.conv_kernel), 1 / math.sqrt(config.conv_kernel))
        else:
            assert parameter.ndim == 2, name
            writes_to_residual_stream = owner in ("out_proj", "o_proj", "down_proj")
            drawn = torch.empty(parameter.shape, dtype=torch.float64)
            drawn.normal_(0, residual_std if writes_to_residual_stream else std, generator=generator)
        parameter.copy_(drawn)


def _uniform(shape: torch.Size, generator: torch.Generator, low: float, high: float) -> Tensor:
    # Not uniform_(low, high): with some instruction sets it fuses the two operations and differs in the last bit.
    return torch.rand(shape, dtype=torch.float64, generator=generator).mul_(high - low).add_(low)


def initial_dt_bias(log_dt: float) -> float:
    """The bias whose softplus is exp(log_dt), or 1e-4 if that is larger.

    Uses `math`, because the last bit of torch's expm1 depends on the instruction set.
    """
    dt = max(math.exp(log_dt), 1e-4)
    return dt + math.log(-math.expm1(-dt))


def parameter_groups(model: NemotronH, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: matrices and convolution kernels decay; norms, biases, A_log, D and dt_bias do not.

    Megatron-LM's rule: parameters with one dimension do not decay. So the embedding and the depthwise kernels do.
    On a GPU one kernel updates all weights of a group ("fused"), where the plain update reads and writes them many
    times.
    """
    fused = {"fused": True} if next(model.parameters()).device.type == "cuda" else {}
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay, **fused},
        {"params": vectors, "weight_decay": 0.0, **fused},
    ]
