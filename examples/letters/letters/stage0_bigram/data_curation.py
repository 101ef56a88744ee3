"""Turn a text file into pairs of letters: in, a file of lines; out, a Dataset.

Run: python -m letters.stage0_bigram.data_curation --text-path data/notes.txt
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from pydantic import Field

from nemotron import Artifact, Scale, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process

RAW_LINES = 1600  # 1 % of them is the whole file


@dataclass
class Config:
    """Turn a text file into pairs of letters."""

    scale: Scale = "tiny"
    """Share of the lines that is used."""
    seed: int = 0
    """Picks the held-out lines."""
    output_dir: Path = Path("outputs/data_curation")
    """Where the Dataset goes."""
    text_path: Path = Path(__file__).parents[2] / "data" / "notes.txt"
    """A file with one sentence a line."""


class Dataset(Artifact):
    """Pairs of neighbouring letters, as indices into the alphabet."""

    alphabet: str
    num_examples: int = Field(gt=0)
    """Training pairs."""
    train_path: Path
    """(n, 2) integers: letter, next letter. Likewise validation_path."""
    validation_path: Path


def main(config: Config) -> Dataset:
    """Make the Dataset."""
    lines = config.text_path.read_text(encoding="utf-8").splitlines()[: apply_scale(RAW_LINES, config.scale)]
    alphabet = "\n" + "".join(sorted(set("".join(lines))))
    order = np.random.default_rng(config.seed).permutation(len(lines))
    held_out = set(order[: len(lines) // 4].tolist())
    pairs: dict[str, list[tuple[int, int]]] = {"train": [], "validation": []}
    for number, line in enumerate(lines):
        indices = [alphabet.index(letter) for letter in f"\n{line}\n"]
        pairs["validation" if number in held_out else "train"] += pairwise(indices)
    with working_directory(config.output_dir, Dataset) as work:
        for split, rows in pairs.items():
            np.save(work / f"{split}.npy", np.array(rows))
        ladder = [
            {"rung": "config", "name": "seed", "step": 0, "value": config.seed},
            {"rung": "inputs", "name": "lines", "step": 0, "value": lines},
            {"rung": "alphabet", "name": "alphabet", "step": 0, "value": alphabet},
            {"rung": "tokens", "name": "train", "step": 0, "value": len(pairs["train"])},
            {"rung": "tokens", "name": "held-out lines", "step": 0, "value": sorted(held_out)},
        ]
        (work / "ladder.json").write_text(json.dumps(ladder))
        Dataset(
            path=work,
            alphabet=alphabet,
            num_examples=len(pairs["train"]),
            train_path=work / "train.npy",
            validation_path=work / "validation.npy",
        ).save(config)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"dataset": main(config)})
