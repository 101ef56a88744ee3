"""Turn a text file into pairs of letters: in, a file of lines; out, a Dataset.

Run: python -m letters.stage0_bigram.data_curation --text-path data/notes.txt
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from nemotron import Artifact, apply_scale, print_complete
from nemotron.artifact import working_directory
from nemotron.config import ScaledConfig, parse_command_line
from nemotron.ladder import Ladder
from nemotron.pipe import step_process

RAW_LINES = 1600  # more than the file has: the 1 % that tiny takes is the whole file


@dataclass
class Config(ScaledConfig):
    """Turn a text file into pairs of letters."""

    seed: int = 0
    """Picks the held-out lines."""
    output_dir: Path = Path("outputs/data_curation")
    """Where the Dataset goes."""
    text_path: Path = Path(__file__).parents[2] / "data" / "notes.txt"
    """A file with one sentence per line."""


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
        ladder = Ladder()
        ladder.add("config", seed=config.seed)
        ladder.add("inputs", lines=lines)
        ladder.add("alphabet", alphabet=alphabet)
        ladder.add("tokens", {"train": len(pairs["train"]), "held-out lines": sorted(held_out)})
        Dataset(
            path=work,
            alphabet=alphabet,
            num_examples=len(pairs["train"]),
            train_path=work / "train.npy",
            validation_path=work / "validation.npy",
        ).save(config, ladder)
    return Dataset.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"dataset": main(config)})
