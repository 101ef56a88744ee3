"""The loss of the control, and its schedule."""

import math

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage5_compress import control
from nemotron.recipes.nano2.stage5_compress import training as distillation
from nemotron.recipes.nano2.stage5_compress.control import Config
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.batches import Batch


@pytest.fixture(scope="module")
def model():
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, 0)
    return model


def test_the_loss_is_the_cross_entropy_of_the_tokens_that_count(model):
    """Two texts in one row, each read by itself; the first token of the second is not predicted."""
    texts = [torch.arange(20, 26), torch.arange(40, 45)]
    row = torch.cat(texts)[None]
    segments = torch.tensor([[0] * 6 + [1] * 5])
    in_loss = torch.ones_like(row, dtype=torch.bool)
    in_loss[0, 6] = False
    expected = 0.0
    with torch.no_grad():
        for text in texts:
            logprobs = model(text[None, :-1])[0].log_softmax(-1)
            expected -= logprobs.gather(1, text[1:, None]).sum().item()
        found = control.loss_sum(model, Batch(row, in_loss, segments)).item()
    assert found == pytest.approx(expected, rel=1e-10)


def test_it_reads_the_batches_of_distillation_at_every_scale():
    for scale in ("tiny", "small", "medium", "full"):
        ours, theirs = Config(scale=scale), distillation.Config(scale=scale)
        assert ours.batch_sequences == theirs.batch_sequences


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


def test_a_rate_that_would_rise_is_refused():
    with pytest.raises(ValueError, match=r"^min_learning_rate=0\.1 is above learning_rate=0\.01, from which the lear"):
        Config(learning_rate=0.01, min_learning_rate=0.1)
