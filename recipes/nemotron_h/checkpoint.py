"""Checkpoints in the layout of the Hugging Face Hub, which every tool of that ecosystem reads.

In: a model and the directory of its tokenizer. Out: a directory that `AutoModelForCausalLM.from_pretrained` and
`AutoTokenizer.from_pretrained` of transformers accept; and back.

    config.json              the model's shape, model_type nemotron_h
    model.safetensors        every weight under its published name, in the dtype that the model has
    tokenizer.json, tokenizer_config.json
    generation_config.json   which tokens begin, end and pad a text

Run: python -c "from nemotron.recipes.nemotron_h.checkpoint import *; print(load_checkpoint(Path('<directory>')))"
Left out: quantised weights, and writing more than one safetensors file (several are read).
Nothing is pickled: safetensors and JSON only.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP, ModelConfig, NemotronH

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Published: <unk> 0, which also pads; <s> 1; </s> 2, which also ends a document.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# transformers' names of the layers; the second of each pair is the one of its releases before 5.
LAYER_TYPES = {MAMBA: ("linear_attention", "mamba"), MLP: ("mlp", "mlp"), ATTENTION: ("full_attention", "attention")}
# What config.json could choose and this architecture does not: a checkpoint that differs is refused.
FIXED_CHOICES = {
    "attention_bias": False,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_bias": False,
    "use_conv_bias": True,
}


def save_checkpoint(model: NemotronH, tokenizer_path: Path, directory: Path, stop_ids: Sequence[int] = ()) -> None:
    """Write the model and copy its tokenizer into `directory`, which is created.

    Args:
        tokenizer_path: directory that holds tokenizer.json and tokenizer_config.json.
        stop_ids: tokens at which `transformers.generate` stops; the end of a document if left out.
    Raises:
        OSError: if a file cannot be read or written, for example on a full disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_path / name, directory / name)
    shape = {field.name: getattr(model.config, field.name) for field in fields(ModelConfig)}
    pattern = model.config.hybrid_override_pattern
    config = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        **shape,
        **FIXED_CHOICES,
        **SPECIAL_TOKENS,
        "initializer_range": model.config.initial_std,
        "layers_block_type": [LAYER_TYPES[letter][0] for letter in pattern],
        "num_hidden_layers": len(pattern),
        "residual_in_fp32": False,
        # The published rule puts no limit on a step size; transformers takes this field for a lower one.
        "time_step_min": 0.0,
    }
    _write_json(directory / "config.json", config)
    stops = {"eos_token_id": list(stop_ids)} if stop_ids else {}
    _write_json(directory / "generation_config.json", SPECIAL_TOKENS | stops)
    save_tensors(model.state_dict(), directory / "model.safetensors")


def load_checkpoint(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> NemotronH:
    """The model in `directory`, written by `save_checkpoint` or by transformers.

    Args:
        dtype: of the loaded weights; None keeps the one that each was saved in.
    Raises:
        ValueError: if the directory holds no complete checkpoint of this architecture; one sentence says what is wrong.
    """
    directory = Path(directory)
    model = NemotronH(load_config(directory), device="meta")
    tensors = _read_weights(directory)
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        fault = "misses the" if name in expected else "holds an unexpected"
        raise ValueError(f"{directory} {fault} tensor {name}: its weights and its config.json do not belong together")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{directory}: tensor {name} has shape {tuple(tensor.shape)} and config.json asks for "
                f"{tuple(expected[name].shape)}: its weights and its config.json do not belong together"
            )
    # assign=True: the tensors replace the parameters, which had no memory yet.
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in tensors.items()}, assign=True)
    return model


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, with one metadata key: with several, their order and so the bytes would vary.

    Raises:
        OSError: if the file cannot be written, for example on a full disk.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of an operating system error
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, f"cannot write the tensors: {error}", str(path)) from error


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Tensors that `save_tensors` wrote.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no complete safetensors file.
    """
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}); write or fetch it again") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no checkpoint: it holds no {path.name}") from None
    except ValueError as error:  # also invalid UTF-8
        raise ValueError(f"{path} is no JSON ({error}); write or fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def load_config(directory: Path) -> ModelConfig:
    """The shape of the model in `directory`.

    Raises:
        ValueError: if its config.json is missing, damaged or of another architecture.
    """
    path = directory / "config.json"
    config = _read_json(path)
    if config.get("model_type") != "nemotron_h":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, and only 'nemotron_h' can be loaded")
    for name, choice in FIXED_CHOICES.items():
        if config.get(name, choice) != choice:
            raise ValueError(f"{path}: {name} is {config[name]!r}, and this architecture has only {choice!r}")
    if "layers_block_type" in config:
        letters = {layer_type: letter for letter, names in LAYER_TYPES.items() for layer_type in names}
        layer_types = config["layers_block_type"]
        unknown = [layer_type for layer_type in layer_types if layer_type not in letters]
        if unknown:
            raise ValueError(f"{path}: layers of the kind {unknown[0]!r} are not part of this architecture")
        config["hybrid_override_pattern"] = "".join(letters[layer_type] for layer_type in layer_types)
    values = {}
    for field in fields(ModelConfig):
        if field.name in config:
            values[field.name] = config[field.name]
        elif field.default is MISSING:
            raise ValueError(f"{path} misses the field {field.name}")
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or of the files that model.safetensors.index.json names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return load_tensors(single)
    if not index.is_file():
        raise ValueError(f"{directory} is no checkpoint: it holds neither {single.name} nor {index.name}")
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} misses the field weight_map")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not (directory / name).is_file():
            raise ValueError(f"{directory} is no checkpoint: it holds no {name}, which {index.name} names")
        tensors |= load_tensors(directory / name)
    return tensors
