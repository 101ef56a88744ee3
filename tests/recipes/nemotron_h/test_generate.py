"""Sampling against the probabilities it draws from."""

from collections import Counter

import pytest
import torch

from nemotron.recipes.nemotron_h.generate import sample_tokens
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize


@pytest.fixture(scope="module")
def model() -> NemotronH:
    """Few tokens and few layers, with logits that differ enough to tell temperatures apart."""
    config = ModelConfig(
        vocab_size=5,
        hidden_size=64,
        hybrid_override_pattern="M",
        intermediate_size=64,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=16,
    )
    model = NemotronH(config, dtype=torch.float64)
    initialize(model, 0)
    return model


def test_temperature_zero_takes_the_most_likely_token(model: NemotronH) -> None:
    tokens = [1, 4, 2]
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert sample_tokens(model, [1, 4, 2], 6, seed=0, temperature=0) == tokens[3:]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_model(model: NemotronH, temperature: float) -> None:
    draws = 500
    counts = Counter(sample_tokens(model, [3, 1], 1, seed=seed, temperature=temperature)[0] for seed in range(draws))
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([[3, 1]]))[0, -1] / temperature, dim=0).tolist()
    for token, probability in enumerate(probabilities):
        standard_error = (probability * (1 - probability) / draws) ** 0.5
        assert abs(counts[token] / draws - probability) < 4 * standard_error


def test_the_seed_decides_the_sample(model: NemotronH) -> None:
    samples = [sample_tokens(model, [1], 20, seed=seed, temperature=1.0) for seed in (7, 7, 8)]
    assert samples[0] == samples[1] != samples[2]
    assert all(len(sample) == 20 for sample in samples)


@pytest.mark.parametrize(
    ("prompt", "temperature", "message"),
    [([], 1.0, "prompt_ids is empty"), ([1], -1.0, "temperature=-1.0 must not be negative")],
)
def test_impossible_requests_are_refused(model: NemotronH, prompt: list[int], temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_tokens(model, prompt, 1, seed=0, temperature=temperature)
