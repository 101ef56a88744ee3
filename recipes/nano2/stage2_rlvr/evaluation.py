"""Ask the policy what it was trained for, and everything else, and compare it with the model it started from.

In: the Checkpoint of training.py, and through it its Dataset and stage 1's Checkpoint. Out: Results: metrics, a table,
plots of the training and of the exam, and a page of rollouts from the first and the last step.
Held-out instructions, which no training prompt repeats: the reward, IFEval's strict and loose measures (arXiv
2311.07911), pass@k. The exam of all families: exact match with its standard error, and the paired difference to the
fine-tuned model. Beside both: what the best constant reply earns, and the best of some ways of copying from the
question. A verifier that fails is named, and its reply earns nothing; their share is a metric if there is one.
Run: python -m nemotron.recipes.nano2.stage2_rlvr.evaluation --scale tiny --checkpoint-path <directory>

Left out: a user's own instructions, of which none are held out. IFEval itself and other published benchmarks run with
--harness lm-eval --tasks <names> (recipes/nano2/harness).
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
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
from nemotron.recipes.nano2.stage2_rlvr.data_curation import Dataset
from nemotron.recipes.nano2.stage2_rlvr.report import NAMES, plot_training, results_table, rollouts_page
from nemotron.recipes.nemotron_h.checkpoint import load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.chance import PLAUSIBLE, best_copying, best_rewarded
from nemotron.recipes.scoring.exam import MODES, take_exam
from nemotron.recipes.scoring.exam_report import plot_exam
from nemotron.recipes.scoring.exercises import fault_metrics
from nemotron.recipes.scoring.pass_at_k import paired_difference, pass_at_k
from nemotron.recipes.scoring.rewards import Prompt, Reward, Verifier, loosely
from nemotron.recipes.sources.exercises import instructions
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.rollouts import draw_replies
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import print_markdown


@dataclass
class Config(HarnessConfig):
    """Evaluate the policy beside the model that it started from."""

    seed: int = 1234
    """Seed of what is drawn; both models get the same uniform numbers."""
    output_dir: Path = output_below("nano2", "stage2_rlvr", "evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """Directory of the Checkpoint; read from the pipe if left out."""
    replies_per_prompt: PositiveInt = by_scale(tiny=2, small=4, medium=8, full=our_choice(8))
    """Replies to each held-out instruction in each mode, drawn at temperature 1; k of pass@k."""
    batch_replies: PositiveInt = at_every_scale(our_choice(128), recorded=False)
    """Replies that are written side by side; changes memory and speed, not the replies."""
    max_new_tokens: PositiveInt = by_scale(tiny=40, small=96, medium=4096, full=our_choice(8192))
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
    """What the policy earns and answers, each number beside what to compare it with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    plot_path: Path
    """The exam of both models by family."""
    training_plot_path: Path
    """What training measured, step by step."""
    rollouts_path: Path
    """Markdown: held-out instructions before and after; the replies of the first and the last step, with rewards."""


# What a line of golden/CHANGES.md shows.
HEADLINE = ("reward/tuned", "reward/policy", "strict_prompt/policy", "exact_match/all/policy")
SHOWN = 3  # held-out instructions of each mode on the page of rollouts


def held_out_metrics(
    model: str, prompts: Sequence[Prompt], rewards: Sequence[Reward], replies_per_prompt: int
) -> dict[str, float]:
    """Reward, IFEval's four measures and pass@k on held-out instructions."""
    size = replies_per_prompt
    strict = [list(one.parts.values()) for one in rewards]
    loose = [loosely(prompts[index // size].exercise, one) for index, one in enumerate(rewards)]
    right = [sum(one.right for one in rewards[start : start + size]) for start in range(0, len(rewards), size)]
    metrics = {f"reward/{model}": sum(one.total for one in rewards) / len(rewards)}
    for name, parts in (("strict", strict), ("loose", loose)):
        satisfied = [[part == 1 for part in found] for found in parts]
        # A reply whose verifier failed has no parts, and satisfies nothing.
        metrics[f"{name}_prompt/{model}"] = sum(bool(found) and all(found) for found in satisfied) / len(satisfied)
        metrics[f"{name}_instruction/{model}"] = sum(map(sum, satisfied)) / max(1, sum(map(len, satisfied)))
    for k in sorted({1, size}):
        metrics[f"pass@{k}/{model}"] = sum(pass_at_k(size, found, k) for found in right) / len(right)
    return metrics


def gain(earned: dict[str, list[float]], num_questions: int) -> dict[str, float]:
    """How much more the policy earns, with the standard error over questions; rewards by mode, question and reply."""
    means = {
        model: torch.tensor(values, dtype=torch.float64).view(len(MODES), num_questions, -1).mean(dim=(0, 2)).tolist()
        for model, values in earned.items()
    }
    change = paired_difference(means["policy"], means["tuned"])
    return {"reward_difference": change.difference, "reward_difference_error": change.standard_error}


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    checkpoint = Checkpoint.load(path=config.checkpoint_path, made_by="nemotron.recipes.nano2.stage2_rlvr.training")
    checkpoint.check_scale(config.scale)
    dataset = Dataset.load(path=checkpoint.dataset_path, given=checkpoint)
    base = dataset.base()

    with working_directory(config.output_dir, Results) as work, threads_of(config.scale):
        harness = run_harness(config, checkpoint.checkpoint_path, work)
        verify = Verifier(CHAT, checkpoint.checkpoint_path)
        held_out = [exercise_from_row(row) for row in pq.read_table(dataset.held_out_path).to_pylist()]
        exercises = [exercise_from_row(row) for row in pq.read_table(dataset.exercises_path).to_pylist()]
        models = {
            "tuned": load_for_inference(base.checkpoint_path, device=config.device),
            "policy": load_for_inference(checkpoint.checkpoint_path, device=config.device),
        }
        # Held-out instructions, as in training: replies drawn from the model itself, judged in parts.
        free = Sampling(config.max_new_tokens, verify.chat.stop_ids, 1.0)
        prompts = [verify.prompt_of(one, thinking=thinking) for thinking in MODES.values() for one in held_out]
        rewards: dict[str, list[Reward]] = {}
        tokens: dict[str, str] = {}
        texts: dict[str, list[str]] = {}
        metrics: dict[str, float] = {}
        for name, model in models.items():
            replies = draw_replies(model, prompts, config.replies_per_prompt, free, ("held out", config.seed),
                                   num_slots=config.batch_replies)  # fmt: skip
            rewards[name] = verify(prompts, replies)
            tokens[name] = sha256_of(str(token) for reply in replies for token in [*reply.tokens, -1])
            texts[name] = [verify.decode(reply.tokens) for reply in replies[:: config.replies_per_prompt]]
            metrics |= held_out_metrics(name, prompts, rewards[name], config.replies_per_prompt)
        metrics |= fault_metrics({name: [one.fault for one in found] for name, found in rewards.items()})
        earned = {name: [one.total for one in found] for name, found in rewards.items()}
        metrics |= gain(earned, len(held_out))
        # What policies that ignore the question, or copy it, get from the same verifiers.
        answers = {*PLAUSIBLE, *instructions.recitations(), *(one.answer for one in held_out)}
        constant, copying = best_rewarded(held_out, answers), best_copying(held_out)
        metrics |= {"reward/best_constant": constant.share, "reward/best_copying": copying.share}

        # The exam of every family, as after fine-tuning.
        drawn = Sampling(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        exam = take_exam(models, verify.tokenizer, verify.chat, exercises, drawn, num_answers=dataset.num_prompts,
                         seed=config.seed, batch_replies=config.batch_replies)  # fmt: skip
        metrics |= exam.metrics

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(models["policy"]))
        ladder.add("exercises", sha256=sha256_of(one.id for one in [*held_out, *exercises]))
        ladder.add("rollouts", tokens)
        ladder.add("replies", exam.digests())
        ladder.add("metrics", metrics)
        ladder.add("headline", {name: metrics[name] for name in HEADLINE})

        table = results_table(checkpoint, metrics, constant, copying)
        (work / "results.md").write_text(table, encoding="utf-8", newline="\n")
        plot_exam(metrics, NAMES, work / "exam.svg")
        exam.write_replies(work / "replies.parquet")
        plot_training(checkpoint, metrics, work / "training.svg")
        shown = [*range(SHOWN), *range(len(held_out), len(held_out) + SHOWN)]  # with thinking, then without
        pairs = [
            (prompts[index],
             {name: (texts[name][index], rewards[name][index * config.replies_per_prompt].total) for name in models})
            for index in shown
        ]  # fmt: skip
        (work / "rollouts.md").write_text(rollouts_page(checkpoint, pairs), encoding="utf-8", newline="\n")
        Results(
            path=work,
            checkpoint_path=checkpoint.path,
            table_path=work / "results.md",
            plot_path=work / "exam.svg",
            training_plot_path=work / "training.svg",
            rollouts_path=work / "rollouts.md",
            metrics=metrics | harness,
        ).save(config, ladder)
    print_markdown(table)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
