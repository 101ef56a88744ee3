"""Nemotron Nano 2, all stages in order. So far there is one: stage 0, pretraining.

Run: python -m nemotron.recipes.nano2 --scale tiny
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from nemotron import Artifact, Scale, print_complete
from nemotron.pipe import step_process
from nemotron.recipes.nano2.orchestration import handed_down, say_how_closely_it_reproduces
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain


@dataclass
class Config:
    """Train Nemotron Nano 2, from raw text to final evaluation; meant for --scale tiny and small."""

    scale: Scale = "tiny"
    """Sizes of all stages: tiny (seconds), small (minutes), medium (one GPU), full (the published run)."""
    seed: int = 1234
    """Seed of all stages."""
    output_dir: Path | None = None
    """Where the artifacts go, a folder a stage; outputs/nano2/<scale> if left out."""
    plan: bool = False
    """Print what the scale would do in every stage, and do none of it."""
    pretrain: stage0_pretrain.Config = field(default_factory=stage0_pretrain.Config)


def connected(config: Config) -> stage0_pretrain.Config:
    """The config of the stage, with this recipe's scale, seed and directory."""
    if config.pretrain.plan:
        raise ValueError("--pretrain.plan has no effect in a run of all stages; use --plan")
    output_dir = config.output_dir or Path("outputs") / "nano2" / config.scale
    scale, seed = config.scale, config.seed
    return handed_down(config.pretrain, "pretrain", scale=scale, seed=seed, output_dir=output_dir / "stage0_pretrain")


def main(config: Config) -> dict[str, Artifact]:
    """Run the stages in their order; return the artifacts of the last one by name."""
    return stage0_pretrain.main(connected(config))


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        if config.plan:
            page = stage0_pretrain.plan(connected(config))
        else:
            artifacts = main(config)
            print_complete(artifacts)
            say_how_closely_it_reproduces(stage0_pretrain.STAGE, config.scale, artifacts["results"])
    if config.plan:
        print(page)
