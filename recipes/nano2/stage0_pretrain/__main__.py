"""Stage 0, all three steps: raw text -> Dataset -> Checkpoint -> Results.

Run: python -m nemotron.recipes.nano2.stage0_pretrain --scale tiny
Look first: python -m nemotron.recipes.nano2.stage0_pretrain --scale full --plan
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from nemotron import Artifact, Scale, print_complete
from nemotron.pipe import step_process
from nemotron.recipes.nano2.orchestration import handed_down
from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, training
from nemotron.recipes.nano2.stage0_pretrain.plan import pretraining_plan


@dataclass
class Config:
    """Pretrain Nemotron Nano 2's base model, from raw text to evaluation."""

    scale: Scale = "tiny"
    """Sizes of all steps: tiny (seconds), small (minutes), medium (one GPU), full (the published run)."""
    seed: int = 1234
    """Seed of all steps."""
    output_dir: Path | None = None
    """Where the artifacts go, a folder a step; outputs/nano2/<scale>/stage0_pretrain if left out."""
    plan: bool = False
    """Print what the scale would do, and do none of it."""
    data: data_curation.Config = field(default_factory=data_curation.Config)
    train: training.Config = field(default_factory=training.Config)
    eval: evaluation.Config = field(default_factory=evaluation.Config)


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before; return their artifacts by name."""
    output_dir = config.output_dir or Path("outputs") / "nano2" / config.scale / "stage0_pretrain"
    data = handed_down(
        config.data, "data", scale=config.scale, seed=config.seed, output_dir=output_dir / "data_curation"
    )
    train = handed_down(config.train, "train", scale=config.scale, seed=config.seed, output_dir=output_dir / "training")
    evaluate = handed_down(
        config.eval, "eval", scale=config.scale, seed=config.seed, output_dir=output_dir / "evaluation"
    )

    dataset = data_curation.main(data)
    checkpoint = training.main(replace(train, dataset_path=dataset.path))
    results = evaluation.main(replace(evaluate, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        if not config.plan:
            print_complete(main(config))
    if config.plan:
        print(plan(config))
