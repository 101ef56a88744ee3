"""Checkpoints that transformers reads and writes, and directories that are not valid checkpoints."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import (
    load_checkpoint,
    load_config,
    load_for_inference,
    load_tensors,
    load_tokenizer,
    save_checkpoint,
    save_tensors,
)
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.strict import MAX_JSON_BYTES

SHAPE = MODELS["tiny"]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the state of the scan and the gate of the norm"], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def perturbed_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> NemotronH:
    """A model whose norms and skips are not all 1, so that a missing one shows."""
    model = NemotronH(config, dtype=dtype)
    initialize(model, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A checkpoint of the tiny shape in float32. Tests must not change it; `broken` is a copy."""
    directory = tmp_path_factory.mktemp("checkpoint") / "model"
    save_checkpoint(perturbed_model(SHAPE), tokenizer_path, directory)
    return directory


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "broken"))


# --- with transformers ---


@pytest.mark.parametrize("config", [pytest.param(MODELS[scale], id=scale) for scale in ("tiny", "small")])
def test_transformers_gives_our_checkpoint_the_same_logits_and_continuation(
    config: ModelConfig, tokenizer_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = perturbed_model(config)
    save_checkpoint(model, tokenizer_path, tmp_path)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(config.vocab_size, (2, 75), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (twin(tokens).logits - model(tokens)).abs().max() < 1e-4
        continued = twin.generate(tokens[:1], max_new_tokens=20, do_sample=False)[0, 75:].tolist()
    ours = generate(model, [tokens[0].tolist()], Sampling(max_new_tokens=20), seeds=[0])[0].tokens
    assert continued == ours[: len(continued)]  # transformers stops at the end of a document
    assert len(continued) == 20 or continued[-1] == 2


def test_transformers_loads_a_float64_checkpoint(tokenizer_path: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = perturbed_model(SHAPE, torch.float64)
    save_checkpoint(model, tokenizer_path, tmp_path)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(SHAPE.vocab_size, (2, 75), generator=torch.Generator().manual_seed(0))
    assert twin.dtype == torch.float64
    with torch.no_grad():
        assert (twin(tokens).logits - model(tokens)).abs().max() < 1e-4


def test_transformers_reads_every_field_of_the_config(saved: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(saved)
    for name in set(ModelConfig.__dataclass_fields__) - {"initializer_range"}:
        assert getattr(config, name) == getattr(SHAPE, name), name
    assert config.initializer_range == SHAPE.initial_std
    assert config.num_hidden_layers == 5
    assert config.time_step_min == 0
    assert config.tie_word_embeddings is False


def test_config_has_the_special_tokens(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (0, 2, 2)


def test_transformers_loads_the_generation_config(saved: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(saved)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 2)


@pytest.mark.parametrize("bos_token", ["<s>", {"__type": "AddedToken", "content": "<s>"}])
def test_a_tokenizer_from_elsewhere_keeps_its_special_tokens(
    bos_token: Any, saved: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    shutil.copytree(tokenizer_path, tmp_path / "theirs")
    path = tmp_path / "theirs" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": bos_token, "pad_token": "</s>"}))
    save_checkpoint(load_checkpoint(saved), tmp_path / "theirs", tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").bos_token_id == 1
    generation = GenerationConfig.from_pretrained(tmp_path / "again")
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (2, 1, 2)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (2, 1, 2)


def test_a_special_token_that_the_tokenizer_lacks_is_an_error(
    saved: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_path, tmp_path / "theirs")
    path = tmp_path / "theirs" / "tokenizer_config.json"
    for token in ("<bos>", 7):
        path.write_text(json.dumps({"bos_token": token}))
        with pytest.raises(ValueError, match=rf"bos_token {token!r} is not in tokenizer\.json; correct it$"):
            save_checkpoint(load_checkpoint(saved), tmp_path / "theirs", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_transformers_loads_the_tokenizer(saved: Path, tokenizer_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "the gate, 417 and ünïcode"
    expected = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json")).encode(text).ids
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer(text)["input_ids"] == expected
    assert tokenizer.decode(expected) == text
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_we_load_a_checkpoint_written_by_transformers(shard: str, saved: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    twin = AutoModelForCausalLM.from_pretrained(saved)
    twin.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "1GB")
    model = load_checkpoint(tmp_path)
    assert model.config.hybrid_override_pattern == SHAPE.hybrid_override_pattern
    expected = load_checkpoint(saved).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


# --- round trips ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_survive_a_round_trip_bit_for_bit(dtype: torch.dtype, tokenizer_path: Path, tmp_path: Path) -> None:
    model = perturbed_model(SHAPE, dtype)
    save_checkpoint(model, tokenizer_path, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, model.state_dict()[name])
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_are_cast_on_request(saved: Path) -> None:
    exact, cast = load_checkpoint(saved), load_checkpoint(saved, dtype=torch.float64)
    for parameter, expected in zip(cast.parameters(), exact.parameters(), strict=True):
        assert torch.equal(parameter, expected.double())


def test_tensors_have_the_published_names_and_one_metadata_key(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert {name for name in names if ".layers." not in name} == {
        *("backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"),
    }
    layer = "backbone.layers.0."
    assert {name.removeprefix(layer) for name in names if name.startswith(layer)} == {
        *("norm.weight", "mixer.in_proj.weight", "mixer.conv1d.weight", "mixer.conv1d.bias", "mixer.dt_bias"),
        *("mixer.A_log", "mixer.D", "mixer.norm.weight", "mixer.out_proj.weight"),
    }


def test_saving_twice_writes_the_same_bytes(saved: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(saved), tokenizer_path, tmp_path)
    for path in sorted(saved.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_json_files_are_strict_json(saved: Path) -> None:
    constants: list[str] = []  # NaN, Infinity and -Infinity: Python reads them, strict JSON forbids them
    for name in ("config.json", "generation_config.json"):
        json.loads((saved / name).read_text(), parse_constant=constants.append)
    assert constants == []


def test_a_config_with_the_infinity_of_published_checkpoints_loads(broken: Path) -> None:
    before = load_config(broken)
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text(text.replace("{", '{"time_step_limit": [0.0, Infinity], ', 1))
    assert load_config(broken) == before


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("attention_head_dim", "head_dim"),
        ("mamba_num_groups", "n_groups"),
        ("mamba_state_dim", "ssm_state_size"),
        ("layer_types", "layers_block_type"),
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_a_field_is_read_under_its_other_name(broken: Path, other: str, name: str, both: bool) -> None:
    before = load_config(broken)
    config = json.loads((broken / "config.json").read_text())
    config[other] = config[name]
    if not both:
        del config[name]
    if name == "layers_block_type":
        del config["hybrid_override_pattern"]
    (broken / "config.json").write_text(json.dumps(config))
    assert load_config(broken) == before


def test_fields_that_say_nothing_new_are_accepted(broken: Path) -> None:
    before = load_config(broken)
    edit_config(quantization_config=None, time_step_limit=None, residual_in_fp32=False)(broken)
    assert load_config(broken) == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_has_the_permissions_of_a_new_file(
    umask: int, mode: int, tokenizer_path: Path, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        save_checkpoint(perturbed_model(SHAPE), tokenizer_path, tmp_path / "model")
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert found == dict.fromkeys(found, mode)
    assert len(found) == 5


def test_a_chat_template_beside_the_tokenizer_is_saved_with_it(tokenizer_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(tokenizer_path, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    save_checkpoint(perturbed_model(SHAPE), tmp_path / "tokenizer", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


BROUGHT = {"eos_token_id": [2, 7], "do_sample": True, "temperature": 0.6, "top_p": 0.95, "bos_token_id": 1}


@pytest.mark.parametrize("stop_ids", [(), (2,), (7, 2)])
def test_generation_settings_that_the_tokenizer_brings_are_kept(
    stop_ids: tuple[int, ...], tokenizer_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_path, tmp_path / "tokenizer")
    text = json.dumps(BROUGHT)
    (tmp_path / "tokenizer" / "generation_config.json").write_text(text)
    save_checkpoint(perturbed_model(SHAPE), tmp_path / "tokenizer", tmp_path / "model", stop_ids)
    assert (tmp_path / "model" / "generation_config.json").read_text() == text


def test_stop_tokens_are_added_to_the_generation_settings(tokenizer_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_path, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "generation_config.json").write_text(json.dumps(BROUGHT))
    save_checkpoint(perturbed_model(SHAPE), tmp_path / "tokenizer", tmp_path / "model", (11, 2))
    found = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert found == {**BROUGHT, "eos_token_id": [2, 7, 11], "pad_token_id": 0}


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_maps_of_special_tokens_are_kept(name: str, tokenizer_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_path, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).write_text('{"a": 1}')
    save_checkpoint(perturbed_model(SHAPE), tmp_path / "tokenizer", tmp_path / "model")
    assert (tmp_path / "model" / name).read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    ("saved_as", "computed_in"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_a_model_is_asked_in_float32_at_least(
    saved_as: torch.dtype, computed_in: torch.dtype, tokenizer_path: Path, tmp_path: Path
) -> None:
    save_checkpoint(perturbed_model(SHAPE, saved_as), tokenizer_path, tmp_path)
    asked, exact = load_for_inference(tmp_path), load_checkpoint(tmp_path)
    for parameter, expected in zip(asked.parameters(), exact.parameters(), strict=True):
        assert parameter.dtype == computed_in
        assert torch.equal(parameter, expected.to(computed_in))


# --- invalid checkpoints ---


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        config |= changes
        config = {name: value for name, value in config.items() if value != "removed"}
        (directory / "config.json").write_text(json.dumps(config))

    return edit


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")

    return apply


def replace_with_index(index: dict[str, Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    return apply


def replace_with_shards(edit: Callable[[list[dict[str, torch.Tensor]]], Any]) -> Callable[[Path], None]:
    """Two shards whose index lists them correctly, before an edit of the shards."""

    def apply(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        names = sorted(tensors)
        shards = [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]
        weight_map = {name: f"{number}-of-2.safetensors" for number in (1, 2) for name in shards[number - 1]}
        edit(shards)
        for number in (1, 2):
            save_file(shards[number - 1], directory / f"{number}-of-2.safetensors")
        replace_with_index({"weight_map": weight_map})(directory)

    return apply


def replace_by(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return apply


def safetensors_file(shapes: dict[str, list[int]]) -> bytes:
    """A file of empty tensors, also with shapes that torch does not know."""
    header = json.dumps({name: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for name, s in shapes.items()})
    return len(header).to_bytes(8, "little") + header.encode()


def point_outside(directory: Path) -> None:
    shutil.move(directory / "model.safetensors", directory.parent / "outside.safetensors")
    names = safe_open(directory.parent / "outside.safetensors", "pt").keys()
    index = {"weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def truncate(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:3000])


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no directory": (shutil.rmtree, "config.json does not exist; give the directory of a complete checkpoint"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist; give the directory"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        r"has neither model.safetensors nor model.safetensors.index.json; give the directory of a complete checkpoint",
    ),
    "config is not json": (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
    "config is not text": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), "config.json is not valid JSON"),
    "config is a list": (
        lambda d: (d / "config.json").write_text("[]"),
        r"config.json must hold a JSON object, not \[\]",
    ),
    "another model": (edit_config(model_type="llama"), "model_type is 'llama'; only 'nemotron_h' can be loaded"),
    "no model type": (edit_config(model_type="removed"), "model_type is None"),
    "field missing": (edit_config(n_groups="removed"), "config.json: field n_groups is missing"),
    "field of another type": (edit_config(hidden_size="wide"), "config.json: hidden_size='wide' must be of type int"),
    "impossible shape": (edit_config(n_groups=3), "config.json: n_groups=3 does not divide"),
    "unknown layer": (
        edit_config(layers_block_type=["linear_attention", "moe"]),
        "layers_block_type has 'moe'; allowed are attention, full_attention, linear_attention, mamba, mlp",
    ),
    "other activation": (
        edit_config(mlp_hidden_act="silu"),
        "mlp_hidden_act is 'silu'; this model supports only 'relu2'",
    ),
    "tied embeddings": (
        edit_config(tie_word_embeddings=True),
        "tie_word_embeddings is True; this model supports only False",
    ),
    "tensor missing": (
        edit_weights(lambda tensors: tensors.pop("backbone.layers.0.mixer.D")),  # type: ignore[arg-type, return-value]
        "tensor backbone.layers.0.mixer.D is missing; take weights and config.json from the same",
    ),
    "extra tensor": (
        edit_weights(lambda tensors: tensors.update(extra=torch.zeros(1))),
        "tensor 'extra' is unexpected; take weights and config.json from the same",
    ),
    "fewer layers": (
        edit_config(layers_block_type=["mlp"] * 4, hybrid_override_pattern="removed"),
        "is unexpected|is missing",
    ),
    "two patterns": (
        edit_config(layers_block_type=["mlp"] * 4),
        "layers_block_type says '----' and hybrid_override_pattern '.*', which are two names for one thing; delete",
    ),
    "two group counts": (
        edit_config(mamba_num_groups=3),
        "mamba_num_groups says 3 and n_groups 2, which are two names",
    ),
    "two head sizes": (edit_config(attention_head_dim=8), "attention_head_dim says 8 and head_dim .*, which are two"),
    "layers that are a number": (edit_config(layers_block_type=5), "layers_block_type is 5, not a list"),
    "layers of numbers": (edit_config(layers_block_type=[[5]]), r"layers_block_type has \[5\]; allowed are attention"),
    "float32 residual": (
        edit_config(residual_in_fp32=True),
        "residual_in_fp32 is True; this model supports only False",
    ),
    "clamped steps": (
        edit_config(time_step_limit=[0.0, 0.1]),
        r"time_step_limit is \[0.0, 0.1\]; this model supports only \[0.0, inf\]",
    ),
    "clamped steps by another name": (edit_config(mamba_dt_limit=[0.001, 0.1]), r"time_step_limit is \[0.001, 0.1\]"),
    "quantized": (
        edit_config(quantization_config={"quant_method": "fp8"}),
        "quantization_config is {'quant_method': 'fp8'}; this model supports only None",
    ),
    "other shape": (
        edit_weights(lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 64)})),
        r"tensor lm_head.weight has shape \(3, 64\) and config.json requires \(512, 64\)",
    ),
    "weights cut": (truncate("model.safetensors"), "model.safetensors is not a complete safetensors file"),
    "weights empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "is not a complete safetensors file"),
    "index without map": (replace_with_index({}), "index.json: field weight_map is missing"),
    "shard missing": (
        replace_with_index({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}),
        "index.json lists 'model-00001-of-00002.safetensors', which is not a file in",
    ),
    "shard twice": (
        replace_with_shards(lambda shards: shards[1].update(shards[0])),
        r"2-of-2.safetensors: tensor '.*' is also in 1-of-2.safetensors; write or fetch it again",
    ),
    "a tensor of no shard": (
        replace_with_shards(lambda shards: shards[0].popitem()),
        "tensor .* is missing; take weights and config.json from the same",
    ),
    "a shard that is a number": (
        replace_with_index({"weight_map": {"lm_head.weight": 5}}),
        "lists 5, which",
    ),
    "a shard that is a list": (replace_with_index({"weight_map": {"a": [[]]}}), r"index.json lists \[\[\]\], which is"),
    "a shard with a zero in its name": (
        replace_with_index({"weight_map": {"a": "\0"}}),
        r"lists '\\x00', which",
    ),
    "index is nested deep": (
        lambda d: (replace_with_index({})(d), (d / "model.safetensors.index.json").write_text("[" * 100_000)),
        "model.safetensors.index.json is not valid JSON",
    ),
    "config is nested deep": (
        lambda d: (d / "config.json").write_text("[" * 100_000),
        "config.json is not valid JSON",
    ),
    "a field nested deep": (
        lambda d: (d / "config.json").write_text('{"model_type": ' + "[" * 101 + "]" * 101 + "}"),
        "config.json has more than 100 nested lists and objects; write or fetch it again",
    ),
    "config is too large": (
        lambda d: (d / "config.json").write_text(" " * (MAX_JSON_BYTES + 1)),
        "config.json has more than the 16,777,216 bytes that are read of such a file",
    ),
    "config without end": (replace_by("config.json", lambda p: p.symlink_to("/dev/zero")), "json is not a regular fil"),
    "config is a pipe": (replace_by("config.json", os.mkfifo), "config.json is not a regular file; give the direct"),
    "weights without end": (
        replace_by("model.safetensors", lambda p: p.symlink_to("/dev/zero")),
        "model.safetensors is not a regular file; write or fetch it again",
    ),
    "weights are a pipe": (replace_by("model.safetensors", os.mkfifo), "model.safetensors is not a regular file"),
    "a header that claims 2^62 bytes": (
        lambda d: (d / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "is not a complete safetensors file .*header too large",
    ),
    "an empty tensor of 2^64": (
        lambda d: (d / "model.safetensors").write_bytes(safetensors_file({"lm_head.weight": [0, 2**64 - 1]})),
        r"tensor lm_head.weight has shape \(0, 18446744073709551615\) and config.json requires",
    ),
    "integer weights": (
        edit_weights(lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].long()})),
        "tensor lm_head.weight has numbers of type I64; this model supports only F64, F32, BF16, F16",
    ),
    "boolean weights": (
        edit_weights(lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].bool()})),
        "tensor lm_head.weight has numbers of type BOOL",
    ),
    "weights in 8 bits": (
        edit_weights(
            lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].to(torch.float8_e4m3fn)})
        ),
        "tensor lm_head.weight has numbers of type F8_E4M3",
    ),
    "a weight that is NaN": (
        edit_weights(lambda tensors: tensors["lm_head.weight"][3].fill_(float("nan"))),  # type: ignore[arg-type, return-value]
        "tensor 'lm_head.weight' has a NaN or an infinity; write or fetch it again",
    ),
    "a size of 2^63": (edit_config(vocab_size=2**63), "vocab_size=9223372036854775808 must be at most 1,048,576"),
    "a million layers": (
        edit_config(layers_block_type="removed", hybrid_override_pattern="M" * 10**6),
        "hybrid_override_pattern has 1,000,000 layers; it must have at most 1,000",
    ),
    "shard elsewhere": (point_outside, "index.json lists '../outside.safetensors', which is not a file in"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_an_invalid_checkpoint_is_refused_in_one_line(name: str, broken: Path) -> None:
    breakage, message = BREAKAGES[name]
    breakage(broken)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(broken)
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_saving_without_a_tokenizer_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        save_checkpoint(perturbed_model(SHAPE), tmp_path / "nowhere", tmp_path / "model")


def test_a_weight_that_becomes_infinite_in_the_dtype_asked_for_is_refused(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].double() * 1e300
    save_file(tensors, broken / "model.safetensors")
    load_checkpoint(broken)
    with pytest.raises(ValueError, match=r"tensor 'lm_head\.weight' has a NaN or an infinity"):
        load_checkpoint(broken, dtype=torch.float32)


def test_no_weight_is_read_before_the_header_fits(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(hidden_size=128)(broken)
    monkeypatch.setattr("nemotron.recipes.nemotron_h.checkpoint.load_file", None)
    with pytest.raises(ValueError, match=r"has shape .* and config.json requires"):
        load_checkpoint(broken)


# --- tokenizers ---


def edit_tokenizer(directory: Path, **changes: Any) -> None:
    content = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(content | changes))


def test_a_tokenizer_reads_the_whole_text(broken: Path) -> None:
    text = "the state of the scan and the gate of the norm " * 9
    before = load_tokenizer(broken).encode(text).ids
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    edit_tokenizer(broken, truncation=truncation, padding=padding)
    assert len(Tokenizer.from_file(str(broken / "tokenizer.json")).encode(text).ids) == 999
    assert load_tokenizer(broken).encode(text).ids == before


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda path: path.write_text("[" * 100_000),
            r"json is not a tokenizer \(.*\); write or download it",
        ),
        (lambda path: path.write_bytes(b"\xff"), r"json is not a tokenizer \(.*\); write or download it"),
        (lambda path: path.write_text("{}"), r"json is not a tokenizer \(.*\); write or download it"),
        (Path.unlink, "tokenizer.json does not exist; give the directory of a checkpoint or of a tokenizer"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "tokenizer.json is not a regular file; give the directory"),
        (
            lambda path: edit_config(vocab_size=3)(path.parent),
            r"has a token with id \d+, but its model has 3 tokens; copy the tokenizer that the model was",
        ),
    ],
    ids=["deep", "not text", "another object", "missing", "a pipe", "another vocabulary"],
)
def test_a_damaged_tokenizer_is_one_sentence(broken: Path, damage: Callable[[Path], Any], sentence: str) -> None:
    damage(broken / "tokenizer.json")
    with pytest.raises(ValueError, match=sentence) as error:
        load_tokenizer(broken)
    assert "\n" not in str(error.value)


# --- files of tensors ---


def test_tensors_survive_a_round_trip_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "moment": torch.randn(3, 4, dtype=torch.float64),
        "step": torch.tensor(7),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "mask": torch.tensor([True, False]),
    }
    save_tensors(tensors, tmp_path / "state.safetensors")
    loaded = load_tensors(tmp_path / "state.safetensors", "cpu")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_a_full_disk_raises_os_error(tmp_path: Path) -> None:
    # Simulated by a limit on file sizes, which safetensors reports in the same way.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's default
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="cannot write the tensors") as error:
            save_tensors({"moment": torch.zeros(100_000)}, tmp_path / "state.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == 27
    assert str(tmp_path / "state.safetensors") in str(error.value)


def test_a_missing_directory_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot write the tensors"):
        save_tensors({"moment": torch.zeros(1)}, tmp_path / "nowhere" / "state.safetensors")


@pytest.mark.parametrize("kept", [0, 7, 40, 300])
def test_a_truncated_tensor_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors({"moment": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_tensors(path)
