"""Bradley and Terry's loss against plain floats, cases with their numbers, finite differences, and TRL; calibration."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.nemotron_h.model import purpose_generator
from nemotron.recipes.training.preference import (
    PreferenceTerms,
    expected_calibration_error,
    preference_accuracy,
    preference_loss,
    reliability,
)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected: list, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance)


# --- the loss ---


def naive_loss(chosen: float, rejected: float) -> float:
    """As Bradley and Terry write it: strengths exp(score), and each wins with its share of their sum."""
    strength, other = math.exp(chosen), math.exp(rejected)
    return -math.log(strength / (strength + other))


scores = st.floats(-20, 20)
pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=8)


@given(pairs)
def test_the_loss_equals_a_naive_implementation(pairs) -> None:
    chosen, rejected = (tensor(*column) for column in zip(*pairs, strict=True))
    terms = preference_loss(chosen, rejected)
    close(terms.loss, [naive_loss(*pair) for pair in pairs], 1e-9)
    assert terms.difference.tolist() == [a - b for a, b in pairs]
    assert (terms.difference > 0).tolist() == [a > b for a, b in pairs]


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "gradient", "preferred"),
    [
        (0.0, 0.0, math.log(2), -0.5, False),
        (7.5, 7.5, math.log(2), -0.5, False),  # equal replies have equal scores
        (math.log(3), 0.0, math.log(4 / 3), -0.25, True),
        (0.0, math.log(3), math.log(4), -0.75, False),
    ],
)
def test_pairs_with_their_loss_and_gradient(chosen, rejected, loss, gradient, preferred) -> None:
    values = [tensor(chosen).requires_grad_(), tensor(rejected).requires_grad_()]
    terms = preference_loss(*values)
    terms.loss.sum().backward()
    close(terms.loss.detach(), [loss])
    close(values[0].grad, [gradient])
    close(values[1].grad, [-gradient])
    assert (terms.difference > 0).tolist() == [preferred]


def random_scores(number: int) -> torch.Tensor:
    """(2, p) of chosen replies and of rejected ones."""
    return 2 * torch.randn(2, number, dtype=torch.float64, generator=purpose_generator(0, "scores"))


def test_equal_scores_have_a_loss_of_exactly_ln_2() -> None:
    same = random_scores(8)[0]
    assert preference_loss(same, same.clone()).loss.tolist() == [math.log(2)] * 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("difference", [1e2, 1e4, 1e8, 1e30])
def test_very_large_differences_stay_finite(difference, dtype) -> None:
    chosen = torch.tensor([difference, 0.0], dtype=dtype, requires_grad=True)
    terms = preference_loss(chosen, torch.tensor([0.0, difference], dtype=dtype))
    terms.loss.sum().backward()
    torch.testing.assert_close(terms.loss.detach(), torch.tensor([0.0, difference], dtype=dtype), rtol=1e-6, atol=1e-40)
    torch.testing.assert_close(chosen.grad, torch.tensor([0.0, -1.0], dtype=dtype), rtol=1e-6, atol=1e-40)


def test_the_gradient_equals_finite_differences() -> None:
    chosen, rejected = random_scores(16)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return preference_loss(chosen, rejected).loss

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_only_the_loss_has_a_gradient() -> None:
    chosen, rejected = random_scores(4)
    terms = preference_loss(chosen.requires_grad_(), rejected)
    assert [name for name in PreferenceTerms._fields if getattr(terms, name).requires_grad] == ["loss"]


eighths = st.integers(-80, 80).map(lambda n: n / 8)  # so that a shift is exact


@given(st.lists(st.tuples(eighths, eighths), min_size=1, max_size=8), eighths)
def test_a_shift_of_all_scores_changes_nothing(pairs, shift) -> None:
    chosen, rejected = (tensor(*column) for column in zip(*pairs, strict=True))
    for found, shifted in zip(
        preference_loss(chosen, rejected), preference_loss(chosen + shift, rejected + shift), strict=True
    ):
        assert found.tolist() == shifted.tolist()


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=8))
def test_swapping_chosen_and_rejected_gives_the_other_probability(pairs) -> None:
    chosen, rejected = (tensor(*column) for column in zip(*pairs, strict=True))
    terms, swapped = preference_loss(chosen, rejected), preference_loss(rejected, chosen)
    close(torch.exp(-terms.loss) + torch.exp(-swapped.loss), [1.0] * len(pairs))
    assert swapped.difference.tolist() == (-terms.difference).tolist()
    assert preference_accuracy(terms.difference) + preference_accuracy(swapped.difference) == pytest.approx(1)


def test_pairs_do_not_see_each_other() -> None:
    together = preference_loss(*random_scores(8))
    for index in range(8):
        alone = preference_loss(*random_scores(8)[:, index : index + 1])
        assert [term[index : index + 1].tolist() for term in together] == [term.tolist() for term in alone]


def test_no_pair_gives_no_terms() -> None:
    assert [len(term) for term in preference_loss(tensor(), tensor())] == [0] * len(PreferenceTerms._fields)


# --- accuracy and calibration ---


def test_equal_scores_count_half_in_the_accuracy() -> None:
    assert preference_accuracy(tensor(1, 0.5, -2, 0)) == 2.5 / 4
    assert preference_accuracy(tensor(0, 0, 0)) == 0.5  # a model that cannot tell


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_pairs_are_counted_in_the_bin_of_their_confidence() -> None:
    """Two bins: from 1/2 to 3/4, and from 3/4 to 1."""
    bins = reliability(
        tensor(logit(0.6), -logit(0.7), -logit(0.65), logit(0.8), logit(0.9), -logit(0.85), logit(0.95)), num_bins=2
    )
    assert bins.num_pairs.tolist() == [3, 4]
    close(bins.confidence, [(0.6 + 0.7 + 0.65) / 3, (0.8 + 0.9 + 0.85 + 0.95) / 4])
    close(bins.share_right, [1 / 3, 3 / 4])
    error = 3 / 7 * (0.65 - 1 / 3) + 4 / 7 * (0.875 - 0.75)
    assert expected_calibration_error(bins) == pytest.approx(error, abs=1e-12)


def test_the_edges_belong_to_bins() -> None:
    """1/2 to the first; 1, which a large difference rounds to, to the last; 3/4 to the one that it begins."""
    bins = reliability(tensor(0, 0, 1000, -1000, math.log(3) + 1e-12), num_bins=4)
    assert bins.num_pairs.tolist() == [2, 0, 1, 2]
    assert bins.confidence[0] == 0.5
    assert bins.share_right.tolist() == [0.5, 0, 1, 0.5]  # equal scores count half; an empty bin has 0
    assert bins.confidence.tolist()[1::2] == [0, 1]


def test_a_model_that_cannot_tell_is_calibrated() -> None:
    assert expected_calibration_error(reliability(tensor(0, 0, 0), num_bins=10)) == 0


def test_a_model_that_is_sure_and_wrong_is_off_by_its_confidence() -> None:
    assert expected_calibration_error(reliability(tensor(-1000, -1000), num_bins=10)) == 1


def test_labels_drawn_from_the_probabilities_are_calibrated_and_those_of_a_surer_model_are_not() -> None:
    generator = purpose_generator(0, "labels")
    difference = 2 * torch.randn(40_000, dtype=torch.float64, generator=generator)
    chosen_first = torch.rand(40_000, dtype=torch.float64, generator=generator) < torch.sigmoid(difference)
    labeled = torch.where(chosen_first, difference, -difference)  # chosen less rejected
    bins = reliability(labeled, num_bins=10)
    spread = (bins.share_right * (1 - bins.share_right) / bins.num_pairs).sqrt()
    assert ((bins.share_right - bins.confidence).abs() < 4 * spread).all()
    assert expected_calibration_error(bins) < 0.01
    assert expected_calibration_error(reliability(3 * labeled, num_bins=10)) > 0.1


@given(st.lists(scores, min_size=1, max_size=30), st.integers(1, 12))
def test_bins_hold_every_pair_once(differences, num_bins) -> None:
    bins = reliability(tensor(*differences), num_bins=num_bins)
    assert bins.num_pairs.sum() == len(differences)
    assert {len(column) for column in bins} == {num_bins}
    right = (bins.share_right * bins.num_pairs).sum().item() / len(differences)
    assert right == pytest.approx(preference_accuracy(tensor(*differences)))
    used = bins.num_pairs > 0
    lowest = 0.5 + torch.arange(num_bins, dtype=torch.float64) / num_bins / 2
    assert (bins.confidence[used] >= lowest[used] - 1e-12).all()
    assert (bins.confidence[used] <= lowest[used] + 0.5 / num_bins + 1e-12).all()
    assert 0 <= expected_calibration_error(bins) <= 1


def test_without_a_pair_nothing_is_measured() -> None:
    for measure in (preference_accuracy, lambda difference: reliability(difference, num_bins=10)):
        with pytest.raises(ValueError, match=r"^there is no pair to measure the scores on; hold out at least one$"):
            measure(tensor())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(value) -> None:
    for measure in (preference_accuracy, lambda difference: reliability(difference, num_bins=10)):
        with pytest.raises(ValueError, match=r"^a difference of scores is not finite; look for"):
            measure(tensor(0.5, value))


def test_there_must_be_a_bin() -> None:
    with pytest.raises(ValueError, match=r"^num_bins=0 must be 1 or more$"):
        reliability(tensor(1), num_bins=0)


# --- an outside opinion ---


class StandIn(torch.nn.Module):
    """A model for TRL whose scores are given."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, **_) -> SimpleNamespace:
        return SimpleNamespace(logits=self.scores[:, None])


def test_loss_gradient_and_accuracy_agree_with_trl() -> None:
    from trl import RewardTrainer

    model = StandIn(torch.cat([*random_scores(16)]))
    terms = preference_loss(*model.scores.chunk(2))
    loss = terms.loss.mean()
    (gradient,) = torch.autograd.grad(loss, model.scores)

    # The trainer's own method, on an object that has what the method reads.
    trainer = object.__new__(RewardTrainer)
    values = {
        "model": model, "args": SimpleNamespace(center_rewards_coefficient=None), "_total_train_tokens": 0,
        "_tp_size": 1, "_metrics": {"train": {name: [] for name in (
            "num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin"
        )}},
        "accelerator": SimpleNamespace(gather=lambda values: values, gather_for_metrics=lambda values: values),
    }  # fmt: skip
    vars(trainer).update(values)
    expected = trainer.compute_loss(model, {"attention_mask": torch.ones(32, 4)})
    (expected_gradient,) = torch.autograd.grad(expected, model.scores)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    measured = {name: values[0] for name, values in trainer._metrics["train"].items()}
    assert measured["accuracy"] == pytest.approx(preference_accuracy(terms.difference), abs=1e-6)
    assert measured["margin"] == pytest.approx(terms.difference.mean().item(), abs=1e-12)
