"""Let the policy work with tools, ask it everything else, and compare it with the model it started from.

In: the Checkpoint of training.py, and through it its Dataset and stage 2's Checkpoint. Out: Results: metrics, a table,
plots of the training and of the exam, and a page of conversations before and after.
Held-out tasks, none of which is trained on: success by the state of the database, with standard errors over tasks and
the paired difference; calls that did what they say; tries that are right although their first call failed. Pairs of a
right and a wrong try of the model at the start: how often, and by how much, the policy prefers the right one. The exam
of all families (scoring/exam.py), and how likely its right replies are, which moves before one is right. Beside them:
what a policy gets that always says the same.
Run: python -m nemotron.recipes.nano2.stage3_dpo.evaluation --scale tiny --checkpoint-path <directory>

The published benchmarks run with --harness lm-eval --tasks <names> (recipes/nano2/harness).

Left out: BFCL v3, by which the published stage was tracked. The Checkpoint is a Hugging Face directory with a chat
template, so its programs run on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, PositiveFloat, PositiveInt
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
from nemotron.recipes.nano2.stage3_dpo.data_curation import Dataset
from nemotron.recipes.nano2.stage3_dpo.report import NAMES, conversations_page, plot_training, results_table
from nemotron.recipes.nemotron_h.checkpoint import load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.exam import take_exam
from nemotron.recipes.scoring.exam_report import plot_exam
from nemotron.recipes.scoring.exercises import right_reply_losses
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.sources.exercises.workplace import KINDS, kind_of
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.pairs import ROUNDING, ROW_COLUMNS, Pairs, by_task, pair_rows, pairs_of, try_logprobs
from nemotron.recipes.training.rollouts import prompt_batches
from nemotron.recipes.training.run import Checkpoint
from nemotron.recipes.training.tries import Try, best_constant_policy, draw_tries, try_metrics
from nemotron.terminal import print_markdown


@dataclass
class Config(HarnessConfig):
    """Evaluate the policy beside the model that it started from."""

    seed: int = 1234
    """Seed of what is drawn; both models get the same uniform numbers."""
    output_dir: Path = output_below("nano2", "stage3_dpo", "evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """Directory of the Checkpoint; read from the pipe if left out."""
    tries: Annotated[int, Field(ge=2)] = by_scale(tiny=2, small=4, medium=8, full=our_choice(8))
    """Conversations about each held-out task, drawn at temperature 1."""
    max_turns: PositiveInt = by_scale(tiny=2, small=1, medium=6, full=our_choice(10))
    """Replies of a conversation, at most."""
    batch_replies: PositiveInt = at_every_scale(our_choice(128), recorded=False)
    """Replies of the exam that are written side by side; changes memory and speed, not the replies."""
    micro_batch_pairs: PositiveInt = by_scale(tiny=4, small=8, medium=4, full=our_choice(2), recorded=False)
    """Held-out pairs per forward pass; changes memory, not the result."""
    max_new_tokens: PositiveInt = by_scale(tiny=48, small=96, medium=2048, full=our_choice(8192))
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
    """What the policy does with tools and answers, each number beside what to compare it with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    plot_path: Path
    """The exam of both models by family."""
    training_plot_path: Path
    """What training measured, step by step."""
    conversations_path: Path
    """Markdown: held-out tasks before and after; the pairs of the first and the last round."""


# What a line of golden/CHANGES.md shows.
HEADLINE = ("success/all/start", "success/all/policy", "preference_accuracy", "exact_match/all/policy")
SHOWN = 2  # held-out tasks of each kind on the page of conversations
BATCH_TOKENS = 2048  # our choice: most tokens of one forward pass over right replies; changes memory, not the result


def preferences(
    models: dict[str, NemotronH], tries: Sequence[Try], config: Config, *, graded: bool
) -> dict[str, float]:
    """How the policy finds held-out pairs of the model at the start, compared with that model.

    The margin is in nats: how much likelier the policy finds the chosen try than the model at the start does, less the
    same of the rejected try. The model at the start itself has a margin of 0.
    """
    found = [pair for members in by_task(tries).values() for pair in pairs_of(members, graded=graded, at_most=1)]
    table = pa.Table.from_pylist(pair_rows(found), schema=pa.schema(list(ROW_COLUMNS.items())))
    pairs = Pairs.from_table(table).to(config.device)
    margins: list[float] = []
    with torch.no_grad():
        for chosen in pairs.by_length(config.micro_batch_pairs):
            batch = pairs.take(chosen).batch
            ratios = try_logprobs(models["policy"], batch, per_token=False) - try_logprobs(
                models["start"], batch, per_token=False
            )
            margins += (ratios[::2] - ratios[1::2]).tolist()
    number = max(1, len(margins))
    return {
        "held_out_pairs": float(len(margins)),
        "preference_accuracy": sum(margin > ROUNDING for margin in margins) / number,
        "preference_margin": sum(margins) / number,
    }


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    checkpoint = Checkpoint.load(path=config.checkpoint_path, made_by="nemotron.recipes.nano2.stage3_dpo.training")
    checkpoint.check_scale(config.scale)
    dataset = Dataset.load(path=checkpoint.dataset_path, given=checkpoint)
    base = dataset.base()

    with working_directory(config.output_dir, Results) as work, threads_of(config.scale):
        harness = run_harness(config, checkpoint.checkpoint_path, work)
        verify = Verifier(CHAT, checkpoint.checkpoint_path)
        prompts = next(prompt_batches(dataset.held_out_path, pq.read_metadata(dataset.held_out_path).num_rows,
                                      first_step=0))  # fmt: skip
        exercises = [exercise_from_row(row) for row in pq.read_table(dataset.exercises_path).to_pylist()]
        models = {
            "start": load_for_inference(base.checkpoint_path, device=config.device),
            "policy": load_for_inference(checkpoint.checkpoint_path, device=config.device),
        }
        # Held-out tasks, as in training: conversations drawn from the model itself, judged by the database.
        free = Sampling(config.max_new_tokens, verify.chat.stop_ids, 1.0)
        tries = {
            name: draw_tries(model, verify, prompts, config.tries, free, ("held out", config.seed),
                             max_turns=config.max_turns)
            for name, model in models.items()
        }  # fmt: skip
        metrics = try_metrics(tries, config.tries)
        metrics |= preferences(models, tries["start"], config, graded=dataset.graded)
        # What a policy gets that says the same at every turn.
        tasks = [prompt.exercise for prompt in prompts]
        constant = best_constant_policy(tasks, {task.answer for task in tasks}, config.max_turns)
        metrics["success/best_constant"] = constant.share

        # The exam of every family, as after the stages before.
        drawn = Sampling(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        exam = take_exam(models, verify.tokenizer, verify.chat, exercises, drawn, num_answers=dataset.num_tasks,
                         seed=config.seed, batch_replies=config.batch_replies)  # fmt: skip
        metrics |= exam.metrics
        for name, model in models.items():
            nats = right_reply_losses(model, exercises, verify.tokenizer, verify.chat, BATCH_TOKENS)
            metrics |= {f"nats/{family}/{name}": loss for family, loss in nats.items()}

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        ladder.add("inputs", weight_fingerprint(models["policy"]))
        ladder.add("exercises", sha256=sha256_of(one.id for one in [*tasks, *exercises]))
        for name, found in tries.items():
            tokens = (str(token) for one in found for written in one.tokens for token in [*written, -1])
            ladder.add("tries", {name: sha256_of(tokens)})
            ladder.add("rewards", {name: [one.level for one in found]})
        ladder.add("replies", exam.digests())
        ladder.add("metrics", metrics)
        ladder.add("headline", {name: metrics[name] for name in HEADLINE})

        table = results_table(checkpoint, metrics, constant)
        (work / "results.md").write_text(table, encoding="utf-8", newline="\n")
        plot_exam(metrics, NAMES, work / "exam.svg")
        exam.write_replies(work / "replies.parquet")
        plot_training(checkpoint, dataset, metrics, work / "training.svg")
        shown = [
            place * config.tries
            for kind in KINDS
            for place in [index for index, task in enumerate(tasks) if kind_of(task) == kind][:SHOWN]
        ]
        beside = [{name: found[index] for name, found in tries.items()} for index in shown]
        page = conversations_page(checkpoint, beside, verify.decode)
        (work / "conversations.md").write_text(page, encoding="utf-8", newline="\n")
        Results(
            path=work,
            checkpoint_path=checkpoint.path,
            table_path=work / "results.md",
            plot_path=work / "exam.svg",
            training_plot_path=work / "training.svg",
            conversations_path=work / "conversations.md",
            metrics=metrics | harness,
        ).save(config, ladder)
    print_markdown(table)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
