"""The loop's own parts: schedule, reference, objective; the loss itself is tested in tests/recipes/training."""

import math

import pyarrow as pa
import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage3_dpo import training
from nemotron.recipes.nano2.stage3_dpo.training import Config
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.pairs import ROW_COLUMNS, Pairs, try_logprobs


def model_of(seed):
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, seed)
    return model


@pytest.fixture(scope="module")
def policy():
    return model_of(0)


def row(*turns):
    """Turns of (ids of the prompt, ids that were written)."""
    tokens = [token for prompt, written in turns for token in (*prompt, *written)]
    in_loss = [flag for prompt, written in turns for flag in (*[False] * len(prompt), *[True] * len(written))]
    segments = [number for number, (prompt, written) in enumerate(turns) for _ in (*prompt, *written)]
    return {"id": "a", "number": 0, "level": 3, "tokens": tokens, "in_loss": in_loss, "segments": segments}


@pytest.fixture(scope="module")
def pairs():
    """Three pairs of different lengths; the chosen try of the first has two turns."""
    rows = [
        row(((20, 21), (30, 12)), ((20, 21, 22, 23), (31, 32, 12))),
        row(((20, 21), (33, 34, 12))),
        row(((40,), (41, 12))),
        row(((40,), (42, 43, 44, 45, 46, 12))),
        row(((50, 51, 52), (53, 12))),
        row(((50, 51, 52), (54, 12))),
    ]
    return Pairs.from_table(pa.Table.from_pylist(rows, schema=pa.schema(list(ROW_COLUMNS.items()))))


# --- the schedule ---


def test_the_learning_rate_warms_up_once_and_stays():
    config = Config(learning_rate=1.0, warmup_steps=4)
    assert [training.learning_rate_at(step, config) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert training.learning_rate_at(0, Config(learning_rate=0.5, warmup_steps=0)) == 0.5


# --- the reference ---


@pytest.mark.parametrize("micro", [1, 2, 100])
@pytest.mark.parametrize("average", [False, True])
def test_the_reference_is_the_log_probability_of_each_try_by_the_policy_as_it_is(policy, pairs, micro, average):
    config = Config(micro_batch_pairs=micro, average_log_probs=average)
    found = training.with_reference(policy, pairs, config)
    with torch.no_grad():
        expected = try_logprobs(policy, pairs.batch, per_token=average)
    torch.testing.assert_close(found.reference, expected, rtol=1e-12, atol=0)
    assert not found.reference.requires_grad


def test_a_policy_that_is_its_own_reference_has_a_loss_of_ln_2(policy, pairs):
    config = Config()
    with_reference = training.with_reference(policy, pairs, config)
    terms = training.pair_terms(policy, with_reference, config)
    torch.testing.assert_close(terms.loss, torch.full((3,), math.log(2), dtype=torch.float64), rtol=0, atol=1e-12)
    assert terms.margin.abs().max() < 1e-12


def test_chosen_and_rejected_are_not_swapped(policy, pairs):
    """The margin is that of the first row of each pair, in nats times beta."""
    config = Config(beta=0.5)
    terms = training.pair_terms(policy, pairs, config)  # the reference is 0
    logprobs = try_logprobs(policy, pairs.batch, per_token=False).detach()
    torch.testing.assert_close(terms.margin, 0.5 * (logprobs[::2] - logprobs[1::2]))
    torch.testing.assert_close(terms.chosen_reward, 0.5 * logprobs[::2])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_step_makes_the_chosen_try_likelier_than_the_rejected_one(pairs, weight):
    """Plain gradient descent on the loop's own loss."""
    config = Config(nll_weight=weight)
    learner = model_of(0)
    given = training.with_reference(learner, pairs, config)
    before = training.pair_terms(learner, given, config).loss.sum().item()
    (training.pair_terms(learner, given, config).loss.sum() / len(given)).backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    with torch.no_grad():
        after = training.pair_terms(learner, given, config)
    assert after.margin.mean() > 0
    assert after.loss.sum() < before
    if weight:
        assert (after.chosen_reward > 0).all()


def test_forward_passes_do_not_change_the_gradient(pairs):
    gradients = []
    for micro in (1, 2, 100):
        learner, config = model_of(0), Config(micro_batch_pairs=micro)
        given = training.with_reference(learner, pairs, config)
        for chosen in given.by_length(micro):
            (training.pair_terms(learner, given.take(chosen), config).loss.sum() / len(given)).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-8, atol=1e-14)


# --- the Config ---


@pytest.mark.parametrize("name", ["rounds", "steps_per_round", "micro_batch_pairs", "learning_rate", "beta",
                                  "max_new_tokens", "max_turns", "temperature", "max_grad_norm"])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_a_task_is_tried_at_least_twice(number):
    with pytest.raises(ValueError, match=rf"^tries={number}: Input should be greater than or equal to 2$"):
        Config(tries=number)


def test_a_negative_weight_of_the_nll_is_refused():
    with pytest.raises(ValueError, match=r"^nll_weight=-0.5: Input should be "):
        Config(nll_weight=-0.5)


@pytest.mark.parametrize("scale", ["tiny", "small", "medium", "full"])
def test_states_are_kept_at_the_ends_of_rounds(scale):
    config = Config(scale=scale)
    assert config.checkpoint_every_steps == config.steps_per_round
    assert config.beta == (0.2 if scale == "small" else 0.05)
