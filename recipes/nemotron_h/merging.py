"""Merge two checkpoints: every weight of the result is a weighted mean of the two parents' weights.

In: the directories of two checkpoints of one shape with one tokenizer, and a. Out: a checkpoint with the weights
w = (1 - a) w1 + a w2. Between parents that were trained from one ancestor the loss is often low, so that the result can
do what either can; nothing ensures it, and it must be measured.
Published (arXiv 2508.14444, section 3): Nano 2 merges a checkpoint that is strong at reasoning with one that is strong
at chat, tries a from 0.1 to 0.9, and finds about 0.5 best.
Run: python -c "from nemotron.recipes.nemotron_h.merging import *; merge_checkpoints(Path('<first>'), Path('<second>'),
0.5, Path('<result>'))"

Left out: merging more than two parents, other means (SLERP, TIES, task vectors), a different a for each layer, and
reading one tensor at a time: both parents and the result are in memory.
"""

import shutil
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from nemotron.recipes.nemotron_h.checkpoint import (
    load_checkpoint,
    load_config,
    load_tokenizer,
    save_checkpoint,
    special_token_ids,
)
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH
from nemotron.strict import short


def merged_tensor(first: Tensor, second: Tensor, a: float) -> Tensor:
    """(1 - a) first + a second, a new tensor of the type of its parents; never outside of the range between them.

    Computed in float64 and rounded once. In bfloat16, which has 8 significant bits, the weights 1 - a and a would be
    rounded too, and would no longer add up to 1: the mean of two equal numbers would be another number.
    """
    if a in (0, 1):  # to the last bit: 0 times the other parent would still change the sign of a zero
        return (second if a else first).detach().clone()
    one, other = first.detach().double(), second.detach().double()
    mean = (1 - a) * one + a * other
    return mean.clamp(torch.minimum(one, other), torch.maximum(one, other)).to(first.dtype)


def merged_model(first: NemotronH, second: NemotronH, a: float) -> NemotronH:
    """A new model with the mean of the weights of two, on the device of the first.

    Args:
        a: share of the second model, from 0 to 1.
    Raises:
        ValueError: if the models have not the same shape or number types, or a is out of range.
    """
    _check_share(a)
    _check_same_shape("the first model", first.config, "the second model", second.config)
    tensors, others = first.state_dict(), second.state_dict()
    for name, tensor in tensors.items():
        if tensor.dtype != others[name].dtype:
            raise ValueError(
                f"tensor {name} is {tensor.dtype} in one parent and {others[name].dtype} in the other; "
                f"save both in the same type"
            )
        tensors[name] = merged_tensor(tensor, others[name].to(tensor.device), a)
    model = NemotronH(first.config, device="meta")
    model.load_state_dict(tensors, assign=True)  # the tensors replace parameters without memory
    return model


def check_parents(first: Path, second: Path) -> None:
    """Check, from small files only, that two checkpoints can be merged.

    Raises:
        ValueError: if their shapes, layer patterns, tokenizers, special tokens or chat templates differ.
    """
    _check_same_shape(str(first), load_config(first), str(second), load_config(second))
    advice = "merge only checkpoints that read the same tokens, such as two that were trained from one model"
    if load_tokenizer(first).to_str() != load_tokenizer(second).to_str():
        raise ValueError(f"{first} and {second} have different tokenizers; {advice}")
    if special_token_ids(first) != special_token_ids(second):
        raise ValueError(f"{first} and {second} have different special tokens; {advice}")
    if _chat_template(first) != _chat_template(second):
        raise ValueError(f"{first} and {second} have different chat templates; {advice}")


def merge_checkpoints(first: Path, second: Path, a: float, directory: Path) -> None:
    """Write the merge of two checkpoints into `directory`, with the tokenizer and the stop tokens of the first.

    Args:
        a: share of the second checkpoint, from 0 to 1.
        directory: created if needed; not that of a parent.
    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if the parents do not fit each other or one is damaged, or a is out of range.
    """
    _check_share(a)
    if directory.resolve() in (first.resolve(), second.resolve()):
        raise ValueError(f"{directory} is a parent, which the result would replace; name another directory for it")
    check_parents(first, second)
    model = merged_model(load_checkpoint(first), load_checkpoint(second), a)
    save_checkpoint(model, first, directory)
    stops = first / "generation_config.json"
    if stops.is_file():
        shutil.copyfile(stops, directory / stops.name)


def _check_share(a: float) -> None:
    if not 0 <= a <= 1:  # also where a is NaN
        raise ValueError(f"a={a} must be from 0, which is the first parent, to 1, which is the second")


def _check_same_shape(first_name: str, first: ModelConfig, second_name: str, second: ModelConfig) -> None:
    for field in fields(ModelConfig):
        values = getattr(first, field.name), getattr(second, field.name)
        if values[0] != values[1]:
            raise ValueError(
                f"{field.name} is {short(values[0])} in {first_name} and {short(values[1])} in {second_name}; only "
                f"models of the same shape can be merged"
            )


def _chat_template(directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else None
