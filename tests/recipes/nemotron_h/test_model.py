"""The architecture against its slow definition, against transformers' NemotronH, and against hand-written cases."""

import hashlib
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import model as model_module
from nemotron.recipes.nemotron_h.model import (
    MAX_SIZE,
    PUBLISHED_9B,
    PUBLISHED_12B,
    Attention,
    CausalConv,
    DecodingState,
    ModelConfig,
    NemotronH,
    RMSNorm,
    SquaredReluMLP,
    initial_dt_bias,
    initialize,
    parameter_groups,
    purpose_generator,
    ssd_scan_chunked,
    ssd_scan_sequential,
)

SHAPE = MODELS["tiny"]


def initialized(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> NemotronH:
    model = NemotronH(config, dtype=dtype)
    initialize(model, seed)
    return model


@torch.no_grad()
def perturbed(model: NemotronH) -> NemotronH:
    """Change the parameters that start as 1, so that a weight left out or applied twice shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def random_tokens(config: ModelConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# --- the scan ---


@st.composite
def scan_shapes(draw: st.DrawFn) -> dict[str, int]:
    return {
        "b": draw(st.integers(1, 2)),
        "t": draw(st.integers(1, 40)),
        "g": draw(st.integers(1, 3)),
        "r": draw(st.integers(1, 3)),
        "p": draw(st.integers(1, 4)),
        "n": draw(st.integers(1, 5)),
        "chunk_size": draw(st.integers(1, 50)),
        "seed": draw(st.integers(0, 2**32)),
    }


def scan_inputs(b: int, t: int, g: int, r: int, p: int, n: int, seed: int, **_: int) -> list[torch.Tensor]:
    """x, dt, A, B, C, D, initial_state in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    h = g * r
    dt, A = F.softplus(normal(b, t, h)), -torch.exp(normal(h))
    inputs = [normal(b, t, h, p), dt, A, normal(b, t, g, n), normal(b, t, g, n), normal(h), normal(b, h, p, n)]
    return [tensor.requires_grad_() for tensor in inputs]


@settings(deadline=None, max_examples=60)
@given(scan_shapes())
def test_chunked_scan_equals_sequential_scan(shape: dict[str, int]) -> None:
    *inputs, initial_state = scan_inputs(**shape)
    with torch.no_grad():
        expected = ssd_scan_sequential(*inputs, initial_state)
        found = ssd_scan_chunked(*inputs, shape["chunk_size"], initial_state)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(scan_shapes())
def test_chunked_scan_has_the_gradients_of_the_sequential_scan(shape: dict[str, int]) -> None:
    inputs = scan_inputs(**shape)

    def gradients(y: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(shape["seed"])
        weights = [torch.randn(tensor.shape, dtype=torch.float64, generator=generator) for tensor in (y, state)]
        return torch.autograd.grad((y * weights[0]).sum() + (state * weights[1]).sum(), inputs)

    expected = gradients(*ssd_scan_sequential(*inputs))
    found = gradients(*ssd_scan_chunked(*inputs[:6], shape["chunk_size"], inputs[6]))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_without_an_initial_state_both_scans_start_from_zeros() -> None:
    *inputs, state = scan_inputs(b=2, t=7, g=2, r=2, p=3, n=4, seed=0)
    zeros = torch.zeros_like(state)
    for scan, rest in ((ssd_scan_sequential, []), (ssd_scan_chunked, [3])):
        torch.testing.assert_close(scan(*inputs, *rest), scan(*inputs, *rest, zeros), rtol=0, atol=0)


def test_a_scan_continues_from_the_state_of_an_earlier_scan() -> None:
    x, dt, A, B, C, D, state = scan_inputs(b=2, t=20, g=2, r=2, p=3, n=4, seed=0)
    whole, final_state = ssd_scan_chunked(x, dt, A, B, C, D, 8, state)
    first, middle_state = ssd_scan_chunked(x[:, :13], dt[:, :13], A, B[:, :13], C[:, :13], D, 8, state)
    second, last_state = ssd_scan_chunked(x[:, 13:], dt[:, 13:], A, B[:, 13:], C[:, 13:], D, 8, middle_state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_state, final_state, rtol=1e-12, atol=1e-12)


def test_sequential_scan_of_two_positions_by_hand() -> None:
    # One head, one channel, one state. dt * A = -ln 2, so the state halves at every position.
    x, dt = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1), torch.tensor([1.0, 1.0]).view(1, 2, 1)
    A, D = torch.tensor([-math.log(2)]), torch.tensor([10.0])
    B, C = torch.tensor([2.0, 7.0]).view(1, 2, 1, 1), torch.tensor([1.0, 100.0]).view(1, 2, 1, 1)
    y, state = ssd_scan_sequential(x, dt, A, B, C, D, torch.tensor([8.0]).view(1, 1, 1, 1))
    # state: 8 / 2 + 3 * 2 = 10, then 10 / 2 + 5 * 7 = 40; y: 10 * 1 + 10 * 3 and 40 * 100 + 10 * 5
    torch.testing.assert_close(state.flatten(), torch.tensor([40.0]))
    torch.testing.assert_close(y.flatten(), torch.tensor([40.0, 4050.0]))


def test_large_step_sizes_give_finite_gradients() -> None:
    x, dt, A, B, C, D, state = scan_inputs(b=1, t=16, g=1, r=1, p=2, n=2, seed=0)
    inputs = [tensor.detach().float().requires_grad_() for tensor in (x, 100 + dt, 16 * A, B, C, D)]
    y, _ = ssd_scan_chunked(*inputs, 16, state.detach().float())
    for gradient in torch.autograd.grad(y.sum(), inputs):
        assert gradient.isfinite().all()


def test_a_scan_without_positions_is_refused() -> None:
    inputs = scan_inputs(b=1, t=0, g=1, r=1, p=1, n=1, seed=0)[:6]
    with pytest.raises(ValueError, match=r"x of shape \(1, 0, 1, 1\) has no positions; give at least one"):
        ssd_scan_chunked(*inputs, 4)


def test_chunk_size_below_one_is_refused() -> None:
    inputs = scan_inputs(b=1, t=4, g=1, r=1, p=1, n=1, seed=0)[:6]
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
        ssd_scan_chunked(*inputs, 0)


# --- against transformers ---


def transformers_twin(model: NemotronH) -> Any:
    """transformers' NemotronH with the same weights, in float32."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    config = model.config
    shape = {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "initializer_range"}
    twin = NemotronHForCausalLM(NemotronHConfig(**shape))
    twin.load_state_dict({name.replace("backbone", "model"): tensor for name, tensor in model.state_dict().items()})
    for layer in twin.model.layers:
        # It clamps step sizes at the smallest initial one; the published rule has no limit.
        if hasattr(layer.mixer, "time_step_limit"):
            layer.mixer.time_step_limit = (0.0, math.inf)
    return twin.eval()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MODELS["tiny"], id="tiny"),
        pytest.param(MODELS["small"], id="small"),
        pytest.param(replace(SHAPE, hybrid_override_pattern="*-MM-"), id="attention first"),
        pytest.param(replace(SHAPE, hybrid_override_pattern="M*-", n_groups=8, num_key_value_heads=4), id="own groups"),
        pytest.param(replace(SHAPE, hybrid_override_pattern="-*M", n_groups=1, num_key_value_heads=1), id="one group"),
        pytest.param(replace(SHAPE, mamba_head_dim=20, conv_kernel=3, chunk_size=128), id="other widths"),
    ],
)
def test_logits_equal_those_of_transformers(config: ModelConfig) -> None:
    model = perturbed(initialized(config))
    tokens = random_tokens(config, 2, 75)
    with torch.no_grad():
        difference = (model(tokens) - transformers_twin(model)(tokens).logits).abs().max()
    assert difference < 1e-4


def test_gradients_equal_those_of_transformers() -> None:
    model = perturbed(initialized(SHAPE))
    twin = transformers_twin(model)
    tokens = random_tokens(SHAPE, 2, 75)
    for logits in (model(tokens[:, :-1]), twin(tokens[:, :-1]).logits):
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = {name.replace("model.", "backbone.", 1): parameter.grad for name, parameter in twin.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)


# --- the parts ---


def test_convolution_sees_its_own_position_and_three_before() -> None:
    conv = CausalConv(1, 4)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
        conv.bias.fill_(0.5)
    found = conv(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 5, 1))
    assert found.flatten().tolist() == [1000.5, 2100.5, 3210.5, 4321.5, 5432.5]


def test_convolution_does_not_mix_channels() -> None:
    conv = CausalConv(2, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[0.0, 1.0]], [[2.0, 0.0]]]))
        conv.bias.zero_()
    found = conv(torch.tensor([[[1.0, 10.0], [3.0, 30.0]]]))
    assert found.tolist() == [[[1.0, 0.0], [3.0, 20.0]]]


def test_norm_divides_each_group_by_its_own_root_mean_square() -> None:
    norm = RMSNorm(4, replace(SHAPE, layer_norm_epsilon=1e-12), num_groups=2, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1.0, 1.0, 10.0]))
        found = norm(torch.tensor([[3.0, 4.0, 1.0, 1.0]], dtype=torch.float64))
    rms = math.sqrt((3**2 + 4**2) / 2)
    torch.testing.assert_close(found, torch.tensor([[3 / rms, 4 / rms, 1.0, 10.0]], dtype=torch.float64))


def test_norm_of_zeros_is_zero() -> None:
    norm = RMSNorm(4, SHAPE)
    with torch.no_grad():
        norm.weight.fill_(1)
    assert norm(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


def test_attention_with_equal_scores_averages_the_values_so_far() -> None:
    attention = Attention(replace(SHAPE, hidden_size=2, num_attention_heads=2, num_key_value_heads=1, head_dim=2))
    with torch.no_grad():
        attention.q_proj.weight.zero_()  # every score 0: equal weights
        attention.k_proj.weight.normal_()
        attention.v_proj.weight.copy_(torch.eye(2))
        attention.o_proj.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]))
        found = attention(torch.tensor([[[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[1.0, 10.0], [1.5, 15.0], [3.0, 30.0]]]))


def squared_relu_mlp(dtype: torch.dtype) -> tuple[SquaredReluMLP, torch.Tensor]:
    """An MLP with random weights, and an input (2, 5, hidden_size)."""
    mlp, generator = SquaredReluMLP(SHAPE, dtype=dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.normal_(generator=generator)
    return mlp, torch.randn(2, 5, SHAPE.hidden_size, dtype=dtype, generator=generator)


def test_mlp_squares_the_relu() -> None:
    mlp, u = squared_relu_mlp(torch.float64)
    expected = (u @ mlp.up_proj.weight.T).clamp(min=0).square() @ mlp.down_proj.weight.T
    assert torch.equal(mlp(u), expected)


def test_mlp_calls_no_operation_that_cuda_autocast_runs_in_float32() -> None:
    """CUDA autocast runs pow, and so square(), in float32. CPU autocast does not, so this looks at the operations."""
    called: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    mlp, u = squared_relu_mlp(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Recorder():
        y = mlp(u)
    assert y.dtype == torch.bfloat16
    assert "aten.relu.default" in called
    assert [name for name in called if "pow" in name] == []


# --- the whole model ---


@pytest.mark.parametrize("pattern", ["M", "-", "*", "M-M*-"])
def test_a_token_does_not_change_earlier_logits(pattern: str) -> None:
    config = replace(SHAPE, hybrid_override_pattern=pattern, chunk_size=4)
    model = perturbed(initialized(config, dtype=torch.float64))
    tokens = random_tokens(config, 1, 11)
    with torch.no_grad():
        logits = model(tokens)
        for position in range(11):
            changed = tokens.clone()
            changed[0, position] = (tokens[0, position] + 1) % config.vocab_size
            difference = (model(changed) - logits).abs().amax(dim=(0, 2))
            assert difference[:position].eq(0).all()
            assert difference[position] > 0


@pytest.mark.parametrize("letter", ["M", "*"])
def test_a_token_changes_all_later_logits(letter: str) -> None:
    config = replace(SHAPE, hybrid_override_pattern=letter, chunk_size=4)
    model = initialized(config, dtype=torch.float64)
    tokens = random_tokens(config, 1, 11)
    changed = tokens.clone()
    changed[0, 0] = (tokens[0, 0] + 1) % config.vocab_size
    with torch.no_grad():
        difference = (model(changed) - model(tokens)).abs().amax(dim=(0, 2))
    assert difference.gt(0).all()


def test_one_batch_of_three_equals_three_batches_of_one() -> None:
    model = perturbed(initialized(SHAPE, dtype=torch.float64))
    tokens = random_tokens(SHAPE, 3, 50)
    with torch.no_grad():
        alone = torch.cat([model(tokens[[row]]) for row in range(3)])
        torch.testing.assert_close(model(tokens), alone, rtol=0, atol=1e-12)


def test_chunk_size_does_not_change_the_logits() -> None:
    tokens = random_tokens(SHAPE, 2, 50)
    logits = []
    for chunk_size in (1, 7, 32, 64):
        model = perturbed(initialized(replace(SHAPE, chunk_size=chunk_size), dtype=torch.float64))
        with torch.no_grad():
            logits.append(model(tokens))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("config", "expected"), [(PUBLISHED_12B, 12_310_001_152), (PUBLISHED_9B, 8_888_227_328)])
def test_published_shapes_have_the_published_number_of_parameters(config: ModelConfig, expected: int) -> None:
    model = NemotronH(config, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(
    ("config", "layers", "attention"),
    [(PUBLISHED_12B, 62, [7, 16, 25, 34, 43, 52]), (PUBLISHED_9B, 56, [14, 21, 30, 39])],
)
def test_published_patterns_have_attention_where_the_paper_has_it(
    config: ModelConfig, layers: int, attention: list[int]
) -> None:
    assert len(config.hybrid_override_pattern) == layers
    assert [i for i, letter in enumerate(config.hybrid_override_pattern) if letter == "*"] == attention


# --- arithmetic ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_have_the_dtype_of_the_parameters(dtype: torch.dtype) -> None:
    assert initialized(SHAPE, dtype=dtype)(random_tokens(SHAPE, 1, 5)).dtype == dtype


def test_bfloat16_logits_are_close_to_float64_logits() -> None:
    rounded = initialized(SHAPE, dtype=torch.bfloat16)
    exact = NemotronH(SHAPE, dtype=torch.float64)
    exact.load_state_dict(rounded.state_dict())
    tokens = random_tokens(SHAPE, 2, 50)
    logits = exact(tokens)
    error = (rounded(tokens).double() - logits).std() / logits.std()
    assert error < 0.02  # bfloat16 has 8 significant bits; with every operation in bfloat16, the error is above 0.02
    F.cross_entropy(rounded(tokens).float().flatten(0, 1), tokens.flatten()).backward()
    for parameter in rounded.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "autocast", "expected"),
    [
        (torch.float64, False, torch.float64),
        (torch.float32, False, torch.float32),
        (torch.bfloat16, False, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_the_scan_runs_in_at_least_float32(
    dtype: torch.dtype, autocast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(*inputs: Any) -> Any:
        seen.append({tensor.dtype for tensor in inputs if isinstance(tensor, torch.Tensor)})
        assert not torch.is_autocast_enabled("cpu")
        return ssd_scan_chunked(*inputs)

    monkeypatch.setattr(model_module, "ssd_scan_chunked", watched)
    model = initialized(SHAPE, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(random_tokens(SHAPE, 1, 5))
    assert seen == [{expected}] * SHAPE.hybrid_override_pattern.count("M")


def test_norms_of_bfloat16_are_computed_in_float32() -> None:
    norm = RMSNorm(256, SHAPE, dtype=torch.bfloat16)
    with torch.no_grad():
        norm.weight.fill_(1)
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + SHAPE.layer_norm_epsilon).sqrt()
    assert torch.equal(norm(x), exact.bfloat16())


# --- initial weights ---


def test_initial_weights_have_the_published_distributions() -> None:
    config = replace(SHAPE, hidden_size=256, mamba_num_heads=256, mamba_head_dim=2)  # many samples of each kind
    model = initialized(config)
    std = math.sqrt(0.8 / 256)
    residual_std = std / math.sqrt(5)  # layers
    for name, parameter in model.named_parameters():
        weights = parameter.detach().double()
        kind = name.split("mixer.")[-1]
        if "norm" in name or kind == "D":
            assert weights.eq(1).all(), name
        elif kind == "A_log":
            assert weights.exp().min() >= 1
            assert weights.exp().max() <= 16
            assert weights.exp().mean().item() == pytest.approx(8.5, abs=1)  # 1 is 3.7 standard errors
        elif kind == "dt_bias":
            log_dt = F.softplus(weights).log()
            assert log_dt.min() >= math.log(0.001) - 1e-4
            assert log_dt.max() <= math.log(0.1) + 1e-4
            assert log_dt.mean().item() == pytest.approx(math.log(0.01), abs=0.3)
        elif kind in ("conv1d.weight", "conv1d.bias"):
            assert weights.abs().max() <= 0.5  # 1 / sqrt(4 taps)
            assert weights.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)
        else:
            expected = residual_std if kind in ("out_proj.weight", "o_proj.weight", "down_proj.weight") else std
            assert weights.std().item() == pytest.approx(expected, rel=0.02), name
            assert weights.mean().abs() < expected / 50, name


def test_initial_std_of_the_12b_is_the_published_one() -> None:
    assert PUBLISHED_12B.initial_std == 0.0125
    assert replace(SHAPE, initializer_range=0.02).initial_std == 0.02


def test_initial_step_sizes_are_at_least_one_ten_thousandth() -> None:
    for log_dt, dt in ((-100.0, 1e-4), (math.log(0.02), 0.02)):
        bias = torch.tensor(initial_dt_bias(log_dt), dtype=torch.float64)
        assert F.softplus(bias).item() == pytest.approx(dt, rel=1e-9)


def test_initial_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(1)
    first = initialized(SHAPE, seed=5).state_dict()
    torch.manual_seed(2)
    second, other = initialized(SHAPE, seed=5).state_dict(), initialized(SHAPE, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_float32_weights_are_rounded_float64_weights() -> None:
    exact, rounded = initialized(SHAPE, dtype=torch.float64).state_dict(), initialized(SHAPE).state_dict()
    assert all(torch.equal(exact[name].float(), rounded[name]) for name in exact)


def test_adding_layers_does_not_change_the_weights_of_the_others() -> None:
    config = replace(SHAPE, hybrid_override_pattern="M-", initializer_range=0.02)
    fewer = initialized(config).state_dict()
    more = initialized(replace(config, hybrid_override_pattern="M-*-")).state_dict()
    for name, weights in fewer.items():
        scaled = name.endswith(("out_proj.weight", "down_proj.weight"))  # by 1 / sqrt(number of layers)
        torch.testing.assert_close(weights, more[name] * (math.sqrt(2) if scaled else 1), msg=name)


def test_no_two_parameters_share_random_numbers() -> None:
    weights = initialized(replace(SHAPE, hybrid_override_pattern="MM-*-*")).state_dict()
    beginnings = [
        tuple(tensor.flatten()[:8].tolist()) for name, tensor in weights.items() if tensor.unique().numel() > 1
    ]
    assert len(set(beginnings)) == len(beginnings)


def test_generators_differ_between_purposes_and_seeds() -> None:
    drawn = [
        torch.rand(1, dtype=torch.float64, generator=purpose_generator(seed, purpose)).item()
        for seed in (0, 1, -1)
        for purpose in ("a", "b")
    ]
    assert len(set(drawn)) == 6
    assert drawn[0] == torch.rand(1, dtype=torch.float64, generator=purpose_generator(0, "a")).item()


PRINT_DIGESTS = """
import dataclasses, hashlib, torch
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
print(torch.backends.cpu.get_cpu_capability())
for dtype in (torch.float64, torch.float32):
    digest = hashlib.sha256()
    # Many heads, to catch a logarithm that differs for one number in a thousand.
    model = NemotronH(dataclasses.replace(MODELS["tiny"], mamba_num_heads=2048, mamba_head_dim=1), dtype=dtype)
    initialize(model, 1234)
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    print(digest.hexdigest())
"""


def test_initial_weights_are_identical_with_every_instruction_set() -> None:
    here = torch.backends.cpu.get_cpu_capability()
    known = ["DEFAULT", "AVX2", "AVX512"]
    usable = known[: known.index(here) + 1] if here in known else ["DEFAULT", here]  # a newer one would crash
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT_DIGESTS],
            env={**os.environ, "ATEN_CPU_CAPABILITY": name.lower(), "OMP_NUM_THREADS": str(1 + number % 2)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, name in enumerate(usable)
    ]
    outputs = [process.communicate()[0].split() for process in running]
    assert [output[0] for output in outputs] == usable
    assert {tuple(output[1:]) for output in outputs} == {tuple(outputs[0][1:])}
    assert len(outputs[0][1]) == len(hashlib.sha256().hexdigest())


# --- parameter groups ---


def test_parameter_groups_hold_every_parameter_once() -> None:
    model = NemotronH(SHAPE)
    grouped = [id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_weights_on_a_gpu_are_updated_by_one_kernel() -> None:
    with FakeTensorMode():
        model = NemotronH(SHAPE, device="cuda")
        assert [group["fused"] for group in torch.optim.AdamW(parameter_groups(model, 0.1)).param_groups] == [True] * 2
    model = NemotronH(SHAPE)
    assert [group["fused"] for group in torch.optim.AdamW(parameter_groups(model, 0.1)).param_groups] == [None] * 2


def test_norms_biases_and_state_space_vectors_do_not_decay() -> None:
    model = NemotronH(SHAPE)
    decay = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.1) for p in group["params"]}
    decaying = {
        re.sub(r"backbone\.layers\.\d+\.", "", name) for name, p in model.named_parameters() if decay[id(p)] == 0.1
    }
    not_decaying = {
        re.sub(r"backbone\.layers\.\d+\.", "", name) for name, p in model.named_parameters() if decay[id(p)] == 0
    }
    assert decaying == {
        *("backbone.embeddings.weight", "lm_head.weight", "mixer.in_proj.weight", "mixer.conv1d.weight"),
        *("mixer.out_proj.weight", "mixer.up_proj.weight", "mixer.down_proj.weight"),
        *("mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight", "mixer.o_proj.weight"),
    }
    assert not_decaying == {
        *("mixer.A_log", "mixer.D", "mixer.dt_bias", "mixer.conv1d.bias", "mixer.norm.weight", "norm.weight"),
        "backbone.norm_f.weight",
    }


# --- the config ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be greater than 0"),
        ({"hidden_size": -1}, "hidden_size=-1 must be greater than 0"),
        ({"chunk_size": 0}, "chunk_size=0 must be greater than 0"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0 must be greater than 0"),
        ({"initializer_range": 0.0}, "initializer_range=0.0 must be greater than 0"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon=nan must be greater than 0"),
        ({"hybrid_override_pattern": "M-X"}, "hybrid_override_pattern='M-X' must be made of the letters"),
        ({"hybrid_override_pattern": ""}, "hybrid_override_pattern='' must be made of the letters"),
        ({"head_dim": 16.0}, "head_dim=16.0 must be of type int"),
        ({"head_dim": True}, "head_dim=True must be of type int"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon=None must be of type float"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
        ({"n_groups": 3}, "n_groups=3 does not divide mamba_num_heads=8"),
        ({"layer_norm_epsilon": math.inf}, "layer_norm_epsilon=inf must be greater than 0 and finite"),
        ({"vocab_size": MAX_SIZE + 1}, "vocab_size=1048577 must be at most 1,048,576"),
        ({"hidden_size": 2**63}, "hidden_size=9223372036854775808 must be at most 1,048,576"),
        ({"head_dim": 10**3000}, r"head_dim=1000+\.\.\. must be at most 1,048,576"),
        ({"conv_kernel": 65}, "conv_kernel=65 must be at most 64"),
        ({"chunk_size": 65537}, "chunk_size=65537 must be at most 65,536"),
        ({"max_position_embeddings": 2**31 + 1}, "max_position_embeddings=2147483649 must be at most 2,147,483,648"),
        ({"head_dim": MAX_SIZE // 2}, "num_attention_heads times head_dim is 2,097,152; it must be at most 1,048,576"),
        ({"mamba_head_dim": MAX_SIZE}, "mamba_num_heads times mamba_head_dim is 8,388,608; it must be at most 1,048"),
        ({"ssm_state_size": MAX_SIZE}, "n_groups times ssm_state_size is 2,097,152; it must be at most 1,048,576"),
        ({"hybrid_override_pattern": "M" * 1001}, "hybrid_override_pattern has 1,001 layers; it must have at most 1,0"),
        ({"hybrid_override_pattern": "M" * 10**6}, "hybrid_override_pattern has 1,000,000 layers; it must have at mo"),
        ({"hybrid_override_pattern": "x" * 10**6}, r"hybrid_override_pattern='x{76}\.\.\. must be made of the letters"),
    ],
)
def test_invalid_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHAPE, **change)


def test_the_largest_shape_allowed_is_counted_without_an_overflow() -> None:
    from nemotron.recipes.nemotron_h.plan import count_parameters

    half = MAX_SIZE // 2
    sizes = {"vocab_size": MAX_SIZE, "hidden_size": MAX_SIZE, "intermediate_size": MAX_SIZE, "n_groups": half}
    sizes |= {"num_attention_heads": half, "num_key_value_heads": half, "head_dim": 2, "ssm_state_size": 2}
    sizes |= {"mamba_num_heads": half, "mamba_head_dim": 2, "conv_kernel": 64, "chunk_size": 1 << 16}
    largest = replace(SHAPE, **sizes, hybrid_override_pattern="M-*")
    assert 2**43 < count_parameters(largest) < 2**44


# --- several documents per row ---


def segments_of(lengths: list[int]) -> torch.Tensor:
    """(1, sum of lengths) document number of each position."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_packed_documents_have_the_logits_of_separate_documents(lengths: list[int]) -> None:
    model = NemotronH(SHAPE, dtype=torch.float64)
    initialize(model, 0)
    ids = torch.randint(512, (1, sum(lengths)), generator=torch.Generator().manual_seed(sum(lengths)))
    with torch.no_grad():
        packed = model(ids, segments=segments_of(lengths))
        alone = torch.cat([model(piece) for piece in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("letter", ["M", "*"])
def test_without_segments_a_document_sees_the_one_before(letter: str) -> None:
    model = NemotronH(replace(SHAPE, hybrid_override_pattern=letter), dtype=torch.float64)
    initialize(model, 0)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        separate = model(ids, segments=segments_of([10, 10]))
        joined = model(ids)
    assert (separate[:, :10] - joined[:, :10]).abs().max() < 1e-12
    assert (separate[:, 10:] - joined[:, 10:]).abs().max() > 1e-6


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), chunk_size=st.integers(1, 12))
@settings(max_examples=25)
def test_both_scans_reset_their_state_at_the_same_positions(lengths: list[int], chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    t, h, p, g, n = sum(lengths), 4, 3, 2, 5
    x, B, C = (torch.randn(1, t, *size, generator=generator, dtype=torch.float64) for size in ((h, p), (g, n), (g, n)))
    dt = torch.rand(1, t, h, generator=generator, dtype=torch.float64)
    A, D = -torch.rand(h, generator=generator, dtype=torch.float64), torch.ones(h, dtype=torch.float64)
    segments = segments_of(lengths)
    for initial_state in (None, torch.randn(1, h, p, n, generator=generator, dtype=torch.float64)):
        expected, expected_state = ssd_scan_sequential(x, dt, A, B, C, D, initial_state, segments)
        found, state = ssd_scan_chunked(x, dt, A, B, C, D, chunk_size, initial_state, segments)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(state, expected_state, rtol=0, atol=1e-12)


def test_only_the_first_document_of_a_row_continues_the_initial_state() -> None:
    x, dt, A, B, C, D, state = scan_inputs(b=1, t=10, g=2, r=2, p=3, n=4, seed=0)
    packed, _ = ssd_scan_chunked(x, dt, A, B, C, D, 4, state, segments_of([6, 4]))
    first, _ = ssd_scan_chunked(x[:, :6], dt[:, :6], A, B[:, :6], C[:, :6], D, 4, state)
    second, _ = ssd_scan_chunked(x[:, 6:], dt[:, 6:], A, B[:, 6:], C[:, 6:], D, 4)
    torch.testing.assert_close(packed, torch.cat([first, second], dim=1), rtol=0, atol=1e-12)


# --- invalid calls ---


def test_segments_together_with_a_state_are_refused() -> None:
    model, ids = initialized(SHAPE), random_tokens(SHAPE, 1, 5)
    for part in (model, model.backbone):
        with pytest.raises(ValueError, match="segments and state are both given; give one"):
            part(ids, segments=segments_of([5]), state=DecodingState(model, 1))


def test_num_new_without_a_state_is_refused() -> None:
    model, ids = initialized(SHAPE), random_tokens(SHAPE, 1, 5)
    for part in (model, model.backbone):
        with pytest.raises(ValueError, match="num_new is given without state; give a DecodingState as well"):
            part(ids, num_new=torch.tensor([3]))


@pytest.mark.parametrize("pattern", ["M", "*-"])
@pytest.mark.parametrize("decoding", [False, True])
def test_a_call_without_tokens_is_refused(pattern: str, decoding: bool) -> None:
    model = initialized(replace(SHAPE, hybrid_override_pattern=pattern))
    state = DecodingState(model, 2) if decoding else None
    with pytest.raises(ValueError, match=r"input_ids of shape \(2, 0\) hold no tokens; give at least one per row"):
        model(torch.zeros(2, 0, dtype=torch.int64), state=state)
