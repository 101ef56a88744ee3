"""Evaluate the base model on held-out text, long documents, recall and problems, beside baselines and chance levels.

In: the Checkpoint of training.py, and through it the Dataset that it was trained on.
Out: Results: metrics, a readable table, a plot, and the answer to every problem.
Source: the published evaluation of the base model (arXiv 2508.14444, tables 5 and 6) runs benchmarks that a small model
answers by chance. The measures here show progress at every size: bits per byte against n-grams, the loss beyond the
base sequence length, recall of a fact over a growing distance (the simplest of RULER's tasks), and multiple choice.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.evaluation --scale tiny --checkpoint-path <directory>

The published benchmarks run with --harness lm-eval --tasks <names> (recipes/nano2/harness).
"""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt
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
)
from nemotron.ladder import Ladder
from nemotron.pipe import step_process
from nemotron.recipes.curation.digests import sha256_of_rows
from nemotron.recipes.curation.rows import read_column, read_rows, read_token_rows
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT
from nemotron.recipes.nano2.harness import HarnessConfig, run_harness
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
from nemotron.recipes.nano2.stage0_pretrain.report import plot_results, results_table
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_tokenizer
from nemotron.recipes.nemotron_h.device import device_memory_bytes
from nemotron.recipes.nemotron_h.threads import threads_of
from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.bits_per_byte import bits_per_byte, token_byte_lengths
from nemotron.recipes.scoring.likelihood import score_rows
from nemotron.recipes.scoring.multiple_choice import Question, choice_accuracy, pick_choices
from nemotron.recipes.scoring.ngram import KneserNey, Unigram
from nemotron.recipes.scoring.recall import recall_by_distance
from nemotron.recipes.sources.problems import lookup
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import print_markdown


@dataclass
class Config(HarnessConfig):
    """Evaluate a pretrained checkpoint."""

    seed: int = 1234
    """Recorded, and not used: nothing in this step is random."""
    output_dir: Path = output_below("nano2", "stage0_pretrain", "evaluation")
    """Where the Results go."""
    checkpoint_path: Path | None = input_path()
    """Directory of the Checkpoint; read from the pipe if left out."""
    batch_tokens: PositiveInt = by_scale(tiny=2048, small=2048, medium=65_536, full=our_choice(65_536), recorded=False)
    """Tokens in one forward pass: what the caches of a CPU hold, or a GPU's memory; does not change the result."""
    ngram_order: PositiveInt = at_every_scale(our_choice(5))
    """Length in tokens of the n-grams of the Kneser-Ney baseline."""
    max_baseline_tokens: PositiveInt = at_every_scale(our_choice(40_000_000))
    """The baselines read at most this many training tokens, which take about 10 GB of memory."""
    device: str = by_scale(**DEVICES, recorded=False)
    """Where to evaluate: cpu, cuda, cuda:1, ..."""


class Results(Artifact):
    """What the model can do, each number beside what to compare it with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    plot_path: Path
    predictions_path: Path
    """Parquet: id, question, answer and picked of every problem."""


ALL = "all"  # every category of text, every family of problems


def baseline_rows(dataset: Dataset, max_tokens: int) -> list[np.ndarray]:
    """The text of the training sequences, once, however many epochs of it the model read.

    Repeated text would only harm the baseline: Kneser-Ney discounts come from n-grams that occur one to four times.
    """
    # How many tokens each category has, found from how many were read and how often.
    first_epoch: dict[str, int] = {}  # category -> tokens that are still unread
    for category in {category for shares in dataset.blend.values() for category in shares}:
        tokens, epochs = 0, 0.0
        for phase in dataset.phases:
            if share := dataset.blend[phase.name].get(category):
                tokens += share.num_sequences * phase.sequence_length
                epochs += share.epochs or 0.0  # None: made for the phase, never repeated
        first_epoch[category] = round(tokens / max(1.0, epochs))
    rows = []
    for phase in dataset.phases:
        for table in read_rows(phase.paths(dataset.path), rows_per_batch=1000):
            for category, tokens in zip(table["category"].to_pylist(), table["tokens"], strict=True):
                new_tokens = min(len(tokens) - 1, first_epoch[category], max_tokens)
                if new_tokens > 0:
                    rows.append(tokens.values.to_numpy()[: new_tokens + 1])
                    first_epoch[category] -= new_tokens
                    max_tokens -= new_tokens
                if max_tokens == 0:
                    return rows
    return rows


def question_prompt(family: str, question: str) -> str:
    """The start of a problem's training text (`problem_text`): up to the space before the answer, no worked steps."""
    return question if family == lookup.FAMILY else f"Question: {question}\nAnswer:"


HEADLINE = (f"bits_per_byte/{ALL}", f"multiple_choice/{ALL}/accuracy")  # what a line of golden/CHANGES.md shows


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    checkpoint = Checkpoint.load(path=config.checkpoint_path, made_by="nemotron.recipes.nano2.stage0_pretrain.training")
    checkpoint.check_scale(config.scale)
    dataset = Dataset.load(path=checkpoint.dataset_path, given=checkpoint)

    with working_directory(config.output_dir, Results) as work, threads_of(config.scale):
        harness = run_harness(config, checkpoint.checkpoint_path, work)
        tokenizer = load_tokenizer(checkpoint.checkpoint_path)
        # Evaluation computes in the precision of the weights, also where training computed in bfloat16.
        model = load_checkpoint(checkpoint.checkpoint_path, device=config.device)
        score = partial(score_rows, model, batch_tokens=config.batch_tokens, device=config.device)
        metrics: dict[str, float] = {}

        # Held-out text: the same targets for the model and both baselines. Bits per byte and not per token, so that
        # models with other tokenizers can be compared.
        rows = read_token_rows(dataset.validation_path)
        categories = read_column(dataset.validation_path, "category")
        baseline = baseline_rows(dataset, config.max_baseline_tokens)
        metrics["num_baseline_tokens"] = sum(len(row) - 1 for row in baseline)
        losses = {  # per row the (t,) nats of its targets
            "model": [scores.losses for scores in score(rows)],
            "kneser_ney": KneserNey(baseline, dataset.vocab_size, config.ngram_order).losses(rows),
            "unigram": Unigram(baseline, dataset.vocab_size).losses(rows),
        }
        byte_lengths = token_byte_lengths(tokenizer)
        text: dict[str, dict[str, float]] = {}
        for category in [*sorted(set(categories)), ALL]:
            chosen = [index for index, name in enumerate(categories) if category in (name, ALL)]
            text[category] = {}
            for name, row_losses in losses.items():
                measured = bits_per_byte([row_losses[i] for i in chosen], [rows[i] for i in chosen], byte_lengths)
                text[category][name] = measured.bits_per_byte
                prefix = "" if name == "model" else f"{name}_"
                metrics[f"{prefix}bits_per_byte/{category}"] = measured.bits_per_byte
            metrics[f"num_bytes/{category}"] = measured.num_bytes

        # Long held-out documents: loss by position, within the length of phases 1 to 3 and beyond it.
        long_rows = read_token_rows(dataset.long_validation_path)
        long = np.mean([scores.losses for scores in score(long_rows)], axis=0)
        metrics["long_loss/within_base_length"] = float(long[: dataset.sequence_length].mean())
        metrics["long_loss/beyond_base_length"] = float(long[dataset.sequence_length :].mean())
        metrics["long_loss/num_documents"] = len(long_rows)

        # Recall of one of 1,000 values by its key: shows at which distances the model still uses its context.
        recall_rows = read_token_rows(dataset.recall_path)
        answer_starts, distances = (read_column(dataset.recall_path, name) for name in ("answer_start", "distance"))
        recall = recall_by_distance(score, recall_rows, answer_starts, distances)
        for distance, result in recall.items():
            metrics |= result.answers.metrics(f"recall/{distance}")
            metrics |= result.digits.metrics(f"recall_digits/{distance}")
            metrics[f"recall/{distance}/answer_loss"] = result.answer_loss

        # Problems: the likeliest choice, because a small model cannot write an answer yet.
        problems = pq.read_table(dataset.problems_path).to_pylist()
        families = [problem["id"].split("/")[-2] for problem in problems]  # evaluation/<family>/<number>
        questions = [
            Question(question_prompt(family, problem["question"]), tuple(problem["choices"]), problem["correct"])
            for family, problem in zip(families, problems, strict=True)
        ]
        picked = pick_choices(score, questions, lambda text: tokenizer.encode(text).ids, END_OF_DOCUMENT)
        choices: dict[str, Accuracy] = {}
        for family in [*sorted(set(families)), ALL]:
            chosen = [index for index, name in enumerate(families) if family in (name, ALL)]
            choices[family] = choice_accuracy([questions[i] for i in chosen], [picked[i] for i in chosen])
            metrics |= choices[family].metrics(f"multiple_choice/{family}")
        predictions = [
            {"id": p["id"], "question": p["question"], "answer": p["choices"][p["correct"]], "picked": p["choices"][i]}
            for p, i in zip(problems, picked, strict=True)
        ]

        # What a run must reproduce, in the order in which it happens.
        ladder = Ladder()
        ladder.add_config(config)
        inputs = {"baseline": baseline, "validation": rows, "long_validation": long_rows, "recall": recall_rows}
        ladder.add("inputs", {name: sha256_of_rows(read) for name, read in inputs.items()})
        ladder.add("predictions", picked=picked)
        ladder.add("metrics", {name: int(value) if "num_" in name else value for name, value in metrics.items()})
        ladder.add("headline", {name: metrics[name] for name in HEADLINE})

        table = results_table(checkpoint, text, metrics, recall, choices, predictions)
        (work / "results.md").write_text(table, encoding="utf-8", newline="\n")
        plot_results(text, long, dataset.sequence_length, recall, work / "results.svg")
        pq.write_table(pa.Table.from_pylist(predictions), work / "predictions.parquet")
        Results(
            path=work,
            checkpoint_path=checkpoint.path,
            table_path=work / "results.md",
            plot_path=work / "results.svg",
            predictions_path=work / "predictions.parquet",
            metrics=metrics | harness,
        ).save(config, ladder)
    print_markdown(table)
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"results": main(config)})
