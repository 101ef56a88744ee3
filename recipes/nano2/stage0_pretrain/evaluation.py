"""Evaluate the base model on held-out text, long documents, recall and problems, beside baselines and chance levels.

In: the Checkpoint of training.py, and through it the Dataset that it was trained on.
Out: Results: metrics, a readable table, a plot, and the answer to every problem.
Source: the published evaluation of the base model (arXiv 2508.14444, tables 5 and 6) runs benchmarks that a small model
answers by chance. What stands here shows progress at every size: bits per byte against n-grams, the loss beyond the
base sequence length, recall of a fact over a growing distance (the simplest of RULER's tasks), and multiple choice.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.evaluation --scale tiny --checkpoint-path <directory>

Left out: the published benchmarks. The Checkpoint is a Hugging Face directory, so lm-evaluation-harness runs on it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich.console import Console
from rich.markdown import Markdown
from tokenizers import Tokenizer

from nemotron import Artifact, Scale, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT
from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
from nemotron.recipes.nano2.stage0_pretrain.report import plot_results, results_table
from nemotron.recipes.nano2.stage0_pretrain.training import Checkpoint
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.bits_per_byte import bits_per_byte, token_byte_lengths
from nemotron.recipes.scoring.likelihood import score_rows
from nemotron.recipes.scoring.multiple_choice import Question, choice_accuracy, pick_choices
from nemotron.recipes.scoring.ngram import KneserNey, Unigram
from nemotron.recipes.scoring.recall import recall_by_distance
from nemotron.recipes.sources.problems import lookup
from nemotron.recipes.training.device import device_memory_bytes


@dataclass
class Config:
    """Evaluate a pretrained checkpoint. A number left out is the one in sizes.py for the scale."""

    scale: Scale = "tiny"
    """Scale of the checkpoint: tiny, small, medium or full; picks device, arithmetic and output directory."""
    seed: int = 1234
    """Only recorded: nothing in this step is random."""
    output_dir: Path | None = None
    """Where the Results go; outputs/nano2/<scale>/stage0_pretrain/evaluation if left out."""
    checkpoint_path: Path | None = None
    """Directory of the Checkpoint; read from the pipe if left out."""
    batch_tokens: int | None = None
    """Tokens in one forward pass; changes memory and speed, not the result. Left out: 2,048 on a CPU, whose caches hold
    them, and 65,536 on a GPU."""
    ngram_order: int = 5
    """Length in tokens of the n-grams of the Kneser-Ney baseline."""
    max_baseline_tokens: int = 40_000_000
    """The baselines read no more training tokens than these, which take about 10 GB of memory."""
    dtype: Literal["float64", "float32", "bfloat16"] | None = None
    """Arithmetic of the model; bfloat16 keeps float32 weights and computes matrix products in bfloat16."""
    device: str | None = None
    """Where to evaluate: cpu, cuda, cuda:1, ..."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "ngram_order", "max_baseline_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")


class Results(Artifact):
    """What the model can do, every number with what it has to be compared with."""

    checkpoint_path: Path
    """The Checkpoint that was evaluated."""
    table_path: Path
    """Markdown: the metrics as a person reads them."""
    plot_path: Path
    predictions_path: Path
    """Parquet: id, question, answer and picked of every problem."""


ALL = "all"  # every category of text, every family of problems


def read_rows(path: Path) -> list[np.ndarray]:
    """The column `tokens` of a Parquet file, one array of token ids a row."""
    column = pq.read_table(path, columns=["tokens"])["tokens"].combine_chunks()
    return [column.values[start:end].to_numpy() for start, end in pairwise(column.offsets.to_pylist())]


def trained_sequences(dataset: Dataset, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """(category, token ids) of every sequence that the model was trained on, in the order of training."""
    curve = pq.read_table(checkpoint.curve_path, columns=["phase", "tokens"]).to_pylist()
    for phase, path in {
        "phase1": dataset.phase1_path,
        "phase2": dataset.phase2_path,
        "phase3": dataset.phase3_path,
        "long_context": dataset.long_context_path,
    }.items():
        left = sum(step["tokens"] for step in curve if step["phase"] == phase)
        for batch in pq.ParquetFile(path).iter_batches(columns=["category", "tokens"]):
            for category, tokens in zip(batch["category"].to_pylist(), batch["tokens"], strict=True):
                if left <= 0:
                    break
                left -= len(tokens) - 1
                yield category, tokens.values.to_numpy()


def baseline_rows(dataset: Dataset, checkpoint: Checkpoint, max_tokens: int) -> list[np.ndarray]:
    """The text of the trained sequences, once, however many epochs of it the model read.

    Reading it again would only harm the baseline: Kneser-Ney smoothing goes by what occurred exactly once.
    """
    first_epoch: dict[str, int] = {}  # category -> tokens that are still unread
    for category in {category for shares in dataset.blend.values() for category in shares}:
        tokens, epochs = 0, 0.0
        for phase, shares in dataset.blend.items():
            if category in shares:
                length = dataset.long_context_length if phase == "long_context" else dataset.sequence_length
                tokens += shares[category].num_sequences * length
                epochs += shares[category].epochs or 0.0  # None: made for the phase, never repeated
        first_epoch[category] = round(tokens / max(1.0, epochs))
    rows = []
    for category, row in trained_sequences(dataset, checkpoint):
        new_tokens = min(len(row) - 1, first_epoch[category], max_tokens)
        if new_tokens > 0:
            rows.append(row[: new_tokens + 1])
            first_epoch[category] -= new_tokens
            max_tokens -= new_tokens
        if max_tokens == 0:
            break
    return rows


def question_prompt(family: str, question: str) -> str:
    """A problem without steps up to the space before its answer, as `problem_text` writes it for training."""
    return question if family == lookup.FAMILY else f"Question: {question}\nAnswer:"


def digest_of_tokens(rows: list[np.ndarray]) -> str:
    """sha256 over the length and the token ids of every row."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + row.astype("<i4").tobytes())
    return digest.hexdigest()


def refuse_other_scale(scale: Scale, checkpoint: Artifact) -> None:
    """Raise ValueError if the Checkpoint was trained at another scale than the one whose sizes are to be used."""
    trained = (checkpoint.producer.get("config") or {}).get("scale", scale)
    if trained != scale:
        raise ValueError(f"scale={scale}, but {checkpoint.path} was trained at {trained}; use --scale {trained}")


HEADLINE = (f"bits_per_byte/{ALL}", f"multiple_choice/{ALL}/accuracy")  # what a line of golden/CHANGES.md shows


def main(config: Config) -> Results:
    """Evaluate and return the Results."""
    config = resolved(config, "stage0_pretrain", "evaluation")
    assert config.output_dir
    assert config.device
    device_memory_bytes(config.device)  # refuses a device that this machine does not have
    checkpoint = Checkpoint.load(path=config.checkpoint_path)
    refuse_other_scale(config.scale, checkpoint)
    dataset = Dataset.load(path=checkpoint.dataset_path)

    with working_directory(config.output_dir, Results) as work:
        tokenizer = Tokenizer.from_file(str(checkpoint.checkpoint_path / "tokenizer.json"))
        weight_dtype = torch.float64 if config.dtype == "float64" else torch.float32
        model = load_checkpoint(checkpoint.checkpoint_path, device=config.device, dtype=weight_dtype)
        autocast = torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.dtype == "bfloat16")
        batch_tokens = config.batch_tokens or (2048 if config.device == "cpu" else 65536)
        score = partial(score_rows, model, batch_tokens=batch_tokens, device=config.device, precision=autocast)
        metrics: dict[str, float] = {}

        # Held-out text: the same targets for the model and both baselines.
        rows = read_rows(dataset.validation_path)
        categories = pq.read_table(dataset.validation_path, columns=["category"])["category"].to_pylist()
        baseline = baseline_rows(dataset, checkpoint, config.max_baseline_tokens)
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

        # Long held-out documents: loss by position, where training at base length has been and beyond.
        long_rows = read_rows(dataset.long_validation_path)
        long = np.mean([scores.losses for scores in score(long_rows)], axis=0)
        metrics["long_loss/within_base_length"] = float(long[: dataset.sequence_length].mean())
        metrics["long_loss/beyond_base_length"] = float(long[dataset.sequence_length :].mean())
        metrics["long_loss/num_documents"] = len(long_rows)

        # Recall of one of 1,000 values by its key.
        recall_rows = read_rows(dataset.recall_path)
        labels = pq.read_table(dataset.recall_path, columns=["answer_start", "distance"]).to_pydict()
        recall = recall_by_distance(score, recall_rows, labels["answer_start"], labels["distance"])
        for distance, result in recall.items():
            metrics |= result.answers.metrics(f"recall/{distance}")
            metrics |= result.digits.metrics(f"recall_digits/{distance}")
            metrics[f"recall/{distance}/answer_loss"] = result.answer_loss

        # Problems: the likeliest choice.
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
        inputs = {"baseline": baseline, "validation": rows, "long_validation": long_rows, "recall": recall_rows}
        ladder = [
            *[("config", name, getattr(config, name)) for name in ("scale", "dtype", "ngram_order")],
            *[("inputs", name, digest_of_tokens(read)) for name, read in inputs.items()],
            ("predictions", "picked", picked),
            *[("metrics", name, int(value) if "num_" in name else value) for name, value in metrics.items()],
            *[("headline", name, metrics[name]) for name in HEADLINE],
        ]
        entries = [{"rung": rung, "name": name, "step": 0, "value": value} for rung, name, value in ladder]
        (work / "ladder.json").write_text(json.dumps(entries, indent=1))

        table = results_table(checkpoint, text, metrics, recall, choices, predictions)
        (work / "results.md").write_text(table, encoding="utf-8")
        plot_results(text, long, dataset.sequence_length, recall, work / "results.svg")
        pq.write_table(pa.Table.from_pylist(predictions), work / "predictions.parquet")
        Results(
            path=work,
            checkpoint_path=checkpoint.path,
            table_path=work / "results.md",
            plot_path=work / "results.svg",
            predictions_path=work / "predictions.parquet",
            metrics=metrics,
        ).save(config)
    Console(stderr=True).print(Markdown(table))
    return Results.load(config.output_dir)


if __name__ == "__main__":
    config = tyro.cli(Config)
    with step_process():
        print_complete({"results": main(config)})
