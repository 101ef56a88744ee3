"""What stage 0 shows to a person: a sample of the model's text; the results of its evaluation as a table and a plot.

In: the model; what evaluation.py measured. Out: text, and an SVG file that has the same bytes whenever the numbers are
the same.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_tokenizer
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.recall import Recall
from nemotron.recipes.training.curve import save_figure
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import LINES, print_line, printable


def write_sample(model: NemotronH | None, dataset: Dataset, seed: int, path: Path) -> None:
    """Write and show what the model says after the first sixteen tokens of a held-out sequence."""
    if model is None:  # of several processes, the first one has it
        return
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    prompt = pq.read_table(dataset.validation_path, columns=["tokens"])["tokens"][0].as_py()[:16]
    (continuation,) = generate(model, [prompt], Sampling(max_new_tokens=48, temperature=0.7), seeds=[seed])
    sample = tokenizer.decode(continuation.tokens)
    path.write_text(printable(sample, keep=LINES), encoding="utf-8", newline="\n")
    print_line(f"sample: {sample!r}")


def results_table(
    checkpoint: Checkpoint,
    text: dict[str, dict[str, float]],
    metrics: dict[str, float],
    recall: dict[int, Recall],
    choices: dict[str, Accuracy],
    predictions: list[dict[str, Any]],
) -> str:
    """Everything as Markdown, for a person."""

    def percent(result: Accuracy) -> str:
        return f"{result.accuracy:.1%} ± {result.standard_error:.1%}"

    def line(text: str) -> str:
        return text.replace("\n", " ").replace("|", "\\|")

    def change(model: float, baseline: float) -> str:
        return f"{model / baseline - 1:+.1%}"

    text_rows = [
        f"| {category} | {metrics[f'num_bytes/{category}']:,.0f} | {row['model']:.3f} | {row['kneser_ney']:.3f} | "
        f"{row['unigram']:.3f} | {change(row['model'], row['kneser_ney'])} | {change(row['model'], row['unigram'])} |"
        for category, row in text.items()
    ]
    recall_rows = [
        f"| {distance} | {result.answers.num_asked} | {percent(result.answers)} | {percent(result.digits)} | "
        f"{result.answer_loss:.2f} |"
        for distance, result in recall.items()
    ]
    choice_rows = [
        f"| {family} | {result.num_asked} | {percent(result)} | {result.chance_level:.1%} |"
        for family, result in choices.items()
    ]
    prediction_rows = [
        f"| {line(row['question'])} | {line(row['answer'])} | {line(row['picked'])} |" for row in predictions[:5]
    ]
    nearest = next(iter(recall.values()))
    answers, digits = nearest.answers.chance_level, nearest.digits.chance_level
    return "\n".join(
        [
            "# The base model on held-out data\n",
            f"{checkpoint.num_parameters:,} parameters, {checkpoint.num_steps:,} steps.\n",
            "## Text: bits per byte\n",
            "| category | bytes | model | Kneser-Ney | unigram | model to Kneser-Ney | model to unigram |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *text_rows,
            f"\nThe baselines read the model's own training text, {metrics['num_baseline_tokens']:,.0f} tokens.\n",
            "## Long documents: loss by position\n",
            "| positions | nats per token |",
            "|---|---:|",
            f"| within the base length | {metrics['long_loss/within_base_length']:.3f} |",
            f"| beyond it | {metrics['long_loss/beyond_base_length']:.3f} |\n",
            "## Recall: three digits, by the number of tokens between fact and question\n",
            "| distance | rows | right | digits right | nats per answer |",
            "|---:|---:|---:|---:|---:|",
            *recall_rows,
            f"| by chance | | {answers:.1%} | {digits:.1%} | {-math.log(answers):.2f} |",
            "\n## Problems: the likeliest choice, without worked steps\n",
            "| family | problems | right | by chance |",
            "|---|---:|---:|---:|",
            *choice_rows,
            "\n| the first problems | answer | picked |",
            "|---|---|---|",
            *prediction_rows,
            "",
        ]
    )


def plot_results(
    text: dict[str, dict[str, float]], long: np.ndarray, base_length: int, recall: dict[int, Recall], path: Path
) -> None:
    """Plot bits per byte by category, loss by position and recall by distance; equal numbers give an equal file."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    text_axes, long_axes, recall_axes = figure.subplots(1, 3)
    places = np.arange(len(text))
    kinds = {"model": ("model", "C0"), "kneser_ney": ("Kneser-Ney", "0.5"), "unigram": ("unigram", "0.8")}
    for bar, (kind, (label, color)) in enumerate(kinds.items()):
        heights = [row[kind] for row in text.values()]
        text_axes.bar(places + 0.27 * (bar - 1), heights, 0.25, color=color, label=label)
    text_axes.set_xticks(places, list(text))
    text_axes.set_ylabel("bits per byte, held-out text")
    text_axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    bin_size = base_length // 2
    bins = [long[start : start + bin_size].mean() for start in range(0, len(long), bin_size)]
    long_axes.plot((np.arange(len(bins)) + 0.5) * bin_size, bins, marker="o")
    long_axes.axvline(base_length, color="0.6", linestyle="--", label="base length")
    long_axes.set_xlabel("position in a long held-out document")
    long_axes.set_ylabel(f"nats per token, mean of {bin_size} positions")
    long_axes.legend(frameon=False)

    distances = [str(distance) for distance in recall]
    for kind, color in (("answers", "C0"), ("digits", "C1")):
        results = [getattr(result, kind) for result in recall.values()]
        shares, errors = [r.accuracy for r in results], [r.standard_error for r in results]
        recall_axes.errorbar(distances, shares, errors, marker="o", capsize=3, color=color, label=kind)
        recall_axes.axhline(results[0].chance_level, color=color, linestyle="--", label=f"{kind}, by chance")
    recall_axes.set_xlabel("tokens between fact and answer")
    recall_axes.set_ylabel("share right")
    recall_axes.set_ylim(-0.03, 1.03)
    recall_axes.legend(frameon=False)
    save_figure(figure, path)
