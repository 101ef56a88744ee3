"""The results of stage 5 for a person: a table, and plots of importance, candidates, recovery and the exam.

In: what the steps recorded and measured. Out: Markdown, and SVG files that have the same bytes whenever the numbers are
the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP
from nemotron.recipes.nemotron_h.pruning import Importance
from nemotron.recipes.training.curve import save_figure

COLORS = {MAMBA: "C0", MLP: "C1", ATTENTION: "C3"}
KINDS = {MAMBA: "Mamba-2", MLP: "MLP", ATTENTION: "attention"}


def plot_importance(importance: Importance, pattern: str, path: Path) -> None:
    """What the removal of each layer costs, and the scores of the units of each kind, the best first."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 2)
    removed = {layer: place + 1 for place, (layer, _) in enumerate(importance.layers)}
    errors = importance.layer_errors.tolist()
    for letter in dict.fromkeys(pattern):
        places = [index for index, other in enumerate(pattern) if other == letter]
        axes[0, 0].bar(places, [errors[index] for index in places], color=COLORS[letter], label=KINDS[letter])
    for layer, order in removed.items():
        axes[0, 0].annotate(f"removed {order}.", (layer, errors[layer]), xytext=(0, 2), ha="center", fontsize=7,
                            textcoords="offset points")  # fmt: skip
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("error of the logits without it", fontsize=8)
    axes[0, 0].set_xlabel("layer", fontsize=8)
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
        panel.tick_params(labelsize=8)
    save_figure(figure, path)


def plot_candidates(rows: Sequence[Mapping[str, Any]], budget_bytes: int, teacher_bytes: int, path: Path) -> None:
    """Validation loss over memory of the candidates that were distilled; memory of all others as ticks below."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}
    name, unit = next((name, size) for name, size in units.items() if budget_bytes >= size)
    for fits, color, label in ((True, "C0", "fits"), (False, "0.6", "does not fit")):
        sizes = [row["total_bytes"] / unit for row in rows if row["fits"] == fits]
        axes.plot(sizes, [0.03] * len(sizes), "|", color=color, markersize=9, transform=axes.get_xaxis_transform(),
                  label=f"{len(sizes)} of the grid: {label}")  # fmt: skip
    tried = [row for row in rows if row["distilled_loss"] is not None]
    for row in tried:
        size = row["total_bytes"] / unit
        color = "C2" if row["chosen"] else "C0"
        before, after = row["pruned_loss"], row["distilled_loss"]
        axes.annotate("", (size, after), (size, before), arrowprops={"arrowstyle": "->", "color": color})
        axes.plot([size], [before], "o", color=color, fillstyle="none")
        axes.plot([size], [after], "o", color=color, label="chosen" if row["chosen"] else None)
    axes.axvline(budget_bytes / unit, color="C3", linestyle=":", label="budget")
    axes.axvline(teacher_bytes / unit, color="0.2", linestyle=":", label="teacher")
    axes.set_xlabel(f"memory of generation, {name}")
    axes.set_ylabel("validation loss: pruned, then distilled for a while")
    axes.margins(y=0.15)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)
