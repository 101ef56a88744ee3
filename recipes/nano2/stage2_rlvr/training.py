"""Reinforce what a verifier rewards: GRPO, from rollouts to the update of the policy.

In: the Dataset of data_curation.py (prompts with verifiers), and through it stage 1's Checkpoint: the policy at the
start, and the reference. Out: a Checkpoint: a Hugging Face directory, the state to resume from, the curve, the rewards
by verifier at every step, the rollouts of the first and the last step.
Source: arXiv 2508.14444, section 3: reinforcement learning on instructions with a rule as verifier. Its algorithm for
this stage and all its numbers are undisclosed. GRPO is published for the later stage with a reward model, and the
values marked as proxies are those of NVIDIA's recipe for the 9B, on another task.
Run: python -m nemotron.recipes.nano2.stage2_rlvr.training --scale tiny --dataset-path <directory>

Published pieces. From recipes/training/grpo.py: groups, clipped ratio and KL of GRPO; the leave-one-out baseline of
RLOO; DAPO's two clip bounds; Dr. GRPO's advantage without division, by --no-divide-by-deviation. Here: DAPO's equal
weight of all tokens of an optimizer step, and its filter of overlong replies, by --no-learn-from-cut-replies. NVIDIA's
recipe has the leave-one-out baseline, divides, clips both sides alike and has no KL. Left out: DAPO's further prompts
in place of groups without a signal; sampling and learning side by side.

g prompt of a step   s reply to a prompt   b reply of a step   t position   n token of a reply that counts
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

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
from nemotron.recipes.nano2.stage2_rlvr.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, parameter_groups, purpose_generator
from nemotron.recipes.nemotron_h.workers import Workers
from nemotron.recipes.scoring.rewards import Reward, Verifier
from nemotron.recipes.training.distributed import clip_gradients, shard, training_process
from nemotron.recipes.training.grpo import TokenTerms, group_advantages, grpo_objective
from nemotron.recipes.training.memory import Needs, check_fits, longest, replies_needs
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
from nemotron.recipes.training.run import Checkpoint, is_done, training_run
from nemotron.terminal import print_line

WORKPLACE = "NVIDIA's NeMo RL recipe for Nano 9B v2, workplace task"


@dataclass
class Config(ScaledConfig):
    """Train the policy on the rewards of its replies."""

    seed: int = 1234
    """Seed of the replies; each depends also on the step, its prompt and its number."""
    output_dir: Path = output_below("nano2", "stage2_rlvr", "training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""

    # Rollouts. The proxies draw 64 prompts with 16 replies each.
    prompts_per_step: PositiveInt = by_scale(tiny=8, small=16, medium=32, full=proxy(64, WORKPLACE))
    """Prompts of one step; each prompt is used once."""
    replies_per_prompt: Annotated[int, Field(ge=2)] = by_scale(tiny=4, small=8, medium=16, full=proxy(16, WORKPLACE))
    """Replies to each prompt, which are compared with each other."""
    max_new_tokens: PositiveInt = by_scale(tiny=40, small=96, medium=4096, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0, "the policy itself; a proxy draws at 0.9, top-p 0.95"))
    """Temperature of the replies, and of the policy that learns from them."""
    learn_from_cut_replies: bool = at_every_scale(our_choice(True))
    """Whether replies that max_new_tokens ended count in the loss; they earn a half of the form's share at most."""

    # Objective.
    leave_one_out: bool = at_every_scale(proxy(True, WORKPLACE))
    """Compare a reply with the mean of the other replies to its prompt; else with the mean of all of them."""
    divide_by_deviation: bool = at_every_scale(proxy(True, WORKPLACE))
    """Divide advantages by the standard deviation of their group."""
    shuffle_rewards: bool = at_every_scale(our_choice(False, "a control"))
    """Give every reply the reward of a random reply of its step: a control, from which nothing can be learned. The
    recorded rewards are the true ones."""
    clip_low: BelowOne = at_every_scale(proxy(0.2, WORKPLACE))
    """A token that became less likely than 1 - clip_low times what it was is not pushed further down."""
    clip_high: NonNegativeFloat = at_every_scale(proxy(0.2, f"{WORKPLACE}; 0.28 in Megatron-LM's DAPO variant"))
    """A token that became more likely than 1 + clip_high times what it was is not pushed further up."""
    kl_weight: NonNegativeFloat = by_scale(tiny=0.01, small=0.01, medium=0.0, full=proxy(0.0, WORKPLACE))
    """Weight of the KL divergence from the fine-tuned model; 0 leaves it out, and needs no second model. Measure then
    whether the other abilities stay: at small, a run with 0 forgot nearly all of tool calling."""

    # Updates.
    updates_per_step: PositiveInt = by_scale(
        tiny=2, small=2, medium=1, full=proxy(1, f"{WORKPLACE}: a batch of 1,024 replies")
    )
    """Optimizer steps on the replies of one step, each on its share of the prompts. With 1, the ratio stays 1 and
    nothing is clipped."""
    micro_batch_prompts: PositiveInt = by_scale(tiny=2, small=2, medium=1, full=our_choice(1))
    """Prompts, each with all its replies, per forward pass; changes memory, not the result."""
    learning_rate: PositiveFloat = by_scale(tiny=3e-4, small=2e-4, medium=5e-6, full=proxy(5e-6, WORKPLACE))
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
    float32, which is as fast there and gives the log-probabilities of the sampler."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""
    rollout_processes: NonNegativeInt = by_scale(tiny=0, small=2, medium=0, full=our_choice(0), recorded=False)
    """Processes that write the replies, each with one thread; 0 writes them in this process. On cpu only; changes
    speed, not the replies."""
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
        if self.rollout_processes and torch.device(self.device).type != "cpu":
            raise ValueError(
                f"rollout_processes={self.rollout_processes} needs device=cpu; give 0, which writes the replies on "
                f"{self.device}"
            )

    def needs(self, shape: ModelConfig, prompt_tokens: int) -> Needs:
        """What training holds and does, for a policy of this shape and prompts of at most so many tokens."""
        return Needs(replies_needs(self, prompt_tokens), [shape] if self.kl_weight else [])


def learning_rate_at(step: int, config: Config) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def advantages_of(rewards: Sequence[Reward], config: Config, step: int) -> torch.Tensor:
    """(b,) how much better each reply is than the others to its prompt."""
    earned = torch.tensor([reward.total for reward in rewards], dtype=torch.float64)
    if config.shuffle_rewards:
        generator = purpose_generator(config.seed, f"shuffled rewards/{step}")
        earned = earned[torch.randperm(len(earned), generator=generator)]
    groups = earned.view(-1, config.replies_per_prompt)  # (g, s)
    advantages = group_advantages(
        groups, leave_one_out=config.leave_one_out, divide_by_deviation=config.divide_by_deviation
    )
    return advantages.flatten()


def report_signal(advantages: torch.Tensor, replies: Sequence[Continuation], config: Config, step: int) -> None:
    """Say if the replies to each prompt earn the same, and what to do about it if the limit ended some of them."""
    if advantages.any():
        return
    sentence = f"step {step + 1}: the replies to each prompt earn the same, so nothing is learned from the rewards"
    if cut := sum(reply.finish == "length" for reply in replies):
        sentence += (
            f"; {cut:,} of {len(replies):,} were cut at max_new_tokens={config.max_new_tokens}; if this goes on, stop, "
            f"and lower {flag_of(config, 'learning_rate')} or raise {flag_of(config, 'max_new_tokens')}"
        )
    print_line(sentence)


def token_terms(policy: NemotronH, experience: Experience, config: Config) -> TokenTerms:
    """The objective of every token that counts, with the policy as it is now."""
    with autocast(config.dtype, config.device):
        logprobs = token_logprobs(policy, experience, config.temperature)
    counts = experience.counts
    return grpo_objective(
        logprobs,
        experience.old_logprobs[counts],
        experience.advantages[counts],
        experience.reference_logprobs[counts] if config.kl_weight else None,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_weight=config.kl_weight,
    )


def main(config: Config) -> Checkpoint:
    """Train the policy on every prompt once and return the Checkpoint."""
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    base = dataset.base()
    total_steps = math.ceil(dataset.num_prompts / config.prompts_per_step)
    shape = load_config(base.checkpoint_path)
    check_fits(shape, config, *config.needs(shape, longest(dataset.prompts_path)))
    if is_done(config, dataset):
        return Checkpoint.load(config.output_dir)

    # The fine-tuned model twice: the policy learns, the reference stays.
    load = partial(load_checkpoint, base.checkpoint_path, device=config.device, dtype=weight_dtype(config.dtype))
    policy, reference = shard(load()), shard(load()) if config.kl_weight else None
    verify = Verifier(CHAT, dataset.tokenizer_path)
    sampling = Sampling(config.max_new_tokens, verify.chat.stop_ids, config.temperature, logprobs_at_temperature=True)
    parameters = parameter_groups(policy, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, betas=(config.beta1, config.beta2), eps=config.adam_eps)

    writing = Workers(policy, config.rollout_processes) if config.rollout_processes else nullcontext()
    with writing as workers, training_run(config, policy, optimizer, dataset, total_steps) as run:
        for prompts in prompt_batches(dataset.prompts_path, config.prompts_per_step, first_step=run.step):
            # Rollouts: the policy as it is now answers each prompt several times.
            purpose = ("rollout", config.seed, run.step)
            replies = draw_replies(policy, prompts, config.replies_per_prompt, sampling, purpose, workers)
            run.lap("rollouts", tokens=sum(len(reply.tokens) for reply in replies))

            # Rewards, and how much better each reply is than the others to its prompt.
            rewards = judged(verify, prompts, replies)
            advantages = advantages_of(rewards, config, run.step)
            report_signal(advantages, replies, config, run.step)
            run.lap("rewards")

            # How likely each token is before this step's updates, to the policy and to the reference.
            experience = experience_of(prompts, replies, advantages, learn_from_cut=config.learn_from_cut_replies)
            experience, entropy = with_logprobs(experience.to(config.device), policy, reference, config)

            # Updates, each on its share. The ratio is for the second on: the policy has changed since it wrote them.
            learning_rate = learning_rate_at(run.step, config)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            terms, norms = [], []
            for share in experience.optimizer_steps(config.updates_per_step):
                optimizer.zero_grad()
                for chosen in share.micro_batches(config.micro_batch_prompts):
                    terms.append(token_terms(policy, share.of_prompts(chosen), config))
                    # Every token of the share weighs the same, in a short reply and in a long one.
                    (terms[-1].loss.sum() / max(1, share.num_tokens)).backward()
                norms.append(clip_gradients(policy, config.max_grad_norm))
                run.check_finite(grad_norm=norms[-1])
                optimizer.step()
            run.lap("learning", tokens=experience.num_tokens)

            # Record and state.
            write_tables(run, prompts, replies, rewards, advantages, verify.decode)
            numbers = {"learning_rate": learning_rate, **measured(prompts, replies, rewards, experience, terms)}
            run.note("rollouts", experience.as_batch(), **numbers, entropy=entropy, grad_norm=sum(norms) / len(norms))
            run.keep_state()
            run.lap("record and state")
        run.save(dataset.tokenizer_path, dataset.counts(), CHAT.stop_ids)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
