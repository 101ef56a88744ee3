"""Stage 1, all three steps: conversations -> Dataset -> Checkpoint -> Results, from stage 0's Checkpoint.

Run: python -m nemotron.recipes.nano2.stage1_sft --scale tiny
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from nemotron import Artifact, Scale, print_complete
from nemotron.pipe import step_process
from nemotron.recipes.nano2.orchestration import handed_down, refuse_devices, say_how_closely_it_reproduces
from nemotron.recipes.nano2.stage1_sft import data_curation, evaluation, training

STAGE = "nano2/stage1_sft"
"""Names the golden."""


@dataclass
class Config:
    """Fine-tune Nemotron Nano 2's base model on conversations, and ask what it has learnt."""

    scale: Scale = "tiny"
    """Sizes of all steps: tiny (seconds), small (minutes), medium (one GPU), full (the published run)."""
    seed: int = 1234
    """Seed of all steps."""
    output_dir: Path | None = None
    """Where the artifacts go, a folder a step; outputs/nano2/<scale>/stage1_sft if left out."""
    base_checkpoint_path: Path | None = None
    """Directory of stage 0's Checkpoint; outputs/nano2/<scale>/stage0_pretrain/training if left out."""
    data: data_curation.Config = field(default_factory=data_curation.Config)
    train: training.Config = field(default_factory=training.Config)
    eval: evaluation.Config = field(default_factory=evaluation.Config)


def base_checkpoint(config: Config) -> Path:
    """Where stage 0's Checkpoint is.

    Raises:
        ValueError: if there is none; the sentence names the command that makes it.
    """
    path = config.base_checkpoint_path or Path("outputs", "nano2", config.scale, "stage0_pretrain", "training")
    if not path.is_dir():
        raise ValueError(
            f"{path} holds no base model; make one with python -m nemotron.recipes.nano2.stage0_pretrain "
            f"--scale {config.scale}, or name one with --base-checkpoint-path"
        )
    return path


def connected(config: Config) -> tuple[data_curation.Config, training.Config, evaluation.Config]:
    """The configs of the three steps, with this stage's scale, seed and directories."""
    output_dir = config.output_dir or Path("outputs", "nano2", config.scale, "stage1_sft")
    scale, seed = config.scale, config.seed
    return (
        handed_down(config.data, "data", scale=scale, seed=seed, output_dir=output_dir / "data_curation"),
        handed_down(config.train, "train", scale=scale, seed=seed, output_dir=output_dir / "training"),
        handed_down(config.eval, "eval", scale=scale, seed=seed, output_dir=output_dir / "evaluation"),
    )


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before; return their artifacts by name."""
    data, train, evaluate = connected(config)
    refuse_devices(config.scale, train, evaluate)
    dataset = data_curation.main(replace(data, base_checkpoint_path=base_checkpoint(config)))
    checkpoint = training.main(replace(train, dataset_path=dataset.path))
    results = evaluation.main(replace(evaluate, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        artifacts = main(config)
        print_complete(artifacts)
        say_how_closely_it_reproduces(STAGE, config.scale, artifacts["results"])
