"""Layers that are computed again in the backward pass, against layers that keep what is inside of them."""

import pytest
import torch

from nemotron.config import Dtype
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.model import DecodingState, ModelConfig, NemotronH, initialize
from nemotron.recipes.nemotron_h.plan import bytes_saved_for_backward

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


def segments_of(lengths: list[int]) -> torch.Tensor:
    """(1, sum of lengths) document number of each position."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


def gradients_of(model: NemotronH, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), grads, strict=True))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("lengths", [None, [20, 1, 43]])
def test_activation_checkpointing_changes_no_bit(lengths: list[int] | None, dtype: Dtype) -> None:
    model = perturbed(initialized(SHAPE, dtype=weight_dtype(dtype)))
    ids = random_tokens(SHAPE, 2, 64)
    segments = None if lengths is None else segments_of(lengths).expand(2, -1)

    def logits_and_gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with autocast(dtype, "cpu"):
            logits = model(ids, segments)
        return logits.detach(), gradients_of(model, logits.float().square().sum())

    expected = logits_and_gradients()
    model.backbone.activation_checkpointing = True
    torch.testing.assert_close(logits_and_gradients(), expected, rtol=0, atol=0)


def test_activation_checkpointing_changes_no_bit_of_rows_that_are_read_in_pieces() -> None:
    model = perturbed(initialized(SHAPE, dtype=torch.float64))
    ids, num_new = random_tokens(SHAPE, 2, 40), torch.tensor([5, 12])

    def logits_and_gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        state = DecodingState(model, 2)
        logits = [model(ids[:, :12], state=state, num_new=num_new)]
        state = state.repeat(2)  # what each prompt left is where several replies begin
        logits += [model(piece.repeat_interleave(2, dim=0), state=state) for piece in ids[:, 12:].split(14, dim=1)]
        together = torch.cat([piece.flatten() for piece in logits])
        return together.detach(), gradients_of(model, together.square().sum())

    expected = logits_and_gradients()
    model.backbone.activation_checkpointing = True
    torch.testing.assert_close(logits_and_gradients(), expected, rtol=0, atol=0)


def test_activation_checkpointing_keeps_the_residual_stream_of_each_layer_and_nothing_else() -> None:
    model = initialized(SHAPE)
    ids = random_tokens(SHAPE, 2, 64)
    whole = bytes_saved_for_backward(model.backbone, ids)
    model.backbone.activation_checkpointing = True
    streams = (len(SHAPE.hybrid_override_pattern) + 1) * ids.numel() * SHAPE.hidden_size * 4
    kept = bytes_saved_for_backward(model.backbone, ids)
    # Beside the streams: what the final norm keeps, at most three times its input, and the token ids.
    assert streams <= kept <= streams + 3 * ids.numel() * SHAPE.hidden_size * 4 + ids.nbytes
    assert kept < whole / 5
