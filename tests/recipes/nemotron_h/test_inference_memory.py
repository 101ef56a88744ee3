"""Planned bytes against the tensors of models and decoding states, and the search against the published choice."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.inference_memory import (
    A10G_BUDGET,
    CONTEXT_TOKENS,
    FULL_GRID,
    GIB,
    Candidate,
    Grid,
    candidates,
    inference_memory_bytes,
    neighbors,
    parameter_count,
)
from nemotron.recipes.nemotron_h.model import (
    PUBLISHED_9B,
    PUBLISHED_12B,
    AttentionState,
    DecodingState,
    MambaState,
    ModelConfig,
    NemotronH,
    initialize,
)
from nemotron.recipes.nemotron_h.plan import count_parameters

TINY = MODELS["tiny"]
TINY_GRID = Grid(
    hybrid_override_pattern=("M*-", "M-M*-"),
    hidden_size=(48, 64),
    intermediate_size=(128, 192, 256),
    mamba_num_heads=(6, 8),
    mamba_head_dim=(16,),
)


@pytest.mark.parametrize(("config", "expected"), [(PUBLISHED_12B, 12_310_001_152), (PUBLISHED_9B, 8_888_227_328)])
def test_published_shapes_have_the_published_number_of_parameters(config: ModelConfig, expected: int) -> None:
    assert parameter_count(config) == expected


@given(st.data())
def test_the_formula_counts_the_parameters_of_the_model(data: st.DataObject) -> None:
    def number() -> int:
        return data.draw(st.integers(1, 9))

    groups, keys = number(), number()
    config = ModelConfig(
        vocab_size=number(), hidden_size=number(), intermediate_size=number(), head_dim=number(),
        num_attention_heads=keys * number(), num_key_value_heads=keys, mamba_num_heads=groups * number(),
        mamba_head_dim=number(), n_groups=groups, ssm_state_size=number(), conv_kernel=number(),
        hybrid_override_pattern=data.draw(st.text("M-*", min_size=1, max_size=6)),
    )  # fmt: skip
    assert parameter_count(config) == count_parameters(config)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("config", [TINY, replace(TINY, hybrid_override_pattern="M*M*-M-", n_groups=4)])
def test_planned_bytes_are_those_of_the_weights_and_the_decoding_state(config: ModelConfig, dtype: str) -> None:
    model = NemotronH(config, dtype=getattr(torch, dtype))
    initialize(model, 0)
    sequences, context = 3, 40
    state = DecodingState(model, sequences)
    with torch.no_grad():
        model(torch.zeros(sequences, context, dtype=torch.int64), state=state)
    mamba = [layer for layer in state.layers if isinstance(layer, MambaState)]
    attention = [layer for layer in state.layers if isinstance(layer, AttentionState)]
    planned = inference_memory_bytes(config, context_tokens=context, sequences=sequences, dtype=dtype)
    assert planned["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert planned["scan states"] == sum(layer.ssm.nbytes for layer in mamba)
    # bfloat16: the convolution computes in float32, so here its window has the type that in_proj writes
    assert planned["convolution windows"] == sum(layer.window.nbytes for layer in mamba)
    used = [tensor[:, :, :context] for layer in attention for tensor in (layer.keys, layer.values)]
    assert planned["keys and values"] == sum(tensor.numel() * tensor.element_size() for tensor in used)


def test_the_budget_is_the_published_one() -> None:
    assert pytest.approx(19.66, abs=0.005) == A10G_BUDGET / GIB
    assert pytest.approx(22.06 - 0.05 * 22.06 - 1.3) == A10G_BUDGET / GIB


def test_the_published_9b_fits_the_published_budget_and_the_12b_does_not() -> None:
    parts = inference_memory_bytes(PUBLISHED_9B, context_tokens=CONTEXT_TOKENS)
    assert parts == {
        "weights": 8_888_227_328 * 2,
        "keys and values": 4 * 2 * 8 * 128 * 131_072 * 2,  # layers, keys and values, heads, sizes, tokens, bytes
        "scan states": 27 * 128 * 80 * 128 * 4,  # layers, heads, sizes, state, bytes
        "convolution windows": 27 * (10_240 + 2 * 8 * 128) * 3 * 2,  # layers, channels, positions, bytes
    }
    assert sum(parts.values()) <= A10G_BUDGET < sum(inference_memory_bytes(PUBLISHED_12B, context_tokens=1).values())


def test_a_second_sequence_costs_the_published_9b_no_weights_and_would_not_fit() -> None:
    one, two = (
        inference_memory_bytes(PUBLISHED_9B, context_tokens=CONTEXT_TOKENS, sequences=number) for number in (1, 2)
    )
    assert one["weights"] == two["weights"]
    assert all(two[part] == 2 * one[part] for part in one if part != "weights")
    assert sum(two.values()) > A10G_BUDGET


@pytest.fixture(scope="module")
def full() -> list[Candidate]:
    return candidates(PUBLISHED_12B, FULL_GRID, budget_bytes=A10G_BUDGET, context_tokens=CONTEXT_TOKENS)


def test_the_full_grid_has_the_published_ranges_and_choice(full: list[Candidate]) -> None:
    assert (min(FULL_GRID.hidden_size), max(FULL_GRID.hidden_size)) == (4480, 5120)
    assert (min(FULL_GRID.intermediate_size), max(FULL_GRID.intermediate_size)) == (13440, 20480)
    assert (min(FULL_GRID.mamba_num_heads), max(FULL_GRID.mamba_num_heads)) == (112, 128)
    assert [len(pattern) for pattern in FULL_GRID.hybrid_override_pattern] == [52, 54, 56]
    assert {pattern.count("*") for pattern in FULL_GRID.hybrid_override_pattern} == {4}
    assert len(full) == 3 * 6 * 23 * 3
    assert PUBLISHED_9B in [candidate.config for candidate in full]


def test_every_neighbor_of_the_published_choice_has_its_verdict(full: list[Candidate]) -> None:
    near = neighbors(FULL_GRID, PUBLISHED_9B, full)
    assert {name: candidate.verdict for name, candidate in near.items()} == {
        "num_layers=54": "fits with 1.51 GiB left: 18.15 of 19.66 GiB (weights 16.02, keys and values 2, scan states "
        "0.127, convolution windows 0.001785)",
        "hidden_size=4608": "fits with 0.495 GiB left: 19.16 of 19.66 GiB (weights 17.03, keys and values 2, scan "
        "states 0.1318, convolution windows 0.001854)",
        "intermediate_size=15360": "fits with 1.1 GiB left: 18.56 of 19.66 GiB (weights 16.42, keys and values 2, scan "
        "states 0.1318, convolution windows 0.001854)",
        "intermediate_size=16000": "fits with 0.834 GiB left: 18.82 of 19.66 GiB (weights 16.69, keys and values 2, "
        "scan states 0.1318, convolution windows 0.001854)",
        "mamba_num_heads=120": "fits with 1.41 GiB left: 18.25 of 19.66 GiB (weights 16.12, keys and values 2, scan "
        "states 0.1236, convolution windows 0.001757)",
    }


def test_only_two_steps_of_the_hidden_size_fit_above_the_published_choice(full: list[Candidate]) -> None:
    fits = {
        candidate.config.hidden_size: candidate.fits
        for candidate in full
        if candidate.config == replace(PUBLISHED_9B, hidden_size=candidate.config.hidden_size)
    }
    assert fits == {4480: True, 4608: True, 4736: True, 4864: False, 4992: False, 5120: False}
    over = next(one for one in full if one.config == replace(PUBLISHED_9B, hidden_size=4864))
    assert over.verdict == (
        "is 0.451 GiB over: 20.11 of 19.66 GiB (weights 17.97, keys and values 2, scan states 0.1318, convolution "
        "windows 0.001854)"
    )


def test_candidates_are_all_shapes_of_the_grid_from_most_to_least_memory() -> None:
    budget = 700_000
    found = candidates(TINY, TINY_GRID, budget_bytes=budget, context_tokens=100, sequences=2, dtype="float32")
    totals = []
    for pattern in TINY_GRID.hybrid_override_pattern:
        for hidden in TINY_GRID.hidden_size:
            for neurons in TINY_GRID.intermediate_size:
                for heads in TINY_GRID.mamba_num_heads:
                    config = replace(
                        TINY, hybrid_override_pattern=pattern, hidden_size=hidden, intermediate_size=neurons,
                        mamba_num_heads=heads,
                    )  # fmt: skip
                    parts = inference_memory_bytes(config, context_tokens=100, sequences=2, dtype="float32")
                    totals.append(sum(parts.values()))
    assert [candidate.total_bytes for candidate in found] == sorted(totals, reverse=True)
    assert [candidate.fits for candidate in found] == [total <= budget for total in sorted(totals, reverse=True)]
    assert found[0].config == TINY
    assert 0 < sum(candidate.fits for candidate in found) < len(found)


def test_a_budget_is_inclusive_and_one_byte_less_is_an_error() -> None:
    least = candidates(TINY, TINY_GRID, budget_bytes=400_000, context_tokens=100)[-1].total_bytes
    assert [one.fits for one in candidates(TINY, TINY_GRID, budget_bytes=least, context_tokens=100)][-1]
    with pytest.raises(
        ValueError,
        match=rf"^budget_bytes={least - 1:,} is below the {least:,} bytes of the smallest candidate; raise the budget, "
        r"or widen the search$",
    ):
        candidates(TINY, TINY_GRID, budget_bytes=least - 1, context_tokens=100)


def test_a_budget_that_the_teacher_fits_is_an_error() -> None:
    whole = sum(inference_memory_bytes(TINY, context_tokens=100).values())
    with pytest.raises(
        ValueError,
        match=rf"^budget_bytes={whole:,} is not below the {whole:,} bytes of the teacher, which fits as it is; lower "
        r"the budget, or raise the context or the sequences$",
    ):
        candidates(TINY, TINY_GRID, budget_bytes=whole, context_tokens=100)
    assert candidates(TINY, TINY_GRID, budget_bytes=whole - 1, context_tokens=100)


def test_a_neighbor_of_the_same_depth_is_named_by_its_mamba_layers() -> None:
    grid = replace(TINY_GRID, hybrid_override_pattern=("M--*", "MM-*", "MM--*"))
    found = candidates(TINY, grid, budget_bytes=400_000, context_tokens=100)
    near = neighbors(grid, replace(TINY, hybrid_override_pattern="MM-*"), found)
    assert [name for name in near if "layers" in name] == ["mamba_layers=1", "num_layers=5"]
    assert near["mamba_layers=1"].config.hybrid_override_pattern == "M--*"


def test_a_shape_outside_of_the_grid_has_no_neighbors() -> None:
    found = candidates(TINY, TINY_GRID, budget_bytes=400_000, context_tokens=100)
    assert list(neighbors(TINY_GRID, replace(TINY, intermediate_size=192), found)) == [
        *("num_layers=3", "hidden_size=48", "intermediate_size=128", "intermediate_size=256", "mamba_num_heads=6"),
    ]
    with pytest.raises(ValueError, match=r"^intermediate_size=200 is not in the grid; it has 128, 192, 256$"):
        neighbors(TINY_GRID, replace(TINY, intermediate_size=200), found)
