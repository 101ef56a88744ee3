"""The loop's own parts: schedule, loss, measures of held-out pairs; the loss itself is in tests/recipes/training."""

import math
from dataclasses import replace

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage4_rlhf import reward_model
from nemotron.recipes.nano2.stage4_rlhf.reward_model import Config
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.scorer import Scorer, scores_of

CHOSEN, REJECTED = [[5, 6, 7], [8, 9]], [[5, 6, 10, 11], [8, 12]]


@pytest.fixture(scope="module")
def scorer():
    model = NemotronH(replace(MODELS["tiny"], vocab_size=400), dtype=torch.float64)
    initialize(model, 0)
    return Scorer(model)


def test_the_learning_rate_warms_up_and_falls_to_0():
    config = Config(learning_rate=1.0, warmup_steps=2)
    rates = [reward_model.learning_rate_at(step, 4, config) for step in range(5)]
    assert rates == [0.5, 0.75, 0.5, 0.25, 0.0]


def test_the_loss_is_that_of_each_pair_alone(scorer):
    loss, difference = reward_model.pair_loss(scorer, CHOSEN, REJECTED, Config())
    for place in range(2):
        better, worse = scores_of(scorer, [CHOSEN[place], REJECTED[place]], batch_rows=1).tolist()
        assert difference[place].item() == pytest.approx(better - worse, rel=1e-9)
        assert loss[place].item() == pytest.approx(math.log1p(math.exp(worse - better)), rel=1e-9)


def test_a_step_against_the_gradient_prefers_the_chosen_replies(scorer):
    loss, before = reward_model.pair_loss(scorer, CHOSEN, REJECTED, Config())
    loss.sum().backward()
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    _, after = reward_model.pair_loss(scorer, CHOSEN, REJECTED, Config())
    assert (after > before).all()


def test_the_digest_of_a_batch_knows_which_replies_are_chosen():
    one, other = reward_model.batch_of(CHOSEN, REJECTED), reward_model.batch_of(REJECTED, CHOSEN)
    assert one.num_in_loss == 2  # of each pair, the place where the score of the chosen reply is read
    assert one.digest != other.digest
    assert one.digest == reward_model.batch_of(CHOSEN, REJECTED).digest


def row(chosen, rejected, noisy=False, strength=1):
    return {"id": "a", "chosen": chosen, "rejected": rejected, "noisy": noisy, "strength": strength}


def test_accuracy_is_measured_without_noise_too():
    rows = [row(1.0, 0.0), row(0.0, 1.0, strength=3), row(0.0, 2.0, noisy=True), row(0.0, 1.0, noisy=True)]
    metrics = reward_model.held_out_metrics(rows)
    assert metrics["accuracy/all"] == 0.25
    assert metrics["accuracy/clean"] == 0.5
    assert metrics["accuracy/strength 1"] == 1
    assert metrics["accuracy/strength 3"] == 0
    assert "accuracy/strength 2" not in metrics
    assert metrics["accuracy_error/clean"] == pytest.approx(math.sqrt(0.5 * 0.5 / 2))


def test_the_loss_of_held_out_pairs_counts_noise_as_it_is_labeled():
    metrics = reward_model.held_out_metrics([row(1.0, 0.0), row(0.0, 1.0, noisy=True)])
    assert metrics["loss"] == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2)


def test_a_constant_added_to_all_scores_changes_no_measure():
    rows = [row(1.0, 0.25), row(0.5, 1.0), row(0.25, 0.0, noisy=True)]
    shifted = [{**one, "chosen": one["chosen"] + 8, "rejected": one["rejected"] + 8} for one in rows]
    assert reward_model.held_out_metrics(rows) == reward_model.held_out_metrics(shifted)


def test_a_model_that_is_always_wrong_has_an_accuracy_of_0_with_its_error():
    metrics = reward_model.held_out_metrics([row(0.0, 1.0), row(0.0, 2.0)])
    assert (metrics["accuracy/clean"], metrics["accuracy_error/clean"]) == (0, 0)


def test_only_noise_has_no_accuracy_without_it():
    metrics = reward_model.held_out_metrics([row(1.0, 0.0, noisy=True)])
    assert "accuracy/clean" not in metrics


@pytest.mark.parametrize("name", ["pairs_per_step", "micro_batch_pairs", "learning_rate", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})
