"""Checkpoints in the layout of the Hugging Face Hub, written and read.

In: a model and the directory of its tokenizer. Out: a directory that transformers loads with
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`. `load_checkpoint` reads it back, and reads
what transformers writes.

    config.json              the model's shape; model_type is nemotron_h
    model.safetensors        every weight under its published name, in the model's dtype
    tokenizer.json, tokenizer_config.json, and chat_template.jinja if the tokenizer has one
    generation_config.json   the tokens that begin, end and pad a text, and settings that the tokenizer's directory has

Run: python -c "from nemotron.recipes.nemotron_h.checkpoint import *; print(load_checkpoint(Path('<directory>')))"
Left out: quantized weights, and writing several safetensors files (reading several works).
Files are safetensors and JSON, not pickle, so loading a checkpoint runs no code from it. Its shape, names and number
types are checked before a weight is read; what is damaged or does not fit is a ValueError in one sentence.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP, ModelConfig, NemotronH
from nemotron.strict import one_sentence, parse_json_object, read_file, short

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# transformers writes them beside the others
MORE_TOKENIZER_FILES = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
GENERATION_FILE = "generation_config.json"
MAX_TOKENIZER_BYTES = 256 << 20  # our choice; the published tokenizer.json has 17 MB
ADVICE = "write or fetch it again"
WEIGHT_TYPES = ("F64", "F32", "BF16", "F16")  # safetensors' names; quantized weights need scales, which are not read
# Ids for a tokenizer that does not name these tokens. Published: <unk> 0, which also pads; </s> 2, which ends a text.
# Our choice: a text also begins after </s>, which separates documents in training, and not after the unused <s> 1.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
# Names of the layers in transformers: since version 5, and before it.
LAYER_TYPES = {MAMBA: ("linear_attention", "mamba"), MLP: ("mlp", "mlp"), ATTENTION: ("full_attention", "attention")}
EXPERTS = "E"  # the letter of such a layer in published patterns
NO_EXPERTS = "a mixture of experts is not supported, so use a model without one"
# Names that published and third-party configurations use for fields of ours.
OTHER_NAMES = {
    "attention_head_dim": "head_dim",
    "mamba_num_groups": "n_groups",
    "mamba_n_groups": "n_groups",
    "mamba_state_dim": "ssm_state_size",
    "mamba_d_conv": "conv_kernel",
    "mamba_chunk_size": "chunk_size",
    "mamba_dt_limit": "time_step_limit",
    "mamba_conv_bias": "use_conv_bias",
    "layer_types": "layers_block_type",
}
# Fields of config.json that this architecture fixes: `load_config` refuses any other value.
FIXED_CHOICES = {
    "attention_bias": False,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "residual_in_fp32": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_bias": False,
    "use_conv_bias": True,
}
# The same for fields that `save_checkpoint` does not write: only these values mean the same as an absent field.
INFINITY = {"__float__": "Infinity"}  # as transformers writes it
FIXED_IF_PRESENT = {"quantization_config": (None,), "time_step_limit": (None, [0.0, INFINITY], [0.0, math.inf])}


def save_checkpoint(model: NemotronH, tokenizer_path: Path, directory: Path, stop_ids: Sequence[int] = ()) -> None:
    """Write the model and a copy of its tokenizer into `directory`, which is created if needed.

    Args:
        tokenizer_path: directory with tokenizer.json and tokenizer_config.json, and maybe MORE_TOKENIZER_FILES and
            generation_config.json, whose settings are kept.
        stop_ids: tokens at which generation in transformers stops, beside those that generation_config.json brings.
            Empty: the end-of-document token.
    Raises:
        OSError: if a file cannot be read or written, for example because the disk is full.
        ValueError: if the tokenizer is damaged, or names a special token that it does not have.
    """
    special_tokens = special_token_ids(tokenizer_path)
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_path / name, directory / name)
    for name in MORE_TOKENIZER_FILES:
        if (tokenizer_path / name).is_file():
            shutil.copyfile(tokenizer_path / name, directory / name)
    shape = {field.name: getattr(model.config, field.name) for field in fields(ModelConfig)}
    pattern = model.config.hybrid_override_pattern
    config = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        **shape,
        **FIXED_CHOICES,
        **special_tokens,
        "initializer_range": model.config.initial_std,
        "layers_block_type": [LAYER_TYPES[letter][0] for letter in pattern],
        "num_hidden_layers": len(pattern),
        # transformers clamps step sizes at this value. The published rule has no limit, so 0.
        "time_step_min": 0.0,
    }
    _write_json(directory / "config.json", config)
    brought = _stop_ids_of(tokenizer_path)
    file = tokenizer_path / GENERATION_FILE
    if file.is_file() and set(stop_ids) <= set(brought):
        shutil.copyfile(file, directory / GENERATION_FILE)
    else:
        settings = _read_json(file) if file.is_file() else {}
        stops = {"eos_token_id": list(dict.fromkeys([*brought, *stop_ids]))} if stop_ids else {}
        _write_json(directory / GENERATION_FILE, special_tokens | settings | stops)
    save_tensors(model.state_dict(), directory / "model.safetensors")


def _stop_ids_of(directory: Path) -> list[int]:
    """The tokens at which generation stops, as generation_config.json in the directory says; empty without one.

    Raises:
        ValueError: if the file is damaged, or its eos_token_id is not an id or a list of ids.
    """
    path = directory / GENERATION_FILE
    if not path.is_file():
        return []
    found = _read_json(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in ids):
        raise ValueError(f"{path}: eos_token_id is {short(found)}, not an id or a list of ids; correct it")
    return ids


def stop_tokens_of(directory: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens at which generation stops and their ids, as generation_config.json says; empty without one.

    Raises:
        ValueError: if the file is damaged, or names an id that the tokenizer does not have.
    """
    found = {}
    for one in _stop_ids_of(directory):
        token = tokenizer.id_to_token(one)
        if token is None:
            raise ValueError(f"{directory / GENERATION_FILE}: eos_token_id {one} is not in tokenizer.json; correct it")
        found[token] = one
    return found


def special_token_ids(tokenizer_path: Path) -> dict[str, int]:
    """Ids of the tokens that pad, begin and end a text: those that tokenizer_config.json names, else SPECIAL_TOKENS.

    Raises:
        ValueError: if a file is damaged, or the tokenizer lacks a token that its configuration names.
    """
    file, path = (tokenizer_path / name for name in TOKENIZER_FILES)
    vocabulary = file.read_bytes()
    config = parse_json_object(path.read_bytes(), str(path), advice="write or fetch it again")
    try:
        tokenizer = Tokenizer.from_buffer(vocabulary)
    except Exception as error:  # tokenizers raises no narrower class
        raise ValueError(f"{file} is not a tokenizer ({error}); write or fetch it again") from error
    ids = dict(SPECIAL_TOKENS)
    for name in ids:
        token = config.get(name.removesuffix("_id"))
        token = token.get("content") if isinstance(token, dict) else token  # transformers writes either form
        if token is not None:
            number = tokenizer.token_to_id(token) if isinstance(token, str) else None
            if number is None:
                raise ValueError(f"{path}: {name.removesuffix('_id')} {short(token)} is not in {file.name}; correct it")
            ids[name] = number
    return ids


def load_checkpoint(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> NemotronH:
    """Load the model in `directory`, written by `save_checkpoint` or by transformers.

    Args:
        dtype: dtype of the loaded weights. None: the dtype that each tensor was saved in.
    Raises:
        ValueError: if the directory is not a complete checkpoint of this architecture; the message says why.
    """
    directory = Path(directory)
    model, files = check_checkpoint(directory)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= {name: tensor.to(device, dtype) for name, tensor in load_tensors(file).items()}
    for name, tensor in tensors.items():
        if not all(bound.isfinite() for bound in torch.aminmax(tensor)):
            raise ValueError(f"{directory}: tensor {short(name)} has a NaN or an infinity; {ADVICE}")
    # assign=True: the tensors replace the parameters, which are on the meta device and have no memory.
    model.load_state_dict(tensors, assign=True)
    return model


def load_for_inference(directory: Path, *, device: torch.device | str = "cpu") -> NemotronH:
    """Load the model in `directory` to ask it: in the precision of its weights, or float32 if they have 16 bits.

    So a published model, whose weights are bfloat16, computes as the one that was trained from it.

    Raises:
        ValueError: as `load_checkpoint`.
    """
    model = load_checkpoint(directory, device=device)
    has_16_bits = any(parameter.element_size() == 2 for parameter in model.parameters())
    return model.float() if has_16_bits else model


def check_checkpoint(directory: Path) -> tuple[NemotronH, list[Path]]:
    """The model in `directory` on the meta device, and the files of its weights, of which only headers are read.

    Raises:
        ValueError: if a file is missing, damaged or of another architecture, or config.json and the weights disagree.
    """
    model = NemotronH(load_config(directory), device="meta")
    files = _weight_files(directory)
    _check_tensors(directory, files, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    return model, files


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in tokenizer.json, without its truncation and padding: no text may lose its end unnoticed.

    Raises:
        ValueError: if the file is missing or damaged, or has tokens that the model beside it does not have.
    """
    path = directory / "tokenizer.json"
    content = read_file(
        path, advice="give the directory of a checkpoint or of a tokenizer", max_bytes=MAX_TOKENIZER_BYTES
    )
    try:
        tokenizer = Tokenizer.from_str(content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.decode(tokenizer.encode("Does it work? 12").ids)
    except BaseException as error:
        # tokenizers raises Exception itself; where it panics, a class that is not derived from Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{path} is not a tokenizer ({short(one_sentence(error))}); write or download it again"
        ) from None
    if (directory / "config.json").is_file():
        largest, num_tokens = max(tokenizer.get_vocab().values(), default=0), load_config(directory).vocab_size
        if largest >= num_tokens:
            raise ValueError(
                f"{path} has a token with id {largest}, but its model has {num_tokens} tokens; copy the tokenizer that "
                f"the model was trained with"
            )
    return tokenizer


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, with the permissions of any new file: safetensors would write 0600.

    There is only one metadata key: the order of several would vary, and with it the bytes of the file.

    Raises:
        OSError: if the file cannot be written, for example because the disk is full.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
        os.chmod(path, _permissions_of_a_new_file(path.parent))
    except SafetensorError as error:  # safetensors wraps operating system errors
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, f"cannot write the tensors: {error}", str(path)) from error


def _permissions_of_a_new_file(directory: Path) -> int:
    """Mode that umask and directory give a new file; found by trial, as the umask cannot be read without setting it."""
    file = directory / f".permissions-{os.getpid()}"
    with open(file, "wb") as stream:
        mode = os.fstat(stream.fileno()).st_mode & 0o777
    file.unlink()
    return mode


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Read tensors that `save_tensors` wrote.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a complete safetensors file.
    """
    if not path.is_file():
        raise ValueError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}; {ADVICE}")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, TypeError) as error:  # TypeError: an empty tensor with a size beyond 64 bits
        raise _not_safetensors(path, error) from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def _not_safetensors(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a complete safetensors file ({short(one_sentence(error))}); {ADVICE}")


def _read_json(path: Path) -> dict[str, Any]:
    text = read_file(path, advice="give the directory of a complete checkpoint")
    # Infinity: the published config.json has "time_step_limit": [0.0, Infinity].
    return parse_json_object(text, str(path), advice=ADVICE, allow_infinity=True)


def load_config(directory: Path) -> ModelConfig:
    """Read the shape of the model in `directory`; a field may be under its name in `OTHER_NAMES`.

    Raises:
        ValueError: if config.json is missing, damaged, contradicts itself or describes another architecture.
    """
    path = directory / "config.json"
    config = _read_json(path)
    if config.get("model_type") != "nemotron_h":
        raise ValueError(f"{path}: model_type is {short(config.get('model_type'))}; only 'nemotron_h' can be loaded")
    for other, name in OTHER_NAMES.items():
        if other in config:
            _agree(path, config, other, name, config[other])
    for name, choice in FIXED_CHOICES.items():
        if config.get(name, choice) != choice:
            raise ValueError(f"{path}: {name} is {short(config[name])}; this model supports only {choice!r}")
    for name, choices in FIXED_IF_PRESENT.items():
        if config.get(name) not in choices:
            raise ValueError(f"{path}: {name} is {short(config[name])}; this model supports only {choices[-1]!r}")
    if "layers_block_type" in config:
        letters = {layer_type: letter for letter, names in LAYER_TYPES.items() for layer_type in names}
        layer_types = config["layers_block_type"]
        if not isinstance(layer_types, list):
            raise ValueError(f"{path}: layers_block_type is {short(layer_types)}, not a list; {ADVICE}")
        unknown = [one for one in layer_types if not isinstance(one, str) or one not in letters]
        if unknown:
            allowed = ", ".join(sorted(letters))
            no_experts = f"; {NO_EXPERTS}" if "moe" in unknown else ""
            raise ValueError(f"{path}: layers_block_type has {short(unknown[0])}; allowed are {allowed}{no_experts}")
        pattern = "".join(letters[layer_type] for layer_type in layer_types)
        _agree(path, config, "layers_block_type", "hybrid_override_pattern", pattern)
    if isinstance(given := config.get("hybrid_override_pattern"), str) and EXPERTS in given:
        raise ValueError(f"{path}: hybrid_override_pattern={short(given)} has the letter {EXPERTS}; {NO_EXPERTS}")
    values = {}
    for field in fields(ModelConfig):
        if field.name in config:
            values[field.name] = config[field.name]
        elif field.default is MISSING:
            raise ValueError(f"{path}: field {field.name} is missing; {ADVICE}")
    try:
        return ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _agree(path: Path, config: dict[str, Any], other: str, name: str, value: Any) -> None:
    """Set the field `name` to the value that `other` states; ValueError if `name` is there with a different value."""
    if name in config and config[name] != value:
        raise ValueError(
            f"{path}: {other} says {short(value)} and {name} {short(config[name])}, which are two names for one thing; "
            f"delete the wrong one"
        )
    config[name] = value


def _weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json lists."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ValueError(
            f"{directory} has neither {single.name} nor {index.name}; give the directory of a complete checkpoint"
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: field weight_map is missing; {ADVICE}")
    present = {entry.name for entry in directory.iterdir() if entry.is_file()}
    for name in weight_map.values():
        if not isinstance(name, str) or name not in present:
            raise ValueError(f"{index} lists {short(name)}, which is not a file in {directory}; {ADVICE}")
    return [directory / name for name in sorted(set(weight_map.values()))]


def _check_tensors(directory: Path, files: Sequence[Path], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the files hold exactly the tensors of `shapes`, each once; reads their headers only."""
    advice = "take weights and config.json from the same checkpoint"
    owners: dict[str, Path] = {}
    for file in files:
        for name, (shape, number_type) in read_header(file).items():
            if name in owners:
                raise ValueError(f"{file}: tensor {short(name)} is also in {owners[name].name}; {ADVICE}")
            owners[name] = file
            if name not in shapes:
                raise ValueError(f"{directory}: tensor {short(name)} is unexpected; {advice}")
            if shape != shapes[name]:
                raise ValueError(
                    f"{directory}: tensor {name} has shape {shape} and config.json requires {shapes[name]}; {advice}"
                )
            if number_type not in WEIGHT_TYPES:
                raise ValueError(
                    f"{directory}: tensor {name} has numbers of type {number_type}; this model supports only "
                    f"{', '.join(WEIGHT_TYPES)}"
                )
    for name in sorted(shapes.keys() - owners.keys()):
        raise ValueError(f"{directory}: tensor {name} is missing; {advice}")


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and number type of each tensor in a safetensors file, without reading the tensors.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a complete safetensors file.
    """
    if not path.is_file():
        raise ValueError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}; {ADVICE}")
    try:
        with safe_open(path, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # not a dict
            return {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except SafetensorError as error:
        raise _not_safetensors(path, error) from None
