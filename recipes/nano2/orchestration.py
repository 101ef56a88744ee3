"""What every orchestrator of the recipe does: hand down its own flags, refuse in time, compare a tiny run's golden."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nemotron import Artifact, Scale
from nemotron.recipes.nano2.sizes import SIZES
from nemotron.recipes.training.device import device_memory_bytes, refuse_what_does_not_fit
from nemotron.testing.stage import reproduction

StepConfig = TypeVar("StepConfig")

OWNED = {"scale": "--scale", "seed": "--seed", "output_dir": "--output-dir"}
INPUTS = ("dataset_path", "checkpoint_path", "base_checkpoint_path")


def handed_down(config: StepConfig, prefix: str, *, scale: Scale, seed: int, output_dir: Path) -> StepConfig:
    """A copy of a nested config with the orchestrator's scale, seed and output directory.

    Args:
        config: of a step or stage, as the command line filled it.
        prefix: of its flags, "train" for --train.X.

    Raises:
        ValueError: if the nested config sets one of these to something else, or names an input that the orchestrator
            connects; the sentence names the flag to use.
    """
    owned = {"scale": scale, "seed": seed, "output_dir": output_dir}
    default = type(config)()
    for name, value in owned.items():
        given = getattr(config, name)
        if given not in (getattr(default, name), value):
            flag = f"--{prefix}.{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} {given} differs from the run's own {value}; use {OWNED[name]} {given} for all steps"
            )
    for name in INPUTS:
        if getattr(config, name, None) is not None:
            flag = f"--{prefix}.{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} has no place here, the step before writes that input; run the step by itself with "
                f"--{name.replace('_', '-')} {getattr(config, name)}"
            )
    return replace(config, **owned)  # type: ignore[type-var]


def refuse_devices(scale: Scale, train: Any, evaluate: Any) -> None:
    """Raise ValueError, before any work, if training or evaluation names a device that is not there or too small.

    Args:
        train: Config of a stage's training, evaluate: Config of its evaluation.
    """
    size = SIZES[scale]
    device = train.device or size.device
    refuse_what_does_not_fit(size.model, scale=scale, dtype=train.dtype or size.dtype, device=device)
    device_memory_bytes(evaluate.device or size.device)


def say_how_closely_it_reproduces(stage: str, scale: Scale, results: Artifact) -> None:
    """At tiny scale, write one line to stderr: whether the stage's run has the recorded numbers, and how closely.

    Args:
        stage: recipe and stage, "nano2/stage0_pretrain".
        scale: of the run; the other scales have no golden.
        results: of the stage's last step, beside which the other steps' artifacts lie.
    """
    if scale == "tiny":
        print(reproduction(stage, results.path.parent), file=sys.stderr, flush=True)
