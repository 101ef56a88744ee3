"""Learn from pairs of tries: DPO, round by round, each on pairs that the policy of the round before has written.

In: the Dataset of data_curation.py (tasks, and the pairs of the first round), and through it stage 2's Checkpoint, the
policy at the start. Out: a Checkpoint: a Hugging Face directory, the state to resume from, the curve, what came of the
tries of each round, and its pairs as text in the first and the last round.
Source: arXiv 2508.14444, section 3: DPO for tool calling, right and wrong tries of the policy itself, several
iterations. All its numbers are undisclosed. The values marked as proxies are the defaults of NVIDIA's NeMo RL for DPO.
Run: python -m nemotron.recipes.nano2.stage3_dpo.training --scale tiny --dataset-path <directory>

A round: the policy tries every task; a right and a wrong try of a task are a pair; the log-probabilities of all pairs
under the policy as it is now are the reference of this round; then the updates. So every round begins with a loss of
ln 2, and no second model is held. Taking the policy at the start of the round as the reference is our choice.
Length: the log-probability of a try is the sum over all tokens that the policy wrote, in all turns, as in the paper of
DPO (arXiv 2305.18290) and by default in NeMo RL; --average-log-probs divides it by their number.
Left out: a reference that stays for all rounds; labels that may be wrong; pairs of other models or of people.

p pair   b row: 2 p is the chosen try of a pair, 2 p + 1 the rejected one   t position   n token that counts
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
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
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    proxy,
    same_as,
    switch,
)
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import CHECKPOINTING, DEVICES, DTYPES
from nemotron.recipes.nano2.stage3_dpo.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.nemotron_h.device import autocast, weight_dtype
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, parameter_groups
from nemotron.recipes.scoring.rewards import Prompt, Verifier
from nemotron.recipes.training.distributed import (
    clip_gradients,
    filled,
    rank_share,
    shard,
    terms_of_all,
    training_process,
)
from nemotron.recipes.training.dpo import PairTerms, dpo_objective
from nemotron.recipes.training.memory import Needs, Pass, Writing, check_fits, longest
from nemotron.recipes.training.pairs import Pairs, check_pairs, measured, pairs_of_round, try_logprobs, write_round
from nemotron.recipes.training.rollouts import prompt_batches
from nemotron.recipes.training.run import Checkpoint, is_done, training_run
from nemotron.recipes.training.tries import draw_tries

NEMO_RL = "NVIDIA's NeMo RL, its default for DPO"
STAGE_2 = "stage 2, from NVIDIA's NeMo RL recipe for Nano 9B v2"


@dataclass
class Config(ScaledConfig):
    """Train the policy on pairs of its own tries."""

    seed: int = 1234
    """Seed of the tries; each reply depends also on the round, its task, the number of the try and the turn."""
    output_dir: Path = output_below("nano2", "stage3_dpo", "training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""

    # Rounds.
    rounds: PositiveInt = by_scale(tiny=2, small=3, medium=3, full=our_choice(3, "published: several"))
    """Times that the policy tries every task. The pairs of the first round are in the Dataset."""
    steps_per_round: PositiveInt = by_scale(tiny=4, small=12, medium=20, full=our_choice(50))
    """Optimizer steps of a round, each on its share of the pairs; a proxy for the share is 128 pairs, NeMo RL's."""
    tries: Annotated[int, Field(ge=2)] = by_scale(tiny=4, small=4, medium=8, full=our_choice(16))
    """Conversations about each task in the later rounds."""
    max_turns: PositiveInt = by_scale(tiny=2, small=1, medium=6, full=our_choice(10))
    """Replies of a conversation, at most."""
    max_new_tokens: PositiveInt = by_scale(tiny=48, small=96, medium=2048, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0, "the policy itself"))
    """Temperature of the tries. The loss is about the policy at temperature 1."""
    pairs_per_task: PositiveInt = by_scale(tiny=1, small=1, medium=2, full=our_choice(4))
    """Pairs of one task in a round, at most; no try is in two of them."""

    # Objective.
    beta: PositiveFloat = by_scale(tiny=0.05, small=0.2, medium=0.05, full=proxy(0.05, NEMO_RL))
    """What a difference from the reference is worth; the larger, the less the policy moves."""
    average_log_probs: bool = at_every_scale(proxy(False, NEMO_RL))
    """Divide the log-probability of a try by its tokens, so that a long try has no larger reward for its length."""
    nll_weight: NonNegativeFloat = by_scale(tiny=0.0, small=0.0, medium=0.0, full=proxy(0.0, NEMO_RL))
    """Weight of the chosen try's negative log-probability, summed or averaged as the rest; it keeps the try likely."""

    # Updates.
    micro_batch_pairs: PositiveInt = by_scale(tiny=2, small=4, medium=2, full=our_choice(1))
    """Pairs per forward pass; changes memory, not the result."""
    learning_rate: PositiveFloat = by_scale(tiny=3e-4, small=1e-4, medium=5e-6, full=proxy(5e-6, NEMO_RL))
    """Learning rate after the warmup; it stays."""
    warmup_steps: NonNegativeInt = by_scale(tiny=1, small=4, medium=10, full=our_choice(10))
    """Steps over which the learning rate rises linearly from 0, once."""
    beta1: BelowOne = at_every_scale(same_as(0.9, STAGE_2))
    """AdamW: decay of the first moment."""
    beta2: BelowOne = at_every_scale(same_as(0.999, STAGE_2))
    """AdamW: decay of the second moment."""
    adam_eps: PositiveFloat = at_every_scale(our_choice(1e-8))
    """AdamW: term added to the denominator."""
    weight_decay: NonNegativeFloat = at_every_scale(same_as(0.01, STAGE_2))
    """AdamW: decay of matrices; norms, biases and the state-space vectors have none."""
    max_grad_norm: PositiveFloat = at_every_scale(same_as(1.0, STAGE_2))
    """If the norm of all gradients together is above this, they are scaled down to it."""

    # Arithmetic, place and state.
    dtype: Dtype = by_scale(**(DTYPES | {"small": "float32"}))
    """Arithmetic of the learner; bfloat16 keeps the weights in float32, in which the tries are drawn. At small float32
    is faster on a processor."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to train: cpu, cuda, cuda:1, ..."""
    activation_checkpointing: bool = by_scale(**CHECKPOINTING, recorded=False)
    """Compute layers again in the backward pass instead of keeping what is inside of them: less memory, same result."""
    resume: bool = switch()
    """Continue an unfinished run in the same output directory from the end of its last round."""

    @property
    def checkpoint_every_steps(self) -> int:
        """Steps between two states: those of a round, because the pairs of a round need the policy at its start."""
        return self.steps_per_round

    def needs(self, shape: ModelConfig, prompt_tokens: int, num_tasks: int) -> Needs:
        """What training holds and does, for tasks of at most so many tokens.

        A later turn has a longer prompt than the first, but no thought of the turns before it: it counts as the first.
        """
        turns = (prompt_tokens + self.max_new_tokens) * self.max_turns
        pairs = math.ceil(num_tasks * self.pairs_per_task / self.steps_per_round)
        writing = Writing(num_tasks, prompt_tokens, self.tries, self.max_new_tokens, shared=self.max_turns == 1)
        return Needs([writing, Pass(pairs, self.micro_batch_pairs, turns, pairs=True, documents=True)])


def learning_rate_at(step: int, config: Config) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def with_reference(policy: NemotronH, pairs: Pairs, config: Config) -> Pairs:
    """The pairs with their log-probabilities under the policy as it is now."""
    reference = torch.zeros_like(pairs.reference)
    with torch.no_grad(), autocast(config.dtype, config.device):
        for chosen in pairs.by_length(config.micro_batch_pairs):
            found = try_logprobs(policy, pairs.take(chosen).batch, per_token=config.average_log_probs)
            reference[torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()] = found.to(reference.dtype)
    return replace(pairs, reference=filled(reference))


def pair_terms(policy: NemotronH, pairs: Pairs, config: Config) -> PairTerms:
    """The objective of every pair, with the policy as it is now."""
    with autocast(config.dtype, config.device):
        logprobs = try_logprobs(policy, pairs.batch, per_token=config.average_log_probs)
    chosen, rejected = logprobs.view(-1, 2).unbind(dim=1)  # (p,) each
    reference_chosen, reference_rejected = pairs.reference.view(-1, 2).unbind(dim=1)
    return dpo_objective(
        chosen, rejected, reference_chosen, reference_rejected, beta=config.beta, nll_weight=config.nll_weight
    )


def tables_of(dataset: Dataset, vocab_size: int) -> tuple[Sequence[Prompt], pa.Table]:
    """The tasks, of several processes those of this one; and all pairs of the first round."""
    prompts = next(prompt_batches(dataset.tasks_path, dataset.num_tasks, first_step=0))
    pairs = pq.read_table(dataset.pairs_path)
    check_pairs(pairs, vocab_size)
    return rank_share(prompts), pairs


def main(config: Config) -> Checkpoint:
    """Train the policy for all rounds and return the Checkpoint."""
    dataset = Dataset.load(path=config.dataset_path, scale=config.scale)
    base = dataset.base()
    shape = load_config(base.checkpoint_path)
    check_fits(shape, config, *config.needs(shape, longest(dataset.tasks_path), dataset.num_tasks))
    if is_done(config, dataset):
        return Checkpoint.load(config.output_dir)

    policy = load_checkpoint(base.checkpoint_path, device=config.device, dtype=weight_dtype(config.dtype))
    shard(policy)
    prompts, first_pairs = tables_of(dataset, policy.config.vocab_size)
    verify = Verifier(CHAT, dataset.tokenizer_path)
    sampling = Sampling(config.max_new_tokens, verify.chat.stop_ids, config.temperature)
    parameters = parameter_groups(policy, config.weight_decay)  # decay for matrices only
    optimizer = torch.optim.AdamW(parameters, betas=(config.beta1, config.beta2), eps=config.adam_eps)

    with training_run(config, policy, optimizer, dataset, config.rounds * config.steps_per_round) as run:
        for index in range(run.step // config.steps_per_round, config.rounds):
            # Pairs: the policy as it is now tries every task, and a right and a wrong try of a task are a pair. For the
            # first round it has done so in curation.
            table = first_pairs
            if index > 0:
                purpose = ("round", config.seed, index)
                tries = draw_tries(policy, verify, prompts, config.tries, sampling, purpose, max_turns=config.max_turns)
                table = pairs_of_round(run, tries, index + 1, graded=dataset.graded, at_most=config.pairs_per_task)
            write_round(run, table, verify.decode, is_shown=index in (0, config.rounds - 1))
            run.lap("tries")

            # The reference: how likely each try is before this round's updates. Computed once.
            pairs = with_reference(policy, Pairs.from_table(table).to(config.device), config)
            run.lap("reference")

            # Updates: each on its share of the pairs, and every pair once in a round.
            for share in pairs.optimizer_steps(config.steps_per_round):
                learning_rate = learning_rate_at(run.step, config)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.zero_grad()
                terms = []
                for chosen in share.by_length(config.micro_batch_pairs):
                    terms.append(pair_terms(policy, share.take(chosen), config))
                    # Every pair of the step weighs the same, however many are in a forward pass.
                    (terms[-1].loss.sum() / len(share)).backward()
                norm = clip_gradients(policy, config.max_grad_norm)
                run.check_finite(grad_norm=norm)
                optimizer.step()
                run.lap("learning", tokens=share.batch.num_in_loss)

                # Record.
                numbers = {"learning_rate": learning_rate, **measured(share, terms_of_all(terms), config.beta)}
                run.note(f"round {index + 1}", share.batch, **numbers, grad_norm=norm)
            # State: only here, because the pairs and the reference of a round need the policy at its start.
            run.keep_state()
        run.save(dataset.tokenizer_path, dataset.counts(), CHAT.stop_ids)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with training_process(config) as config:
        print_complete({"checkpoint": main(config)})
