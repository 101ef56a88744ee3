"""Merges against plain floats, to the last bit where a parent must come out, and parents that do not fit."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint
from nemotron.recipes.nemotron_h.merging import check_parents, merge_checkpoints, merged_model, merged_tensor
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize

SHAPE = ModelConfig(
    vocab_size=16, hidden_size=16, hybrid_override_pattern="M-*-", num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, intermediate_size=32, mamba_num_heads=2, mamba_head_dim=8, n_groups=1, ssm_state_size=8,
)  # fmt: skip
TOKENS = torch.arange(12)[None]
SWEEP = [n / 10 for n in range(1, 10)]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def model_of(seed: int, shape: ModelConfig = SHAPE, dtype: torch.dtype = torch.float32) -> NemotronH:
    """A model none of whose tensors is constant."""
    model = NemotronH(shape, dtype=dtype)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def tokenizer_in(directory: Path, words: str = "abcdefgh", end: str = "</s>") -> Path:
    directory.mkdir()
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *words])}
    Tokenizer(WordLevel(vocabulary, unk_token="<unk>")).save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": end}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one shape. Tests must not change them."""
    directory = tmp_path_factory.mktemp("parents")
    tokenizer = tokenizer_in(directory / "tokenizer")
    for seed, name in enumerate(("first", "second")):
        save_checkpoint(model_of(seed), tokenizer, directory / name, stop_ids=[2, 5])
    return directory / "first", directory / "second"


def bits(tensor: torch.Tensor) -> list[int]:
    """Also the sign of a zero."""
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# --- one tensor ---


weights = st.lists(st.tuples(st.floats(-1e3, 1e3, width=16), st.floats(-1e3, 1e3, width=16)), min_size=1, max_size=3)
shares = st.floats(0, 1)


def tensors_of(pairs: list[tuple[float, float]], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64).to(dtype) for column in zip(*pairs, strict=True)]


@settings(max_examples=50)
@given(weights, shares, st.sampled_from(TYPES))
def test_a_merge_is_the_weighted_mean_rounded_once(pairs, a, dtype) -> None:
    first, second = tensors_of(pairs, dtype)
    found = merged_tensor(first, second, a)
    expected = [(1 - a) * one + a * other for one, other in zip(first.tolist(), second.tolist(), strict=True)]
    tolerance = 1e-15 if dtype == torch.float64 else 0
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64).to(dtype), rtol=tolerance, atol=tolerance
    )


@settings(max_examples=50)
@given(weights, shares, st.sampled_from(TYPES))
def test_a_merge_is_between_its_parents(pairs, a, dtype) -> None:
    first, second = tensors_of(pairs, dtype)
    found = merged_tensor(first, second, a)
    assert found.dtype == dtype
    assert (found >= torch.minimum(first, second)).all()
    assert (found <= torch.maximum(first, second)).all()


@settings(max_examples=50)
@given(weights, shares, st.sampled_from(TYPES))
def test_a_merge_of_equal_parents_is_the_parent(pairs, a, dtype) -> None:
    first, _ = tensors_of(pairs, dtype)
    assert bits(merged_tensor(first, first.clone(), a)) == bits(first)


@settings(max_examples=50)
@given(weights, shares, st.sampled_from(TYPES))
def test_the_parents_may_be_exchanged_if_a_is_too(pairs, a, dtype) -> None:
    first, second = tensors_of(pairs, dtype)
    one, other = merged_tensor(first, second, a), merged_tensor(second, first, 1 - a)
    spacing = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(one, other, rtol=torch.finfo(dtype).eps, atol=spacing * 1e-3 + 1e-12)


@settings(max_examples=50)
@given(weights, st.sampled_from(TYPES))
def test_a_of_0_and_of_1_give_the_bits_of_a_parent(pairs, dtype) -> None:
    first, second = tensors_of([*pairs, (-0.0, 0.0), (-0.0, 1.0), (0.0, -0.0)], dtype)
    assert bits(merged_tensor(first, second, 0)) == bits(first)
    assert bits(merged_tensor(first, second, 1)) == bits(second)


@pytest.mark.parametrize(
    ("first", "second", "a", "expected"),
    [(1.0, 2.0, 0.25, 1.25), (2.0, 1.0, 0.25, 1.75), (-4.0, 4.0, 0.5, 0.0), (0.0, 8.0, 0.75, 6.0)],
)
def test_merges_with_their_numbers(first, second, a, expected) -> None:
    assert merged_tensor(torch.tensor([first]), torch.tensor([second]), a).tolist() == [expected]


def test_a_merge_in_bfloat16_is_computed_with_more_digits() -> None:
    """At 0.9, arithmetic in bfloat16 makes 2.984375 of 3 and 3."""
    same = torch.tensor([1.0, 1.3359375, 3.0, 5.0]).bfloat16()
    for a in SWEEP:
        assert bits(merged_tensor(same, same.clone(), a)) == bits(same)
    one, other = torch.tensor([0.1, 0.9]).bfloat16()
    assert (one * same + other * same).tolist() != same.tolist()


def test_equal_parents_in_float64_give_the_parent_though_their_weighted_mean_rounds() -> None:
    same = torch.arange(1, 200, dtype=torch.float64) / 7
    for a in SWEEP:
        assert bits(merged_tensor(same, same.clone(), a)) == bits(same)
    assert any(((1 - a) * same + a * same).tolist() != same.tolist() for a in SWEEP)


def test_parents_far_from_each_other_stay_finite() -> None:
    """Their difference is infinite in float32."""
    first, second = torch.tensor([-(2.0**127)]), torch.tensor([2.0**127])
    assert merged_tensor(first, second, 0.25).tolist() == [-(2.0**126)]


# --- models ---


@pytest.mark.parametrize("a", SWEEP)
def test_every_tensor_of_a_model_is_merged(a) -> None:
    first, second = model_of(0), model_of(1)
    found = merged_model(first, second, a).state_dict()
    assert list(found) == list(first.state_dict())
    for name, tensor in found.items():
        one, other = first.state_dict()[name], second.state_dict()[name]
        assert not torch.equal(tensor, one)
        assert not torch.equal(tensor, other)
        torch.testing.assert_close(tensor, (1 - a) * one + a * other)


@pytest.mark.parametrize("a", [0, *SWEEP, 1])
def test_the_logits_of_a_merge_of_equal_parents_are_the_parents(a) -> None:
    parent = model_of(0)
    merged = merged_model(parent, model_of(0), a)
    assert bits(merged(TOKENS).detach()) == bits(parent(TOKENS).detach())


def test_a_of_0_and_of_1_give_the_logits_of_a_parent_and_those_between_do_not() -> None:
    first, second = model_of(0), model_of(1)
    logits = [bits(merged_model(first, second, a)(TOKENS).detach()) for a in (0, 0.5, 1)]
    assert logits[0] == bits(first(TOKENS).detach())
    assert logits[2] == bits(second(TOKENS).detach())
    assert logits[1] not in (logits[0], logits[2])


@pytest.mark.parametrize("a", [0, 0.5, 1])
def test_a_merge_shares_no_memory_with_its_parents(a) -> None:
    models = [model_of(0), model_of(1)]
    before = [[bits(tensor) for tensor in model.state_dict().values()] for model in models]
    merged = merged_model(*models, a)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert [[bits(tensor) for tensor in model.state_dict().values()] for model in models] == before


def test_a_merge_can_be_trained() -> None:
    merged = merged_model(model_of(0), model_of(1), 0.5)
    merged(TOKENS).sum().backward()
    assert all(parameter.grad is not None for parameter in merged.parameters())


# --- checkpoints ---


@pytest.mark.parametrize("a", [0, 1])
def test_a_of_0_and_of_1_write_the_files_of_a_parent(parents, a, tmp_path) -> None:
    merge_checkpoints(*parents, a, tmp_path / "merged")
    assert files(tmp_path / "merged") == files(parents[a])


def test_a_checkpoint_of_a_merge_has_its_weights_and_the_tokenizer_and_stop_tokens_of_the_first(
    parents, tmp_path
) -> None:
    second = Path(shutil.copytree(parents[1], tmp_path / "second"))
    config = json.loads((second / "tokenizer_config.json").read_text())
    (second / "tokenizer_config.json").write_text(json.dumps(config | {"a key of": "the second"}))
    (second / "generation_config.json").write_text("{}")
    merge_checkpoints(parents[0], second, 0.3, tmp_path / "new" / "merged")
    found = load_checkpoint(tmp_path / "new" / "merged").state_dict()
    expected = merged_model(*map(load_checkpoint, parents), 0.3).state_dict()
    assert {name: bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }
    merged, first = files(tmp_path / "new" / "merged"), files(parents[0])
    assert merged.pop("model.safetensors") != first.pop("model.safetensors")
    assert merged == first
    assert json.loads(merged["generation_config.json"])["eos_token_id"] == [2, 5]


def test_a_parent_without_a_generation_config_can_be_merged(parents, tmp_path) -> None:
    first = Path(shutil.copytree(parents[0], tmp_path / "first"))
    (first / "generation_config.json").unlink()
    merge_checkpoints(first, parents[1], 0.5, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == 2


# --- what cannot be merged ---


@pytest.mark.parametrize("a", [-0.1, 1.0000001, 2, math.nan, math.inf, -math.inf])
def test_a_out_of_range_is_refused_before_anything_is_read(a, tmp_path) -> None:
    sentence = rf"^a={a} must be from 0, which is the first parent, to 1, which is the second$"
    with pytest.raises(ValueError, match=sentence):
        merge_checkpoints(tmp_path / "no", tmp_path / "nothing", a, tmp_path / "merged")
    with pytest.raises(ValueError, match=sentence):
        merged_model(model_of(0), model_of(1), a)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 32), ("hybrid_override_pattern", "M-M-"), ("vocab_size", 17), ("intermediate_size", 8)],
)
def test_parents_of_another_shape_or_layer_pattern_are_refused(parents, name, value, tmp_path) -> None:
    other = replace(SHAPE, **{name: value})
    save_checkpoint(model_of(0, other), parents[0], tmp_path / "other")
    sentence = rf"^{name} is {getattr(SHAPE, name)!r} in .* and {value!r} in .*; only models of the same shape can be"
    for refused in (
        lambda: check_parents(parents[0], tmp_path / "other"),
        lambda: merge_checkpoints(parents[0], tmp_path / "other", 0.5, tmp_path / "merged"),
        lambda: merged_model(model_of(0), model_of(0, other), 0.5),
    ):
        with pytest.raises(ValueError, match=sentence.replace("*-'", r"\*-'")):
            refused()
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("words", "end", "template", "what"),
    [
        ("abcdefgH", "</s>", "{{ messages }}", "tokenizers"),
        ("bacdefgh", "</s>", "{{ messages }}", "tokenizers"),
        ("abcdefgh", "<s>", "{{ messages }}", "special tokens"),
        ("abcdefgh", "</s>", "{{ others }}", "chat templates"),
        ("abcdefgh", "</s>", None, "chat templates"),
    ],
)
def test_parents_that_read_other_tokens_are_refused(parents, words, end, template, what, tmp_path) -> None:
    tokenizer = tokenizer_in(tmp_path / "tokenizer", words, end)
    (tokenizer / "chat_template.jinja").unlink()
    if template is not None:
        (tokenizer / "chat_template.jinja").write_text(template)
    save_checkpoint(model_of(1), tokenizer, tmp_path / "other")
    for first, second in ((parents[0], tmp_path / "other"), (tmp_path / "other", parents[0])):
        with pytest.raises(ValueError, match=rf"have different {what}; merge only checkpoints that read the same"):
            merge_checkpoints(first, second, 0.5, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_parents_that_fit_are_accepted(parents) -> None:
    check_parents(*parents)
    check_parents(*parents[::-1])


def test_parents_with_other_types_of_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^tensor .* is torch.float32 in one parent and torch.bfloat16 in the other;"):
        merged_model(model_of(0), model_of(1, dtype=torch.bfloat16), 0.5)


@pytest.mark.parametrize("index", [0, 1])
def test_a_parent_is_never_overwritten(parents, index) -> None:
    before = files(parents[index])
    with pytest.raises(ValueError, match=r"is a parent, which the result would replace; name another directory"):
        merge_checkpoints(*parents, 0.5, parents[1 - index] / ".." / parents[index].name)
    assert files(parents[index]) == before


@pytest.mark.parametrize("index", [0, 1])
def test_a_directory_that_is_no_checkpoint_is_refused(parents, index, tmp_path) -> None:
    both = list(parents)
    both[index] = tmp_path
    with pytest.raises(ValueError, match=r"give the directory of a complete checkpoint"):
        merge_checkpoints(*both, 0.5, tmp_path / "merged")
