"""Does importance choose better than chance? Each axis of pruning alone, by importance, at random and reversed.

For every axis (layers, channels of the residual stream, neurons of the MLPs, Mamba-2 heads) the teacher is pruned along
that axis only, to the smallest size of the search's grid, and its divergence from the teacher on held-out rows is
measured; nothing is distilled. Each seed draws another random choice, and measures importance on another part of the
calibration rows.

Run: python benchmarks/pruning_orders.py --dataset-path outputs/nano2/small/stage5_compress/data_curation --scale small
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import torch
from pydantic import PositiveInt

from nemotron import Scale
from nemotron.command_line import run_program
from nemotron.recipes.nano2.stage5_compress import search
from nemotron.recipes.nano2.stage5_compress.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.nemotron_h.pruning import Order, Scored, Shape, choose, measure_importance, prune
from nemotron.recipes.training.distill import held_out_divergences


@dataclass
class Config:
    """Compare the orders of pruning on every axis."""

    dataset_path: Path
    """Directory of the Dataset of stage 5; its teacher is pruned."""
    scale: Scale = "small"
    """Whose grid is used: the smallest size of each axis."""
    seeds: PositiveInt = 3
    """Random choices, and parts of the calibration rows."""
    scored: Scored = "after"
    """Where neurons and Mamba heads are scored: before their activation, or after it."""
    rescale: bool = False
    """Scale what is left, so that the norms divide by what they divided by before."""
    chunk_tokens: PositiveInt = 1024
    """Tokens whose logits are in memory at a time."""


def main(config: Config) -> None:
    """Measure all orders and print the divergences."""
    dataset = Dataset.load(path=config.dataset_path)
    teacher = load_checkpoint(dataset.base().checkpoint_path)
    given = search.Config(scale=config.scale)
    rows = torch.tensor([row[:-1] for row in pq.read_table(dataset.calibration_path)["tokens"].to_pylist()])
    if config.seeds > len(rows):
        raise ValueError(
            f"seeds={config.seeds}, and each measures on its part of the {len(rows)} calibration rows; give at most "
            f"{len(rows)}"
        )
    whole = Shape.of(teacher.config)
    axes = {
        "layers": {"num_layers": min(given.depths), "num_attention_layers": given.attention_layers},
        "hidden channels": {"hidden_size": min(given.hidden_sizes)},
        "MLP neurons": {"intermediate_size": min(given.intermediate_sizes)},
        "Mamba heads": {"mamba_num_heads": min(given.mamba_heads)},
    }

    def divergence_of(model: NemotronH) -> float:
        held_out = dataset.validation_path, dataset.shares()
        return held_out_divergences(
            model, teacher, *held_out, chunk_tokens=config.chunk_tokens, dtype="float32", device="cpu"
        )["all"]

    losses: dict[tuple[str, Order], list[float]] = {}
    for seed in range(config.seeds):
        importance = measure_importance(
            teacher,
            rows[seed :: config.seeds].split(16),
            num_layers=min(given.depths),
            num_attention_layers=given.attention_layers,
            scored=config.scored,
        )
        for axis, sizes in axes.items():
            for order in get_args(Order):
                kept = choose(importance, teacher.config, replace(whole, **sizes), order, seed)
                losses.setdefault((axis, order), []).append(divergence_of(prune(teacher, kept, rescale=config.rescale)))
    print(f"{'axis':<18}{'':<14}" + "".join(f"{order:>22}" for order in get_args(Order)))
    for axis, sizes in axes.items():
        cells = []
        for order in get_args(Order):
            found = losses[axis, order]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            cells.append(f"{statistics.mean(found):.4f} ± {spread:.4f}")
        ours, *others = (losses[axis, order] for order in get_args(Order))
        wins = [all(theirs[seed] > loss for theirs in others) for seed, loss in enumerate(ours)]
        size = "/".join(str(value) for value in sizes.values())
        print(
            f"{axis:<18}{size:<14}"
            + "".join(f"{cell:>22}" for cell in cells)
            + f"   best in {sum(wins)} of {len(wins)}"
        )


if __name__ == "__main__":
    run_program(Config, main)
