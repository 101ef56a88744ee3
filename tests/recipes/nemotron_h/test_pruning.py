"""Scores against plain loops, removal of layers against models without them, and slices against weights of zero."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint
from nemotron.recipes.nemotron_h.model import (
    PUBLISHED_9B,
    PUBLISHED_12B,
    ModelConfig,
    NemotronH,
    initialize,
    ssd_scan_sequential,
)
from nemotron.recipes.nemotron_h.plan import count_parameters
from nemotron.recipes.nemotron_h.pruning import (
    Importance,
    Kept,
    Order,
    Shape,
    choose,
    measure_importance,
    prune,
    pruned_config,
)

CONFIG = ModelConfig(
    vocab_size=16, hidden_size=12, hybrid_override_pattern="M-*M*-", num_attention_heads=2, num_key_value_heads=1,
    head_dim=4, intermediate_size=10, mamba_num_heads=6, mamba_head_dim=4, n_groups=2, ssm_state_size=3, chunk_size=8,
)  # fmt: skip
WHOLE = Shape.of(CONFIG)


def model_of(config: ModelConfig = CONFIG, seed: int = 0, dtype: torch.dtype = torch.float64) -> NemotronH:
    """A model none of whose tensors is constant."""
    model = NemotronH(config, dtype=dtype)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def tokens_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: NemotronH, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)


BATCHES = [tokens_of(2, 9, seed=1), tokens_of(1, 5, seed=2)]


def measured(
    num_layers: int = 4,
    num_attention_layers: int = 1,
    model: NemotronH | None = None,
    scored: Literal["before", "after"] = "after",
) -> Importance:
    return measure_importance(
        model or model_of(),
        BATCHES,
        num_layers=num_layers,
        num_attention_layers=num_attention_layers,
        scored=scored,
    )


# --- slicing ---


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    groups, key_heads = number(1, 3), number(1, 2)
    return replace(
        CONFIG,
        hidden_size=number(2, 12),
        hybrid_override_pattern="".join(draw(st.lists(st.sampled_from("M-*"), min_size=1, max_size=5))),
        num_attention_heads=key_heads * number(1, 2),
        num_key_value_heads=key_heads,
        head_dim=number(1, 4),
        intermediate_size=number(1, 10),
        mamba_num_heads=groups * number(1, 4),
        mamba_head_dim=number(1, 5),
        n_groups=groups,
        ssm_state_size=number(1, 4),
    )


def everything(config: ModelConfig) -> Kept:
    pattern = config.hybrid_override_pattern
    mamba = [index for index, letter in enumerate(pattern) if letter == "M"]
    return Kept(
        layers=tuple(range(len(pattern))),
        hidden=tuple(range(config.hidden_size)),
        mlp={index: tuple(range(config.intermediate_size)) for index, letter in enumerate(pattern) if letter == "-"},
        mamba_heads={index: tuple(range(config.mamba_num_heads)) for index in mamba},
        mamba_channels={index: tuple(range(config.mamba_head_dim)) for index in mamba},
    )


@st.composite
def configs_and_kept(draw: st.DrawFn) -> tuple[ModelConfig, Kept]:
    """A model's shape and parts of it to keep, other ones in every layer."""
    config = draw(configs())
    pattern = config.hybrid_override_pattern

    def some(count: int, of: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.permutations(range(of)))[:count]))

    def part(of: int) -> int:
        return draw(st.integers(1, of))

    layers = some(part(len(pattern)), len(pattern))
    mamba = [index for index in layers if pattern[index] == "M"]
    r = config.mamba_num_heads // config.n_groups
    neurons, heads, channels = part(config.intermediate_size), part(r), part(config.mamba_head_dim)
    return config, Kept(
        layers=layers,
        hidden=some(part(config.hidden_size), config.hidden_size),
        mlp={index: some(neurons, config.intermediate_size) for index in layers if pattern[index] == "-"},
        mamba_heads={
            index: tuple(group * r + head for group in range(config.n_groups) for head in some(heads, r))
            for index in mamba
        },
        mamba_channels={index: some(channels, config.mamba_head_dim) for index in mamba},
    )


@torch.no_grad()
def silence_removed(model: NemotronH, kept: Kept) -> None:
    """Set to 0 what makes the removed parts 0 for every token; their other weights stay as they are."""
    config = model.config
    p, inner = config.mamba_head_dim, config.mamba_inner_size
    removed = [channel for channel in range(config.hidden_size) if channel not in kept.hidden]
    model.backbone.embeddings.weight[:, removed] = 0
    for index, layer in enumerate(model.backbone.layers):
        letter, mixer = config.hybrid_override_pattern[index], layer.mixer
        output = {"M": "out_proj", "-": "down_proj", "*": "o_proj"}[letter]
        getattr(mixer, output).weight[removed] = 0
        if index not in kept.layers:
            getattr(mixer, output).weight.zero_()
        elif letter == "-":
            for neuron in range(config.intermediate_size):
                if neuron not in kept.mlp[index]:
                    mixer.up_proj.weight[neuron] = 0
        elif letter == "M":
            for head in range(config.mamba_num_heads):
                for channel in range(p):
                    if head not in kept.mamba_heads[index] or channel not in kept.mamba_channels[index]:
                        mixer.in_proj.weight[inner + head * p + channel] = 0
                        mixer.conv1d.weight[head * p + channel] = 0
                        mixer.conv1d.bias[head * p + channel] = 0


@settings(max_examples=60)
@given(configs_and_kept())
def test_pruning_parts_that_are_zero_leaves_the_logits_unchanged(case: tuple[ModelConfig, Kept]) -> None:
    config, kept = case
    model, tokens = model_of(config), tokens_of(2, 11)
    silence_removed(model, kept)
    pruned = prune(model, kept, rescale=True)
    assert (logits_of(pruned, tokens) - logits_of(model, tokens)).abs().max() < 1e-10


@settings(max_examples=30)
@given(configs_and_kept())
def test_trimming_layers_and_neurons_that_are_zero_leaves_the_logits_unchanged(case: tuple[ModelConfig, Kept]) -> None:
    config, kept = case
    whole = everything(config)
    kept = replace(
        kept,
        hidden=whole.hidden,
        mamba_heads={index: whole.mamba_heads[index] for index in kept.mamba_heads},
        mamba_channels={index: whole.mamba_channels[index] for index in kept.mamba_heads},
    )
    model, tokens = model_of(config), tokens_of(2, 11)
    silence_removed(model, kept)
    pruned = prune(model, kept)
    assert (logits_of(pruned, tokens) - logits_of(model, tokens)).abs().max() < 1e-10
    assert pruned.config.layer_norm_epsilon == config.layer_norm_epsilon


@pytest.mark.parametrize("shape", [replace(WHOLE, hidden_size=8), replace(WHOLE, mamba_num_heads=4)])
def test_trimming_without_rescaling_changes_what_the_norms_divide_by(shape: Shape) -> None:
    kept = choose(measured(), CONFIG, shape)
    model, tokens = model_of(), tokens_of(2, 11)
    silence_removed(model, kept)
    assert (logits_of(prune(model, kept), tokens) - logits_of(model, tokens)).abs().max() > 1e-3
    assert (logits_of(prune(model, kept, rescale=True), tokens) - logits_of(model, tokens)).abs().max() < 1e-10


@settings(max_examples=20)
@given(configs(), st.booleans(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_pruning_nothing_gives_the_same_bits(config: ModelConfig, rescale: bool, dtype: torch.dtype) -> None:
    model, tokens = model_of(config, dtype=dtype), tokens_of(2, 11)
    pruned = prune(model, everything(config), rescale=rescale)
    assert torch.equal(logits_of(pruned, tokens), logits_of(model, tokens))
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
        assert tensor.dtype == dtype
        assert tensor.data_ptr() != model.state_dict()[name].data_ptr(), name  # training one must not change the other
    assert pruned.config == config


def test_a_pruned_model_learns() -> None:
    pruned = prune(model_of(), choose(measured(), CONFIG, SMALL))
    pruned(tokens_of(2, 11)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pruned.parameters())


SMALL = Shape(
    num_layers=4, num_attention_layers=1, hidden_size=7, intermediate_size=6, mamba_num_heads=4, mamba_head_dim=3
)


@pytest.mark.parametrize("rescale", [False, True])
def test_transformers_gives_a_pruned_checkpoint_the_same_logits(rescale: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *"abcdefgh"])}
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(WordLevel(vocabulary, unk_token="<unk>")).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(names))
    model = model_of(dtype=torch.float32)
    pruned = prune(model, choose(measured(model=model), CONFIG, SMALL), rescale=rescale)
    save_checkpoint(pruned, tmp_path / "tokenizer", tmp_path / "pruned")
    twin, tokens = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned"), tokens_of(2, 30)
    assert (logits_of(twin, tokens).logits - logits_of(pruned, tokens)).abs().max() < 1e-4  # type: ignore[attr-defined]
    loaded = load_checkpoint(tmp_path / "pruned")
    assert Shape.of(loaded.config) == SMALL
    assert torch.equal(logits_of(loaded, tokens), logits_of(pruned, tokens))


def test_the_published_shape_has_the_published_number_of_parameters() -> None:
    whole = everything(PUBLISHED_12B)
    letters = PUBLISHED_12B.hybrid_override_pattern
    removed = [index for index, letter in enumerate(letters) if letter == "*"][:2]  # counts only: which ones is not
    removed += [index for index, letter in enumerate(letters) if letter == "-"][:3]  # published
    removed += [index for index, letter in enumerate(letters) if letter == "M"][:1]
    layers = tuple(index for index in whole.layers if index not in removed)
    kept = replace(
        whole,
        layers=layers,
        hidden=whole.hidden[:4480],
        mlp={index: whole.mlp[index][:15680] for index in layers if index in whole.mlp},
    )
    config = pruned_config(PUBLISHED_12B, kept, rescale=False)
    assert Shape.of(config) == Shape.of(PUBLISHED_9B) == Shape(56, 4, 4480, 15680, 128, 80)
    assert count_parameters(config) == 8_888_227_328


# --- importance ---


def outputs_of(model: NemotronH, pick: Callable[[Any], Any]) -> dict[int, list[list[list[list[float]]]]]:
    """Layer -> for each batch, what the module that `pick` finds in the layer wrote, as nested lists."""
    found: dict[int, list[Any]] = {}
    for index, layer in enumerate(model.backbone.layers):
        if (module := pick(layer)) is not None:
            found[index] = []
            module.register_forward_hook(lambda _, __, output, to=found[index]: to.append(output.tolist()))
    for tokens in BATCHES:
        logits_of(model, tokens)
    return found


def naive_score(batches: list[list[list[list[float]]]], channel: int) -> float:
    total = 0.0
    for sequences in batches:
        for sequence in sequences:
            total += (sum(abs(position[channel]) for position in sequence) / len(sequence)) ** 2
    return math.sqrt(total)


def test_hidden_scores_equal_plain_loops_over_the_outputs_of_the_norms() -> None:
    norms = outputs_of(model_of(), lambda layer: layer.norm)
    expected = [sum(naive_score(norms[layer], channel) for layer in range(6)) for channel in range(12)]
    assert measured().hidden.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scored", ["before", "after"])
def test_mlp_scores_equal_plain_loops_over_the_neurons(scored: Literal["before", "after"]) -> None:
    ups = outputs_of(model_of(), lambda layer: getattr(layer.mixer, "up_proj", None))
    if scored == "after":
        for batches in ups.values():
            for position in (position for sequences in batches for sequence in sequences for position in sequence):
                position[:] = [max(number, 0) ** 2 for number in position]
    scores = measured(scored=scored).mlp
    assert list(scores) == list(ups) == [1, 5]
    for layer, batches in ups.items():
        expected = [naive_score(batches, neuron) for neuron in range(10)]
        assert scores[layer].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scored", ["before", "after"])
def test_mamba_scores_equal_plain_loops_over_x(scored: Literal["before", "after"]) -> None:
    model = model_of()
    if scored == "before":
        outputs, start = outputs_of(model, lambda layer: getattr(layer.mixer, "in_proj", None)), 6 * 4  # after z
    else:
        outputs, start = inputs_of_gated_norms(model), 0
    importance = measured(scored=scored)
    assert list(importance.mamba) == list(outputs) == [0, 3]
    for layer, batches in outputs.items():
        positions = [position for sequences in batches for sequence in sequences for position in sequence]
        squares = [
            [sum(position[start + head * 4 + channel] ** 2 for position in positions) for channel in range(4)]
            for head in range(6)
        ]
        for head in range(6):
            assert importance.mamba[layer][head].tolist() == pytest.approx([math.sqrt(s) for s in squares[head]])
            assert importance.mamba_heads[layer][head] == pytest.approx(math.sqrt(sum(squares[head])))
        for channel in range(4):
            expected = math.sqrt(sum(squares[head][channel] for head in range(6)))
            assert importance.mamba_channels[layer][channel] == pytest.approx(expected)


def inputs_of_gated_norms(model: NemotronH) -> dict[int, list[Any]]:
    """Layer -> y silu(z) of each batch, from the outputs of in_proj and the scan that defines the layer."""
    h, p, g, n = 6, 4, 2, 3
    found: dict[int, list[Any]] = {}
    for index, batches in outputs_of(model, lambda layer: getattr(layer.mixer, "in_proj", None)).items():
        mixer = model.backbone.layers[index].mixer
        found[index] = []
        for batch in batches:
            z, xBC, dt = torch.tensor(batch, dtype=torch.float64).split([h * p, h * p + 2 * g * n, h], dim=-1)
            with torch.no_grad():
                xBC = torch.nn.functional.silu(mixer.conv1d(xBC))
                dt = torch.log1p(torch.exp(dt + mixer.dt_bias))
                x, B, C = xBC.split([h * p, g * n, g * n], dim=-1)
                x, B, C = x.unflatten(-1, (h, p)), B.unflatten(-1, (g, n)), C.unflatten(-1, (g, n))
                y, _ = ssd_scan_sequential(x, dt, -torch.exp(mixer.A_log), B, C, mixer.D)
            found[index].append((y.flatten(2) * z * torch.sigmoid(z)).tolist())
    return found


def without(model: NemotronH, removed: set[int]) -> NemotronH:
    """A new model that has only the other layers."""
    left = [index for index in range(len(model.config.hybrid_override_pattern)) if index not in removed]
    pattern = "".join(model.config.hybrid_override_pattern[index] for index in left)
    smaller = NemotronH(replace(model.config, hybrid_override_pattern=pattern), dtype=torch.float64)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone.layers."):
            _, _, index, rest = name.split(".", 3)
            if int(index) in removed:
                continue
            tensors[f"backbone.layers.{left.index(int(index))}.{rest}"] = tensor
        else:
            tensors[name] = tensor
    smaller.load_state_dict(tensors)
    return smaller


def brute_error(model: NemotronH, removed: set[int]) -> float:
    """Mean over all logits of all batches."""
    smaller = without(model, removed)
    errors = [(logits_of(smaller, tokens) - logits_of(model, tokens)).square().flatten() for tokens in BATCHES]
    return torch.cat(errors).mean().item()


@pytest.mark.parametrize(("num_layers", "num_attention_layers"), [(2 + 2, 2), (4, 1), (3, 1), (5, 2), (6, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_removal_of_layers_equals_brute_force(num_layers: int, num_attention_layers: int, seed: int) -> None:
    model, pattern = model_of(seed=seed), CONFIG.hybrid_override_pattern
    removed: list[int] = []
    errors = []
    spare = {"*": 2 - num_attention_layers, "other": 4 - (num_layers - num_attention_layers)}
    while len(removed) < 6 - num_layers:
        trial = {}
        for layer in range(6):
            kind = "*" if pattern[layer] == "*" else "other"
            last = [pattern[index] for index in range(6) if index not in removed].count(pattern[layer]) == 1
            if layer not in removed and spare[kind] and not last:
                trial[layer] = brute_error(model, {*removed, layer})
        layer = min(trial, key=lambda index: trial[index])
        removed.append(layer)
        errors.append(trial[layer])
        spare["*" if pattern[layer] == "*" else "other"] -= 1
    importance = measured(num_layers, num_attention_layers, model)
    assert [layer for layer, _ in importance.layers] == removed
    assert [error for _, error in importance.layers] == pytest.approx(errors, rel=1e-9)
    alone = [brute_error(model, {layer}) for layer in range(6)]
    assert importance.layer_errors.tolist() == pytest.approx(alone, rel=1e-9)
    kept = choose(importance, CONFIG, replace(WHOLE, num_layers=num_layers, num_attention_layers=num_attention_layers))
    pruned, expected = prune(model, kept), without(model, set(removed))
    assert torch.equal(logits_of(pruned, BATCHES[0]), logits_of(expected, BATCHES[0]))


def test_measuring_in_other_batches_gives_the_same_scores() -> None:
    tokens = tokens_of(4, 7)
    one, four = (
        measure_importance(model_of(), batches, num_layers=4, num_attention_layers=1)
        for batches in ([tokens], iter(tokens.split(1)))
    )
    assert torch.allclose(one.hidden, four.hidden, rtol=1e-12)
    assert torch.allclose(one.layer_errors, four.layer_errors, rtol=1e-9)
    assert all(torch.allclose(one.mamba[layer], four.mamba[layer], rtol=1e-12) for layer in one.mamba)


def test_measuring_never_holds_the_logits_of_a_whole_batch() -> None:
    model, sizes = model_of(), []
    model.lm_head.register_forward_hook(lambda _, __, output: sizes.append(output.numel() // CONFIG.vocab_size))
    measure_importance(model, [tokens_of(3, 500)], num_layers=6, num_attention_layers=2)
    assert set(sizes) == {1024, 1500 - 1024}


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    importance = measured(model=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not importance.hidden.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_measured_importance_finds_the_parts_that_are_zero() -> None:
    model, tokens = model_of(), tokens_of(2, 11)
    kept = choose(random_importance(), CONFIG, SMALL, "random", seed=3)
    silence_removed(model, kept)
    importance = measured(model=model)
    assert choose(importance, CONFIG, SMALL) == kept
    for layer, (_, error) in zip(set(range(6)) - set(kept.layers), importance.layers, strict=True):
        assert importance.layer_errors[layer] == error == 0
    pruned = prune(model, kept, rescale=True)
    assert (logits_of(pruned, tokens) - logits_of(model, tokens)).abs().max() < 1e-10


# --- choice ---


def random_importance(seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)

    def scores(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    return Importance(
        layers=((2, 0.1), (5, 0.2)),
        layer_errors=torch.tensor([3.0, 1, 0.1, 2, 4, 0.15], dtype=torch.float64),
        hidden=scores(12),
        mlp={layer: scores(10) for layer in (1, 5)},
        mamba={layer: scores(6, 4) for layer in (0, 3)},
    )


def test_importance_keeps_the_highest_and_reversed_the_lowest_scores() -> None:
    importance = random_importance()
    shape = replace(WHOLE, hidden_size=7, intermediate_size=6)
    best, worst = (choose(importance, CONFIG, shape, order) for order in ("importance", "reversed"))
    for scores, high, low in [
        (importance.hidden, best.hidden, worst.hidden),
        *((importance.mlp[layer], best.mlp[layer], worst.mlp[layer]) for layer in (1, 5)),
    ]:
        ranked = sorted(range(len(scores)), key=lambda index: scores[index])
        assert list(high) == sorted(ranked[len(scores) - len(high) :])
        assert list(low) == sorted(ranked[: len(low)])
    assert best.mlp[1] != best.mlp[5]


def test_heads_are_ranked_within_their_group_by_the_kept_channels_only() -> None:
    mamba = torch.tensor(
        [
            # channels 0 and 1 are kept; channel 2 would make head 0 the best of its group
            [2.0, 2.0, 3.5],
            [3.0, 3.0, 0.0],
            [9.0, 0.0, 0.0],
            # every head of the second group is below the worst of the first
            [0.1, 0.2, 0.0],
            [0.3, 0.1, 0.0],
            [0.2, 0.3, 0.0],
        ],
        dtype=torch.float64,
    )
    config = replace(CONFIG, mamba_head_dim=3)
    importance = replace(random_importance(), mamba={0: mamba, 3: mamba.flip(0)})
    shape = replace(Shape.of(config), mamba_num_heads=4, mamba_head_dim=2)
    kept = choose(importance, config, shape)
    assert kept.mamba_channels == {0: (0, 1), 3: (0, 1)}
    assert kept.mamba_heads == {0: (1, 2, 4, 5), 3: (0, 1, 3, 4)}
    assert choose(importance, config, shape, "reversed").mamba_channels[0] == (1, 2)
    one = choose(importance, config, replace(shape, mamba_num_heads=2))
    assert one.mamba_heads[0] == (2, 5)


def test_equal_scores_keep_the_first_parts() -> None:
    importance = replace(random_importance(), hidden=torch.ones(12, dtype=torch.float64))
    orders: tuple[Order, ...] = ("importance", "reversed")
    for order in orders:
        assert choose(importance, CONFIG, replace(WHOLE, hidden_size=3), order).hidden == (0, 1, 2)


def test_reversed_removes_the_layers_whose_absence_costs_most() -> None:
    shape = replace(WHOLE, num_layers=4, num_attention_layers=1)
    assert choose(random_importance(), CONFIG, shape, "importance").layers == (0, 1, 3, 4)
    assert choose(random_importance(), CONFIG, shape, "reversed").layers == (1, 2, 3, 5)


def test_random_depends_on_the_seed_only_and_keeps_groups_and_kinds() -> None:
    kept = [choose(random_importance(one), CONFIG, SMALL, "random", seed) for one, seed in ((0, 0), (9, 0), (0, 1))]
    assert kept[0] == kept[1] != kept[2]
    all_kept = [choose(random_importance(), CONFIG, SMALL, "random", seed) for seed in range(20)]
    for one in all_kept:
        letters = [CONFIG.hybrid_override_pattern[index] for index in one.layers]
        assert (len(letters), letters.count("*")) == (4, 1)
        assert {"M", "-"} < set(letters)
        for heads in one.mamba_heads.values():
            assert [head // 3 for head in heads] == [0, 0, 1, 1]
    assert len({one.layers for one in all_kept}) > 3
    assert len({one.hidden for one in all_kept}) > 15


def test_kept_parts_are_those_of_the_kept_layers_only() -> None:
    kept = choose(random_importance(), CONFIG, replace(WHOLE, num_layers=4, num_attention_layers=1))
    assert (list(kept.mlp), list(kept.mamba_heads), list(kept.mamba_channels)) == ([1], [0, 3], [0, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 13}, "hidden_size=13 must be from 1 to 12, which the model has"),
        ({"hidden_size": 0}, "hidden_size=0 must be from 1 to 12, which the model has"),
        ({"intermediate_size": 11}, "intermediate_size=11 must be from 1 to 10, which the model has"),
        ({"mamba_head_dim": 5}, "mamba_head_dim=5 must be from 1 to 4, which the model has"),
        ({"mamba_num_heads": 8}, "mamba_num_heads=8 must be from 1 to 6, which the model has"),
        (
            {"mamba_num_heads": 3},
            "n_groups=2 does not divide mamba_num_heads=3; every group loses as many heads, so pick a multiple of 2",
        ),
        ({"num_layers": 7}, "num_layers=7 must be from 1 to 6, which the model has"),
        ({"num_attention_layers": 0}, "num_attention_layers=0 must be from 1 to 2, which the model has"),
        ({"num_attention_layers": 3}, "num_attention_layers=3 must be from 1 to 2, which the model has"),
        (
            {"num_layers": 3},
            "num_layers=3 with num_attention_layers=2 leaves 1 other layers; the model has 4, and needs 1 of each "
            "kind: from 2 to 4",
        ),
        (
            {"num_attention_layers": 1},
            "num_layers=6 with num_attention_layers=1 leaves 5 other layers; the model has 4, and needs 1 of each "
            "kind: from 2 to 4",
        ),
        (
            {"num_layers": 3, "num_attention_layers": 1},
            "importance was measured for the removal of 2 layers, from which 3 layers with 1 of attention cannot be "
            "chosen; measure it for that depth",
        ),
    ],
)
def test_a_shape_that_cannot_be_had_is_an_error(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose(random_importance(), CONFIG, replace(WHOLE, **changes))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there is no batch of tokens to measure importance on; give a calibration set with at least 1"),
        (
            [tokens_of(1, 4)[0]],
            "a batch of calibration has shape (4,); give (sequences, positions), at least 1 each",
        ),
        (
            [tokens_of(1, 4), tokens_of(2, 0)],
            "a batch of calibration has shape (2, 0); give (sequences, positions), at least 1 each",
        ),
    ],
)
def test_a_calibration_set_without_tokens_is_an_error(batches: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measure_importance(model_of(), batches, num_layers=4, num_attention_layers=1)


def test_a_depth_without_attention_is_an_error_before_anything_is_measured() -> None:
    model = model_of()
    model.backbone.embeddings.register_forward_hook(lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"^num_attention_layers=0 must be from 1 to 2, which the model has$"):
        measured(4, 0, model)


def test_a_model_without_attention_needs_none() -> None:
    model = model_of(replace(CONFIG, hybrid_override_pattern="M-M-"))
    importance = measured(3, 0, model)
    kept = choose(importance, model.config, replace(Shape.of(model.config), num_layers=3))
    assert len(kept.layers) == 3
