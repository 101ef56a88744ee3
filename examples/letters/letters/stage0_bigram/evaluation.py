"""Measure a bigram model on the held-out lines: in, a Checkpoint; out, Results.

Run: python -m letters.stage0_bigram.evaluation --checkpoint-path outputs/training
"""

from pathlib import Path

import numpy as np
from pydantic.dataclasses import dataclass

from letters.stage0_bigram.data_curation import Dataset
from letters.stage0_bigram.training import Checkpoint, log_probabilities
from nemotron import Artifact, print_complete
from nemotron.artifact import working_directory
from nemotron.config import ScaledConfig, input_path, parse_command_line
from nemotron.ladder import Ladder
from nemotron.pipe import step_process


@dataclass
class Config(ScaledConfig):
    """Measure a bigram model of letters."""

    seed: int = 0
    """Nothing here is drawn."""
    output_dir: Path = Path("outputs/evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """A Checkpoint; read from the pipe if left out."""


class Results(Artifact):
    """Bits per letter on held-out lines, in `metrics`."""

    checkpoint_path: Path


def main(config: Config) -> Results:
    """Measure and return the Results."""
    checkpoint = Checkpoint.load(path=config.checkpoint_path)
    dataset = Dataset.load(path=checkpoint.dataset_path)
    letters, following = np.load(dataset.validation_path).T
    predicted = log_probabilities(np.load(checkpoint.weights_path))
    metrics = {
        "bits_per_letter": float(-predicted[letters, following].mean() / np.log(2)),
        "uniform_bits_per_letter": float(np.log2(len(dataset.alphabet))),
    }
    with working_directory(config.output_dir, Results) as work:
        ladder = Ladder()
        ladder.add("headline", metrics)
        Results(path=work, checkpoint_path=checkpoint.path, metrics=metrics).save(config, ladder)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
