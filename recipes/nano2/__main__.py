"""Nemotron Nano 2, all stages in order. So far there are two: stage 0, pretraining, and stage 1, fine-tuning.

Run: python -m nemotron.recipes.nano2 --scale tiny
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from nemotron import Artifact, Scale, print_complete
from nemotron.pipe import step_process
from nemotron.recipes.nano2.orchestration import handed_down, refuse_devices, say_how_closely_it_reproduces
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage1_sft import __main__ as stage1_sft


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
    """Print what the scale would do in stage 0, and do none of it."""
    pretrain: stage0_pretrain.Config = field(default_factory=stage0_pretrain.Config)
    sft: stage1_sft.Config = field(default_factory=stage1_sft.Config)


def connected(config: Config) -> tuple[stage0_pretrain.Config, stage1_sft.Config]:
    """The configs of the stages, with this recipe's scale, seed and directories."""
    if config.pretrain.plan:
        raise ValueError("--pretrain.plan has no effect in a run of all stages; use --plan")
    output_dir = config.output_dir or Path("outputs") / "nano2" / config.scale
    scale, seed = config.scale, config.seed
    return (
        handed_down(config.pretrain, "pretrain", scale=scale, seed=seed, output_dir=output_dir / "stage0_pretrain"),
        handed_down(config.sft, "sft", scale=scale, seed=seed, output_dir=output_dir / "stage1_sft"),
    )


def main(config: Config) -> dict[str, dict[str, Artifact]]:
    """Run the stages in their order, each on the checkpoint of the one before; return their artifacts by name."""
    pretrain, sft = connected(config)
    for steps in (stage0_pretrain.connected(pretrain), stage1_sft.connected(sft)):  # refuses now what is wrong later
        refuse_devices(config.scale, *steps[1:])
    base = stage0_pretrain.main(pretrain)
    tuned = stage1_sft.main(replace(sft, base_checkpoint_path=base["checkpoint"].path))
    return {stage0_pretrain.STAGE: base, stage1_sft.STAGE: tuned}


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        if config.plan:
            page = stage0_pretrain.plan(connected(config)[0])
        else:
            stages = main(config)
            print_complete(stages[stage1_sft.STAGE])
            for stage, artifacts in stages.items():
                say_how_closely_it_reproduces(stage, config.scale, artifacts["results"])
    if config.plan:
        print(page)
