"""Stage 0, all three steps: raw text -> Dataset -> Checkpoint -> Results.

Run: python -m nemotron.recipes.nano2.stage0_pretrain --scale tiny
"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from nemotron import Artifact, print_complete, whole_stage
from nemotron.config import ScaledConfig, nested, output_below, parse_command_line, switch
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, plan, training
from nemotron.testing.stage import report_reproduction

STAGE = "nano2/stage0_pretrain"  # names the golden
STEPS = (data_curation, training, evaluation)  # in their order; each writes into a directory with its name


@dataclass
class Config(ScaledConfig):
    """Pretrain Nemotron Nano 2's base model, from raw text to evaluation."""

    output_dir: Path = output_below("nano2", "stage0_pretrain")
    """Where the artifacts go, one folder per step."""
    plan: bool = switch(of_whole_run=True)
    """Print what the scale would do, and do none of it."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    train: training.Config = nested(training.Config, "training")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before; return their artifacts by name."""
    with whole_stage(plan.check(config), STEPS):  # refuses now what would fail after hours of curation
        dataset = data_curation.main(config.data)
        checkpoint = training.main(replace(config.train, dataset_path=dataset.path))
        results = evaluation.main(replace(config.eval, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config.data, config.train))
        else:
            print_complete(main(config))
            report_reproduction(STAGE, config.scale, config.output_dir)
