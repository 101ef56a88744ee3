"""Stage 0, all three steps: raw text -> Dataset -> Checkpoint -> Results.

Run: python -m nemotron.recipes.nano2.stage0_pretrain --scale tiny
Look first: python -m nemotron.recipes.nano2.stage0_pretrain --scale full --plan
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from nemotron import Artifact, Scale, print_complete
from nemotron.pipe import step_process
from nemotron.recipes.nano2.orchestration import handed_down, refuse_devices, say_how_closely_it_reproduces
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, training
from nemotron.recipes.nano2.stage0_pretrain.plan import plan_text, pretraining_plan

STAGE = "nano2/stage0_pretrain"
"""Names the golden."""


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


def with_agreed_sizes(config: Config) -> Config:
    """The config where data and train have the same steps and batches: what one is given, the other takes over.

    Raises:
        ValueError: if both are given and differ.
    """
    agreed = {}
    for name in ("num_steps", "batch_sequences", "long_context_steps", "long_context_batch_sequences"):
        data, train = getattr(config.data, name), getattr(config.train, name)
        if None not in (data, train) and data != train:
            flag = name.replace("_", "-")
            raise ValueError(f"--data.{flag} {data} and --train.{flag} {train} differ; give one of them")
        agreed[name] = train if data is None else data
    return replace(config, data=replace(config.data, **agreed), train=replace(config.train, **agreed))


def connected(config: Config) -> tuple[data_curation.Config, training.Config, evaluation.Config]:
    """The configs of the three steps, with this stage's scale, seed and directories."""
    output_dir = config.output_dir or Path("outputs") / "nano2" / config.scale / "stage0_pretrain"
    scale, seed = config.scale, config.seed
    config = with_agreed_sizes(config)
    return (
        handed_down(config.data, "data", scale=scale, seed=seed, output_dir=output_dir / "data_curation"),
        handed_down(config.train, "train", scale=scale, seed=seed, output_dir=output_dir / "training"),
        handed_down(config.eval, "eval", scale=scale, seed=seed, output_dir=output_dir / "evaluation"),
    )


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before; return their artifacts by name."""
    data, train, evaluate = connected(config)
    refuse_devices(config.scale, train, evaluate)
    sizes = resolved(data, "stage0_pretrain", "data_curation")
    assert sizes.sequence_length and sizes.long_context_length
    training.training_phases(  # refuses now what training would refuse after curation
        resolved(train, "stage0_pretrain", "training"), sizes.sequence_length, sizes.long_context_length
    )
    dataset = data_curation.main(data)
    checkpoint = training.main(replace(train, dataset_path=dataset.path))
    results = evaluation.main(replace(evaluate, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


def plan(config: Config) -> str:
    """What `main` would do, as a page of text."""
    data, train, _ = connected(config)
    return plan_text(pretraining_plan(data, train))


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        if config.plan:
            page = plan(config)
        else:
            artifacts = main(config)
            print_complete(artifacts)
            say_how_closely_it_reproduces(STAGE, config.scale, artifacts["results"])
    if config.plan:
        print(page)
