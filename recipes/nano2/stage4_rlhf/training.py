"""Reinforce what the reward model prefers: GRPO, with the rubric beside the reward, so that hacking shows.

In: the RewardModel of reward_model.py, and through it the Dataset and the Checkpoint of the stage before: the policy at
the start, and the reference. Out: a Checkpoint: a Hugging Face directory, the state to resume from, the curve, the
rubric's parts at every step, the rollouts of the first and the last step. Its dataset_path is the RewardModel.
Source: arXiv 2508.14444, section 3. Published: GRPO on English contexts, with and without thinking. Its numbers are
undisclosed; the values marked as proxies are those of NVIDIA's recipe for the 9B, on another task.
Run: python -m nemotron.recipes.nano2.stage4_rlhf.training --scale tiny --rewardmodel-path <directory>

The objective is that of stage 2 (../../training/grpo.py), with another reward. Nothing is learned from the rubric: a
rise of the reward while the rubric falls, or while replies grow or repeat themselves, is reward hacking, by the rule of
../../training/hacking.py. Left out: a penalty of length; an update of the reward model on the policy's replies.

g prompt of a step   s reply to a prompt   b reply of a step   t position   n token of a reply that counts
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import print_complete
from nemotron.config import (
    BelowOne,
    Dtype,
    ScaledConfig,
    at_every_scale,
    by_scale,
    flag_of,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    proxy,
    switch,
)
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import CHECKPOINTING, DEVICES, DTYPES
from nemotron.recipes.nano2.stage4_rlhf.data_curation import Dataset
from nemotron.recipes.nano2.stage4_rlhf.reward_model import RewardModel
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, parameter_groups
from nemotron.recipes.nemotron_h.scorer import load_scorer
from nemotron.recipes.scoring.judge import RUBRIC, SCORED_AT_A_TIME, Judge
from nemotron.recipes.scoring.rewards import Reward
from nemotron.recipes.training.distributed import clip_gradients, shard, training_process
from nemotron.recipes.training.grpo import TokenTerms, group_advantages, grpo_objective
from nemotron.recipes.training.hacking import repeated_share, sign_of_hacking
from nemotron.recipes.training.memory import Needs, Scoring, check_fits, longest, replies_needs
from nemotron.recipes.training.rollouts import (
    Experience,
    draw_replies,
    experience_of,
    judged,
    measured,
    prompt_batches,
    token_logprobs,
    with_logprobs,
    write_tables,
)
from nemotron.recipes.training.run import Checkpoint, Run, is_done, training_run
from nemotron.terminal import print_line

WORKPLACE = "NVIDIA's NeMo RL recipe for Nano 9B v2, workplace task"


@dataclass
class Config(ScaledConfig):
    """Train the policy on the scores of a reward model."""

    seed: int = 1234
    """Seed of the replies; each depends also on the step, its prompt and its number."""
    output_dir: Path = output_below("nano2", "stage4_rlhf", "training")
    """Where the Checkpoint goes."""
    rewardmodel_path: Path | None = input_path()
    """Directory of the RewardModel; read from the pipe if left out."""

    # Rollouts.
    prompts_per_step: PositiveInt = by_scale(tiny=8, small=16, medium=32, full=proxy(64, WORKPLACE))
    """Prompts of one step; each prompt is used once."""
    replies_per_prompt: Annotated[int, Field(ge=2)] = by_scale(tiny=4, small=8, medium=16, full=proxy(16, WORKPLACE))
    """Replies to each prompt, which are compared with each other."""
    max_new_tokens: PositiveInt = by_scale(tiny=32, small=64, medium=4096, full=our_choice(8192))
    """Tokens of one reply, at most; a reply that it cuts is scored as the empty reply."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0, "the policy itself; a proxy draws at 0.9, top-p 0.95"))
    """Temperature of the replies, and of the policy that learns from them."""

    # Objective.
    leave_one_out: bool = at_every_scale(proxy(True, WORKPLACE))
    """Compare a reply with the mean of the other replies to its prompt; else with the mean of all of them."""
    divide_by_deviation: bool = at_every_scale(proxy(True, WORKPLACE))
    """Divide advantages by the standard deviation of their group."""
    clip_low: BelowOne = at_every_scale(proxy(0.2, WORKPLACE))
    """A token that became less likely than 1 - clip_low times what it was is not pushed further down."""
    clip_high: NonNegativeFloat = at_every_scale(proxy(0.2, WORKPLACE))
    """A token that became more likely than 1 + clip_high times what it was is not pushed further up."""
    kl_weight: NonNegativeFloat = by_scale(
        tiny=0.01, small=0.1, medium=0.01, full=proxy(0.01, "NeMo RL's default for GRPO on mathematics")
    )
    """Weight of the KL divergence from the policy at the start: a reward model is trusted only near it."""

    # Reward hacking: the rule is in ../../training/hacking.py, and its bounds are our choice.
    hacking_window: PositiveInt = by_scale(tiny=2, small=8, medium=20, full=our_choice(20))
    """Steps at the beginning and at the end of the curve whose means are compared."""
    max_rubric_fall: NonNegativeFloat = by_scale(tiny=0.1, small=0.02, medium=0.02, full=our_choice(0.02))
    """A fall of the rubric, which is from 0 to 1, that counts as hacking while the reward rises. The few prompts of a
    step of tiny differ by more than 0.02."""
    max_length_growth: NonNegativeFloat = at_every_scale(our_choice(0.5))
    """A growth of the replies, as a share of their length, that counts as hacking while the reward rises."""
    max_repetition_growth: NonNegativeFloat = at_every_scale(our_choice(0.1))
    """A growth of the share of repetitions that counts as hacking while the reward rises."""
    on_hacking: Literal["warn", "stop"] = at_every_scale(our_choice("warn"))
    """What to do then: print a line at every such step, or stop with an error; the last state stays."""

    # Updates.
    updates_per_step: PositiveInt = by_scale(tiny=2, small=2, medium=1, full=proxy(1, WORKPLACE))
    """Optimizer steps on the replies of one step, each on its share of the prompts."""
    micro_batch_prompts: PositiveInt = by_scale(tiny=4, small=2, medium=1, full=our_choice(1))
    """Prompts, each with all its replies, per forward pass; changes memory, not the result."""
    learning_rate: PositiveFloat = by_scale(tiny=3e-4, small=5e-5, medium=5e-6, full=proxy(5e-6, WORKPLACE))
    """Learning rate after the warmup; it stays."""
    warmup_steps: NonNegativeInt = by_scale(tiny=1, small=5, medium=13, full=proxy(13, WORKPLACE))
    """Steps over which the learning rate rises linearly from 0."""
    beta1: BelowOne = at_every_scale(proxy(0.9, WORKPLACE))
    """AdamW: decay of the first moment."""
    beta2: BelowOne = at_every_scale(proxy(0.999, WORKPLACE))
    """AdamW: decay of the second moment."""
    adam_eps: PositiveFloat = at_every_scale(our_choice(1e-8))
    """AdamW: term added to the denominator."""
    weight_decay: NonNegativeFloat = at_every_scale(proxy(0.01, WORKPLACE))
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: PositiveFloat = at_every_scale(proxy(1.0, WORKPLACE))
    """If the norm of all gradients together is above this, they are scaled down to it."""

    # Arithmetic, place and state.
    dtype: Dtype = by_scale(**(DTYPES | {"small": "float32"}))
    """Arithmetic of the learner; bfloat16 keeps the weights in float32, in which the replies are drawn. At small it is
    float32, as in stage 2."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""
    checkpoint_every_steps: PositiveInt = by_scale(tiny=4, small=20, medium=50, full=our_choice(20), recorded=False)
    """Steps between two states from which a run can be resumed."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from its last state."""

    def check(self) -> None:
        if self.updates_per_step > self.prompts_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} is above prompts_per_step={self.prompts_per_step}; give "
                "fewer updates, or more prompts"
            )

    def needs(self, shape: ModelConfig, prompt_tokens: int) -> Needs:
        """What training holds and does: the policy, the reference and the whole reward model."""
        replies = (self.prompts_per_step, prompt_tokens, self.replies_per_prompt, self.max_new_tokens)
        uses = [*replies_needs(self, prompt_tokens), Scoring(*replies, SCORED_AT_A_TIME)]
        return Needs(uses, beside=[shape], scorers=[shape])


def learning_rate_at(step: int, config: Config) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def advantages_of(rewards: Sequence[Reward], config: Config, step: int) -> torch.Tensor:
    """(b,) how much better each reply is than the others to its prompt, to the reward model."""
    scores = torch.tensor([reward.total for reward in rewards], dtype=torch.float64)
    advantages = group_advantages(
        scores.view(-1, config.replies_per_prompt),  # (g, s)
        leave_one_out=config.leave_one_out,
        divide_by_deviation=config.divide_by_deviation,
    )
    if not advantages.any():
        print_line(
            f"step {step + 1}: the replies to each prompt score the same, so nothing is learned from the rewards"
        )
    return advantages.flatten()


def token_terms(policy: NemotronH, experience: Experience, config: Config) -> TokenTerms:
    """The objective of every token that counts, with the policy as it is now."""
    with autocast(config.dtype, config.device):
        logprobs = token_logprobs(policy, experience, config.temperature)
    counts = experience.counts
    return grpo_objective(
        logprobs,
        experience.old_logprobs[counts],
        experience.advantages[counts],
        experience.reference_logprobs[counts],
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_weight=config.kl_weight,
    )


def truth(replies: Sequence[Continuation], rewards: Sequence[Reward]) -> dict[str, float]:
    """What no step learns from: the rubric, the words of an answer, and how much replies repeat themselves."""
    return {
        "rubric": sum(reward.parts[RUBRIC] for reward in rewards) / len(rewards),
        "answer_words": sum(len(reward.answer.split()) for reward in rewards) / len(rewards),
        "repetition": repeated_share(replies),
    }


def check_hacking(run: Run, config: Config) -> None:
    """Warn, or raise ValueError, if the curve shows reward hacking; at the end, say so if it was never checked."""
    if run.step == run.total_steps < 2 * config.hacking_window:
        print_line(
            f"reward hacking was not checked: {run.step} steps are fewer than two windows of "
            f"hacking_window={config.hacking_window}; lower {flag_of(config, 'hacking_window')}"
        )
    bounds = (config.max_rubric_fall, config.max_length_growth, config.max_repetition_growth)
    sign = sign_of_hacking(run.record.curve, config.hacking_window, *bounds)
    if sign and config.on_hacking == "stop":
        weight, stop = (flag_of(config, name) for name in ("kl_weight", "on_hacking"))
        raise ValueError(f"step {run.step}: {sign}; raise {weight}, use more pairs, or drop {stop} stop")
    if sign:
        print_line(f"warning: reward hacking? step {run.step}: {sign}")


def main(config: Config) -> Checkpoint:
    """Train the policy on every prompt once and return the Checkpoint."""
    reward_model = RewardModel.load(path=config.rewardmodel_path, scale=config.scale)
    base = (dataset := Dataset.load(path=reward_model.dataset_path, given=reward_model)).base()
    total_steps = math.ceil(dataset.num_prompts / config.prompts_per_step)
    shape = load_config(base.checkpoint_path)
    check_fits(shape, config, *config.needs(shape, longest(dataset.prompts_path)))
    if is_done(config, reward_model):
        return Checkpoint.load(config.output_dir)

    # The model of the stage before twice, the policy learns and the reference stays; and the reward model.
    dtype = weight_dtype(config.dtype)
    load = partial(load_checkpoint, base.checkpoint_path, device=config.device, dtype=dtype)
    policy, reference = shard(load()), shard(load())
    scorer = load_scorer(reward_model.reward_model_path, device=config.device, dtype=dtype)
    judge = Judge(CHAT, dataset.tokenizer_path, scorer)
    sampling = Sampling(config.max_new_tokens, judge.chat.stop_ids, config.temperature, logprobs_at_temperature=True)
    parameters = parameter_groups(policy, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, betas=(config.beta1, config.beta2), eps=config.adam_eps)

    with training_run(config, policy, optimizer, reward_model, total_steps) as run:
        for prompts in prompt_batches(dataset.prompts_path, config.prompts_per_step, first_step=run.step):
            # Rollouts: the policy as it is now answers each prompt several times, half of them with thinking.
            purpose = ("rollout", config.seed, run.step)
            replies = draw_replies(policy, prompts, config.replies_per_prompt, sampling, purpose)
            run.lap("rollouts", tokens=sum(len(reply.tokens) for reply in replies))

            # Rewards: the reward model's scores. The rubric judges the same replies, and nothing learns from it.
            rewards = judged(judge, prompts, replies)
            advantages = advantages_of(rewards, config, run.step)
            run.lap("rewards")

            # How likely each token is before this step's updates, to the policy and to the reference.
            experience = experience_of(prompts, replies, advantages, learn_from_cut=True).to(config.device)
            experience, entropy = with_logprobs(experience, policy, reference, config)

            # Updates: each on its share of the prompts, in which every token weighs the same.
            learning_rate = learning_rate_at(run.step, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            terms, norms = [], []
            for share in experience.optimizer_steps(config.updates_per_step):
                optimizer.zero_grad()
                for chosen in share.micro_batches(config.micro_batch_prompts):
                    terms.append(token_terms(policy, share.of_prompts(chosen), config))
                    (terms[-1].loss.sum() / max(1, share.num_tokens)).backward()
                norms.append(clip_gradients(policy, config.max_grad_norm))
                run.check_finite(grad_norm=norms[-1])
                optimizer.step()
            run.lap("learning", tokens=experience.num_tokens)

            # Record and state; a reward that rises while the rubric falls is reported.
            write_tables(run, prompts, replies, rewards, advantages, judge.decode)
            numbers = {"learning_rate": learning_rate, **measured(prompts, replies, rewards, experience, terms)}
            numbers |= {**truth(replies, rewards), "entropy": entropy, "grad_norm": sum(norms) / len(norms)}
            run.note("rollouts", experience.as_batch(), **numbers)
            run.keep_state()
            check_hacking(run, config)
        run.save(dataset.tokenizer_path, {**dataset.counts(), **reward_model.metrics}, CHAT.stop_ids)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
