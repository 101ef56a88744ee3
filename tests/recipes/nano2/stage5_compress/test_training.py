"""The schedule and the parts of distillation; the divergence itself: tests/recipes/training/test_distill.py."""

import math
from pathlib import Path

import pytest

from nemotron.recipes.curation.rows import planned_phase
from nemotron.recipes.nano2.stage5_compress import training
from nemotron.recipes.nano2.stage5_compress.training import Config

PHASES = [planned_phase(f"length_{n}", 10, n) for n in (4, 8, 16)]


def test_the_learning_rate_warms_up_and_falls_in_a_straight_line():
    config = Config(learning_rate=1.0, min_learning_rate=0.25, warmup_steps=2)
    found = [training.learning_rate_at(step, 6, config) for step in range(6)]
    assert found == pytest.approx([0.5, 1.0, 0.8125, 0.625, 0.4375, 0.25])


def test_each_length_has_its_batches():
    parts = training.training_parts(PHASES, Config(batch_sequences=(5, 4, 3), micro_batch_sequences=(1, 2, 3)))
    assert [(part.name, part.batch_sequences, part.micro_batch_sequences, part.num_steps) for part in parts] == [
        ("length_4", 5, 1, 2),
        ("length_8", 4, 2, 3),
        ("length_16", 3, 3, 4),
    ]


def test_the_proxies_of_full_are_those_of_elastic():
    config = Config(scale="full")
    assert (config.learning_rate, config.warmup_steps, config.batch_sequences[:2]) == (9e-5, 60, (1536, 512))


@pytest.mark.parametrize("name", ["learning_rate", "temperature", "chunk_tokens", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


def test_two_models_to_distill_into_are_refused():
    with pytest.raises(ValueError, match=r"^checkpoint_path=a and dataset_path=b both name a model to distill into; g"):
        Config(checkpoint_path=Path("a"), dataset_path=Path("b"))


def test_a_rate_that_would_rise_is_refused():
    with pytest.raises(ValueError, match=r"^min_learning_rate=0\.1 is above learning_rate=0\.01, from which the lear"):
        Config(learning_rate=0.01, min_learning_rate=0.1)
