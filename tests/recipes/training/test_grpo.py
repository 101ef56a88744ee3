"""The objective against plain floats for one token, finite differences, cases with their numbers, and TRL."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nemotron.recipes.nemotron_h.model import purpose_generator
from nemotron.recipes.training.grpo import TokenTerms, group_advantages, grpo_objective


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected: list, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance)


# --- advantages ---


def naive_advantages(rewards: list[float], leave_one_out: bool, divide_by_deviation: bool) -> list[float]:
    """Of one group, as the papers write it."""
    s = len(rewards)
    if len(set(rewards)) == 1:
        return [0.0] * s
    mean = sum(rewards) / s
    advantages = []
    for index, reward in enumerate(rewards):
        others = rewards[:index] + rewards[index + 1 :]
        advantages.append(reward - (sum(others) / len(others) if leave_one_out else mean))
    if divide_by_deviation:
        deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (s - 1))
        advantages = [advantage / deviation for advantage in advantages]
    return advantages


# Sixteenths, so that rewards are often equal.
rewards_of_groups = st.integers(1, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 16).map(lambda n: n / 16), min_size=size, max_size=size), min_size=1, max_size=5
    )
)


@given(rewards_of_groups, st.booleans(), st.booleans())
def test_advantages_equal_those_of_a_naive_implementation(rewards, leave_one_out, divide_by_deviation) -> None:
    found = group_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        leave_one_out=leave_one_out,
        divide_by_deviation=divide_by_deviation,
    )
    close(found, [naive_advantages(group, leave_one_out, divide_by_deviation) for group in rewards])


@pytest.mark.parametrize(
    ("leave_one_out", "divide_by_deviation", "expected"),
    [
        (False, False, [-0.25, -0.25, -0.25, 0.75]),
        (True, False, [-1 / 3, -1 / 3, -1 / 3, 1.0]),
        (False, True, [-0.5, -0.5, -0.5, 1.5]),  # the deviation is 1/2
        (True, True, [-2 / 3, -2 / 3, -2 / 3, 2.0]),
    ],
)
def test_one_right_reply_of_four(leave_one_out, divide_by_deviation, expected) -> None:
    options = {"leave_one_out": leave_one_out, "divide_by_deviation": divide_by_deviation}
    close(group_advantages(tensor(0, 0, 0, 1)[None], **options), [expected])


def test_a_reply_is_compared_with_its_own_group_only() -> None:
    options = {"leave_one_out": False, "divide_by_deviation": False}
    close(group_advantages(torch.stack([tensor(0, 1), tensor(10, 14)]), **options), [[-0.5, 0.5], [-2, 2]])


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("divide_by_deviation", [False, True])
@pytest.mark.parametrize("rewards", [[0.7], [0.0] * 4, [1.0] * 4, [0.1] * 3, [0.7] * 11])
def test_a_group_without_differences_has_advantages_of_exactly_0(leave_one_out, divide_by_deviation, rewards) -> None:
    """The mean of three times 0.1 is not 0.1."""
    options = {"leave_one_out": leave_one_out, "divide_by_deviation": divide_by_deviation}
    assert group_advantages(tensor(*rewards)[None], **options).tolist() == [[0.0] * len(rewards)]


def test_a_group_of_no_difference_beside_one_with_a_difference() -> None:
    rewards = torch.stack([tensor(0.1, 0.1, 0.1), tensor(0, 0, 3)])
    close(
        group_advantages(rewards, leave_one_out=True, divide_by_deviation=True),
        [[0, 0, 0], [-1.5 / 3**0.5, -1.5 / 3**0.5, 3 / 3**0.5]],
    )


# --- the objective ---


def naive_terms(logprob, old, advantage, reference, clip_low, clip_high, kl_weight) -> tuple[float, float]:
    """Loss and KL of one token."""
    ratio = math.exp(logprob - old)
    bounded = min(max(ratio, 1 - clip_low), 1 + clip_high)
    loss = -min(ratio * advantage, bounded * advantage)
    if reference is None:
        return loss, 0.0
    kl = math.exp(reference - logprob) - (reference - logprob) - 1
    return loss + kl_weight * kl, kl


logprobs = st.floats(-8, 0)
tokens = st.lists(st.tuples(logprobs, st.floats(-1, 1), st.floats(-3, 3), logprobs), max_size=12)


@given(tokens, st.booleans(), st.floats(0, 0.9), st.floats(0, 2), st.floats(0, 1))
def test_the_objective_equals_a_naive_implementation(tokens, has_reference, clip_low, clip_high, kl_weight) -> None:
    rows = [(new, new + step, advantage, reference) for new, step, advantage, reference in tokens]
    columns = [tensor(*(row[index] for row in rows)) for index in range(4)]
    options = {"clip_low": clip_low, "clip_high": clip_high, "kl_weight": kl_weight}
    terms = grpo_objective(*columns[:3], columns[3] if has_reference else None, **options)
    expected = [naive_terms(*row[:3], row[3] if has_reference else None, **options) for row in rows]
    close(terms.loss, [loss for loss, _ in expected])
    close(terms.kl, [kl for _, kl in expected])


# The last two columns: is the token without a gradient because its ratio left its lower or its upper bound?
CASES = [
    # ratio, advantage, loss, gradient of the loss by the log-probability, clipped low, clipped high
    (1.0, 2.0, -2.0, -2.0, False, False),
    (1.0, -2.0, 2.0, 2.0, False, False),
    (1.1, 2.0, -2.2, -2.2, False, False),
    (1.5, 2.0, -2.6, 0.0, False, True),  # likelier than 1.3: not pushed further up
    (1.5, -2.0, 3.0, 3.0, False, False),  # though it may be pushed down
    (0.7, 2.0, -1.4, -1.4, False, False),
    (0.7, -2.0, 1.6, 0.0, True, False),  # less likely than 0.8: not pushed further down
    (0.85, -2.0, 1.7, 1.7, False, False),
    (1.25, 2.0, -2.5, -2.5, False, False),  # inside, though outside of bounds of 0.2 on both sides
    (0.75, -2.0, 1.6, 0.0, True, False),  # outside, though inside of bounds of 0.3 on both sides
    (0.5, 0.0, 0.0, 0.0, False, False),
    (2.0, 0.0, 0.0, 0.0, False, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "low", "high"), CASES)
def test_which_tokens_are_clipped_at_0_8_and_1_3(ratio, advantage, loss, gradient, low, high) -> None:
    logprob = tensor(math.log(ratio) - 2).requires_grad_()
    terms = grpo_objective(logprob, tensor(-2), tensor(advantage), clip_low=0.2, clip_high=0.3, kl_weight=0.0)
    terms.loss.sum().backward()
    close(terms.loss.detach(), [loss])
    close(logprob.grad, [gradient])
    assert (terms.clipped_low.tolist(), terms.clipped_high.tolist()) == ([low], [high])


def test_the_kl_of_one_token() -> None:
    """ln 2 above the reference: 1/2 + ln 2 - 1."""
    logprob = tensor(-1).requires_grad_()
    reference = tensor(-1 - math.log(2))
    terms = grpo_objective(logprob, tensor(-1), tensor(0), reference, clip_low=0.2, clip_high=0.2, kl_weight=10.0)
    close(terms.kl, [math.log(2) - 0.5])
    close(terms.loss.detach(), [10 * (math.log(2) - 0.5)])
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logprob)
    close(gradient, [10 * (1 - 0.5)])  # down, back to the reference


def random_tokens(number: int) -> list[torch.Tensor]:
    """New, old, advantages, reference; log-ratios of about 0.3."""
    generator = purpose_generator(0, "tokens")
    new, *others = (torch.randn(number, dtype=torch.float64, generator=generator) for _ in range(4))
    new = new - 3
    return [new, new + 0.3 * others[0], others[1], new + 0.3 * others[2]]


def test_the_gradient_equals_finite_differences() -> None:
    new, old, advantages, reference = random_tokens(64)
    options = {"clip_low": 0.2, "clip_high": 0.3, "kl_weight": 0.1}
    ratio = torch.exp(new - old)
    assert min((ratio - 0.8).abs().min(), (ratio - 1.3).abs().min()) > 1e-4  # away from the kinks

    def loss(logprobs: torch.Tensor) -> torch.Tensor:
        return grpo_objective(logprobs, old, advantages, reference, **options).loss

    terms = grpo_objective(new, old, advantages, reference, **options)
    assert terms.clipped_low.any()
    assert terms.clipped_high.any()
    assert torch.autograd.gradcheck(loss, new.requires_grad_())


def test_no_gradient_flows_into_the_kl_that_is_reported() -> None:
    new, old, advantages, reference = random_tokens(4)
    terms = grpo_objective(new.requires_grad_(), old, advantages, reference, clip_low=0.2, clip_high=0.2, kl_weight=0.1)
    assert terms.loss.requires_grad
    assert not terms.kl.requires_grad


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_first_update_has_the_gradient_of_plain_policy_gradient(clip) -> None:
    """Before any update the ratio is exactly 1; the gradient is that of -A log p, also if the bounds are 1 and 1."""
    new, _, advantages, _ = random_tokens(32)
    new.requires_grad_()
    terms = grpo_objective(new, new.detach().clone(), advantages, clip_low=clip, clip_high=clip, kl_weight=0.0)
    (found,) = torch.autograd.grad(terms.loss.sum(), new)
    (expected,) = torch.autograd.grad(-(advantages * new).sum(), new)
    assert found.tolist() == expected.tolist()
    assert terms.loss.tolist() == (-advantages).tolist()
    assert not terms.clipped_low.any()
    assert not terms.clipped_high.any()


def test_a_policy_that_is_the_reference_has_a_kl_of_exactly_0_and_no_gradient_of_it() -> None:
    new, _, _, _ = random_tokens(32)
    new.requires_grad_()
    terms = grpo_objective(
        new, new.detach().clone(), torch.zeros_like(new), new.detach().clone(),
        clip_low=0.2, clip_high=0.2, kl_weight=5.0,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(terms.loss.sum(), new)
    assert terms.kl.tolist() == gradient.tolist() == [0.0] * 32


def test_without_a_weight_or_without_a_reference_the_kl_adds_nothing_to_the_loss() -> None:
    new, old, advantages, reference = random_tokens(32)
    bounds = {"clip_low": 0.2, "clip_high": 0.3}
    without = grpo_objective(new, old, advantages, **bounds, kl_weight=0.7)
    unweighted = grpo_objective(new, old, advantages, reference, **bounds, kl_weight=0.0)
    assert without.loss.tolist() == unweighted.loss.tolist()
    assert without.kl.tolist() == [0.0] * 32
    assert (unweighted.kl > 0).all()  # it is still measured


def kl_terms(new: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros_like(new)
    return grpo_objective(new, new, zeros, reference, clip_low=0.2, clip_high=0.2, kl_weight=1.0).kl


@given(st.lists(st.tuples(logprobs, logprobs), min_size=1))
def test_the_kl_of_a_token_is_never_negative(pairs) -> None:
    new, reference = (tensor(*column) for column in zip(*pairs, strict=True))
    assert (kl_terms(new, reference) >= -1e-15).all()


weights = st.lists(st.floats(0.01, 1), min_size=4, max_size=4)


@given(weights, weights)
def test_the_expectation_of_the_kl_estimate_is_the_kl_from_policy_to_reference(policy, reference) -> None:
    """Exactly: the sum over all tokens, each as likely as the policy makes it."""
    p, q = (tensor(*values) / sum(values) for values in (policy, reference))
    assume((p - q).abs().max() > 1e-3)
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_terms(p.log(), q.log())).sum(), expected, rtol=1e-10, atol=1e-14)


def test_the_mean_of_the_kl_estimate_over_samples_is_near_the_kl() -> None:
    p, q = tensor(0.5, 0.3, 0.15, 0.05), tensor(0.4, 0.25, 0.1, 0.25)
    drawn = torch.multinomial(p, 20_000, replacement=True, generator=purpose_generator(0, "drawn"))
    estimates = kl_terms(p.log()[drawn], q.log()[drawn])
    standard_error = estimates.std().item() / 20_000**0.5
    expected = (p * (p / q).log()).sum().item()
    assert estimates.mean().item() == pytest.approx(expected, abs=4 * standard_error)
    assert abs(expected - (q * (q / p).log()).sum().item()) > 20 * standard_error  # the other direction differs


def test_no_token_gives_no_terms() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    terms = grpo_objective(nothing, nothing, nothing, nothing, clip_low=0.2, clip_high=0.2, kl_weight=0.1)
    assert [len(term) for term in terms] == [0] * len(TokenTerms._fields)


# --- an outside opinion ---


class StandIn(torch.nn.Module):
    """A model for TRL whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)  # (b, t, v), for the token after each position

    def forward(self, input_ids, **_) -> SimpleNamespace:
        logprobs = torch.log_softmax(self.logits, -1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        drawn = logprobs[:, :-1].gather(-1, input_ids[:, 1:, None])[..., 0]
        first = torch.zeros_like(drawn[:, :1])  # TRL cuts the log-probabilities to those of the replies
        return SimpleNamespace(log_probs=torch.cat([first, drawn], 1), entropy=torch.cat([first, entropy[:, :-1]], 1))


class Lists(dict):
    """An empty list for every name."""

    def __missing__(self, name):
        return self.setdefault(name, [])


@pytest.mark.parametrize("kl_weight", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])  # token-level: with the tokens of the step, of the batch
def test_loss_and_gradient_agree_with_trl(kl_weight: float, loss_type: str) -> None:
    from trl import GRPOTrainer

    b, prompt, reply, v = 6, 3, 8, 11
    generator = purpose_generator(0, "trl")
    model = StandIn(torch.randn(b, prompt + reply, v, dtype=torch.float64, generator=generator))
    ids = torch.randint(v, (b, prompt + reply), generator=generator)
    mask = torch.arange(reply) < torch.tensor([8, 1, 5, 3, 8, 2])[:, None]  # (b, reply)
    new = model(ids).log_probs[:, prompt:]
    noise = torch.randn(2, b, reply, dtype=torch.float64, generator=generator)
    old, reference = (new.detach() + 0.6 * noise).unbind()
    advantages = group_advantages(
        torch.rand(2, 3, dtype=torch.float64, generator=generator), leave_one_out=True, divide_by_deviation=True
    ).flatten()

    terms = grpo_objective(
        new[mask], old[mask], advantages[:, None].expand(b, reply)[mask], reference[mask] if kl_weight else None,
        clip_low=0.2, clip_high=0.28, kl_weight=kl_weight,
    )  # fmt: skip
    loss = terms.loss.sum() / mask.sum()
    (gradient,) = torch.autograd.grad(loss, model.logits)

    # The trainer's own method, on an object that has what the method reads.
    one_process = SimpleNamespace(
        num_processes=1, is_main_process=True, autocast=nullcontext,
        gather=lambda values: values, reduce=lambda values, reduction: values,
    )  # fmt: skip
    trainer = object.__new__(GRPOTrainer)
    values = {
        "model": model, "accelerator": one_process,
        "args": SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        "beta": kl_weight, "epsilon_low": 0.2, "epsilon_high": 0.28, "loss_type": loss_type,
        "importance_sampling_level": "token", "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "use_vllm": False, "aux_loss_enabled": False, "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1, "_metrics": {"train": Lists()},
    }  # fmt: skip
    vars(trainer).update(values)
    expected = trainer._compute_loss(
        model,
        {
            "prompt_ids": ids[:, :prompt], "prompt_mask": torch.ones(b, prompt, dtype=torch.int64),
            "completion_ids": ids[:, prompt:], "completion_mask": mask.to(torch.int64),
            "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        },
    )  # fmt: skip
    (expected_gradient,) = torch.autograd.grad(expected, model.logits)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)

    measured = {name: values[0] for name, values in trainer._metrics["train"].items()}
    assert measured["clip_ratio/low_mean"] == pytest.approx(terms.clipped_low.double().mean().item(), abs=1e-6)
    assert measured["clip_ratio/high_mean"] == pytest.approx(terms.clipped_high.double().mean().item(), abs=1e-6)
    assert measured["clip_ratio/low_mean"] * measured["clip_ratio/high_mean"] > 0
    assert measured.get("kl", 0.0) == pytest.approx(terms.kl.mean().item(), abs=1e-12)
