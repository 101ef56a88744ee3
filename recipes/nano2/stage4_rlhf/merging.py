"""Merge the policy with the model that it started from, at the weight that loses least of what both can do.

In: the Checkpoint of training.py, and through it the Checkpoint of the stage before. Out: a Checkpoint, which later
steps and the chat load: weights w = (1 - a) w1 + a w2, where w1 is the reasoning-strong model, before reinforcement
learning, and w2 the chat-strong one, after it; what every a earns, as table and plot.
Source: arXiv 2508.14444, section 3. Published: a from 0.1 to 0.9 in steps of 0.1, and that about a half was best.
Run: python -m nemotron.recipes.nano2.stage4_rlhf.merging --scale tiny --checkpoint-path <directory>

The rule that chooses a is ours. Both abilities are measured on prompts of the validation, which are not those of the
evaluation: chat by the rubric, reasoning by exact match with thinking. The loss of an a is how far it is below the
better parent in the ability where it is further below. The smallest loss wins; of equal ones, the a whose right replies
in reasoning are likelier, then the a nearest to a half.
Left out: other ways of merging (task vectors, spherical interpolation), and weights that differ by layer.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
    Fraction,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    published,
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nano2.stage4_rlhf.data_curation import Dataset
from nemotron.recipes.nano2.stage4_rlhf.report import plot_sweep, sweep_table
from nemotron.recipes.nano2.stage4_rlhf.reward_model import RewardModel
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.merging import check_parents, merged_model
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.exercises import Mode, ask, right_reply_losses
from nemotron.recipes.scoring.judge import Judge
from nemotron.recipes.scoring.pass_at_k import paired_difference
from nemotron.recipes.sources.exercises import conversation
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.rollouts import draw_replies
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import print_line, print_markdown

PARENTS = (0.0, 1.0)
"""The reasoning-strong parent and the chat-strong one, as values of a."""


@dataclass
class Config(ScaledConfig):
    """Merge the policy with the model that it started from."""

    seed: int = 1234
    """Seed of the replies; every a gets the same uniform numbers."""
    output_dir: Path = output_below("nano2", "stage4_rlhf", "merging")
    """Where the Checkpoint goes."""
    checkpoint_path: Path | None = input_path()
    """Directory of the policy's Checkpoint; read from the pipe if left out."""
    weights: tuple[Fraction, ...] = at_every_scale(
        published((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "section 3")
    )
    """The values of a that are tried."""
    max_new_tokens: PositiveInt = by_scale(tiny=32, small=64, medium=4096, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(our_choice(1.0, "as in training"))
    """Temperature of the replies in conversations; reasoning is greedy."""
    batch_replies: PositiveInt = at_every_scale(our_choice(128), recorded=False)
    """Replies that are written side by side; changes memory and speed, not the replies."""
    batch_tokens: PositiveInt = at_every_scale(our_choice(8192), recorded=False)
    """Most tokens of one forward pass that measures how likely right replies are; changes memory, not the result."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to measure: cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        if list(self.weights) != sorted(set(self.weights)) or not set(self.weights) - set(PARENTS):
            raise ValueError(
                f"weights={self.weights} must be different, from the lowest up, and one of them between 0 and 1"
            )


def measure(model: NemotronH, exercises: Sequence[Exercise], judge: Judge, config: Config) -> dict[str, float]:
    """What a model earns in conversations and in reasoning, with standard errors, on validation exercises."""
    talks = [one for one in exercises if one.family == conversation.FAMILY]
    tasks = [one for one in exercises if one.family != conversation.FAMILY]
    # Conversations, asked with and without thinking: the rubric.
    prompts = [judge.prompt_of(one, thinking=thinking) for one in talks for thinking in (True, False)]
    drawn = Sampling(config.max_new_tokens, judge.chat.stop_ids, config.temperature)
    replies = draw_replies(model, prompts, 1, drawn, ("validation", config.seed), num_slots=config.batch_replies)
    totals = [reward.total for reward in judge(prompts, replies)]
    talked = [(first + second) / 2 for first, second in zip(totals[::2], totals[1::2], strict=True)]
    # Reasoning: whether the greedy reply with thinking is right, and how likely the right one is.
    mode = Mode("think", Sampling(config.max_new_tokens))
    right = [
        float(one.right)
        for one in ask(model, judge.tokenizer, judge.chat, tasks, mode, seed=config.seed,
                       batch_replies=config.batch_replies)
    ]  # fmt: skip
    losses = right_reply_losses(model, tasks, judge.tokenizer, judge.chat, config.batch_tokens)
    found = {"nats": sum(losses.values()) / len(losses)}
    for name, values in (("chat", talked), ("reasoning", right)):
        found[name], found[f"{name}_error"] = paired_difference(values, [0.0] * len(values))
    return found


def chosen_weight(sweep: Sequence[dict[str, float]]) -> tuple[float, float]:
    """The best a of a sweep, and its loss: see the top of this module.

    Args:
        sweep: a row for each a, the parents included, with a, chat, reasoning and nats.
    """
    best = {name: max(row[name] for row in sweep if row["a"] in PARENTS) for name in ("chat", "reasoning")}

    def order(row: dict[str, float]) -> tuple[float, float, float]:
        return round(max(best[name] - row[name] for name in best), 12), row["nats"], abs(row["a"] - 0.5)

    row = min((row for row in sweep if row["a"] not in PARENTS), key=order)
    return row["a"], order(row)[0]


def main(config: Config) -> Checkpoint:
    """Try every a, and return the Checkpoint of the chosen one."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    policy = Checkpoint.load(path=config.checkpoint_path, made_by="nemotron.recipes.nano2.stage4_rlhf.training")
    policy.check_scale(config.scale)
    dataset = Dataset.load(path=RewardModel.load(path=policy.dataset_path, given=policy).dataset_path, given=policy)
    base = dataset.base()
    check_parents(base.checkpoint_path, policy.checkpoint_path)  # refuses another shape or tokenizer
    with working_directory(config.output_dir, Checkpoint) as work, threads_of(config.scale):
        second = load_checkpoint(policy.checkpoint_path, device=config.device)
        dtype = second.lm_head.weight.dtype  # a published model has another one
        first = load_checkpoint(base.checkpoint_path, device=config.device, dtype=dtype)
        exercises = [exercise_from_row(row) for row in pq.read_table(dataset.validation_path).to_pylist()]
        judge = Judge(CHAT, policy.checkpoint_path)

        # Every a, and both parents, on the same prompts with the same uniform numbers.
        sweep: list[dict[str, float]] = []
        for a in sorted({*PARENTS, *config.weights}):
            sweep.append({"a": a, **measure(merged_model(first, second, a), exercises, judge, config)})
            print_line(f"a = {a:g}: chat {sweep[-1]['chat']:.1%}, reasoning {sweep[-1]['reasoning']:.1%}")
        a, loss = chosen_weight(sweep)
        merged = merged_model(first, second, a)
        save_checkpoint(merged, dataset.tokenizer_path, work / "model", CHAT.stop_ids)

        # The sweep, and beside it the curves of the policy, from which the merge comes.
        (work / "tables").mkdir()
        numbered: list[dict[str, Any]] = [{"step": index, **row} for index, row in enumerate(sweep)]
        pq.write_table(pa.Table.from_pylist(numbered), work / "tables" / "sweep.parquet")
        for path in (policy.curve_path, policy.validation_curve_path):
            shutil.copyfile(path, work / path.name)
        plot_sweep(sweep, a, work / "sweep.svg")
        table = sweep_table(sweep, a, loss)
        (work / "sweep.md").write_text(table, encoding="utf-8", newline="\n")

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", {f"first/{name}": value for name, value in weight_fingerprint(first).items()})
        ladder.add("inputs", {f"second/{name}": value for name, value in weight_fingerprint(second).items()})
        for row in sweep:
            ladder.add("validation", {f"{name}/{row['a']:g}": value for name, value in row.items() if name != "a"})
        ladder.add("final weights", weight_fingerprint(merged))
        ladder.add("headline", a=a, merge_loss=loss)
        Checkpoint(
            path=work,
            num_steps=policy.num_steps,
            num_parameters=policy.num_parameters,
            training_loss=policy.training_loss,
            checkpoint_path=work / "model",
            training_state_path=None,
            curve_path=work / policy.curve_path.name,
            validation_curve_path=work / policy.validation_curve_path.name,
            plot_path=work / "sweep.svg",
            tables_path=work / "tables",
            dataset_path=policy.path,
            metrics={"a": a, "merge_loss": loss},
        ).save(config, ladder)
    print_markdown(table)
    return Checkpoint.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"checkpoint": main(config)})
