"""The plan against torch's operation counter, against what a step really saves, and against published numbers."""

import resource
import sys
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import losses
from nemotron.recipes.nemotron_h.model import (
    PUBLISHED_9B,
    PUBLISHED_12B,
    ModelConfig,
    NemotronH,
    initialize,
)
from nemotron.recipes.nemotron_h.plan import (
    HARDWARE,
    LiveBytes,
    bytes_saved_for_backward,
    count_parameters,
    floating_point_operations_per_token,
    forward_operations_per_token,
    memory_of_step,
    training_hours,
)
from nemotron.recipes.training.distributed import shard

SHAPE = MODELS["tiny"]


def initialized(config: ModelConfig, dtype: torch.dtype = torch.float32) -> NemotronH:
    model = NemotronH(config, dtype=dtype)
    initialize(model, 0)
    return model


def test_published_shapes_have_the_published_number_of_parameters() -> None:
    assert count_parameters(PUBLISHED_12B) == 12_310_001_152
    assert count_parameters(PUBLISHED_9B) == 8_888_227_328


@pytest.mark.parametrize("config", [SHAPE, MODELS["small"], replace(SHAPE, n_groups=8, conv_kernel=2, chunk_size=16)])
@pytest.mark.parametrize("chunks", [2, 3])
def test_operations_equal_the_count_of_torch(config: ModelConfig, chunks: int) -> None:
    b, t = 2, chunks * config.chunk_size
    model = initialized(config)
    forward, both = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with both, sdpa_kernel(SDPBackend.MATH):
        with forward:
            logits = model(torch.zeros(b, t, dtype=torch.int64))
        logits.sum().backward()
    # torch counts the masked half of attention, and does not count a convolution written as sums.
    masked = 2 * 2 * config.num_attention_heads * config.head_dim * (t - (t + 1) / 2)
    convolution = 2 * config.conv_kernel * config.mamba_conv_size
    pattern = config.hybrid_override_pattern
    uncounted = convolution * pattern.count("M") - masked * pattern.count("*")
    expected = sum(forward_operations_per_token(config, t).values()) - uncounted
    assert forward.get_total_flops() == b * t * expected
    assert both.get_total_flops() == 3 * b * t * expected
    assert floating_point_operations_per_token(config, t) == 3 * (expected + uncounted)


def test_operations_of_the_12b_are_about_six_per_parameter_and_token() -> None:
    per_parameter = floating_point_operations_per_token(PUBLISHED_12B, 8192) / count_parameters(PUBLISHED_12B)
    # 6 is the usual estimate. The embedding (5 % of the parameters) costs nothing; scores and scan have no parameters.
    assert per_parameter == pytest.approx(6, rel=0.05)


def test_only_attention_costs_more_per_token_in_a_longer_sequence() -> None:
    short, long = (forward_operations_per_token(PUBLISHED_12B, t) for t in (8192, 524_288))
    changed = [part for part in short if short[part] != long[part]]
    assert changed == ["attention"]


def test_a_sequence_shorter_than_a_chunk_costs_less_per_token() -> None:
    assert (
        forward_operations_per_token(SHAPE, SHAPE.chunk_size // 2)["mamba"]
        < (forward_operations_per_token(SHAPE, SHAPE.chunk_size)["mamba"])
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("config", [SHAPE, MODELS["small"]])
def test_planned_activations_are_what_the_layers_save(config: ModelConfig, dtype: str) -> None:
    model = initialized(config, torch.float64 if dtype == "float64" else torch.float32)
    kept = []
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        for sequences in (1, 3):
            tokens = torch.zeros(sequences, 4 * config.chunk_size, dtype=torch.int64)
            kept.append(bytes_saved_for_backward(model.backbone, tokens))
    planned = memory_of_step(config, dtype, 2, 4 * config.chunk_size)
    # kept while the loss works as well: what the backbone returns
    residual = 2 * 4 * config.chunk_size * config.hidden_size * (8 if dtype == "float64" else 4)
    assert planned["activations"] - residual == pytest.approx(kept[1] - kept[0], rel=0.01)


def simulated_peak(
    live: LiveBytes,
    shape: ModelConfig,
    dtype: str,
    length: int,
    *,
    again: bool,
    chunk: int | None,
    mesh: DeviceMesh | None = None,
) -> int:
    """Most bytes that are there at a time in the second micro batch of a step, on tensors without memory.

    Every tensor of the whole model, of the loss, of the backward pass and of AdamW is followed.
    """
    logits = chunk * shape.vocab_size if chunk else losses.LOGITS_AT_A_TIME
    with FakeTensorMode(), live, pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LOGITS_AT_A_TIME", logits)
        patch.setattr(device_mesh, "init_device_mesh", lambda *args: mesh)  # making it reads tensors
        model = shard(NemotronH(shape, dtype=torch.float64 if dtype == "float64" else torch.float32))
        model.backbone.activation_checkpointing = again
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

        def micro_batch() -> None:
            tokens = torch.zeros(1, length + 1, dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                hidden = model.backbone(tokens[:, :-1]).flatten(0, 1)
                loss = losses.token_losses(model.lm_head, hidden, tokens[:, 1:].flatten()).sum()
            loss.backward()

        micro_batch()
        optimizer.step()  # makes the moments
        optimizer.zero_grad()
        micro_batch()  # leaves gradients
        live.restart()
        micro_batch()
        return live.peak


WIDE = replace(MODELS["small"], hidden_size=512, vocab_size=2048, hybrid_override_pattern="M-*-")
VOCABULARY = replace(WIDE, vocab_size=8192)
LAYERS = replace(WIDE, vocab_size=512, intermediate_size=4096, hybrid_override_pattern="M-*---")
LONG = replace(MODELS["small"], hybrid_override_pattern="M-M*-M-", chunk_size=128)


CASES = [
    (WIDE, "float32", 256, False, None),
    (WIDE, "float32", 256, True, 64),
    (WIDE, "bfloat16", 256, True, 64),
    (VOCABULARY, "float32", 128, True, 32),
    (LAYERS, "float32", 64, True, None),
    (LONG, "float64", 1024, False, 128),
    (LONG, "bfloat16", 1024, False, None),
    (LONG, "bfloat16", 1024, True, 128),
]


@pytest.mark.parametrize(("shape", "dtype", "length", "again", "chunk"), CASES)
def test_the_planned_peak_is_that_of_a_simulated_step(
    live: LiveBytes, shape: ModelConfig, dtype: str, length: int, again: bool, chunk: int | None
) -> None:
    peak = simulated_peak(live, shape, dtype, length, again=again, chunk=chunk)
    planned = memory_of_step(shape, dtype, 1, length, activation_checkpointing=again, loss_chunk=chunk)
    assert sum(planned.values()) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(("shape", "dtype", "length", "again", "chunk"), [CASES[0], *CASES[2:5], CASES[-1]])
def test_the_planned_peak_is_that_of_a_simulated_step_on_eight_devices(
    eight_devices: DeviceMesh,
    live: LiveBytes,
    shape: ModelConfig,
    dtype: str,
    length: int,
    again: bool,
    chunk: int | None,
) -> None:
    peak = simulated_peak(live, shape, dtype, length, again=again, chunk=chunk, mesh=eight_devices)
    planned = memory_of_step(shape, dtype, 1, length, activation_checkpointing=again, loss_chunk=chunk, devices=8)
    assert sum(planned.values()) == pytest.approx(peak, rel=0.1)


def test_saved_bytes_count_each_storage_once() -> None:
    weight = torch.ones(10, requires_grad=True)
    # sin saves its argument and exp its result; a sum saves nothing.
    assert bytes_saved_for_backward(lambda x: (x * weight).sin(), torch.ones(10)) == 2 * 40
    assert bytes_saved_for_backward(lambda x: x + weight, torch.ones(10)) == 0
    assert bytes_saved_for_backward(lambda x: weight.exp().sin(), torch.ones(10)) == 40
    assert bytes_saved_for_backward(lambda x: weight.sin() + weight.view(10, 1).sin(), torch.ones(10)) == 40


def test_planned_weights_gradients_and_moments_are_those_of_an_adamw_step() -> None:
    model = initialized(SHAPE)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    planned = memory_of_step(SHAPE, "float32", 1, 4)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert planned["weights"] == sum(tensor.nbytes for tensor in model.parameters())
    assert planned["gradients"] == sum(tensor.nbytes for tensor in gradients)
    assert planned["optimizer moments"] == sum(tensor.nbytes for tensor in moments)


def test_planning_allocates_no_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shape = replace(PUBLISHED_12B, hybrid_override_pattern="M-*-M-M-M-")
    planned = memory_of_step(shape, "bfloat16", 1, 8192)
    assert planned["weights"] > 10 * 2**30
    assert planned["bfloat16 copies"] == planned["weights"] / 2
    peak_units = 1024 if sys.platform == "linux" else 1  # kilobytes on Linux, bytes on macOS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * peak_units < 2**30


def test_hours_are_operations_divided_by_the_used_share_of_the_peak() -> None:
    assert training_hours(989e12 * 3600, "1 NVIDIA H100 SXM, bfloat16") == pytest.approx(1 / 0.2)
    one, many = (HARDWARE[name] for name in ("1 NVIDIA H100 SXM, bfloat16", "1,024 NVIDIA H100 SXM, bfloat16"))
    assert many.peak_operations_per_second == 1024 * one.peak_operations_per_second
    assert all("assumption" in machine.origin or "measured" in machine.origin for machine in HARDWARE.values())
