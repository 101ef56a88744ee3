"""What a stage that learns from replies needs on each device: stages 2 to 4, for `--plan` and before any work.

In: the Config of the stage; each of its training steps says what it holds and does, by `needs`. Out: text, or a
ValueError whose sentence says what would fit.
Run: python -m nemotron.recipes.nano2.stage2_rlvr --scale medium --plan --devices 8

Left out: curation and evaluation, which write replies with one model; steps and hours, which depend on the filters and
on the length of the replies.
"""

from collections.abc import Iterator
from typing import Any

from nemotron import apply_scale
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.model import ModelConfig
from nemotron.recipes.training.memory import Needs, check_fits, memory_lines
from nemotron.recipes.training.published import shape_of
from nemotron.recipes.training.run import check_stage


def check(config: Any) -> Any:
    """Raise ValueError for what a later step would refuse, before any work is done; return the config.

    Args:
        config: of the stage.
    """
    config = check_stage(config)
    if not config.plan:
        for shape, step, needs in planned_steps(config):
            check_fits(shape, step, *needs)
    return config


def page(config: Any) -> str:
    """The memory of the training steps of a stage with this Config, as a page for the terminal.

    Raises:
        ValueError: if there are more devices than rows in the largest batch.
    """
    lines = []
    for shape, step, needs in planned_steps(config):
        lines += [f"{str(type(step).__doc__).rstrip('.')}, at scale {config.scale}", ""]
        lines += [*memory_lines(shape, step, *needs, devices=config.devices), ""]
    return "\n".join(lines[:-1])


def planned_steps(config: Any) -> Iterator[tuple[ModelConfig, Any, Needs]]:
    """Shape, Config and needs of each training step of a stage, for the longest prompts that curation lets through."""
    data, shape = config.data, shape_of(config.base_checkpoint_path) or MODELS[config.scale]
    longest = data.max_prompt_tokens if hasattr(data, "max_prompt_tokens") else data.max_pair_tokens
    tasks = [apply_scale(data.raw_tasks, config.scale)] if hasattr(data, "raw_tasks") else []
    for step in vars(config).values():
        if hasattr(step, "needs"):
            yield shape, step, step.needs(shape, longest, *tasks)
