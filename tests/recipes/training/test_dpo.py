"""The objective against plain floats token by token, cases with their numbers, finite differences, and TRL."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.nemotron_h.model import purpose_generator
from nemotron.recipes.training.dpo import PairTerms, dpo_objective, reply_logprobs


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected: list, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance)


# --- log-probabilities of replies ---


COUNTS = torch.tensor([[False, True, True, False], [True, True, True, True], [False, False, False, True]])


def test_a_reply_has_the_sum_or_the_mean_of_its_tokens() -> None:
    logprobs = tensor(-1, -2, -3, -4, -5, -6, -7)
    close(reply_logprobs(logprobs, COUNTS, per_token=False), [-3, -18, -7])
    close(reply_logprobs(logprobs, COUNTS, per_token=True), [-1.5, -4.5, -7])


@pytest.mark.parametrize("per_token", [False, True])
def test_a_reply_without_a_token_has_a_log_probability_of_0(per_token) -> None:
    counts = torch.tensor([[False, False], [True, False]])
    assert reply_logprobs(tensor(-2), counts, per_token=per_token).tolist() == [0, -2]


@pytest.mark.parametrize("per_token", [False, True])
def test_padding_changes_nothing(per_token) -> None:
    logprobs = -torch.rand(7, dtype=torch.float64, generator=purpose_generator(0, "padding"))
    padded = torch.nn.functional.pad(COUNTS, (3, 5, 0, 0))
    without, with_padding = (reply_logprobs(logprobs, counts, per_token=per_token) for counts in (COUNTS, padded))
    assert without.tolist() == with_padding.tolist()


@pytest.mark.parametrize(("per_token", "expected"), [(False, [1.0] * 3), (True, [1 / 2, 1 / 2, 1.0])])
def test_every_token_of_a_reply_gets_the_same_gradient(per_token, expected) -> None:
    logprobs = tensor(-1, -2, -3).requires_grad_()
    counts = torch.tensor([[True, True], [False, True]])
    reply_logprobs(logprobs, counts, per_token=per_token).sum().backward()
    close(logprobs.grad, expected)


# --- the objective ---


def naive_terms(chosen, rejected, beta, nll_weight, per_token) -> dict[str, float]:
    """Of one pair, token by token; each reply is a list of (policy, reference)."""
    rewards, nll = [], 0.0
    for reply in (chosen, rejected):
        reward = 0.0
        for policy, reference in reply:
            reward += beta * (policy - reference) / (len(reply) if per_token else 1)
        rewards.append(reward)
    for policy, _ in chosen:
        nll -= policy / (len(chosen) if per_token else 1)
    probability = math.exp(rewards[0]) / (math.exp(rewards[0]) + math.exp(rewards[1]))
    return {
        "loss": -math.log(probability) + nll_weight * nll,
        "preference_loss": -math.log(probability),
        "chosen_reward": rewards[0],
        "rejected_reward": rewards[1],
        "margin": rewards[0] - rewards[1],
    }


def logprobs_of(replies, column: int, per_token: bool) -> torch.Tensor:
    longest = max(map(len, replies))
    counts = torch.tensor([[position < len(reply) for position in range(longest)] for reply in replies])
    return reply_logprobs(tensor(*(token[column] for reply in replies for token in reply)), counts, per_token=per_token)


logprobs = st.floats(-4, 0)
replies = st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=4)


@given(st.lists(st.tuples(replies, replies), min_size=1, max_size=3), st.floats(0, 2), st.floats(0, 1), st.booleans())
def test_the_objective_equals_a_naive_implementation(pairs, beta, nll_weight, per_token) -> None:
    chosen, rejected = zip(*pairs, strict=True)
    sums = [logprobs_of(side, column, per_token) for column in (0, 1) for side in (chosen, rejected)]
    terms = dpo_objective(*sums, beta=beta, nll_weight=nll_weight)
    expected = [naive_terms(*pair, beta, nll_weight, per_token) for pair in pairs]
    for name in expected[0]:
        close(getattr(terms, name), [one[name] for one in expected], 1e-10)


# beta 1/2. Policy less reference of the chosen and of the rejected reply, and what follows.
LN3 = math.log(3)
CASES = [
    # chosen, rejected, loss, gradient by the chosen reply's log-probability, preferred
    (0.0, 0.0, math.log(2), -0.25, False),
    (2 * LN3, 0.0, math.log(4 / 3), -0.125, True),  # sigmoid(ln 3) is 3/4
    (0.0, -2 * LN3, math.log(4 / 3), -0.125, True),  # as good: a rejected reply that became less likely
    (0.0, 2 * LN3, math.log(4), -0.375, False),
    (-4.0, -4.0 - 2 * LN3, math.log(4 / 3), -0.125, True),  # both less likely than before: DPO does not mind
    (5.0, 5.0, math.log(2), -0.25, False),
]


@pytest.mark.parametrize(("chosen", "rejected", "loss", "gradient", "preferred"), CASES)
def test_pairs_at_beta_one_half(chosen, rejected, loss, gradient, preferred) -> None:
    policy = [tensor(-20 + chosen).requires_grad_(), tensor(-30 + rejected).requires_grad_()]
    terms = dpo_objective(*policy, tensor(-20), tensor(-30), beta=0.5)
    terms.loss.sum().backward()
    close(terms.loss.detach(), [loss])
    close(policy[0].grad, [gradient])
    close(policy[1].grad, [-gradient])
    close(terms.chosen_reward, [chosen / 2])
    close(terms.rejected_reward, [rejected / 2])
    assert (terms.margin > 0).tolist() == [preferred]


def test_the_nll_of_the_chosen_reply_adds_its_weight_and_pushes_it_up() -> None:
    chosen, rejected = tensor(-3).requires_grad_(), tensor(-5).requires_grad_()
    terms = dpo_objective(chosen, rejected, tensor(-3), tensor(-5), beta=0.5, nll_weight=0.2)
    terms.loss.sum().backward()
    close(terms.loss.detach(), [math.log(2) + 0.6])
    close(terms.preference_loss, [math.log(2)])
    close(chosen.grad, [-0.25 - 0.2])
    close(rejected.grad, [0.25])


def random_sums(number: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Policy's and reference's log-probabilities of chosen and rejected replies."""
    generator = purpose_generator(0, "pairs")
    return list((20 * torch.randn(4, number, dtype=torch.float64, generator=generator) - 50).to(dtype))


@pytest.mark.parametrize("beta", [0.0, 0.05, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_policy_that_is_the_reference_has_a_loss_of_exactly_ln_2(beta, dtype) -> None:
    chosen, rejected, *_ = random_sums(32, dtype)
    terms = dpo_objective(chosen, rejected, chosen.clone(), rejected.clone(), beta=beta)
    assert terms.loss.tolist() == [torch.tensor(math.log(2), dtype=dtype).item()] * 32
    assert terms.margin.tolist() == terms.chosen_reward.tolist() == terms.rejected_reward.tolist() == [0.0] * 32
    assert not (terms.margin > 0).any()


def test_equal_replies_have_a_loss_of_exactly_ln_2_and_no_gradient_of_what_they_share() -> None:
    """The chosen and the rejected reply are the same text."""
    both, _, reference, _ = random_sums(8)
    both.requires_grad_()
    terms = dpo_objective(both, both, reference, reference, beta=0.05)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), both)
    assert terms.loss.tolist() == [math.log(2)] * 8
    assert gradient.tolist() == [0.0] * 8


def test_a_beta_of_0_learns_nothing() -> None:
    sums = random_sums(8)
    sums[0].requires_grad_()
    terms = dpo_objective(*sums, beta=0.0)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), sums[0])
    assert terms.loss.tolist() == [math.log(2)] * 8
    assert gradient.tolist() == [0.0] * 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("margin", [1e2, 1e4, 1e8, 1e30])
def test_very_large_margins_stay_finite(margin, dtype) -> None:
    """Right by far: no loss, no gradient. Wrong by far: a loss as large as the margin, and a gradient of beta."""
    sums = [torch.tensor(values, dtype=dtype) for values in ([margin, 0.0], [0.0, margin], [0.0, 0.0], [0.0, 0.0])]
    sums[0].requires_grad_()
    terms = dpo_objective(*sums, beta=2.0)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), sums[0])
    torch.testing.assert_close(terms.loss.detach(), torch.tensor([0.0, 2 * margin], dtype=dtype), rtol=1e-6, atol=1e-40)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -2.0], dtype=dtype), rtol=1e-6, atol=1e-40)
    assert (terms.margin > 0).tolist() == [True, False]


@pytest.mark.parametrize("nll_weight", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.01, 0.05, 1.0])
def test_the_gradient_equals_finite_differences(beta, nll_weight) -> None:
    chosen, rejected, *references = random_sums(8)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return dpo_objective(chosen, rejected, *references, beta=beta, nll_weight=nll_weight).loss

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


@pytest.mark.parametrize("per_token", [False, True])
def test_the_gradient_by_each_token_equals_finite_differences(per_token) -> None:
    generator = purpose_generator(0, "tokens")
    counts = torch.rand(6, 5, generator=generator) < 0.7
    tokens, reference = (-torch.rand(2, int(counts.sum()), dtype=torch.float64, generator=generator)).unbind()

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        policy, fixed = (reply_logprobs(one, counts, per_token=per_token) for one in (tokens, reference))
        return dpo_objective(*policy.chunk(2), *fixed.chunk(2), beta=0.5, nll_weight=0.1).loss

    assert torch.autograd.gradcheck(loss, tokens.requires_grad_())


def test_only_the_loss_has_a_gradient() -> None:
    chosen, rejected, *references = random_sums(4)
    terms = dpo_objective(chosen.requires_grad_(), rejected.requires_grad_(), *references, beta=0.05, nll_weight=0.1)
    assert [name for name in PairTerms._fields if getattr(terms, name).requires_grad] == ["loss"]


sums = st.lists(st.tuples(*[st.floats(-300, 0)] * 4), min_size=1, max_size=6)


@given(sums, st.floats(0, 2))
def test_swapping_chosen_and_rejected_turns_the_margin_around(pairs, beta) -> None:
    chosen, rejected, *references = (tensor(*column) for column in zip(*pairs, strict=True))
    terms = dpo_objective(chosen, rejected, *references, beta=beta)
    swapped = dpo_objective(rejected, chosen, *references[::-1], beta=beta)
    assert swapped.margin.tolist() == (-terms.margin).tolist()
    assert swapped.chosen_reward.tolist() == terms.rejected_reward.tolist()
    close(swapped.loss - terms.loss, terms.margin.tolist(), 1e-9)  # -log(1 - p) + log p
    assert not ((swapped.margin > 0) & (terms.margin > 0)).any()


@given(sums, st.floats(0, 2), st.floats(-100, 100))
def test_what_makes_both_replies_likelier_by_the_same_changes_nothing(pairs, beta, shift) -> None:
    """The part of the reward that depends on the prompt alone cancels (section 4 of the paper)."""
    chosen, rejected, *references = (tensor(*column) for column in zip(*pairs, strict=True))
    terms = dpo_objective(chosen, rejected, *references, beta=beta)
    shifted = dpo_objective(chosen + shift, rejected + shift, *references, beta=beta)
    close(shifted.loss, terms.loss.tolist(), 1e-9)


def test_pairs_do_not_see_each_other() -> None:
    together = dpo_objective(*random_sums(8), beta=0.05, nll_weight=0.1)
    for index in range(8):
        alone = dpo_objective(*(values[index : index + 1] for values in random_sums(8)), beta=0.05, nll_weight=0.1)
        assert [term[index : index + 1].tolist() for term in together] == [term.tolist() for term in alone]


def test_no_pair_gives_no_terms() -> None:
    terms = dpo_objective(*[tensor()] * 4, beta=0.05)
    assert [len(term) for term in terms] == [0] * len(PairTerms._fields)


# --- an outside opinion ---


class StandIn(torch.nn.Module):
    """A model for TRL whose logits are given; as TRL's own head, it scores only tokens that have a label."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)  # (b, t, v), for the token after each position

    def forward(self, input_ids, labels, **_) -> SimpleNamespace:
        drawn = torch.log_softmax(self.logits, -1)[:, :-1].gather(-1, input_ids[:, 1:, None])[..., 0]
        scored = torch.where(labels[:, 1:] != -100, drawn, 0)
        return SimpleNamespace(
            log_probs=scored, entropy=scored.detach(), mean_logits=scored.detach(), is_top1=scored.detach() > 0
        )


class Lists(dict):
    """An empty list for every name."""

    def __missing__(self, name):
        return self.setdefault(name, [])


@pytest.mark.parametrize(
    ("losses", "weights", "per_token", "nll_weight"),
    [
        (["sigmoid"], [1.0], False, 0.0),
        (["sigmoid_norm"], [1.0], True, 0.0),
        (["sigmoid_norm", "sft"], [1.0, 0.2], True, 0.2),
    ],
)
def test_loss_gradient_and_measures_agree_with_trl(losses, weights, per_token, nll_weight) -> None:
    from trl import DPOTrainer

    b, prompt, reply, v, beta = 6, 3, 8, 11, 0.3
    generator = purpose_generator(0, "trl")
    model = StandIn(torch.randn(b, prompt + reply, v, dtype=torch.float64, generator=generator))
    ids = torch.randint(v, (b, prompt + reply), generator=generator)
    # Chosen replies, of one length because TRL's term on them is a mean over the tokens of all; then rejected ones.
    lengths = torch.tensor([5, 5, 5, 3, 8, 2])
    counts = torch.arange(reply) < lengths[:, None]
    in_reply = torch.cat([torch.zeros(b, prompt, dtype=torch.bool), counts], 1)
    logprobs = torch.log_softmax(model.logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][in_reply[:, 1:]]
    reference = logprobs.detach() + torch.randn(len(logprobs), dtype=torch.float64, generator=generator)
    policy, fixed = (reply_logprobs(one, in_reply[:, 1:], per_token=per_token) for one in (logprobs, reference))
    terms = dpo_objective(*policy.chunk(2), *fixed.chunk(2), beta=beta, nll_weight=nll_weight)
    loss = terms.loss.mean()
    (gradient,) = torch.autograd.grad(loss, model.logits)

    # The trainer's own method, on an object that has what the method reads.
    trainer = object.__new__(DPOTrainer)
    values = {
        "model": model, "beta": beta, "loss_types": losses, "loss_weights": weights, "ld_alpha": None,
        "f_divergence_type": "reverse_kl", "precompute_ref_logps": True, "use_weighting": False,
        "aux_loss_enabled": False, "_total_train_tokens": 0, "_tp_size": 1, "_metrics": {"train": Lists()},
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"), gather=lambda values: values, gather_for_metrics=lambda values: values
        ),
    }  # fmt: skip
    vars(trainer).update(values)
    chosen, rejected = reply_logprobs(reference, in_reply[:, 1:], per_token=False).chunk(2)
    expected = trainer._compute_loss(
        model,
        {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": in_reply.long(),
            "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
        },
        return_outputs=False,
    )  # fmt: skip
    (expected_gradient,) = torch.autograd.grad(expected, model.logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)

    measured = {name: values[0] for name, values in trainer._metrics["train"].items()}
    if not per_token:  # TRL always reports the sums
        assert measured["rewards/accuracies"] == pytest.approx((terms.margin > 0).double().mean().item(), abs=1e-6)
        assert measured["rewards/chosen"] == pytest.approx(terms.chosen_reward.mean().item(), abs=1e-12)
        assert measured["rewards/rejected"] == pytest.approx(terms.rejected_reward.mean().item(), abs=1e-12)
        assert measured["rewards/margins"] == pytest.approx(terms.margin.mean().item(), abs=1e-12)
        assert measured["logps/chosen"] == pytest.approx(policy.chunk(2)[0].mean().item(), abs=1e-12)
