"""Compare the policy and the merge with the model that they started from: by the rubric, and by the exam.

In: the merged Checkpoint, and through it the policy, the reward model, the Dataset and the stage before. Out: Results:
metrics, a table, plots of training, frontier and exam, and a page of replies.
Held-out conversations, which no training prompt repeats: the rubric and its parts, the reward model's score, and the
win rate against the stage before. Two replies to a prompt are compared by their totals: which one comes first does not
matter to a rule. A tie counts as a half. The exam of all families: what each stage's model can do.
Run: python -m nemotron.recipes.nano2.stage4_rlhf.evaluation --scale tiny --checkpoint-path <directory>

The published benchmarks run with --harness lm-eval --tasks <names> (recipes/nano2/harness).

Left out: Arena-Hard, which needs a large model as judge; a user's own contexts, of which only pairs are held out.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Artifact, print_complete
from nemotron.artifact import working_directory
from nemotron.config import (
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
from nemotron.recipes.curation.digests import sha256_of
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.harness import HarnessConfig, run_harness
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nano2.stage4_rlhf.data_curation import REASONING, Dataset
from nemotron.recipes.nano2.stage4_rlhf.report import (
    NAMES,
    plot_frontier,
    plot_training,
    replies_page,
    results_table,
    rows_of,
)
from nemotron.recipes.nano2.stage4_rlhf.reward_model import RewardModel
from nemotron.recipes.nemotron_h.checkpoint import load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.scorer import load_scorer
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.exam import MODES, take_exam
from nemotron.recipes.scoring.exam_report import plot_exam
from nemotron.recipes.scoring.exercises import Answered, right_reply_losses
from nemotron.recipes.scoring.judge import RUBRIC, Judge, best_graded
from nemotron.recipes.scoring.pass_at_k import paired_difference
from nemotron.recipes.scoring.rewards import Reward
from nemotron.recipes.scoring.win_rate import by_question, win_rate
from nemotron.recipes.sources.exercises.conversation import COLOURS
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.rollouts import draw_replies
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import print_markdown


@dataclass
class Config(HarnessConfig):
    """Evaluate the policy and the merge beside the model that they started from."""

    seed: int = 1234
    """Seed of what is drawn; all models get the same uniform numbers."""
    output_dir: Path = output_below("nano2", "stage4_rlhf", "evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """Directory of the merged Checkpoint; read from the pipe if left out."""
    replies_per_prompt: PositiveInt = by_scale(tiny=1, small=4, medium=8, full=our_choice(8))
    """Replies to each held-out conversation in each mode, drawn at temperature 1."""
    batch_replies: PositiveInt = at_every_scale(our_choice(128), recorded=False)
    """Replies that are written or scored side by side; changes memory and speed, not the result."""
    batch_tokens: PositiveInt = at_every_scale(our_choice(8192), recorded=False)
    """Most tokens of one forward pass that measures how likely right replies are; changes memory, not the result."""
    max_new_tokens: PositiveInt = by_scale(tiny=32, small=96, medium=4096, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(published(0.6, "with thinking, model card of the 9B"))
    """Temperature of the exam with thinking; without, it is greedy."""
    top_p: PositiveFloat = at_every_scale(published(0.95, "with thinking, model card of the 9B"))
    """Share of the probability that the exam with thinking draws from."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to evaluate: cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        super().check()
        Sampling(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)  # refuses what is out of range


class Results(Artifact):
    """What the models earn and answer, each number beside what to compare it with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    training_plot_path: Path
    """What training measured, step by step."""
    frontier_plot_path: Path
    """Reasoning against chat: every a, both parents, the merge."""
    plot_path: Path
    """The exam of all models by family."""
    replies_path: Path
    """Markdown: held-out conversations with the reply of each model."""


# What a line of golden/CHANGES.md shows.
HEADLINE = ("rubric/base", "rubric/policy", "rubric/merged", "win_rate/policy", "win_rate/merged")
CONSTANTS = ["9", "It is 9.", *(f"It is {number}." for number in range(100)), *(f"It is {c}." for c in COLOURS)]
SHOWN = 4  # held-out conversations of each mode on the page of replies


def chat_metrics(model: str, rewards: Sequence[Reward], questions: Sequence[int]) -> dict[str, float]:
    """The rubric with its standard error over questions, its parts, and the reward model's score.

    Args:
        questions: the number of the question that each reward is about.
    """
    parts = {name: [one.parts[name] for one in rewards] for name in rewards[0].parts}
    metrics = {f"part/{name}/{model}": sum(values) / len(values) for name, values in parts.items() if name != RUBRIC}
    means = by_question(parts[RUBRIC], questions)
    metrics[f"rubric/{model}"], metrics[f"rubric_error/{model}"] = paired_difference(means, [0.0] * len(means))
    return metrics | {f"score/{model}": sum(one.total for one in rewards) / len(rewards)}


def reasoning_metrics(model: str, replies: Sequence[Answered]) -> dict[str, float]:
    """Exact match in the families that need reasoning.

    Args:
        replies: to the exercises of the exam, with thinking.
    """
    families = {family.FAMILY for family in REASONING}
    right = [float(one.right) for one in replies if one.exercise.family in families]
    share, error = paired_difference(right, [0.0] * len(right))
    return {f"reasoning/{model}": share, f"reasoning_error/{model}": error}


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    merged = Checkpoint.load(path=config.checkpoint_path, made_by="nemotron.recipes.nano2.stage4_rlhf.merging")
    merged.check_scale(config.scale)
    policy = Checkpoint.load(path=merged.dataset_path, given=merged)
    reward_model = RewardModel.load(path=policy.dataset_path, given=merged)
    dataset = Dataset.load(path=reward_model.dataset_path, given=merged)
    base = dataset.base()

    with working_directory(config.output_dir, Results) as work, threads_of(config.scale):
        harness = run_harness(config, merged.checkpoint_path, work)
        scorer = load_scorer(reward_model.reward_model_path, device=config.device)
        judge = Judge(CHAT, merged.checkpoint_path, scorer, config.batch_replies)
        held_out = [exercise_from_row(row) for row in pq.read_table(dataset.held_out_path).to_pylist()]
        exercises = [exercise_from_row(row) for row in pq.read_table(dataset.exercises_path).to_pylist()]
        checkpoints = {"base": base, "policy": policy, "merged": merged}
        models = {
            name: load_for_inference(one.checkpoint_path, device=config.device) for name, one in checkpoints.items()
        }

        # Held-out conversations, as in training: replies drawn from the model itself.
        free = Sampling(config.max_new_tokens, judge.chat.stop_ids, 1.0)
        prompts = [judge.prompt_of(one, thinking=thinking) for thinking in MODES.values() for one in held_out]
        size = config.replies_per_prompt
        questions = [place % len(held_out) for place in range(len(prompts)) for _ in range(size)]
        rewards: dict[str, list[Reward]] = {}
        tokens: dict[str, str] = {}
        texts: dict[str, list[str]] = {}
        metrics: dict[str, float] = {"a": merged.metrics["a"]}
        for name, model in models.items():
            replies = draw_replies(
                model, prompts, size, free, ("held out", config.seed), num_slots=config.batch_replies
            )
            rewards[name] = judge(prompts, replies)
            tokens[name] = sha256_of(str(token) for reply in replies for token in [*reply.tokens, -1])
            texts[name] = [judge.decode(reply.tokens) for reply in replies[::size]]
            metrics |= chat_metrics(name, rewards[name], questions)
            metrics[f"reply_tokens/{name}"] = sum(len(reply.tokens) for reply in replies) / len(replies)
        totals = {name: [one.parts[RUBRIC] for one in found] for name, found in rewards.items()}
        for name in ("policy", "merged"):
            wins = win_rate(totals[name], totals["base"], questions)._asdict()
            metrics |= {f"{measure}/{name}": value for measure, value in wins.items()}
        constant = best_graded(held_out, CONSTANTS)
        metrics["rubric/best_constant"] = constant.share

        # The exam of every family, as after the other stages.
        drawn = Sampling(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        exam = take_exam(models, judge.tokenizer, judge.chat, exercises, drawn, num_answers=dataset.num_prompts,
                         seed=config.seed, batch_replies=config.batch_replies)  # fmt: skip
        metrics |= exam.metrics
        for name, model in models.items():
            metrics |= reasoning_metrics(name, exam.answered[name, "think"])
            nats = right_reply_losses(model, exercises, judge.tokenizer, judge.chat, config.batch_tokens)
            metrics |= {f"nats/{family}/{name}": loss for family, loss in nats.items()}

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(models["merged"]))
        ladder.add("exercises", sha256=sha256_of(one.id for one in [*held_out, *exercises]))
        ladder.add("rollouts", tokens)
        ladder.add("replies", exam.digests())
        ladder.add("metrics", metrics)
        ladder.add("headline", {name: metrics[name] for name in HEADLINE})

        table = results_table(merged, metrics, constant)
        (work / "results.md").write_text(table, encoding="utf-8", newline="\n")
        plot_exam(metrics, NAMES, work / "exam.svg")
        exam.write_replies(work / "replies.parquet")
        plot_training(policy, work / "training.svg")
        plot_frontier(rows_of(merged, "sweep"), metrics, work / "frontier.svg")
        first = range(min(SHOWN, len(held_out)))
        places = [*first, *(len(held_out) + place for place in first)]  # with thinking, then without
        shown = [
            (prompts[place].exercise.messages[-1]["content"],
             {name: (texts[name][place], rewards[name][place * size].parts[RUBRIC])
              for name in models})
            for place in places
        ]  # fmt: skip
        (work / "replies.md").write_text(replies_page(shown), encoding="utf-8", newline="\n")
        Results(
            path=work,
            checkpoint_path=merged.path,
            table_path=work / "results.md",
            training_plot_path=work / "training.svg",
            frontier_plot_path=work / "frontier.svg",
            plot_path=work / "exam.svg",
            replies_path=work / "replies.md",
            metrics=metrics | harness,
        ).save(config, ladder)
    print_markdown(table)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
