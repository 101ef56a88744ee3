"""Stage 3, all three steps: tasks -> Dataset -> Checkpoint -> Results, from stage 2's Checkpoint.

Run: python -m nemotron.recipes.nano2.stage3_dpo --scale tiny
"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from nemotron import Artifact, StageConfig, whole_stage
from nemotron.config import input_path, nested, output_below, parse_command_line
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2 import rollout_plan as plan
from nemotron.recipes.nano2.stage3_dpo import data_curation, evaluation, training
from nemotron.testing.stage import print_stage_complete

STAGE = "nano2/stage3_dpo"  # names the golden
STEPS = (data_curation, training, evaluation)  # in their order; each writes into a directory with its name


@dataclass
class Config(StageConfig):
    """Train Nemotron Nano 2 on pairs of its own tries at tasks with tools, and test what it has learned."""

    output_dir: Path = output_below("nano2", "stage3_dpo")
    """Where the artifacts go, one folder per step."""
    base_checkpoint_path: Path = input_path("nano2", "stage2_rlvr", "training")
    """Directory of stage 2's Checkpoint, or of a published model."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    train: training.Config = nested(training.Config, "training")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before; return their artifacts by name."""
    config = plan.check(config)  # refuses now what would fail after curation
    with whole_stage(config, STEPS) as run:
        dataset = run(data_curation.main, replace(config.data, base_checkpoint_path=config.base_checkpoint_path))
        checkpoint = run(training.main, replace(config.train, dataset_path=dataset.path))
        results = run(evaluation.main, replace(config.eval, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config))
        print_stage_complete(STAGE, config, main(config))
