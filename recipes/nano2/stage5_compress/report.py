"""The results of stage 5 for a person: a table, and plots of importance, candidates, recovery and the exam.

In: what the steps recorded and measured. Out: Markdown, and SVG files that have the same bytes whenever the numbers are
the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nemotron.recipes.nano2.stage5_compress.data_curation import SFT
from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP
from nemotron.recipes.nemotron_h.pruning import Importance
from nemotron.recipes.scoring.exam_report import asked_families, exam_rows
from nemotron.recipes.training.curve import save_figure
from nemotron.recipes.training.run import Checkpoint

NAMES = {"teacher": "teacher", "pruned": "pruned", "scratch": "from scratch", "distilled": "distilled",
         "final": "after the final stages"}  # fmt: skip
"""The models that are compared, in the order of the tables."""
EARLIER = {
    "bits_per_byte": "bits per byte of held-out text (stage 0)",
    "reward": "reward on held-out instructions (stage 2)",
    "strict_prompt": "held-out instructions that are followed (stage 2)",
    "success/all": "held-out tasks with tools that end in the right state (stage 3)",
    "mean_level": "how far a try got, 3 at most (stage 3)",
    "rubric": "rubric of held-out conversations (stage 4)",
}
"""Measure of an earlier stage -> its row of the table."""
ERRORS = {"success/all": "success_error/all", "rubric": "rubric_error"}
"""Measure -> its standard error, of those that have one."""
SOURCES = {"sft": "conversations", "pretraining": "text", "all": "both, as in the blend"}
COLORS = {MAMBA: "C0", MLP: "C1", ATTENTION: "C3"}
KINDS = {MAMBA: "Mamba-2", MLP: "MLP", ATTENTION: "attention"}


def share_of(gap: float, whole: float) -> float:
    """1 - gap / whole: how much of the whole is closed; 0 if there is nothing to close."""
    return 1 - gap / whole if whole > 0 else 0.0


def recovery_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """How much of what pruning lost the distillation brought back, compared with what training from scratch gives.

    By the loss on conversations, which is what the aligned teacher is for, and by the divergence from the teacher on
    both sources. The loss on text says nothing here: fine-tuning made the teacher forget it.
    """
    loss = {name: metrics[f"loss/{SFT}/{name}"] for name in NAMES if f"loss/{SFT}/{name}" in metrics}
    gaps = {name: value - loss["teacher"] for name, value in loss.items()}
    kl = {name: metrics[f"kl/all/{name}"] for name in loss if name != "teacher"}
    found = {}
    for label, other in (("recovered", "pruned"), ("better_than_scratch", "scratch")):
        if other in loss:
            found[label] = share_of(gaps["distilled"], gaps[other])
            found[f"{label}_kl"] = share_of(kl["distilled"], kl[other])
    return found


def plot_importance(importance: Importance, pattern: str, path: Path) -> None:
    """What the removal of each layer costs, and the scores of the units of each kind, the best first."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 2)
    errors = importance.layer_errors.tolist()
    for letter in dict.fromkeys(pattern):
        places = [index for index, other in enumerate(pattern) if other == letter]
        axes[0, 0].bar(places, [errors[index] for index in places], color=COLORS[letter], label=KINDS[letter])
    for place, (layer, _) in enumerate(importance.layers):
        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes[0, 0].annotate(f"{place + 1}.", (layer, errors[layer]), **above)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("error of the logits without it", fontsize=8)
    axes[0, 0].set_xlabel("layer; above some, the order of their removal", fontsize=8)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    units = {
        "channel of the residual stream": {-1: importance.hidden},
        "neuron of an MLP": importance.mlp,
        "head of a Mamba-2 layer": importance.mamba_heads,
    }
    for panel, (label, of_layers) in zip(axes.flat[1:], units.items(), strict=True):
        for layer, scores in of_layers.items():
            ranked = scores.sort(descending=True).values
            name, marker = None if layer < 0 else f"layer {layer}", "." if len(ranked) < 20 else ""
            panel.plot(np.arange(len(ranked)) + 1, ranked / ranked[0], linewidth=1, marker=marker, label=name)
        panel.set_xlabel(f"{label}, best first", fontsize=8)
        panel.set_ylabel("score, percent of the best", fontsize=8)
        panel.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        panel.set_ylim(0, 1.05)
        if 1 < len(of_layers) <= 8:
            panel.legend(frameon=False, fontsize=7)
    for panel in axes.flat:
        panel.tick_params(labelsize=8, which="both")
    save_figure(figure, path)


def plot_candidates(rows: Sequence[Mapping[str, Any]], budget_bytes: int, teacher_bytes: int, path: Path) -> None:
    """Divergence from the teacher over memory of the candidates that were tried; memory of all shapes as ticks."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}
    name, unit = next((name, size) for name, size in units.items() if budget_bytes >= size)
    for fits, color, label in ((True, "C0", "fits"), (False, "0.6", "does not fit")):
        sizes = [row["total_bytes"] / unit for row in rows if row["fits"] == fits]
        axes.plot(sizes, [0.03] * len(sizes), "|", color=color, markersize=9, transform=axes.get_xaxis_transform(),
                  label=f"{len(sizes)} of the grid: {label}")  # fmt: skip
    tried = [row for row in rows if row["distilled_kl"] is not None]
    for row in tried:
        size = row["total_bytes"] / unit
        color = "C2" if row["chosen"] else "C0"
        before, after = row["pruned_kl"], row["distilled_kl"]
        axes.annotate("", (size, after), (size, before), arrowprops={"arrowstyle": "->", "color": color})
        axes.plot([size], [before], "o", color=color, fillstyle="none")
        axes.plot([size], [after], "o", color=color, label="chosen" if row["chosen"] else None)
    axes.axvline(budget_bytes / unit, color="C3", linestyle=":", label="budget")
    axes.axvline(teacher_bytes / unit, color="0.2", linestyle=":", label="teacher")
    axes.set_xlabel(f"memory of generation, {name}")
    axes.set_ylabel("held-out KL from the teacher: pruned, then\ndistilled for a while, nats per token", fontsize=9)
    axes.margins(y=0.15)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_recovery(distilled: Checkpoint, metrics: Mapping[str, float], path: Path) -> None:
    """Validation over the tokens of distillation, beside the teacher and the control."""
    curve = pq.read_table(distilled.curve_path).to_pylist()
    tokens = np.cumsum([0, *(row["tokens"] for row in curve)])
    validation = pq.read_table(distilled.validation_curve_path).to_pylist()
    # Category of the validation -> the name of its metric, and its title.
    panels = {
        "sft": ("loss/sft", "loss, conversations"),
        "pretraining": ("loss/pretraining", "loss, text"),
        "kl": ("kl/all", "KL from the teacher"),
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (category, (name, title)) in zip(all_axes, panels.items(), strict=True):
        rows = [row for row in validation if row["category"] == category]
        places = [0, *(tokens[row["step"]] for row in rows)]
        losses = [metrics[f"{name}/pruned"], *(row["loss"] for row in rows)]
        axes.plot(places, losses, color="C2", marker="o", markersize=3, label="distilled")
        for model, color in (("teacher", "0.2"), ("scratch", "C1")):
            if f"{name}/{model}" in metrics:
                axes.axhline(metrics[f"{name}/{model}"], color=color, linestyle=":", label=NAMES[model])
        edges = [index for index, row in enumerate(curve) if index and row["phase"] != curve[index - 1]["phase"]]
        for index in edges:
            axes.axvline(tokens[index], color="0.85", zorder=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("tokens of distillation", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=8)
    all_axes[0].set_ylabel("validation, nats per token", fontsize=8)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    save_figure(figure, path)


def results_table(distilled: Checkpoint, metrics: Mapping[str, float], names: Mapping[str, str]) -> str:
    """The metrics as Markdown.

    Args:
        names: the models that were compared -> what a reader calls them.
    """
    header = [f"| {' | '.join(names.values())} |", "|---|" + "---|" * len(names)]
    parts = list(dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith("memory_bytes/")))
    totals = {model: sum(metrics[f"memory_bytes/{part}/{model}"] for part in parts) for model in names}
    fewer = 1 - metrics["num_parameters/distilled"] / metrics["num_parameters/teacher"]
    lines = [
        "# Stage 5: pruned and distilled",
        "",
        f"{metrics['num_parameters/distilled']:,.0f} parameters, {fewer:.1%} fewer than the teacher; "
        f"{distilled.num_steps:,} steps of distillation.",
        "",
        f"| size {header[0]}",
        header[1],
        row_of("parameters", [metrics[f"num_parameters/{model}"] for model in names], ",.0f"),
        *(
            row_of(f"bytes, {part}", [metrics[f"memory_bytes/{part}/{model}"] for model in names], ",.0f")
            for part in parts
        ),
        row_of("bytes at the target context", list(totals.values()), ",.0f"),
        "",
        f"| validation, nats per token {header[0]}",
        header[1],
    ]
    for measure, label in (("loss", "loss"), ("kl", "KL from the teacher")):
        for source, name in SOURCES.items():
            if f"{measure}/{source}/distilled" in metrics:
                values = [metrics.get(f"{measure}/{source}/{model}", 0.0) for model in names]
                lines.append(row_of(f"{label}, {name}", values, ".4f"))
    lines += ["", recovery_sentence(metrics), "", *exam_rows(metrics, names)]
    lines += ["", f"| nats per token of the right reply {header[0]}", header[1]]
    for family in asked_families(metrics)[:-1]:
        lines.append(row_of(family, [metrics[f"nats/{family}/{model}"] for model in names], ".2f"))
    lines += ["", f"| as after the earlier stages {header[0]}", header[1]]
    for measure, label in EARLIER.items():
        cells = [f"{metrics[f'{measure}/{model}']:.3f}" for model in names]
        if measure in ERRORS:
            errors = [metrics[f"{ERRORS[measure]}/{model}"] for model in names]
            cells = [f"{cell} ± {error:.3f}" for cell, error in zip(cells, errors, strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "With standard errors over questions where the measure has one.", ""]
    return "\n".join(lines)


def recovery_sentence(metrics: Mapping[str, float]) -> str:
    """What distillation brought back, and what it is worth beside the control."""
    sentence = (
        f"Distillation recovered {metrics['recovered']:.1%} of the loss on conversations that pruning added, and "
        f"{metrics['recovered_kl']:.1%} of the divergence from the teacher."
    )
    if "better_than_scratch" in metrics:
        sentence += (
            f" Beside the same shape trained from scratch on the same tokens, the gap to the teacher is "
            f"{metrics['better_than_scratch']:.1%} smaller, and the divergence {metrics['better_than_scratch_kl']:.1%}."
        )
    return sentence


def row_of(label: str, values: Sequence[float], form: str) -> str:
    """One row of a table: a number of every model."""
    return f"| {label} | {' | '.join(format(value, form) for value in values)} |"
