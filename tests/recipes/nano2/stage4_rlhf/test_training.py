"""The loop's own parts: schedule, advantages, log-probabilities, the truth beside the reward."""

import math
from types import SimpleNamespace

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage4_rlhf import training
from nemotron.recipes.nano2.stage4_rlhf.training import Config
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


def test_the_learning_rate_warms_up_and_stays():
    config = Config(learning_rate=1.0, warmup_steps=4)
    assert [training.learning_rate_at(step, config) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_advantages_compare_the_scores_of_one_prompt():
    """Scores have no scale and no zero: adding a constant to a prompt's scores changes nothing."""
    config = Config(replies_per_prompt=2, leave_one_out=True, divide_by_deviation=False)
    scores = [Reward(total) for total in (-3.0, -4.0, 100.25, 100.5)]
    assert training.advantages_of(scores, config, 0).tolist() == [1.0, -1.0, -0.25, 0.25]


def test_advantages_follow_the_config():
    given = [Reward(1.0), Reward(0.0)]
    for leave_one_out, divide, expected in [(False, False, 0.5), (True, False, 1.0), (False, True, math.sqrt(0.5))]:
        config = Config(replies_per_prompt=2, leave_one_out=leave_one_out, divide_by_deviation=divide)
        assert training.advantages_of(given, config, 0).tolist() == pytest.approx([expected, -expected])


def test_replies_that_score_the_same_are_reported(capsys):
    config = Config(replies_per_prompt=2)
    same = [Reward(0.5), Reward(0.5), Reward(-1.0), Reward(-1.0)]
    assert training.advantages_of(same, config, 3).tolist() == [0, 0, 0, 0]
    assert "step 4: the replies to each prompt score the same, so nothing is learned" in capsys.readouterr().err


def test_the_kl_pulls_towards_the_reference(policy, reference):
    """Without advantages, a step against the gradient makes policy and reference more alike."""
    config = Config(replies_per_prompt=3, kl_weight=1.0)
    _, _, experience = drawn(policy, config, torch.zeros(6, dtype=torch.float64))
    learner = model_of(0)
    experience, _ = training.with_logprobs(experience, learner, reference, config)
    before = training.token_terms(learner, experience, config)
    (before.loss.sum() / experience.num_tokens).backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.sub_(1e-3 * parameter.grad)
        after = training.token_terms(learner, experience, config)
    assert after.kl.mean() < before.kl.mean()
    torch.testing.assert_close(before.loss.detach(), before.kl, rtol=1e-12, atol=1e-12)


def test_replies_with_better_scores_become_likelier(policy, reference):
    config = Config(replies_per_prompt=3, kl_weight=0.0)
    advantages = torch.tensor([1.0, -1.0, 0.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    _, _, experience = drawn(policy, config, advantages)
    learner = model_of(0)
    before, _ = training.with_logprobs(experience, learner, reference, config)
    (training.token_terms(learner, before, config).loss.sum() / before.num_tokens).backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    after, _ = training.with_logprobs(experience, learner, reference, config)
    assert ((after.old_logprobs - before.old_logprobs) * experience.advantages).sum() > 0


def test_the_truth_is_the_rubric_and_what_hacking_changes():
    given = [Reward(9.0, parts={"rubric": 0.5}, answer="It is 9."), Reward(1.0, parts={"rubric": 1.0}, answer="9 9")]
    replies = [Continuation([5, 6, 5, 6]), Continuation([5])]
    assert training.truth(replies, given) == {"rubric": 0.75, "answer_words": 2.5, "repetition": pytest.approx(1 / 3)}


def curve(**last):
    first = {"reward": 0.0, "rubric": 0.5, "reply_tokens": 10.0, "repetition": 0.0}
    return SimpleNamespace(
        step=2, total_steps=2, record=SimpleNamespace(curve=[first, {**first, "reward": 1.0, **last}])
    )


@pytest.mark.parametrize("last", [{"rubric": 0.3}, {"reply_tokens": 16.0}, {"repetition": 0.2}])
def test_each_bound_of_the_config_is_used(last, capsys):
    config = Config(hacking_window=1)
    training.check_hacking(curve(**last), config)
    assert "warning: reward hacking? step 2: the reward rose from 0.000 to 1.000, and " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^step 2: the reward rose .*; raise --kl-weight"):
        training.check_hacking(curve(**last), Config(hacking_window=1, on_hacking="stop"))
    generous = Config(hacking_window=1, max_rubric_fall=0.5, max_length_growth=2.0, max_repetition_growth=0.5)
    training.check_hacking(curve(**last), generous)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["prompts_per_step", "updates_per_step", "learning_rate", "max_new_tokens",
                                  "temperature", "hacking_window"])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


def test_more_updates_than_prompts_are_refused():
    with pytest.raises(ValueError, match=r"^updates_per_step=5 is above prompts_per_step=4; give fewer updates, or"):
        Config(prompts_per_step=4, replies_per_prompt=3, updates_per_step=5)


def test_an_unknown_reaction_to_hacking_is_refused():
    with pytest.raises(ValueError, match=r"^on_hacking='ignore': Input should be 'warn' or 'stop'"):
        Config(on_hacking="ignore")
