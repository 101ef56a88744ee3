"""The decoder against the full forward pass: any shape of model, prompts of any length, any number of slots."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import decoder as decoder_module
from nemotron.recipes.nemotron_h.decoder import Decoder
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, generate, sample_tokens
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize, purpose_generator


def initialized(config: ModelConfig, dtype: torch.dtype = torch.float64) -> NemotronH:
    model = NemotronH(config, dtype=dtype)
    initialize(model, 0)
    return model


@pytest.fixture(scope="module")
def hybrid() -> NemotronH:
    """A model with every kind of layer."""
    return initialized(MODELS["tiny"])


def full_logprobs(model: NemotronH, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Log-probability of each of the tokens after the prompt, by one forward pass over all of them."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def largest_difference(model: NemotronH, prompts: list[list[int]], continuations: list[Continuation]) -> float:
    """Largest difference between the log-probabilities of the decoder and of full forward passes."""
    return max(
        (full_logprobs(model, prompt, one.tokens) - torch.tensor(one.logprobs, dtype=torch.float64)).abs().max().item()
        for prompt, one in zip(prompts, continuations, strict=True)
    )


SHAPES = st.builds(
    lambda pattern, groups, heads_per_group, kv_heads, queries_per_kv, sizes, conv_kernel: ModelConfig(
        vocab_size=37,
        hidden_size=24,
        hybrid_override_pattern=pattern,
        intermediate_size=32,
        num_attention_heads=kv_heads * queries_per_kv,
        num_key_value_heads=kv_heads,
        head_dim=sizes[0],
        mamba_num_heads=groups * heads_per_group,
        mamba_head_dim=sizes[1],
        n_groups=groups,
        ssm_state_size=sizes[2],
        conv_kernel=conv_kernel,
        chunk_size=5,
    ),
    st.text("M-*", min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.tuples(st.sampled_from([4, 8]), st.integers(1, 6), st.integers(1, 7)),
    st.integers(1, 4),
)


@settings(max_examples=25)
@given(data=st.data(), config=SHAPES)
def test_decoding_equals_the_full_forward_pass(data, config: ModelConfig) -> None:
    """Groups of rows with one prompt, prompts of unequal length, rows that end early, fewer slots than rows."""
    model = initialized(config)
    ids = st.integers(0, config.vocab_size - 1)
    distinct = data.draw(st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=3))
    prompts = data.draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=6))
    sampling = Sampling(max_new_tokens=9, temperature=1.0, stop_ids=tuple(range(8)))
    continuations = generate(model, prompts, sampling, range(len(prompts)), num_slots=data.draw(st.integers(1, 4)))
    assert largest_difference(model, prompts, continuations) < 1e-10


def test_more_slots_do_not_change_the_replies(hybrid: NemotronH) -> None:
    prompts = [[5, 6, 7]] * 4 + [[8, 9]] * 4 + [[10] * 30] * 4
    sampling = Sampling(max_new_tokens=20, temperature=1.0, stop_ids=tuple(range(12, 40)))
    few, many = (generate(hybrid, prompts, sampling, range(12), num_slots=number) for number in (2, 12))
    assert [one.tokens for one in few] == [one.tokens for one in many]
    assert len({len(one.tokens) for one in many}) > 3  # rows end at different times, so slots are reused


def test_a_prompt_is_read_once_for_all_its_rows(hybrid: NemotronH, monkeypatch) -> None:
    read: list[tuple[int, ...]] = []
    read_prompts = Decoder.read_prompts

    def noting(self, prompts) -> None:
        read.extend(prompts)
        read_prompts(self, prompts)

    monkeypatch.setattr(Decoder, "read_prompts", noting)
    prompts = [[number, 3] for number in range(5) for _ in range(8)]
    generate(hybrid, prompts, Sampling(max_new_tokens=3, temperature=1.0), range(40), num_slots=3)
    assert sorted(read) == sorted({tuple(prompt) for prompt in prompts})


def test_prompts_of_similar_length_are_read_side_by_side(hybrid: NemotronH, monkeypatch) -> None:
    """So that few positions are padding; each row keeps the state of its prompt."""
    monkeypatch.setattr(decoder_module, "PROMPTS_AT_A_TIME", 2)
    shapes = []
    backbone = hybrid.backbone.forward

    def noting(ids, *rest, **named):
        shapes.append(ids.shape)
        return backbone(ids, *rest, **named)

    monkeypatch.setattr(hybrid.backbone, "forward", noting)
    prompts = [[3] * 40, [4], [5] * 39, [6, 6]]
    continuations = generate(hybrid, prompts, Sampling(max_new_tokens=4, temperature=1.0), range(4), num_slots=4)
    assert shapes == [(2, 2), (2, 40)]
    assert largest_difference(hybrid, prompts, continuations) < 1e-10


def test_prompts_beyond_those_read_ahead_are_read_later(hybrid: NemotronH, monkeypatch) -> None:
    monkeypatch.setattr(decoder_module, "PROMPTS_AT_A_TIME", 2)
    prompts = [[number, 3] for number in range(7)]
    continuations = generate(hybrid, prompts, Sampling(max_new_tokens=4, temperature=1.0), range(7), num_slots=3)
    assert largest_difference(hybrid, prompts, continuations) < 1e-10


def test_products_in_bfloat16_stay_close_to_float32_and_keep_float32_states() -> None:
    model = initialized(MODELS["tiny"], torch.float32)
    prompts = [[3, 4, 5], [6, 7]]
    (exact, coarse) = (
        generate(model, prompts, Sampling(max_new_tokens=1), seeds=[0, 0], products=products)
        for products in (None, torch.bfloat16)
    )
    assert largest_difference(model, prompts, exact) < 1e-5
    assert largest_difference(model, prompts, coarse) < 0.05
    decoder = Decoder(model, 2, torch.bfloat16)
    with torch.no_grad():
        decoder.add([(3, 4, 5), (6, 7)])
        logits = decoder.step(torch.tensor([1, 2]))
        exactly = torch.cat([model(torch.tensor([row]))[:, -1] for row in ([3, 4, 5, 1], [6, 7, 2])])
    assert logits.dtype == torch.float32
    assert 0 < (logits - exactly).abs().max() < 0.1 * exactly.abs().max()
    states = [tensor for layer in decoder.layers for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor)]
    assert {state.dtype for state in states} == {torch.float32}


def test_the_decoder_uses_the_weights_it_was_built_from() -> None:
    model = initialized(replace(MODELS["tiny"], vocab_size=300))
    before = generate(model, [[1, 2]], Sampling(max_new_tokens=5), seeds=[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = generate(model, [[1, 2]], Sampling(max_new_tokens=5), seeds=[0])
    assert before[0].logprobs != after[0].logprobs
    assert largest_difference(model, [[1, 2]], after) < 1e-10


@pytest.mark.parametrize("num_tokens", [3, 64, 1_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_probabilities(num_tokens: int, dtype: torch.dtype) -> None:
    """Chi-square over all tokens with an expected count of at least 10; the rest are one class."""
    draws = 200_000
    generator = purpose_generator(0, "test")
    logits = 2 * torch.randn(1, num_tokens, dtype=torch.float64, generator=generator).to(dtype)
    uniform = torch.rand(draws, dtype=torch.float64, generator=generator)
    drawn = torch.cat(
        [
            sample_tokens(logits.expand(len(part), -1), part, Sampling(max_new_tokens=1, temperature=1.0))
            for part in uniform.split(20_000)
        ]
    )
    expected = draws * torch.softmax(logits[0].to(torch.float64), dim=-1)
    counts = drawn.bincount(minlength=num_tokens).to(torch.float64)
    frequent = expected >= 10
    classes = [torch.cat([values[frequent], values[~frequent].sum()[None]]) for values in (counts, expected)]
    statistic = ((classes[0] - classes[1]) ** 2 / classes[1].clamp(min=1)).sum().item()
    degrees = int(frequent.sum())
    # Wilson-Hilferty: the cube root of chi-square / degrees is nearly normal. 4 standard deviations: 3 in 100,000.
    spread = (2 / (9 * degrees)) ** 0.5
    assert abs((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) < 4 * spread


def test_a_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_number() -> None:
    weights = torch.tensor([[0.25, 0.0, 0.25, 0.5, 0.0]], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 0.9999999999999999], dtype=torch.float64)
    drawn = sample_tokens(weights.log().expand(6, -1), uniform, Sampling(max_new_tokens=1, temperature=1.0))
    assert drawn.tolist() == [0, 0, 2, 2, 3, 3]
