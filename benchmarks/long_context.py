"""The effect of the long-context phase: the same training, repeated with its long sequences cut to the base length.

In: a Checkpoint, whose training is repeated with the same seed, data, steps and tokens. Without one, both models are
trained at --scale. Out: a table on stdout with the loss of both models on held-out long documents, within and beyond
the base length, the difference with its standard error over documents, and the recall of both by distance.
Run: python benchmarks/long_context.py --checkpoint-path outputs/nano2/small/stage0_pretrain/training
"""

import math
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from nemotron import Scale
from nemotron.command_line import run_program
from nemotron.recipes.curation.rows import read_token_rows
from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.scoring.likelihood import score_rows
from nemotron.recipes.scoring.recall import Recall, recall_by_distance


@dataclass
class Config:
    """Train with and without long sequences on the same tokens, and compare."""

    checkpoint_path: Path | None = None
    """Directory of a finished Checkpoint with a long-context phase. None: train one."""
    scale: Scale = "tiny"
    """Scale of the training if no Checkpoint is given."""
    output_dir: Path | None = None
    """Directory for the new artifacts. None: a temporary directory."""


def train_without_long_sequences(checkpoint: training.Checkpoint, output_dir: Path) -> training.Checkpoint:
    """Repeat the run of `checkpoint` with each long sequence cut into pieces of the base length."""
    dataset = data_curation.Dataset.load(path=checkpoint.dataset_path)
    recorded = {**checkpoint.producer["config"], "output_dir": output_dir, "dataset_path": dataset.path}
    return training.main(training.Config(**{**recorded, "resume": False, "cut_long_context": True}))


def measure(checkpoint: training.Checkpoint) -> tuple[np.ndarray, dict[int, Recall]]:
    """(documents, positions) losses in nats on the held-out long documents, and recall by distance."""
    dataset = data_curation.Dataset.load(path=checkpoint.dataset_path)
    score = partial(score_rows, load_checkpoint(checkpoint.checkpoint_path), batch_tokens=2048)
    losses = np.array([scores.losses for scores in score(read_token_rows(dataset.long_validation_path))])
    labels = pq.read_table(dataset.recall_path, columns=["answer_start", "distance"]).to_pydict()
    recall = recall_by_distance(score, read_token_rows(dataset.recall_path), labels["answer_start"], labels["distance"])
    return losses, recall


def main(config: Config) -> None:
    """Train the missing models, measure both and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        output_dir = config.output_dir or Path(temporary)
        if config.checkpoint_path:
            checkpoint = training.Checkpoint.load(path=config.checkpoint_path)
        else:
            data = data_curation.main(data_curation.Config(scale=config.scale, output_dir=output_dir / "data_curation"))
            checkpoint = training.main(
                training.Config(scale=config.scale, output_dir=output_dir / "training", dataset_path=data.path)
            )
        control = train_without_long_sequences(checkpoint, output_dir / "training_at_base_length")
        base_length = data_curation.Dataset.load(path=checkpoint.dataset_path).sequence_length
        (long, long_recall), (cut, cut_recall) = measure(checkpoint), measure(control)

    table = Table(title=f"{len(long)} held-out documents of {long.shape[1]} tokens, base length {base_length}")
    for heading in ("nats per token, per answer", "long sequences", "cut to base length", "difference"):
        table.add_column(heading, justify="right")
    for name, places in (("within", slice(0, base_length)), ("beyond", slice(base_length, None))):
        with_long, without = long[:, places].mean(axis=1), cut[:, places].mean(axis=1)
        difference = with_long - without
        error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
        table.add_row(
            f"{name} the base length",
            f"{with_long.mean():.4f}",
            f"{without.mean():.4f}",
            f"{difference.mean():+.4f} ± {error:.4f}",
        )
    for distance, recall in long_recall.items():
        table.add_row(
            f"recall at {distance}",
            f"{recall.answer_loss:.2f}, right {recall.answers.accuracy:.1%}",
            f"{cut_recall[distance].answer_loss:.2f}, right {cut_recall[distance].answers.accuracy:.1%}",
            f"{recall.answer_loss - cut_recall[distance].answer_loss:+.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    run_program(Config, main)
