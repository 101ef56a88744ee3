"""A training step for which no machine has the memory: each of its processes asks for an exabyte."""

from dataclasses import dataclass

import torch

from nemotron.recipes.training.distributed import training_process


@dataclass
class Config:
    """What `training_process` reads of a Config."""

    device: str = "cpu"


if __name__ == "__main__":
    with training_process(Config()):
        torch.empty(1 << 60, dtype=torch.uint8)
