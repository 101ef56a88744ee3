"""What fine-tuning at a scale needs on each device: the memory of a training step, and the cards with enough.

In: the Config of the stage. Out: text for `--plan`.
Run: python -m nemotron.recipes.nano2.stage1_sft --scale medium --plan --devices 8

Left out: steps and hours, which depend on how many conversations the filters keep.
"""

from typing import Any

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.model import ModelConfig
from nemotron.recipes.training.memory import Pass, check_fits, memory_lines
from nemotron.recipes.training.published import shape_of
from nemotron.recipes.training.run import check_stage


def check(config: Any) -> Any:
    """Raise ValueError for what a later step would refuse, before any work is done; return the config.

    Args:
        config: of the stage.
    """
    config = check_stage(config)
    if not config.plan:
        shape, passes = planned_step(config)
        check_fits(shape, config.train, passes)
    return config


def page(config: Any) -> str:
    """The memory of a run with this Config of the stage, as a page for the terminal.

    Raises:
        ValueError: if there are more devices than rows in the largest batch.
    """
    shape, passes = planned_step(config)
    lines = memory_lines(shape, config.train, passes, devices=config.devices)
    return "\n".join([f"Fine-tuning at scale {config.scale}", "", *lines])


def planned_step(config: Any) -> tuple[ModelConfig, list[Pass]]:
    """Shape of the model, and the passes of each kind of rows."""
    data, train = config.data, config.train
    passes = [
        Pass(train.batch_sequences, train.micro_batch_sequences, data.sequence_length, documents=True),
        Pass(train.unpacked_batch_sequences, train.micro_batch_sequences, data.sequence_length, documents=True),
        Pass(train.batch_sequences, train.micro_batch_sequences, data.long_context_length, documents=True),
    ]
    return shape_of(config.base_checkpoint_path) or MODELS[config.scale], passes
