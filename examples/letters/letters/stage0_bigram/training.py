"""Train a bigram model by gradient descent: in, a Dataset; out, a Checkpoint.

Run: python -m letters.stage0_bigram.training --dataset-path outputs/data_curation
"""

from pathlib import Path

import numpy as np
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from letters.stage0_bigram.data_curation import Dataset
from nemotron import Artifact, print_complete
from nemotron.artifact import working_directory
from nemotron.config import ScaledConfig, input_path, parse_command_line
from nemotron.ladder import Ladder
from nemotron.pipe import step_process


@dataclass
class Config(ScaledConfig):
    """Train a bigram model of letters."""

    seed: int = 0
    """Of the initial weights."""
    output_dir: Path = Path("outputs/training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """A Dataset; read from the pipe if left out."""
    num_steps: PositiveInt = 40
    """Steps of gradient descent on all pairs."""
    learning_rate: PositiveFloat = 8.0
    """Step size; the loss is in nats per pair."""


class Checkpoint(Artifact):
    """Logits of the next letter."""

    dataset_path: Path
    weights_path: Path
    """(letters, letters) float64: row, the letter; column, the next one."""


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def main(config: Config) -> Checkpoint:
    """Train and return the Checkpoint."""
    dataset = Dataset.load(path=config.dataset_path)
    letters, following = np.load(dataset.train_path).T
    size = len(dataset.alphabet)
    logits = 0.1 * np.random.default_rng(config.seed).standard_normal((size, size))
    ladder = Ladder()
    ladder.add_config(config)
    ladder.add("initial weights", norm=float(np.linalg.norm(logits)))
    for step in range(config.num_steps):
        predicted = log_probabilities(logits)
        loss = -predicted[letters, following].mean()
        gradient = np.zeros_like(logits)
        np.add.at(gradient, letters, np.exp(predicted)[letters])
        np.add.at(gradient, (letters, following), -1.0)
        logits -= config.learning_rate * gradient / len(letters)
        ladder.add("curve", loss=float(loss), at_step=step)
    with working_directory(config.output_dir, Checkpoint) as work:
        np.save(work / "weights.npy", logits)
        Checkpoint(path=work, dataset_path=dataset.path, weights_path=work / "weights.npy").save(config, ladder)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"checkpoint": main(config)})
