"""The loop's own parts: schedule, advantages, log-probabilities; the objective is tested in tests/recipes/training."""

import math
from dataclasses import replace

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage2_rlvr import training
from nemotron.recipes.nano2.stage2_rlvr.training import Config
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.scoring.rewards import Prompt, Reward
from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.training.rollouts import draw_replies, experience_of


def model_of(seed):
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, seed)
    return model


@pytest.fixture(scope="module")
def policy():
    return model_of(0)


@pytest.fixture(scope="module")
def reference():
    return model_of(1)


def drawn(policy, config, advantages=None):
    """Replies of the policy to two prompts of different lengths, as the loop makes them."""
    exercise = user_exercise("math", "3 + 4?", "", "7", "3+4")
    prompts = [Prompt(exercise, True, tuple(range(20, 20 + length))) for length in (3, 9)]
    sampling = Sampling(12, tuple(range(100, 200)), config.temperature, logprobs_at_temperature=True)
    replies = draw_replies(policy, prompts, config.replies_per_prompt, sampling, ("test", 0))
    if advantages is None:
        advantages = torch.ones(len(replies), dtype=torch.float64)
    return prompts, replies, experience_of(prompts, replies, advantages, learn_from_cut=True)


# --- the schedule ---


def test_the_learning_rate_warms_up_and_stays():
    config = Config(learning_rate=1.0, warmup_steps=4)
    assert [training.learning_rate_at(step, config) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert training.learning_rate_at(0, Config(learning_rate=0.5, warmup_steps=0)) == 0.5


# --- advantages ---


def rewards(*totals):
    return [Reward(total) for total in totals]


def test_advantages_compare_the_replies_to_one_prompt():
    config = Config(replies_per_prompt=2, leave_one_out=True, divide_by_deviation=False)
    found = training.advantages_of(rewards(1.0, 0.0, 0.25, 0.5), config, 0)
    assert found.tolist() == [1.0, -1.0, -0.25, 0.25]


def test_advantages_follow_the_config():
    given = rewards(1.0, 0.0)
    for leave_one_out, divide, expected in [(False, False, 0.5), (True, False, 1.0), (False, True, math.sqrt(0.5))]:
        config = Config(replies_per_prompt=2, leave_one_out=leave_one_out, divide_by_deviation=divide)
        assert training.advantages_of(given, config, 0).tolist() == pytest.approx([expected, -expected])


def test_shuffled_rewards_are_the_same_rewards_of_other_replies_and_differ_by_step():
    config = Config(replies_per_prompt=8, leave_one_out=False, divide_by_deviation=False)
    given = rewards(*(index / 32 for index in range(32)))
    control = Config(replies_per_prompt=8, leave_one_out=False, divide_by_deviation=False, shuffle_rewards=True)
    steps = [training.advantages_of(given, control, step).tolist() for step in (0, 0, 1)]
    assert steps[0] == steps[1] != steps[2]
    assert steps[0] != training.advantages_of(given, config, 0).tolist()


def test_replies_that_earn_the_same_have_no_advantage():
    config = Config(replies_per_prompt=2)
    assert training.advantages_of(rewards(0.5, 0.5, 0.1, 0.1), config, 3).tolist() == [0, 0, 0, 0]


def test_what_is_said_of_a_step_without_a_signal_has_a_remedy_if_replies_were_cut(capsys):
    config, same = Config(), "step 4: the replies to each prompt earn the same, so nothing is learned from the rewards"
    cut, ended = Continuation([5], [0.0], [False], "length"), Continuation([5], [0.0], [False], "stop")
    none = torch.zeros(4)
    for replies in ([ended] * 4, [cut, ended, cut, cut]):
        training.report_signal(none, replies, config, 3)
        training.report_signal(torch.tensor([0.0, 0.0, 1.0, -1.0]), replies, config, 3)
    assert capsys.readouterr().err.splitlines() == [
        same,
        f"{same}; 3 of 4 were cut at max_new_tokens=40; if this goes on, stop, and lower --learning-rate or raise "
        "--max-new-tokens",
    ]
    training.report_signal(none, [cut] * 4, replace(config, flag_prefix="train."), 3)  # in the stage's command
    assert capsys.readouterr().err.endswith("lower --train.learning-rate or raise --train.max-new-tokens\n")


# --- log-probabilities ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_learner_computes_the_log_probabilities_of_the_sampler(policy, temperature):
    config = Config(replies_per_prompt=3, temperature=temperature, micro_batch_prompts=1)
    _, replies, experience = drawn(policy, config)
    found, _ = training.with_logprobs(experience, policy, None, config)
    counts = experience.counts
    assert (found.old_logprobs - found.sampled_logprobs)[counts].abs().max() < 1e-10
    assert counts.sum() == sum(len(reply.tokens) for reply in replies)
    assert (found.old_logprobs[~counts] == 0).all()
    assert (found.reference_logprobs == 0).all()


@pytest.mark.parametrize("micro", [1, 100])
def test_log_probabilities_and_entropy_are_those_of_each_reply_alone(policy, reference, micro):
    config = Config(replies_per_prompt=3, temperature=0.7, micro_batch_prompts=micro)
    prompts, replies, experience = drawn(policy, config)
    found, entropy = training.with_logprobs(experience, policy, reference, config)
    entropies = []
    for row, reply in enumerate(replies):
        asked = list(prompts[row // 3].tokens)
        tokens = torch.tensor([[*asked, *reply.tokens]])
        for model, kept in ((policy, found.old_logprobs), (reference, found.reference_logprobs)):
            with torch.no_grad():
                logprobs = torch.log_softmax(model(tokens)[0, :-1] / 0.7, dim=-1)[len(asked) - 1 :]
            expected = logprobs.gather(1, tokens[0, len(asked) :, None])[:, 0]
            torch.testing.assert_close(kept[row][experience.counts[row]], expected, rtol=0, atol=1e-10)
            if model is policy:
                entropies += (-(logprobs.exp() * logprobs).sum(dim=1)).tolist()
    assert entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-10)


def test_before_the_first_update_the_ratio_is_1_so_nothing_is_clipped(policy, reference):
    config = Config(replies_per_prompt=3, kl_weight=0.5)
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, -3.0], dtype=torch.float64)
    _, _, experience = drawn(policy, config, advantages)
    experience, _ = training.with_logprobs(experience, policy, reference, config)
    with torch.no_grad():
        terms = training.token_terms(policy, experience, config)
    assert not terms.clipped_low.any()
    assert not terms.clipped_high.any()
    expected = -experience.advantages[experience.counts] + 0.5 * terms.kl
    torch.testing.assert_close(terms.loss, expected, rtol=0, atol=1e-10)
    assert terms.kl.min() >= 0
    assert terms.kl.max() > 0


def test_a_weight_of_0_leaves_out_the_kl(policy, reference):
    config = Config(replies_per_prompt=3, kl_weight=0.0)
    _, _, experience = drawn(policy, config)
    experience, _ = training.with_logprobs(experience, policy, reference, config)
    with torch.no_grad():
        terms = training.token_terms(policy, experience, config)
    assert (terms.kl == 0).all()


def test_rewarded_replies_become_likelier_and_the_others_less_likely(policy):
    """One step of plain gradient descent on the loop's own loss."""
    config = Config(replies_per_prompt=3, kl_weight=0.0)
    advantages = torch.tensor([1.0, -1.0, 0.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    _, _, experience = drawn(policy, config, advantages)
    learner = model_of(0)
    before, _ = training.with_logprobs(experience, learner, None, config)
    (training.token_terms(learner, before, config).loss.sum() / before.num_tokens).backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    after, _ = training.with_logprobs(experience, learner, None, config)
    change = ((after.old_logprobs - before.old_logprobs) * experience.advantages).sum()
    assert change > 0


# --- the Config ---


@pytest.mark.parametrize("name", ["prompts_per_step", "updates_per_step", "micro_batch_prompts", "learning_rate",
                                  "max_new_tokens", "temperature", "max_grad_norm"])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("clip_low", 1.0), ("clip_low", -0.1), ("clip_high", -0.1),
                                             ("kl_weight", -1.0), ("kl_weight", math.nan)])  # fmt: skip
def test_a_bound_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


@pytest.mark.parametrize("scale", ["tiny", "small", "medium", "full"])
def test_at_every_scale_a_step_has_a_prompt_for_each_update(scale):
    config = Config(scale=scale)
    assert config.updates_per_step <= config.prompts_per_step
