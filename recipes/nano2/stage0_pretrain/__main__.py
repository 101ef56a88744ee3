"""Stage 0, all three steps: raw text -> Dataset -> Checkpoint -> Results.

Run: python -m nemotron.recipes.nano2.stage0_pretrain --scale tiny
"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from nemotron import Artifact, StageConfig, whole_stage
from nemotron.config import nested, output_below, parse_command_line
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, plan, training
from nemotron.testing.stage import print_stage_complete

STAGE = "nano2/stage0_pretrain"  # names the golden
STEPS = (data_curation, training, evaluation)  # in their order; each writes into a directory with its name


@dataclass
class Config(StageConfig):
    """Pretrain Nemotron Nano 2's base model, from raw text to evaluation."""

    output_dir: Path = output_below("nano2", "stage0_pretrain")
    """Where the artifacts go, one folder per step."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    train: training.Config = nested(training.Config, "training")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before; return their artifacts by name."""
    with whole_stage(plan.check(config), STEPS) as run:  # refuses now what would fail after hours of curation
        dataset = run(data_curation.main, config.data)
        checkpoint = run(training.main, replace(config.train, dataset_path=dataset.path))
        results = run(evaluation.main, replace(config.eval, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config))
        print_stage_complete(STAGE, config, main(config))
