"""Stage 0, all three steps: lines of text -> Dataset -> Checkpoint -> Results.

Run: python -m letters.stage0_bigram
"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from letters.stage0_bigram import data_curation, evaluation, training
from nemotron import Artifact, StageConfig, print_complete, whole_stage
from nemotron.config import nested, parse_command_line
from nemotron.pipe import step_process

STEPS = (data_curation, training, evaluation)


@dataclass
class Config(StageConfig):
    """Train and measure a bigram model of letters."""

    seed: int = 0
    """Seed of all steps."""
    output_dir: Path = Path("outputs")
    """Where the artifacts go, one folder per step."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    train: training.Config = nested(training.Config, "training")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the three steps, each on the output of the one before."""
    with whole_stage(config, STEPS) as run:  # alone in its directory
        dataset = run(data_curation.main, config.data)
        checkpoint = run(training.main, replace(config.train, dataset_path=dataset.path))
        results = run(evaluation.main, replace(config.eval, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        artifacts = main(config)
        if not config.plan:
            print_complete(artifacts)
