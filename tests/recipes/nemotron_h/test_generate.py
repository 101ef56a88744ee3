"""Decoding against the full forward pass, sampling against its probabilities, thinking budgets against their rule."""

import math
import textwrap
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.tokenizer import train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import generate as generate_module
from nemotron.recipes.nemotron_h.generate import (
    GREEDY_BELOW,
    Sampling,
    ThinkingBudget,
    generate,
    in_nucleus,
    sample_tokens,
    stream,
)
from nemotron.recipes.nemotron_h.model import (
    AttentionState,
    DecodingState,
    MambaState,
    ModelConfig,
    NemotronH,
    initialize,
    purpose_generator,
)


def initialized(config: ModelConfig, dtype: torch.dtype = torch.float64) -> NemotronH:
    model = NemotronH(config, dtype=dtype)
    initialize(model, 0)
    return model


@pytest.fixture(scope="module")
def model() -> NemotronH:
    """A small vocabulary and one layer, with logits that differ enough to tell temperatures apart."""
    return initialized(
        ModelConfig(
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
    )


@pytest.fixture(scope="module")
def hybrid() -> NemotronH:
    """A model with every kind of layer."""
    return initialized(MODELS["tiny"])


# --- the states ---


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3), data=st.data())
def test_reading_in_pieces_equals_reading_at_once(hybrid: NemotronH, lengths, data) -> None:
    """Each row is cut at different positions; the pieces of one call are padded to the longest."""
    ids = torch.randint(512, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(sum(lengths)))
    read = torch.zeros(len(lengths), dtype=torch.int64)
    state = DecodingState(hybrid, len(lengths))
    with torch.no_grad():
        whole = hybrid(ids)
        while (read < torch.tensor(lengths)).any():
            left = [length - done for length, done in zip(lengths, read.tolist(), strict=True)]
            num_new = torch.tensor([data.draw(st.integers(min(1, most), most)) for most in left])
            piece = torch.zeros(len(lengths), int(num_new.max()), dtype=torch.int64)
            for row, count in enumerate(num_new.tolist()):
                piece[row, :count] = ids[row, read[row] : read[row] + count]
            logits = hybrid(piece, state=state, num_new=num_new)
            for row, count in enumerate(num_new.tolist()):
                expected = whole[row, read[row] : read[row] + count]
                torch.testing.assert_close(logits[row, :count], expected, rtol=0, atol=1e-10)
            read += num_new


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_scan_state_is_kept_in_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    model = initialized(MODELS["tiny"], dtype)
    state = DecodingState(model, 1)
    states = [layer for layer in state.layers if isinstance(layer, MambaState)]
    with torch.no_grad():
        for num_tokens in (0, 1, 5, 1):  # nothing; one token from the empty state; several; one
            if num_tokens:
                model(torch.ones(1, num_tokens, dtype=torch.int64), state=state)
            assert {layer.ssm.dtype for layer in states} == {expected}


def test_decoding_in_bfloat16_does_not_round_the_scan_state() -> None:
    model = initialized(MODELS["tiny"], torch.bfloat16)
    ids = torch.randint(512, (2, 200), generator=torch.Generator().manual_seed(0))
    at_once, one_by_one = DecodingState(model, 2), DecodingState(model, 2)
    with torch.no_grad():
        model(ids, state=at_once)
        for place in range(200):
            model(ids[:, place : place + 1], state=one_by_one)
    for expected, found in zip(at_once.layers, one_by_one.layers, strict=True):
        if isinstance(expected, MambaState) and isinstance(found, MambaState):
            error = (found.ssm - expected.ssm).std() / expected.ssm.std()
            assert error < 1e-3  # measured 2e-7; 5e-3 if rounded to bfloat16 after every token


def test_a_row_does_not_depend_on_other_rows(hybrid: NemotronH) -> None:
    prompts = [[5, 6, 7], list(range(20, 60)), [9]]
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9)
    together = generate(hybrid, prompts, sampling, seeds=[1, 2, 3])
    for row, prompt in enumerate(prompts):
        (alone,) = generate(hybrid, [prompt], sampling, seeds=[row + 1])
        assert alone.tokens == together[row].tokens
        assert alone.logprobs == pytest.approx(together[row].logprobs, rel=1e-12)


def test_a_finished_row_does_not_change_the_others(hybrid: NemotronH) -> None:
    prompts, seeds = [[5, 6, 7], list(range(20, 60)), [9]], [1, 2, 3]
    free = generate(hybrid, prompts, Sampling(max_new_tokens=12, temperature=1.0), seeds)
    stop = free[1].tokens[4]  # the second row ends after its fifth token, or earlier
    stopped = generate(hybrid, prompts, Sampling(max_new_tokens=12, stop_ids=(stop,), temperature=1.0), seeds)
    for before, after in zip(free, stopped, strict=True):
        end = before.tokens.index(stop) + 1 if stop in before.tokens else 12
        assert after.tokens == before.tokens[:end]
        assert after.finish == ("stop" if stop in before.tokens else "length")
    assert len(stopped[1].tokens) <= 5


def test_attention_states_grow_and_mamba_states_do_not(hybrid: NemotronH) -> None:
    state = DecodingState(hybrid, 2)
    with torch.no_grad():
        hybrid(torch.ones(2, 3, dtype=torch.int64), state=state)
        before = {kind: state.num_bytes(kind) for kind in (MambaState, AttentionState)}
        for _ in range(200):
            hybrid(torch.ones(2, 1, dtype=torch.int64), state=state)
    assert state.num_bytes(MambaState) == before[MambaState]
    assert state.num_bytes(AttentionState) > 10 * before[AttentionState]


def test_logprobs_equal_those_of_the_full_forward_pass(hybrid: NemotronH) -> None:
    (continuation,) = generate(hybrid, [[3, 4]], Sampling(max_new_tokens=10, temperature=0.7, top_p=0.8), seeds=[0])
    with torch.no_grad():
        logprobs = torch.log_softmax(hybrid(torch.tensor([[3, 4, *continuation.tokens]]))[0, 1:-1], dim=-1)
    expected = logprobs[range(10), continuation.tokens].tolist()
    assert continuation.logprobs == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_logprobs_at_temperature_are_those_from_which_tokens_are_drawn(hybrid: NemotronH, temperature: float) -> None:
    prompts = [[3, 4], [5], [3, 4]]
    sampling = Sampling(max_new_tokens=10, temperature=temperature, logprobs_at_temperature=True)
    found = generate(hybrid, prompts, sampling, seeds=[0, 1, 2])
    for prompt, continuation in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = hybrid(torch.tensor([[*prompt, *continuation.tokens]]))[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits / temperature, dim=-1)[range(10), continuation.tokens]
        assert continuation.logprobs == pytest.approx(logprobs.tolist(), abs=1e-10)
    plain = generate(hybrid, prompts, replace(sampling, logprobs_at_temperature=False), seeds=[0, 1, 2])
    assert [one.tokens for one in plain] == [one.tokens for one in found]
    assert (plain[0].logprobs == found[0].logprobs) == (temperature == 1)


def test_the_example_in_the_module_docstring_runs(hybrid: NemotronH) -> None:
    example = textwrap.dedent(
        "\n".join(line for line in generate_module.__doc__.split("\n") if line.startswith("    "))
    )
    names = {"model": hybrid}
    exec(example, {**vars(generate_module), **names}, names)
    assert len(names["first"].tokens) == len(names["second"].tokens) == 8
    assert names["first"].tokens != names["second"].tokens


def test_stream_yields_one_token_per_row_and_step(hybrid: NemotronH) -> None:
    steps = stream(hybrid, [[1], [2, 3]], Sampling(max_new_tokens=3), seeds=[0, 0])
    assert [[token.row for token in step] for step in steps] == [[0, 1]] * 3


# --- sampling ---


def test_temperature_zero_takes_the_most_likely_token(model: NemotronH) -> None:
    tokens = [1, 4, 2]
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert generate(model, [[1, 4, 2]], Sampling(max_new_tokens=6), seeds=[0])[0].tokens == tokens[3:]


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, GREEDY_BELOW / 2, GREEDY_BELOW, 1e-9])
def test_very_low_temperatures_take_the_most_likely_token(temperature: float) -> None:
    logprobs = torch.log_softmax(torch.tensor([[1.0, 9.0, 3.0], [-math.inf, 2.0, 2.5]], dtype=torch.float64), dim=-1)
    uniform = torch.tensor([0.3, 0.9], dtype=torch.float64)
    for top_p in (1.0, 0.5):
        drawn = sample_tokens(logprobs, uniform, Sampling(1, temperature=temperature, top_p=top_p))
        assert drawn.tolist() == [1, 2]


def test_the_lowest_sampling_temperature_does_not_overflow() -> None:
    """Uniform probabilities have the lowest maximum, so dividing its logarithm comes closest to an overflow."""
    logprobs = torch.full((1, 131_072), -math.log(131_072), dtype=torch.float64)
    uniform = 0.123456
    (drawn,) = sample_tokens(
        logprobs, torch.tensor([uniform], dtype=torch.float64), Sampling(1, temperature=GREEDY_BELOW)
    )
    assert drawn == int(uniform * 131_072)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_model(model: NemotronH, temperature: float) -> None:
    draws = 500
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    continuations = generate(model, [[3, 1]] * draws, sampling, seeds=range(draws))
    counts = Counter(continuation.tokens[0] for continuation in continuations)
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([[3, 1]]))[0, -1] / temperature, dim=0).tolist()
    for token, probability in enumerate(probabilities):
        standard_error = (probability * (1 - probability) / draws) ** 0.5
        assert abs(counts[token] / draws - probability) < 4 * standard_error


def test_top_p_draws_from_the_smallest_set_with_that_probability() -> None:
    logprobs = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log().expand(300, 4)
    uniform = torch.rand(300, dtype=torch.float64, generator=purpose_generator(0, "test"))
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=0.65)
    drawn = Counter(sample_tokens(logprobs, uniform, sampling).tolist())
    assert drawn.keys() == {1, 3}  # 0.4 is below 0.65, 0.4 + 0.3 is not
    assert abs(drawn[1] / 300 - 4 / 7) < 4 * (4 / 7 * 3 / 7 / 300) ** 0.5


def test_top_p_stops_at_a_set_with_exactly_that_probability() -> None:
    logprobs = torch.full((300, 4), math.log(0.25), dtype=torch.float64)
    uniform = torch.rand(300, dtype=torch.float64, generator=purpose_generator(0, "test"))
    drawn = sample_tokens(logprobs, uniform, Sampling(max_new_tokens=1, temperature=1.0, top_p=0.5))
    assert set(drawn.tolist()) == {0, 1}


def nucleus_by_sorting(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Every token sorted: the definition."""
    ordered, order = weights.to(torch.float64).sort(dim=-1, descending=True, stable=True)
    likelier = ordered.cumsum(dim=-1) - ordered
    kept = likelier < top_p * ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept)


@settings(max_examples=200, deadline=None)
@given(
    vocabulary=st.integers(1, 40),
    sorted_tokens=st.integers(1, 12),
    levels=st.integers(1, 30),
    top_p=st.floats(0.01, 0.999),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_likeliest_tokens_are_found_without_sorting_all(vocabulary, sorted_tokens, levels, top_p, seed, dtype):
    """With few levels many tokens are equally likely; the first of them count."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(1, levels + 1, (3, vocabulary), generator=generator).to(dtype) ** 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "SORTED_TOKENS", (sorted_tokens, 2 * sorted_tokens))
        found = in_nucleus(weights, top_p)
    assert found.tolist() == nucleus_by_sorting(weights, top_p).tolist()


@pytest.mark.parametrize(("likely", "expected"), [(10, [128]), (500, [128, 1024]), (5000, [128, 1024, 5000])])
def test_only_the_likeliest_tokens_are_sorted_if_they_suffice(monkeypatch, likely: int, expected: list[int]) -> None:
    sizes: list[int] = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, size, dim: sizes.append(size) or topk(self, size, dim=dim))
    weights = torch.zeros(2, 5000)
    weights[:, :10] = 1.0
    weights[1, :likely] = 1.0  # more are sorted if one row needs them
    assert in_nucleus(weights, 0.95).any(dim=-1).all()
    assert sizes == expected


def test_the_seed_determines_the_sample(model: NemotronH) -> None:
    samples = generate(model, [[1]] * 3, Sampling(max_new_tokens=20, temperature=1.0), seeds=[7, 7, 8])
    assert samples[0].tokens == samples[1].tokens != samples[2].tokens
    assert all(len(sample.tokens) == 20 for sample in samples)


# --- the thinking budget ---


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three"], 269)


@pytest.fixture
def parrot(hybrid: NemotronH, tokenizer):
    """Replaces sampling by the tokens of a given text, so that a test decides where lines end."""

    def install(monkeypatch, text: str) -> None:
        ids = tokenizer.encode(text).ids
        written = [0]

        def draw(logits, uniform, sampling):
            written[0] += 1
            return torch.full((len(logits),), ids[(written[0] - 1) % len(ids)])

        monkeypatch.setattr("nemotron.recipes.nemotron_h.generate.sample_tokens", draw)

    return install


def text_of(continuation, tokenizer) -> str:
    return tokenizer.decode(continuation.tokens, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ("abcdefgh\nijkl\n", "abcdefgh\n</think>"),  # closed at the first line end after five tokens
        ("ab\ncd\nef", "ab\ncd\n</think>"),  # not at the line end before the budget; at one exactly at the budget
        ("abcdefghijklmnop", "abcdefghi\n</think>"),  # no line end: forced after 5 + 4 tokens
        ("a</think>cdefghijklm", "a</think>cdefghijklm"),  # closed by the model: the budget no longer applies
    ],
)
def test_thinking_ends_at_the_first_line_end_after_the_budget_or_when_forced(
    hybrid, tokenizer, parrot, monkeypatch, writes, expected
) -> None:
    parrot(monkeypatch, writes)
    budget = ThinkingBudget(6 if "cd\n" in writes else 5, tokenizer, "</think>", grace_tokens=4)
    sampling = Sampling(max_new_tokens=len(tokenizer.encode(expected).ids), budget=budget)
    (continuation,) = generate(hybrid, [[1]], sampling, seeds=[0])
    assert text_of(continuation, tokenizer) == expected
    own = [token for token, forced in zip(continuation.tokens, continuation.forced, strict=True) if not forced]
    assert tokenizer.decode(own) == writes[: len(own)]


def test_thinking_is_closed_with_the_tag_of_the_format(hybrid, tokenizer, parrot, monkeypatch) -> None:
    for writes, expected in (("abcdefgh\nijkl\n", "abcdefgh\n</why>"), ("a</why>cdefghijklm", "a</why>cdefghijklm")):
        parrot(monkeypatch, writes)
        sampling = Sampling(
            max_new_tokens=len(tokenizer.encode(expected).ids),
            budget=ThinkingBudget(5, tokenizer, "</why>", grace_tokens=4),
        )
        (continuation,) = generate(hybrid, [[1]], sampling, seeds=[0])
        assert text_of(continuation, tokenizer) == expected


@settings(max_examples=25)
@given(tokens=st.integers(1, 20), grace=st.integers(0, 10), seed=st.integers(0, 99))
def test_thinking_never_exceeds_budget_plus_grace(hybrid, tokenizer, tokens: int, grace: int, seed: int) -> None:
    budget = ThinkingBudget(tokens, tokenizer, "</think>", grace)
    sampling = Sampling(max_new_tokens=60, temperature=1.0, budget=budget)
    (continuation,) = generate(hybrid, [[1]], sampling, seeds=[seed])
    assert sum(not forced for forced in continuation.forced[: tokens + grace]) <= tokens + grace
    assert any(continuation.forced[tokens : tokens + grace + 1])
    assert "</think>" in text_of(continuation, tokenizer)


def test_the_published_grace_is_500_tokens(tokenizer) -> None:
    assert ThinkingBudget(1000, tokenizer, "</think>").grace_tokens == 500


# --- invalid requests ---


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt 0 is empty"), ([1] * 512, "prompt 0 has 512 tokens and max_position_embeddings=512; shorten it")],
)
def test_an_invalid_prompt_is_refused(hybrid: NemotronH, prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(hybrid, [prompt], Sampling(max_new_tokens=1), seeds=[0])


def test_a_row_ends_at_the_context_length(hybrid: NemotronH) -> None:
    (continuation,) = generate(hybrid, [[1] * 508], Sampling(max_new_tokens=100), seeds=[0])
    assert len(continuation.tokens) == 4
    assert continuation.finish == "length"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must not be negative"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature=nan must not be negative"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p=0.0 must be above 0"),
        (
            {"max_new_tokens": 1, "temperature": 0.0, "logprobs_at_temperature": True},
            "temperature=0.0 has no log-probabilities; give a temperature above 0",
        ),
        ({"max_new_tokens": 1, "top_p": 1.1}, "top_p=1.1 must be above 0 and at most 1"),
    ],
)
def test_invalid_sampling_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("tokens", "grace", "message"),
    [
        (0, 500, "tokens=0 must be at least 1"),
        (-3, 500, "tokens=-3 must be at least 1"),
        (1, -1, "grace_tokens=-1 must not be negative"),
    ],
)
def test_an_invalid_budget_is_refused(tokenizer, tokens: int, grace: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThinkingBudget(tokens, tokenizer, "</think>", grace)


def test_a_prompt_without_a_seed_is_refused(hybrid: NemotronH) -> None:
    with pytest.raises(ValueError, match="0 seeds for 1 prompts; give one per prompt"):
        generate(hybrid, [[1]], Sampling(max_new_tokens=1), seeds=[])
