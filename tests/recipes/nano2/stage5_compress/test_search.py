"""The grid of the search, and its tables; whole runs: tests/pipelines/test_compress_runs.py."""

import math
from dataclasses import replace

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage5_compress import search
from nemotron.recipes.nano2.stage5_compress.search import Config
from nemotron.recipes.nemotron_h.inference_memory import candidates, inference_memory_bytes
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.pruning import measure_importance

TINY = MODELS["tiny"]


@pytest.fixture(scope="module")
def importance():
    model = NemotronH(TINY, dtype=torch.float64)
    initialize(model, 0)
    tokens = torch.randint(20, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    return measure_importance(model, [tokens], num_layers=4, num_attention_layers=1)


def test_a_depth_is_the_pattern_that_the_removal_of_layers_leaves(importance):
    grid = search.grid_of(importance, TINY, Config())
    (removed, _), *_ = importance.layers
    letters = list(TINY.hybrid_override_pattern)
    del letters[removed]
    assert grid.hybrid_override_pattern == ("".join(letters), TINY.hybrid_override_pattern)
    assert grid.mamba_head_dim == (TINY.mamba_head_dim,)


def test_every_shape_of_every_scale_can_be_pruned_to():
    for scale, teacher in MODELS.items():
        search.check_grid(teacher, Config(scale=scale))
        search.narrowest_shapes(teacher, Config(scale=scale))


def test_the_least_memory_of_any_layers_is_known_before_importance():
    """Removing one layer leaves two MLPs or two Mamba-2 layers: the smaller of both bounds the budget."""
    config = Config(depths=(4,), hidden_sizes=(48,), intermediate_sizes=(160,), mamba_heads=(6,))
    shapes = [
        replace(TINY, hybrid_override_pattern=pattern, hidden_size=48, intermediate_size=160, mamba_num_heads=6)
        for pattern in ("M--*", "M-M*")
    ]
    needs = [sum(inference_memory_bytes(shape, context_tokens=512).values()) for shape in shapes]
    search.narrowest_shapes(TINY, replace(config, budget_bytes=min(needs)))
    with pytest.raises(ValueError, match=rf"is below the {min(needs):,} bytes of the smallest candidate"):
        search.narrowest_shapes(TINY, replace(config, budget_bytes=min(needs) - 1))


def test_the_published_budget_and_ranges():
    config = Config(scale="full")
    assert round(config.budget_bytes / 2**30, 2) == 19.66
    assert (config.context_tokens, config.attention_layers, config.depths) == (131_072, 4, (52, 54, 56))
    assert (min(config.hidden_sizes), max(config.hidden_sizes)) == (4480, 5120)
    assert (min(config.intermediate_sizes), max(config.intermediate_sizes)) == (13_440, 20_480)
    assert (min(config.mamba_heads), max(config.mamba_heads)) == (112, 128)


def test_a_candidate_is_a_row_before_it_is_tried(importance):
    config = Config()
    grid = search.grid_of(importance, TINY, config)
    found = candidates(TINY, grid, budget_bytes=config.budget_bytes, context_tokens=512)
    row = search.candidate_row(found[0])
    assert (row["hidden_size"], row["intermediate_size"], row["mamba_num_heads"]) == (64, 256, 8)
    assert (
        row["total_bytes"] == row["weights"] + row["keys and values"] + row["scan states"] + row["convolution windows"]
    )
    assert (row["fits"], row["pruned_kl"], row["distilled_kl"], row["chosen"]) == (False, None, None, False)


def test_the_table_of_importance_has_every_layer_channel_neuron_and_head(importance):
    table = search.importance_rows(importance, TINY.hybrid_override_pattern)
    kinds = [row["kind"] for row in table]
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == {
        "layer M": 2, "layer -": 2, "layer *": 1, "hidden": 64, "mlp": 2 * 256, "mamba": 2 * 8,
    }  # fmt: skip
    assert [row["score"] for row in table if row["kind"] == "hidden"] == importance.hidden.tolist()


def test_the_learning_rate_warms_up_and_stays():
    config = Config(learning_rate=1.0, warmup_steps=4)
    assert [search.learning_rate_at(step, config) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["budget_bytes", "context_tokens", "num_candidates", "candidate_steps", "temperature"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})
