"""Train a bigram model by gradient descent: in, a Dataset; out, a Checkpoint.

Run: python -m letters.stage0_bigram.training --dataset-path outputs/data_curation
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from letters.stage0_bigram.data_curation import Dataset
from nemotron import Artifact, Scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process


@dataclass
class Config:
    """Train a bigram model of letters."""

    scale: Scale = "tiny"
    """Of the dataset; the model is the same at every scale."""
    seed: int = 0
    """Of the initial weights."""
    output_dir: Path = Path("outputs/training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = None
    """A Dataset; read from the pipe if left out."""
    num_steps: int = 40
    """Steps of gradient descent on all pairs."""
    learning_rate: float = 8.0
    """Of the loss in nats per pair."""


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
    ladder = [
        {"rung": "config", "name": name, "step": 0, "value": value}
        for name, value in asdict(config).items()
        if not isinstance(value, Path)
    ]
    ladder += [{"rung": "initial weights", "name": "norm", "step": 0, "value": float(np.linalg.norm(logits))}]
    for step in range(config.num_steps):
        predicted = log_probabilities(logits)
        loss = -predicted[letters, following].mean()
        gradient = np.zeros_like(logits)
        np.add.at(gradient, letters, np.exp(predicted)[letters])
        np.add.at(gradient, (letters, following), -1.0)
        logits -= config.learning_rate * gradient / len(letters)
        ladder.append({"rung": "curve", "name": "loss", "step": step, "value": float(loss)})
    with working_directory(config.output_dir, Checkpoint) as work:
        np.save(work / "weights.npy", logits)
        (work / "ladder.json").write_text(json.dumps(ladder))
        Checkpoint(path=work, dataset_path=dataset.path, weights_path=work / "weights.npy").save(config)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"checkpoint": main(config)})
