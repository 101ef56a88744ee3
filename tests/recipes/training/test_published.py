"""Directories as NVIDIA publishes models, and damaged ones: what a stage accepts as its start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config, load_for_inference
from nemotron.recipes.nemotron_h.model import PUBLISHED_9B, NemotronH
from nemotron.recipes.nemotron_h.plan import count_parameters
from nemotron.recipes.training.published import PublishedModel, shape_of
from nemotron.recipes.training.run import Checkpoint, base_checkpoint


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in config.items() if value != "removed"}))

    return edit


def edit_index(edit: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        edit(index["weight_map"])
        path.write_text(json.dumps(index))

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: next(iter(directory.glob(name))).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = next(iter(directory.glob(name)))
        file.write_bytes(file.read_bytes()[:-100])

    return apply


def test_it_is_a_start_like_a_checkpoint(whole_published_model: Path) -> None:
    base = base_checkpoint(whole_published_model, whole_published_model)
    assert isinstance(base, PublishedModel)
    assert base.checkpoint_path == base.path == whole_published_model
    base.check_scale("full")
    base.check_unchanged()
    assert len(list(whole_published_model.glob("*.safetensors"))) > 2
    model = load_checkpoint(whole_published_model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert shape_of(whole_published_model) == model.config


def test_transformers_gives_it_the_same_logits(whole_published_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(whole_published_model, dtype=torch.float32)
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, float("inf"))  # published; transformers takes time_step_min for it
    tokens = torch.arange(20, 80)[None]
    ours = load_for_inference(whole_published_model)
    assert ours.lm_head.weight.dtype == torch.float32
    with torch.no_grad():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-4


PATTERN = "M-M*-"
NAMES = {"M": "mamba", "-": "mlp", "*": "attention"}


@pytest.mark.parametrize(
    "spelled",
    [
        {"hybrid_override_pattern": PATTERN},
        {"layers_block_type": [NAMES[letter] for letter in PATTERN]},
        {"layer_types": ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"]},
        {"hybrid_override_pattern": PATTERN, "layers_block_type": [NAMES[letter] for letter in PATTERN]},
    ],
    ids=["pattern", "before transformers 5", "layer types", "both"],
)
def test_every_spelling_of_the_pattern_is_read(published_model: Path, spelled: dict[str, Any]) -> None:
    before = load_config(published_model)
    assert before.hybrid_override_pattern == PATTERN
    edit_config(**{"layers_block_type": "removed"} | spelled)(published_model)
    assert PublishedModel.load(published_model).path == published_model
    assert load_config(published_model) == before


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (remove("tokenizer.json"), r"tokenizer\.json does not exist; give the directory of a checkpoint"),
    "no tokenizer configuration": (remove("tokenizer_config.json"), r"tokenizer_config\.json does not exist; give the"),
    "no config": (remove("config.json"), r"config\.json does not exist; give the directory of a complete checkpoint"),
    "a shard is missing": (
        remove("model-00002*"),
        r"index\.json lists 'model-00002-of-\d+\.safetensors', which is not a file in .*; write or fetch it again",
    ),
    "a shard is cut": (cut("model-00002*"), r"model-00002-of-\d+\.safetensors is not a complete safetensors file"),
    "the index names an absent file": (
        edit_index(lambda names: names.update({"lm_head.weight": "elsewhere.safetensors"})),
        r"index\.json lists 'elsewhere\.safetensors', which is not a file in .*; write or fetch it again",
    ),
    "the index leaves out a shard": (
        edit_index(lambda names: [names.pop(name) for name, file in list(names.items()) if "00001" in file]),
        r"tensor .* is missing; take weights and config\.json from the same checkpoint",
    ),
    "another model": (edit_config(model_type="llama"), r"model_type is 'llama'; only 'nemotron_h' can be loaded"),
    "experts by name": (
        edit_config(layers_block_type=["mamba", "moe", "mamba", "attention", "mlp"]),
        r"layers_block_type has 'moe'; .*; a mixture of experts is not supported, so use a model without one",
    ),
    "experts by letter": (
        edit_config(layers_block_type="removed", hybrid_override_pattern="MEM*-"),
        r"hybrid_override_pattern='MEM\*-' has the letter E; a mixture of experts is not supported, so use a model",
    ),
    "another shape": (
        edit_config(intermediate_size=64),
        r"has shape \(48, 80\) and config\.json requires \(48, 64\); take",
    ),
    "a vocabulary beyond the embedding": (
        edit_config(vocab_size=400),
        r"tokenizer\.json has a token with id \d+, but its model has 400 tokens|has shape \(448, 48\) and",
    ),
    "quantized": (edit_config(quantization_config={"bits": 4}), r"quantization_config is .*; this model supports only"),
}


@pytest.mark.parametrize(("damage", "sentence"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_damaged_directory_is_one_sentence(
    published_model: Path, damage: Callable[[Path], Any], sentence: str
) -> None:
    damage(published_model)
    with pytest.raises(ValueError, match=sentence) as raised:
        base_checkpoint(published_model)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(published_model: Path) -> None:
    tokenizer = json.loads((published_model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 448, "content": "<more>"})
    (published_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"has a token with id 448, but its model has 448 tokens; copy the tokenizer"):
        base_checkpoint(published_model)


def test_without_a_template_it_is_a_base_model(published_model: Path) -> None:
    (published_model / "chat_template.jinja").unlink()
    base_checkpoint(published_model)  # fine-tuning adds one
    with pytest.raises(ValueError, match=r"has no chat template, so it is a base model; fine-tune it with python -m"):
        load_chat_tokenizer(CHAT, published_model)  # as the later stages do
    assert format_of(CHAT, published_model) is CHAT


def test_the_files_of_a_checkpoint_of_ours_are_not_taken_for_a_published_model(
    published_model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "training"
    shutil.copytree(published_model, place / "model")
    (place / "empty").write_text("")
    Checkpoint(
        path=place, num_steps=1, num_parameters=1, training_loss=1.0, checkpoint_path=place / "model",
        training_state_path=None, curve_path=place / "empty", validation_curve_path=place / "empty",
        plot_path=place / "empty", dataset_path=published_model,
    ).save()  # fmt: skip
    with pytest.raises(ValueError, match=r"model is part of the Checkpoint .*training; give that, so that its origin"):
        base_checkpoint(place / "model")


def test_the_published_9b_has_its_shape_and_size(tmp_path: Path) -> None:
    """With config.json as its directory has it, on the meta device."""
    config = {
        "architectures": ["NemotronHForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "chunk_size": 128, "conv_kernel": 4, "eos_token_id": 12, "expand": 2, "head_dim": 128,
        "hidden_dropout": 0.0, "hidden_size": 4480,
        "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        "initializer_range": 0.02, "intermediate_size": 15680, "layer_norm_epsilon": 1e-05, "mamba_head_dim": 80,
        "mamba_hidden_act": "silu", "mamba_num_heads": 128, "mamba_proj_bias": False,
        "max_position_embeddings": 131072, "mlp_bias": False, "mlp_hidden_act": "relu2", "model_type": "nemotron_h",
        "n_groups": 8, "num_attention_heads": 40, "num_hidden_layers": 56, "num_key_value_heads": 8,
        "pad_token_id": 0, "residual_in_fp32": False, "sliding_window": None, "ssm_state_size": 128,
        "tie_word_embeddings": False, "time_step_limit": [0.0, float("inf")], "time_step_max": 0.1,
        "time_step_min": 0.001, "torch_dtype": "bfloat16", "use_bias": False, "use_cache": True,
        "use_conv_bias": True, "vocab_size": 131072,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = load_config(tmp_path)
    assert shape.hybrid_override_pattern == PUBLISHED_9B.hybrid_override_pattern
    model = NemotronH(shape, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_888_227_328 == count_parameters(shape)
