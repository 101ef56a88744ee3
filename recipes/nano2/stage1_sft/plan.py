"""What fine-tuning at a scale needs on each device: the memory of a training step, and the cards with enough.

In: the Config of the stage. Out: text for `--plan`.
Run: python -m nemotron.recipes.nano2.stage1_sft --scale medium --plan --devices 8

Left out: steps and hours, which depend on how many conversations the filters keep.
"""

from typing import Any

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.training.memory import Pass, memory_lines
from nemotron.recipes.training.published import shape_of
from nemotron.recipes.training.run import check_stage


def check(config: Any, flag: str = "--train.resume") -> Any:
    """Raise ValueError for what a later step would refuse, before any work is done; return the config.

    Args:
        config: of the stage.
        flag: the option of the typed command that continues an unfinished run; the errors name it.
    """
    return check_stage(MODELS[config.scale], config, flag)


def page(config: Any) -> str:
    """The memory of a run with this Config of the stage, as a page for the terminal.

    Raises:
        ValueError: if there are more devices than rows in the largest batch.
    """
    data, train = config.data, config.train
    passes = [
        Pass(train.batch_sequences, train.micro_batch_sequences, data.sequence_length),
        Pass(train.unpacked_batch_sequences, train.micro_batch_sequences, data.sequence_length),
        Pass(train.batch_sequences, train.micro_batch_sequences, data.long_context_length),
    ]
    shape = shape_of(config.base_checkpoint_path) or MODELS[config.scale]
    lines = memory_lines(shape, train, passes, config.devices)
    return "\n".join([f"Fine-tuning at scale {config.scale}", "", *lines])
