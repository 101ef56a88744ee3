"""Decoding: the model's next token, for many rows at a time, with what the rows have read kept in slots.

In: a model, and rows with a prompt each. Out: after each step, the logits of every row's next token. The numbers are
those of `NemotronH.forward`, up to rounding; only their layout differs:

- A row occupies a slot. The rows in use are the first slots, so that every operation reads one block of memory. When a
  row ends, the last row moves into its slot, and a waiting row takes the slot behind the last one.
- A prompt that several rows have is read once, and its state is copied.
- The state of the scan is kept as (b, g, n, r p): the heads of a group lie side by side, so that decay, write and read
  are each one long operation.
- Weights are transposed once. With `products=torch.bfloat16` they are also cast once: products are then taken in
  bfloat16, as under autocast, and everything else, the states included, in at least float32.

On a GPU, a step is a CUDA graph (graphs.py).

Left out: gradients (the learner uses `NemotronH.forward`), several devices.

Letters: those of `model.py`; b is a row that is being continued, r a head within its group.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemotron.recipes.nemotron_h.graphs import StepGraphs, rounded_up
from nemotron.recipes.nemotron_h.model import (
    Attention,
    AttentionState,
    DecodingState,
    Layer,
    Mamba2Mixer,
    MambaState,
    ModelConfig,
    NemotronH,
    SquaredReluMLP,
    at_least_float32,
)

PROMPTS_AT_A_TIME = 32  # our choice: distinct prompts that are read side by side, or at least ahead


class Product:
    """x to x @ W for one or more matrices of the model side by side, in the type of the products."""

    def __init__(self, *weights: Tensor, dtype: torch.dtype) -> None:
        self.weight = torch.cat([weight.detach() for weight in weights]).t().contiguous().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype) @ self.weight

    def add_to(self, u: Tensor, x: Tensor) -> Tensor:
        """u + x @ W."""
        if u.dtype == self.weight.dtype:
            return torch.addmm(u, x, self.weight)
        return u + self(x)


class MambaSlots:
    """A Mamba-2 layer and its state in every slot."""

    def __init__(self, mixer: Mamba2Mixer, config: ModelConfig, num_slots: int, products: torch.dtype) -> None:
        self.config = config
        self.heads_of_group = config.mamba_num_heads // config.n_groups * config.mamba_head_dim  # r p
        self.in_proj = Product(mixer.in_proj.weight, dtype=products)
        self.out_proj = Product(mixer.out_proj.weight, dtype=products)
        self.taps = list(at_least_float32(mixer.conv1d.weight.detach())[:, 0].t().contiguous())  # k of (channels)
        self.bias = at_least_float32(mixer.conv1d.bias.detach())
        self.dt_bias = at_least_float32(mixer.dt_bias.detach())
        self.A = -torch.exp(at_least_float32(mixer.A_log.detach()))
        self.D = at_least_float32(mixer.D.detach()).repeat_interleave(config.mamba_head_dim)
        self.norm = at_least_float32(mixer.norm.weight.detach())
        state_shape = (num_slots, config.n_groups, config.ssm_state_size, self.heads_of_group)
        self.ssm = self.D.new_zeros(state_shape)
        self.window = [self.D.new_zeros(num_slots, config.mamba_conv_size) for _ in range(config.conv_kernel - 1)]

    def step(self, u: Tensor, normed: Tensor) -> Tensor:
        """(b, d) residual stream and its norm to the residual stream after the layer; equals `Mamba2Mixer`."""
        b = len(u)
        h, p = self.config.mamba_num_heads, self.config.mamba_head_dim
        g, n = self.config.n_groups, self.config.ssm_state_size
        projected = self.in_proj(normed).to(u.dtype)
        z, xBC, dt = projected.split([h * p, self.config.mamba_conv_size, h], dim=-1)

        convolved = torch.addcmul(self.bias, xBC, self.taps[-1])
        for past, tap in zip(self.window, self.taps[:-1], strict=True):
            convolved.addcmul_(past[:b], tap)
        for older, newer in pairwise(self.window):  # the oldest input makes room; each tensor stays where it is
            older[:b] = newer[:b]
        if self.window:
            self.window[-1][:b] = xBC
        x, B, C = F.silu(convolved, inplace=True).split([h * p, g * n, g * n], dim=-1)

        dt = F.softplus(dt + self.dt_bias)
        decay = torch.exp(dt * self.A)[..., None].expand(b, h, p).reshape(b, g, 1, -1)
        written = (x.view(b, h, p) * dt[..., None]).view(b, g, 1, -1)
        state = self.ssm[:b].mul_(decay).addcmul_(B.reshape(b, g, n, 1), written)
        y = torch.bmm(C.reshape(b * g, 1, n), state.view(b * g, n, -1)).view(b, h * p)
        y = y.addcmul_(x, self.D).mul_(F.silu(z))
        y = F.rms_norm(y.view(b, g, -1), (self.heads_of_group,), None, self.config.layer_norm_epsilon)
        return self.out_proj.add_to(u, y.view(b, -1) * self.norm)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the state of slots to other slots."""
        for tensor in (self.ssm, *self.window):
            tensor[targets] = tensor[sources]

    def load(self, slots: slice, state: MambaState, rows: Tensor) -> None:
        """Fill slots with the state of rows that have read their prompts."""
        for position, past in enumerate(self.window):
            past[slots] = state.window[rows, position].to(past.dtype)
        ssm = state.ssm[rows].view(len(rows), self.config.n_groups, self.heads_of_group, -1)
        self.ssm[slots] = ssm.transpose(2, 3)


class MLPSlots:
    """A squared-ReLU layer, which keeps nothing."""

    def __init__(self, mixer: SquaredReluMLP, products: torch.dtype) -> None:
        self.up_proj = Product(mixer.up_proj.weight, dtype=products)
        self.down_proj = Product(mixer.down_proj.weight, dtype=products)

    def step(self, u: Tensor, normed: Tensor) -> Tensor:
        """(b, d) residual stream and its norm to the residual stream after the layer; equals `SquaredReluMLP`."""
        return self.down_proj.add_to(u, self.up_proj(normed).relu_().square_())


class AttentionSlots:
    """An attention layer, and the keys and values in every slot."""

    def __init__(self, mixer: Attention, config: ModelConfig, num_slots: int, products: torch.dtype) -> None:
        self.head_dim, self.num_heads = config.head_dim, config.num_key_value_heads
        self.sizes = [config.num_attention_heads * config.head_dim, self.num_heads * config.head_dim]
        qkv = (mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight)
        self.qkv_proj = Product(*qkv, dtype=products)
        self.o_proj = Product(mixer.o_proj.weight, dtype=products)
        like = at_least_float32(mixer.o_proj.weight.detach())
        self.keys = like.new_zeros(num_slots, self.num_heads, 0, self.head_dim)  # the third size grows
        self.values = self.keys

    def reserve(self, positions: int, room: int) -> bool:
        """Make the room for `room` positions unless there is that for so many. Returns whether it was made."""
        is_short = positions > self.keys.shape[2]
        if is_short:
            padding = (0, 0, 0, room - self.keys.shape[2])
            self.keys, self.values = F.pad(self.keys, padding), F.pad(self.values, padding)
        return is_short

    def step(self, u: Tensor, normed: Tensor, lengths: Tensor, slots: Tensor, readable: Tensor) -> Tensor:
        """(b, d) residual stream and its norm to the residual stream after the layer; equals `Attention`.

        Args:
            lengths: (b,) tokens that each row has read before this one.
            slots: (b,) 0 to b - 1.
            readable: (b, 1, 1, t) whether a row may read a position: one of its earlier ones, or its own.
        """
        b, t = len(u), readable.shape[-1]
        q, k, v = self.qkv_proj(normed).to(u.dtype).split([self.sizes[0], self.sizes[1], self.sizes[1]], dim=-1)
        self.keys[slots, :, lengths] = k.view(b, self.num_heads, -1)
        self.values[slots, :, lengths] = v.view(b, self.num_heads, -1)
        # The query heads that share a key-value head take the place of positions.
        q = q.view(b, self.num_heads, -1, self.head_dim)
        y = F.scaled_dot_product_attention(q, self.keys[:b, :, :t], self.values[:b, :, :t], attn_mask=readable)
        return self.o_proj.add_to(u, y.reshape(b, -1))

    def move(self, sources: Tensor, targets: Tensor, used: int) -> None:
        """Copy the first `used` positions of slots to other slots."""
        self.keys[targets, :, :used] = self.keys[sources, :, :used]
        self.values[targets, :, :used] = self.values[sources, :, :used]

    def load(self, slots: slice, state: AttentionState, rows: Tensor) -> None:
        """Fill slots, which have room, with the keys and values of rows that have read their prompts."""
        used = state.keys.shape[2]
        self.keys[slots, :, :used] = state.keys[rows].to(self.keys.dtype)
        self.values[slots, :, :used] = state.values[rows].to(self.values.dtype)


class ReadPrompt(NamedTuple):
    """What the model keeps of a prompt that it has read."""

    state: DecodingState
    row: int
    """Row of the prompt in `state`."""
    logits: Tensor
    """(v) logits of the token after it."""


class Decoder:
    """Slots for the rows that a model continues side by side; the rows in use are the first `num_rows` slots.

    The weights are copied, which needs as much memory again: a product with a weight in this layout takes about three
    quarters of the time. Build another decoder after the optimizer has moved the weights.

    Args:
        num_slots: rows that can be continued at a time.
        products: type in which products with weight matrices are taken. None: the type of the weights.
    """

    def __init__(self, model: NemotronH, num_slots: int, products: torch.dtype | None = None) -> None:
        config = model.config
        dtype = products or model.lm_head.weight.dtype
        self.model, self.num_slots, self.num_rows = model, num_slots, 0
        self.epsilon = config.layer_norm_epsilon
        self.embeddings = at_least_float32(model.backbone.embeddings.weight.detach())
        layers = [layer for layer in model.backbone.layers if isinstance(layer, Layer)]  # for mypy: all are
        self.norms = [at_least_float32(layer.norm.weight.detach()) for layer in layers]
        self.norm_f = at_least_float32(model.backbone.norm_f.weight.detach())
        self.lm_head = Product(model.lm_head.weight, dtype=dtype)
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=self.embeddings.device)
        self.slots = torch.arange(num_slots, device=self.embeddings.device)
        self.layers = [slots_of(layer, config, num_slots, dtype) for layer in layers]
        device = self.embeddings.device
        self.graphs = StepGraphs(self.read_token, num_slots, device) if device.type == "cuda" else None
        self.read: dict[tuple[int, ...], ReadPrompt] = {}

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token of every row: (b,) ids to (b, v) logits of the token after it."""
        b = self.num_rows
        used = int(self.lengths[:b].max()) + 1
        if self.graphs is None:
            self.reserve(used)
            return self.read_token(ids, used)
        shape = self.graphs.shape_for(b, used)
        self.reserve(shape[1])
        self.lengths[b : shape[0]] = 0  # slots that nobody uses
        return self.graphs(ids, shape)

    def reserve(self, positions: int) -> None:
        """Make room for so many positions of every slot, and for up to twice as many, so that this is rare."""
        room = rounded_up(positions) if self.graphs else 2 * positions  # a graph reads a power of two anyway
        moved = [layer.reserve(positions, room) for layer in self.layers if isinstance(layer, AttentionSlots)]
        if self.graphs and any(moved):
            self.graphs.forget()

    def read_token(self, ids: Tensor, used: int) -> Tensor:
        """Read a token in each of the first b slots: (b,) ids to (b, v) logits. Everything stays on the device.

        Args:
            used: positions that may be read; the others hold nothing.
        """
        b = len(ids)
        lengths, slots = self.lengths[:b], self.slots[:b]
        readable = (torch.arange(used, device=ids.device) <= lengths[:, None])[:, None, None]
        u = F.embedding(ids, self.embeddings)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            normed = F.rms_norm(u, norm.shape, norm, self.epsilon)
            if isinstance(layer, AttentionSlots):
                u = layer.step(u, normed, lengths, slots, readable)
            else:
                u = layer.step(u, normed)
        self.lengths[:b] += 1
        return self.lm_head(F.rms_norm(u, self.norm_f.shape, self.norm_f, self.epsilon)).to(u.dtype)

    def add(self, prompts: Sequence[tuple[int, ...]], upcoming: Iterable[tuple[int, ...]] = ()) -> Tensor:
        """Take the next slots for rows with these prompts; (b, v) logits of the token after each prompt.

        Args:
            upcoming: prompts of the rows that will be added next. They are read along, many at a time.
        """
        if unread := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.read]:
            ahead = list(dict.fromkeys([*unread, *upcoming]))
            self.read = {prompt: self.read[prompt] for prompt in prompts if prompt in self.read}
            self.read_prompts(ahead[: max(PROMPTS_AT_A_TIME, len(unread))])
        read = [self.read[prompt] for prompt in prompts]
        states = [state for one in read for state in one.state.layers if isinstance(state, AttentionState)]
        self.reserve(max((state.keys.shape[2] for state in states), default=0))
        device = self.slots.device
        first = self.num_rows
        for _, together in groupby(read, key=lambda one: id(one.state)):  # neighbors that were read side by side
            members = list(together)
            slots = slice(self.num_rows, self.num_rows + len(members))
            rows = torch.tensor([one.row for one in members], device=device)
            for layer, state in zip(self.layers, members[0].state.layers, strict=True):
                if isinstance(layer, MambaSlots | AttentionSlots):
                    layer.load(slots, state, rows)  # type: ignore[arg-type]
            self.num_rows = slots.stop
        self.lengths[first : self.num_rows] = torch.tensor([len(prompt) for prompt in prompts], device=device)
        return torch.stack([one.logits for one in read])

    def read_prompts(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Read distinct prompts, those of similar length side by side, because the shorter ones are padded."""
        ordered = sorted(prompts, key=len)
        for start in range(0, len(ordered), PROMPTS_AT_A_TIME):
            piece = ordered[start : start + PROMPTS_AT_A_TIME]
            lengths = torch.tensor([len(prompt) for prompt in piece])
            ids = torch.zeros(len(piece), int(lengths.max()), dtype=torch.int64)
            for row, prompt in enumerate(piece):
                ids[row, : len(prompt)] = torch.tensor(prompt)
            device = self.slots.device
            state = DecodingState(self.model, len(piece))
            hidden = self.model.backbone(ids.to(device), state=state, num_new=lengths.to(device))
            last = hidden[torch.arange(len(piece)), lengths - 1]  # padding is on the right
            logits = at_least_float32(self.model.lm_head(last))
            self.read |= {prompt: ReadPrompt(state, row, logits[row]) for row, prompt in enumerate(piece)}

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Free the slots of all rows but these; returns the kept rows in the order of their slots from now on."""
        order = [row for row in rows if row < len(rows)]
        behind = [row for row in rows if row >= len(rows)]
        free = sorted(set(range(len(rows))) - set(order))
        slots = dict(zip(order, order, strict=True)) | dict(zip(free, behind, strict=True))
        if behind:
            sources, targets = (torch.tensor(numbers, device=self.slots.device) for numbers in (behind, free))
            self.lengths[targets] = self.lengths[sources]
            used = int(self.lengths[targets].max())
            for layer in self.layers:
                if isinstance(layer, AttentionSlots):
                    layer.move(sources, targets, used)
                elif isinstance(layer, MambaSlots):
                    layer.move(sources, targets)
        self.num_rows = len(rows)
        return [slots[slot] for slot in range(len(rows))]


def slots_of(
    layer: Layer, config: ModelConfig, num_slots: int, products: torch.dtype
) -> MambaSlots | MLPSlots | AttentionSlots:
    """The decoding form of one layer."""
    mixer = layer.mixer
    if isinstance(mixer, Mamba2Mixer):
        return MambaSlots(mixer, config, num_slots, products)
    if isinstance(mixer, Attention):
        return AttentionSlots(mixer, config, num_slots, products)
    assert isinstance(mixer, SquaredReluMLP)
    return MLPSlots(mixer, products)
