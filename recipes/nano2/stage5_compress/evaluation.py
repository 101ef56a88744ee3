"""Compare teacher, pruned, distilled and control: validation, the exam, parameters, memory and speed.

In: the Checkpoint of control.py or, if no control was trained, of training.py; through it all the others. Or the
FinalStages of final.py, whose merge is compared too. Out: Results: metrics, a table, plots of the recovery and of the
exam.
Validation loss on held-out rows of both sources, and the divergence from the teacher on them; what share of the loss of
pruning the distillation recovered; how much nearer to the teacher it is than the same shape trained from scratch on the
same tokens. The exam of every family, as after the other stages, and the evaluations of these stages (earlier.py).
Memory is computed, at the context of the search.
Run: python -m nemotron.recipes.nano2.stage5_compress.evaluation --scale tiny --checkpoint-path <directory>

The published benchmarks run with --harness lm-eval --tasks <names> (recipes/nano2/harness).

The speed of decoding is measured side by side and printed, and in no file: it differs from run to run.
Left out: what compares one model with the model it was made from: pairs, reward models; and stage 0's problems, recall
and n-gram model, and stage 1's exam within a thinking budget.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.markdown import Markdown

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
from nemotron.directory import read_metadata
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.chat.template import format_of
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.digests import sha256_of
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.harness import HarnessConfig, run_harness
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nano2.stage5_compress.control import made_checkpoints
from nemotron.recipes.nano2.stage5_compress.data_curation import Dataset
from nemotron.recipes.nano2.stage5_compress.earlier import earlier_evaluations
from nemotron.recipes.nano2.stage5_compress.final import FinalStages
from nemotron.recipes.nano2.stage5_compress.report import NAMES, plot_recovery, recovery_metrics, results_table
from nemotron.recipes.nemotron_h.checkpoint import load_for_inference
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.inference_memory import inference_memory_bytes, parameter_count
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.exam import take_exam
from nemotron.recipes.scoring.exam_report import plot_exam
from nemotron.recipes.scoring.exercises import right_reply_losses
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.training.distill import held_out_divergences, held_out_losses
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.progress import side_by_side
from nemotron.recipes.training.run import Base, Checkpoint
from nemotron.terminal import LINES, print_line, printable


@dataclass
class Config(HarnessConfig):
    """Evaluate teacher, pruned, distilled and control."""

    seed: int = 1234
    """Seed of what is drawn; all models get the same uniform numbers."""
    output_dir: Path = output_below("nano2", "stage5_compress", "evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """Directory of the control, of the distilled Checkpoint, or of the final stages; if left out, a
    Checkpoint is read from the pipe."""
    batch_replies: PositiveInt = at_every_scale(our_choice(128), recorded=False)
    """Replies that are written side by side; changes memory and speed, not the result."""
    batch_tokens: PositiveInt = at_every_scale(our_choice(8192), recorded=False)
    """Most tokens of one forward pass that measures a loss; changes memory, not the result."""
    chunk_tokens: PositiveInt = at_every_scale(our_choice(1024), recorded=False)
    """Tokens whose logits are in memory at a time for the divergence; changes memory, not the result."""
    max_new_tokens: PositiveInt = by_scale(tiny=32, small=96, medium=4096, full=our_choice(8192))
    """Tokens of one reply, at most."""
    temperature: PositiveFloat = at_every_scale(published(0.6, "with thinking, model card of the 9B"))
    """Temperature of the exam with thinking; without, it is greedy."""
    top_p: PositiveFloat = at_every_scale(published(0.95, "with thinking, model card of the 9B"))
    """Share of the probability that the exam with thinking draws from."""
    held_out: Annotated[int, Field(ge=3)] = by_scale(tiny=3, small=30, medium=200, full=our_choice(500))
    """Held-out instructions, tasks with tools and conversations, each, as in the evaluations of stages 2, 3 and 4."""
    constant_replies: PositiveInt = by_scale(tiny=20, small=500, medium=1000, full=our_choice(1000))
    """Training exercises of each family whose right replies are tried as constant replies."""
    speed_sequences: PositiveInt = by_scale(tiny=8, small=8, medium=8, full=published(8, "section 4"), recorded=False)
    """Sequences that are decoded side by side for the speed."""
    speed_tokens: PositiveInt = by_scale(
        tiny=16, small=128, medium=512, full=published(16_384, "section 4, 8k in and 16k out"), recorded=False
    )
    """Tokens of each of them, after a prompt of one token."""
    speed_rounds: PositiveInt = by_scale(tiny=1, small=3, medium=3, full=our_choice(3), recorded=False)
    """Measurements of each model; their median counts."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to evaluate: cpu, cuda, cuda:1, ..."""

    def check(self) -> None:
        super().check()
        Sampling(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)  # refuses what is out of range


class Results(Artifact):
    """What each model knows and needs, each number beside what to compare it with."""

    checkpoint_path: Path
    """The distilled Checkpoint."""
    given_path: Path
    """What was evaluated: the control, the distilled Checkpoint where none was trained, or the final stages."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    recovery_plot_path: Path
    """Validation loss over the tokens of distillation, between pruned and teacher."""
    plot_path: Path
    """The exam of all models by family."""


# What a line of golden/CHANGES.md shows.
HEADLINE = ("loss/sft/teacher", "loss/sft/pruned", "loss/sft/distilled", "recovered", "recovered_kl")


def inputs_of(config: Config) -> tuple[Path, Dataset, dict[str, Checkpoint]]:
    """The directory of what was given, the Dataset of compression, and name -> Checkpoint of what was made with it."""
    path = config.checkpoint_path
    if path and read_metadata(path).type == FinalStages.type_name():
        last = FinalStages.load(path=path)
        dataset, made = made_checkpoints(last.given_path, config.scale)
        return last.path, dataset, made | {"final": Checkpoint.load(path=last.checkpoint_path)}
    dataset, made = made_checkpoints(path, config.scale)
    return made.get("scratch", made["distilled"]).path, dataset, made


def print_speeds(models: Mapping[str, NemotronH], config: Config) -> None:
    """Measure the speed of decoding of all models side by side, and print it."""
    prompts = [[1]] * config.speed_sequences
    sampling = Sampling(config.speed_tokens, stop_ids=())

    def decode(model: NemotronH) -> int:
        return sum(len(one.tokens) for one in generate(model, prompts, sampling, range(len(prompts))))

    speeds = side_by_side({name: partial(decode, model) for name, model in models.items()}, config.speed_rounds)
    for name, speed in speeds.items():
        print_line(f"{NAMES[name]}: {speed:,.0f} tokens/s decoded, {speed / speeds['teacher']:.2f} times the teacher's")


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    given_path, dataset, made = inputs_of(config)
    pruned, distilled = made["pruned"], made["distilled"]
    checkpoints: dict[str, Base] = {"teacher": dataset.base(), **made}

    with working_directory(config.output_dir, Results) as work, threads_of(config.scale):
        harness = run_harness(config, distilled.checkpoint_path, work)
        tokenizer = load_chat_tokenizer(CHAT, distilled.checkpoint_path)
        chat = format_of(CHAT, distilled.checkpoint_path)
        exercises = [exercise_from_row(row) for row in pq.read_table(dataset.exercises_path).to_pylist()]
        models = {
            name: load_for_inference(one.checkpoint_path, device=config.device) for name, one in checkpoints.items()
        }

        # Held-out rows of both sources: the loss, and how far each model is from the teacher.
        metrics: dict[str, float] = {}
        memory: dict[str, Any] = {name: int(pruned.metrics[name]) for name in ("context_tokens", "sequences")}
        for name, model in models.items():
            losses = held_out_losses(model, dataset.validation_path, dataset.shares(), dtype="float32",
                                     batch_tokens=config.batch_tokens, device=config.device)  # fmt: skip
            metrics |= {f"loss/{source}/{name}": losses[source] for source in dataset.shares()}
            if name != "teacher":
                kl = held_out_divergences(model, models["teacher"], dataset.validation_path, dataset.shares(),
                                          chunk_tokens=config.chunk_tokens, dtype="float32",
                                          device=config.device)  # fmt: skip
                metrics |= {f"kl/{source}/{name}": value for source, value in kl.items()}
            metrics[f"num_parameters/{name}"] = parameter_count(model.config)
            for part, size in inference_memory_bytes(model.config, **memory).items():
                metrics[f"memory_bytes/{part}/{name}"] = size
        metrics |= recovery_metrics(metrics)

        # The exam of every family, as after the other stages.
        drawn = Sampling(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        exam = take_exam(models, tokenizer, chat, exercises, drawn, num_answers=config.constant_replies,
                         seed=config.seed, batch_replies=config.batch_replies)  # fmt: skip
        metrics |= exam.metrics
        for name, model in models.items():
            nats = right_reply_losses(model, exercises, tokenizer, chat, config.batch_tokens)
            metrics |= {f"nats/{family}/{name}": loss for family, loss in nats.items()}

        # What the earlier stages measure: held-out text, instructions, tasks with tools, conversations.
        found = earlier_evaluations(models, dataset, distilled.checkpoint_path, config)
        metrics |= found.metrics

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        for name in checkpoints:
            ladder.add("inputs", {f"{name}/{key}": value for key, value in weight_fingerprint(models[name]).items()})
        ladder.add("exercises", sha256=sha256_of(one.id for one in exercises))
        ladder.add("replies", exam.digests())
        ladder.add("rollouts", found.digests)
        ladder.add("metrics", metrics)
        ladder.add("headline", {name: metrics[name] for name in HEADLINE})

        names = {name: NAMES[name] for name in models}
        table = results_table(distilled, metrics, names)
        (work / "results.md").write_text(table, encoding="utf-8", newline="\n")
        plot_exam(metrics, names, work / "exam.svg")
        exam.write_replies(work / "replies.parquet")
        plot_recovery(distilled, metrics, work / "recovery.svg")
        Results(
            path=work,
            checkpoint_path=distilled.path,
            given_path=given_path,
            table_path=work / "results.md",
            recovery_plot_path=work / "recovery.svg",
            plot_path=work / "exam.svg",
            metrics=metrics | harness,
        ).save(config, ladder)
        Console(stderr=True).print(Markdown(printable(table, keep=LINES)))
        print_speeds(models, config)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
