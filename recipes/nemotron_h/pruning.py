"""Prune a model: score its parts by forward passes only, choose which to keep, and slice every tensor that has them.

In: a model and batches of tokens. Out: a smaller `NemotronH` with its own `ModelConfig`, a valid checkpoint. The three
steps are `measure_importance`, `choose` and `prune`; nothing is trained here.
Published (arXiv 2508.14444, section 4, and arXiv 2504.11409 for Mamba-2): Nano 2 9B is the 12B with 56 of its 62
layers, 4 of its 6 attention layers, 4480 of 5120 hidden channels and 15680 of 20480 neurons of each MLP. Mamba heads
are ranked within their group and every group loses as many, so that each head keeps its own B and C. 1,024 samples of
calibration are enough for the scores.
Run: python -c "from nemotron.recipes.nemotron_h.pruning import *; help(choose)"

Left out: pruning attention heads (published: kept), groups and the state of Mamba-2, and several documents in a row:
a row of tokens counts as one document.

Letters are those of `model.py`; f is a neuron of an MLP. Indices are always those of the model before pruning.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nemotron.recipes.nemotron_h.model import (
    ATTENTION,
    MAMBA,
    MLP,
    ModelConfig,
    NemotronH,
    at_least_float32,
    purpose_generator,
)

Order = Literal["importance", "random", "reversed"]
Scored = Literal["before", "after"]


@dataclass(frozen=True)
class Importance:
    """How much each part of a model matters, from `measure_importance`. Tensors are float64 on the CPU."""

    layers: tuple[tuple[int, float], ...]
    """(layer, MSE of the logits once it is gone too) in the order of removal."""
    layer_errors: Tensor
    """(layers,) MSE of the logits if this layer alone is removed."""
    hidden: Tensor
    """(d,) from the outputs of the layers' norms: mean of the absolute value over the positions of a sequence, then L2
    norm over sequences, then the sum over layers. Published: mean and L2, and not which of them over what; this is what
    NVIDIA's Model-Optimizer does."""
    mlp: dict[int, Tensor]
    """Layer -> (f,) aggregated like `hidden`, from the neurons before or after their activation."""
    mamba: dict[int, Tensor]
    """Layer -> (h, p) L2 norm over sequences and positions, from x before or after the scan."""

    @property
    def mamba_channels(self) -> dict[int, Tensor]:
        """Layer -> (p,) L2 norm of a channel over sequences, positions and heads."""
        return {layer: norms.norm(dim=0) for layer, norms in self.mamba.items()}

    @property
    def mamba_heads(self) -> dict[int, Tensor]:
        """Layer -> (h,) L2 norm of a head over all its channels; `choose` uses only the channels that it keeps."""
        return {layer: norms.norm(dim=1) for layer, norms in self.mamba.items()}


@dataclass(frozen=True)
class Shape:
    """What pruning changes in a `ModelConfig`; the names are those of its fields."""

    num_layers: int
    num_attention_layers: int
    """Attention layers among `num_layers`. Published: 4 of 56, from 6 of 62."""
    hidden_size: int
    intermediate_size: int
    mamba_num_heads: int
    mamba_head_dim: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Shape":
        """The shape that `config` has: `replace` some of its fields to say what to prune."""
        pattern = config.hybrid_override_pattern
        layers = {"num_layers": len(pattern), "num_attention_layers": pattern.count(ATTENTION)}
        names = {field.name for field in fields(cls)} - layers.keys()
        return cls(**layers, **{name: getattr(config, name) for name in names})


@dataclass(frozen=True)
class Kept:
    """Indices that stay, ascending, in the numbering of the model before pruning."""

    layers: tuple[int, ...]
    hidden: tuple[int, ...]
    mlp: dict[int, tuple[int, ...]]
    """Kept MLP layer -> neurons, as many in every layer."""
    mamba_heads: dict[int, tuple[int, ...]]
    """Kept Mamba-2 layer -> heads, as many in every layer and every group."""
    mamba_channels: dict[int, tuple[int, ...]]
    """Kept Mamba-2 layer -> channels, the same ones in every head of the layer, as many in every layer."""


# --- importance ---


@torch.no_grad()
def measure_importance(
    model: NemotronH,
    batches: Iterable[Tensor],
    *,
    num_layers: int,
    num_attention_layers: int,
    scored: Scored = "after",
) -> Importance:
    """Score layers, hidden channels, neurons and Mamba heads by forward passes.

    Removing k of l layers reads every batch about k l / 2 times. No logits are held, only the (b, t, d) states of one
    batch: `_logit_error` says how.

    Args:
        batches: (b, t) token ids; b and t may differ between batches.
        num_layers: depth at which the removal of layers stops.
        num_attention_layers: how many of these are attention. Published: 4 of 56, but not how that was held. Ours: an
            attention layer stays in once there are only so many, and another layer once there are only so many others.
            The last layer of a kind always stays in.
        scored: where neurons and Mamba heads are. "before", published: the outputs of up_proj, and x as in_proj writes
            it, before the convolution. "after", ours: what the next weights read, which is relu(up_proj)^2 (so does
            Model-Optimizer) and the input of the gated norm, y silu(z). A neuron far below 0 counts as important
            before its activation and writes nothing after it. Measured on the model that `prune` names: with half of
            the neurons its loss is 0.182 before, 0.039 after and 0.061 to 0.089 with three random halves; with 6 of 8
            heads 0.098, 0.041, and 0.051 to 0.278. The model is not kept; to compare both on another one:
            `python benchmarks/pruning_orders.py --dataset-path <directory> --scored before`, and `after`.
    Raises:
        ValueError: if there is no batch or one is not (b, t) with tokens, or such a depth cannot be reached.
    """
    device = model.lm_head.weight.device
    batches = [tokens.to(device) for tokens in batches]
    if not batches:
        raise ValueError("there is no batch of tokens to measure importance on; give a calibration set with at least 1")
    for tokens in batches:
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(
                f"a batch of calibration has shape {tuple(tokens.shape)}; give (sequences, positions), at least 1 each"
            )
    pattern = model.config.hybrid_override_pattern
    shape = replace(Shape.of(model.config), num_layers=num_layers, num_attention_layers=num_attention_layers)
    check_shape(model.config, shape)

    layers, left = [], list(range(len(pattern)))
    layer_errors = errors = _removal_errors(model, batches, left)
    while candidates := _removable(pattern, left, shape):
        layer = min(candidates, key=lambda index: (errors[index], index))
        left.remove(layer)
        layers.append((layer, errors[layer]))
        if len(left) > num_layers:
            errors = _removal_errors(model, batches, left)
    single = torch.tensor([layer_errors[index] for index in range(len(pattern))], dtype=torch.float64)
    return Importance(tuple(layers), single, *_width_scores(model, batches, scored))


def _removable(pattern: str, left: Sequence[int], shape: Shape) -> list[int]:
    """Layers of `left` that may go next on the way to the depth of `shape`."""
    letters = [pattern[index] for index in left]
    attention = letters.count(ATTENTION)
    spare_attention = attention > shape.num_attention_layers
    spare_other = len(left) - attention > shape.num_layers - shape.num_attention_layers
    return [
        index
        for index, letter in zip(left, letters, strict=True)
        if letters.count(letter) > 1 and (spare_attention if letter == ATTENTION else spare_other)
    ]


def _removal_errors(model: NemotronH, batches: Sequence[Tensor], left: Sequence[int]) -> dict[int, float]:
    """Layer of `left` -> MSE of the logits against the full model if only the other layers of `left` run."""
    backbone = model.backbone
    sums = dict.fromkeys(left, 0.0)
    for tokens in batches:
        full = backbone(tokens)
        u = backbone.embeddings(tokens)
        for place, removed in enumerate(left):  # what is before the removed layer is computed once for all
            v = u
            for index in left[place + 1 :]:
                v = backbone.layers[index](v)
            sums[removed] += _logit_error(model, backbone.norm_f(v), full)
            u = backbone.layers[removed](u)
    num_logits = sum(tokens.numel() for tokens in batches) * model.config.vocab_size
    return {layer: total / num_logits for layer, total in sums.items()}


def _logit_error(model: NemotronH, states: Tensor, full: Tensor, chunk_tokens: int = 1024) -> float:
    """Sum of the squared differences of the logits of two (b, t, d) outputs of the final norm.

    The head is linear, so it reads their difference once. It does so `chunk_tokens` at a time, our choice: all logits
    of one published sequence of 8,192 tokens have 4 GiB in float32.
    """
    chunks = (states - full).flatten(0, 1).split(chunk_tokens)
    return sum(model.lm_head(chunk).double().square().sum().item() for chunk in chunks)


def _width_scores(
    model: NemotronH, batches: Sequence[Tensor], scored: Scored
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """`hidden`, `mlp` and `mamba` of Importance, in one pass over the batches."""
    config = model.config
    h, p = config.mamba_num_heads, config.mamba_head_dim
    after = scored == "after"
    norms: dict[int, Tensor] = {}  # by layer, here and below: sums of squares over sequences
    mlp: dict[int, Tensor] = {}
    mamba: dict[int, Tensor] = {}
    hooks = []

    def watch(module: nn.Module, sums: dict[int, Tensor], index: int, squares: Callable[[Tensor], Tensor]) -> None:
        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            reads = after and sums is not norms
            sums[index] = sums.get(index, 0) + squares(inputs[0] if reads else output).cpu()

        hooks.append(module.register_forward_hook(add))

    def head_squares(x: Tensor) -> Tensor:
        x = x if after else x[..., h * p : 2 * h * p]  # in_proj writes z, x, B, C and dt
        return x.double().square().sum((0, 1)).view(h, p)

    for index, layer in enumerate(cast(Any, model.backbone.layers)):
        letter, mixer = config.hybrid_override_pattern[index], layer.mixer
        watch(layer.norm, norms, index, _squared_means)
        if letter == MLP:
            watch(mixer.down_proj if after else mixer.up_proj, mlp, index, _squared_means)
        elif letter == MAMBA:
            watch(mixer.norm if after else mixer.in_proj, mamba, index, head_squares)
    try:
        for tokens in batches:
            model.backbone(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    roots = [{index: squares.sqrt() for index, squares in sums.items()} for sums in (norms, mlp, mamba)]
    return torch.stack(list(roots[0].values())).sum(0), roots[1], roots[2]


def _squared_means(x: Tensor) -> Tensor:
    """(b, t, channels) to (channels): mean of |x| over positions, squared, summed over sequences."""
    return x.double().abs().mean(1).square().sum(0)


# --- choice ---


def choose(
    importance: Importance, config: ModelConfig, shape: Shape, order: Order = "importance", seed: int = 0
) -> Kept:
    """Which layers, channels, neurons and heads a model of `shape` keeps.

    Mamba-2 (arXiv 2504.11409): first the channels with the highest scores, then the heads whose norm over these
    channels is highest, within each group as many as in the others.

    Args:
        config: the model that was measured.
        order: "importance" keeps what scores highest, "reversed" what scores lowest, "random" what `seed` draws. The
            last two are what importance has to beat. Layers: "reversed" removes those whose absence alone costs most.
    Raises:
        ValueError: if `config` cannot be pruned to `shape`, or fewer layers were removed than `shape` asks for.
    """
    check_shape(config, shape)

    def best(scores: Tensor, count: int, purpose: str) -> tuple[int, ...]:
        if order == "random":
            ranked = torch.randperm(len(scores), generator=purpose_generator(seed, f"pruning/{purpose}"))
        else:  # stable: of equal scores, the first is kept
            ranked = scores.sort(descending=order == "importance", stable=True).indices
        return tuple(sorted(ranked[:count].tolist()))

    pattern = config.hybrid_override_pattern
    num_layers = len(pattern)
    if order == "importance":
        removal = [layer for layer, _ in importance.layers]
    elif order == "reversed":
        removal = importance.layer_errors.sort(descending=True, stable=True).indices.tolist()
    else:
        removal = torch.randperm(num_layers, generator=purpose_generator(seed, "pruning/layers")).tolist()
    left = list(range(num_layers))
    while len(left) > shape.num_layers:
        allowed = _removable(pattern, left, shape)
        layer = next((index for index in removal if index in allowed), None)
        if layer is None:
            raise ValueError(
                f"importance was measured for the removal of {len(removal)} layers, from which {shape.num_layers} "
                f"layers with {shape.num_attention_layers} of attention cannot be chosen; measure it for that depth"
            )
        left.remove(layer)

    g, r = config.n_groups, config.mamba_num_heads // config.n_groups
    mamba_heads, mamba_channels = {}, {}
    for layer in (index for index in left if pattern[index] == MAMBA):
        name = f"layer {layer}"
        channels = best(importance.mamba_channels[layer], shape.mamba_head_dim, f"{name} channels")
        scores = importance.mamba[layer][:, list(channels)].norm(dim=1).view(g, r)
        mamba_channels[layer] = channels
        mamba_heads[layer] = tuple(
            group * r + head
            for group in range(g)
            for head in best(scores[group], shape.mamba_num_heads // g, f"{name} group {group} heads")
        )
    return Kept(
        layers=tuple(left),
        hidden=best(importance.hidden, shape.hidden_size, "hidden"),
        mlp={
            index: best(importance.mlp[index], shape.intermediate_size, f"layer {index} neurons")
            for index in left
            if pattern[index] == MLP
        },
        mamba_heads=mamba_heads,
        mamba_channels=mamba_channels,
    )


def check_shape(config: ModelConfig, shape: Shape) -> None:
    """Check that a model can be pruned to `shape`.

    Raises:
        ValueError: if a size is below 1 or above the model's, the groups do not divide the heads, or the last layer of
            a kind would have to go.
    """
    whole = Shape.of(config)
    for field in fields(Shape):
        size, most = getattr(shape, field.name), getattr(whole, field.name)
        least = int(field.name != "num_attention_layers" or most > 0)
        if not least <= size <= most:
            raise ValueError(f"{field.name}={size} must be from {least} to {most}, which the model has")
    if shape.mamba_num_heads % config.n_groups:
        raise ValueError(
            f"n_groups={config.n_groups} does not divide mamba_num_heads={shape.mamba_num_heads}; every group loses "
            f"as many heads, so pick a multiple of {config.n_groups}"
        )
    others = whole.num_layers - whole.num_attention_layers
    kinds = len(set(config.hybrid_override_pattern) - {ATTENTION})
    if not kinds <= shape.num_layers - shape.num_attention_layers <= others:
        raise ValueError(
            f"num_layers={shape.num_layers} with num_attention_layers={shape.num_attention_layers} leaves "
            f"{shape.num_layers - shape.num_attention_layers} other layers; the model has {others}, and needs 1 of "
            f"each kind: from {kinds} to {others}"
        )


# --- slicing ---


def pruned_config(config: ModelConfig, kept: Kept, *, rescale: bool) -> ModelConfig:
    """The shape of the pruned model; `rescale` as in `prune`."""
    one = {name: next(iter(getattr(kept, name).values()), None) for name in ("mlp", "mamba_heads", "mamba_channels")}
    pruned = replace(
        config,
        hybrid_override_pattern="".join(config.hybrid_override_pattern[index] for index in kept.layers),
        hidden_size=len(kept.hidden),
        intermediate_size=len(one["mlp"]) if one["mlp"] else config.intermediate_size,
        mamba_num_heads=len(one["mamba_heads"]) if one["mamba_heads"] else config.mamba_num_heads,
        mamba_head_dim=len(one["mamba_channels"]) if one["mamba_channels"] else config.mamba_head_dim,
    )
    if rescale:
        gated = config.mamba_inner_size / pruned.mamba_inner_size
        pruned = replace(pruned, layer_norm_epsilon=config.layer_norm_epsilon * gated)
    return pruned


@torch.no_grad()
def prune(model: NemotronH, kept: Kept, *, rescale: bool = False) -> NemotronH:
    """A new model with the kept parts of `model`, on its device and in its dtypes. Keeping all gives the same bits.

    Removing what is 0 for every token leaves the logits as they are, with one exception: an RMSNorm divides by the
    root of a mean, and the mean over fewer channels is larger, by d / d' for the hidden size, by h p / (h' p') = e for
    the gated norm of Mamba-2.

    Args:
        rescale: False trims only: as far as is known, so does the published recipe, and distillation mends the rest.
            True, ours, undoes the change of the means, so that the exception is gone: weights of the layers' norms and
            of the final one times sqrt(d / d'), of gated norms times sqrt(e); everything that writes to the residual
            stream times sqrt(e d' / d), and epsilon, which all norms share, times e. Measured on a fine-tuned model of
            small, whose validation loss is 0.018: with 224 of 256 hidden channels 0.040 trimmed and 0.030 rescaled,
            with 192 of them 0.363 and 0.168. The model is not kept; to compare both on another one:
            `python benchmarks/pruning_orders.py --dataset-path <directory>`, and with `--rescale`.
    """
    config, smaller = model.config, pruned_config(model.config, kept, rescale=rescale)
    h, p, bc = config.mamba_num_heads, config.mamba_head_dim, 2 * config.n_groups * config.ssm_state_size
    gated = config.mamba_inner_size / smaller.mamba_inner_size if rescale else 1.0
    normal = config.hidden_size / smaller.hidden_size if rescale else 1.0
    norm_factor, gated_factor, stream_factor = math.sqrt(normal), math.sqrt(gated), math.sqrt(gated / normal)
    device = model.lm_head.weight.device

    def take(tensor: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """Rows (dimension 0) and columns (dimension 1) of a tensor; None: all."""
        if rows is not None:
            tensor = tensor.index_select(0, rows)
        if columns is not None:
            tensor = tensor.index_select(1, columns)
        return (at_least_float32(tensor) * factor).to(tensor.dtype)

    def indices(values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    d = indices(kept.hidden)
    tensors = {
        "backbone.embeddings.weight": take(model.backbone.embeddings.weight, columns=d, factor=stream_factor),
        "backbone.norm_f.weight": take(model.backbone.norm_f.weight, d, factor=norm_factor),
        "lm_head.weight": take(model.lm_head.weight, columns=d),
    }
    for new, old in enumerate(kept.layers):
        layer = cast(Any, model.backbone.layers[old])
        letter, mixer = config.hybrid_override_pattern[old], layer.mixer
        parts = {"norm.weight": take(layer.norm.weight, d, factor=norm_factor)}
        if letter == MAMBA:
            heads = indices(kept.mamba_heads[old])
            inner = (heads[:, None] * p + indices(kept.mamba_channels[old])).flatten()  # (h' p') of the h p channels
            conv = torch.cat([inner, h * p + torch.arange(bc, device=device)])  # x, then B and C, which stay
            in_rows = torch.cat([inner, h * p + conv, 2 * h * p + bc + heads])  # z, then x, B and C, then dt
            parts |= {
                "mixer.in_proj.weight": take(mixer.in_proj.weight, in_rows, d),
                "mixer.conv1d.weight": take(mixer.conv1d.weight, conv),
                "mixer.conv1d.bias": take(mixer.conv1d.bias, conv),
                "mixer.dt_bias": take(mixer.dt_bias, heads),
                "mixer.A_log": take(mixer.A_log, heads),
                "mixer.D": take(mixer.D, heads),
                "mixer.norm.weight": take(mixer.norm.weight, inner, factor=gated_factor),
                "mixer.out_proj.weight": take(mixer.out_proj.weight, d, inner, stream_factor),
            }
        elif letter == MLP:
            neurons = indices(kept.mlp[old])
            parts |= {
                "mixer.up_proj.weight": take(mixer.up_proj.weight, neurons, d),
                "mixer.down_proj.weight": take(mixer.down_proj.weight, d, neurons, stream_factor),
            }
        else:
            parts |= {
                f"mixer.{name}.weight": take(getattr(mixer, name).weight, columns=d)
                for name in ("q_proj", "k_proj", "v_proj")
            }
            parts["mixer.o_proj.weight"] = take(mixer.o_proj.weight, d, factor=stream_factor)
        tensors |= {f"backbone.layers.{new}.{name}": tensor for name, tensor in parts.items()}
    pruned = NemotronH(smaller, device="meta")
    pruned.load_state_dict(tensors, assign=True)  # the tensors replace parameters without memory
    return pruned
