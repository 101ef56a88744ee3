"""The shape of the model at each scale."""

import pytest

from nemotron import SCALES
from nemotron.recipes.nano2.models import DEVICES, DTYPES, MODELS
from nemotron.recipes.nemotron_h.plan import count_parameters

PARAMETERS = {
    "tiny": (200_000, 500_000),
    "small": (1_000_000, 10_000_000),
    "medium": (270_000_000, 330_000_000),
    "full": (12_310_001_152, 12_310_001_152),
}


def test_every_scale_has_a_model_an_arithmetic_and_a_device():
    assert tuple(MODELS) == tuple(DTYPES) == tuple(DEVICES) == SCALES
    assert DTYPES["tiny"] == "float64"  # the goldens depend on it


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_the_parameters_that_it_promises(scale):
    least, most = PARAMETERS[scale]
    assert least <= count_parameters(MODELS[scale]) <= most


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_all_kinds_of_layers(scale):
    assert set(MODELS[scale].hybrid_override_pattern) == {"M", "-", "*"}
