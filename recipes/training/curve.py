"""The curves of a training run as a plot.

In: a run's record. Out: an SVG file, the same bytes whenever the numbers are the same.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from nemotron.recipes.training.state import Record


def plot_curve(record: Record, path: Path, unit: str = "token") -> None:
    """Training and validation loss over the tokens seen, phases marked; below it, each other number of the loop.

    Args:
        unit: what the loss is a mean over, if not tokens.
    """
    tokens = np.cumsum([row["tokens"] for row in record.curve])
    others = [name for name in record.numbers if name != "loss"]
    height = 4 + 1.1 * len(others)
    figure = Figure(figsize=(8, height))
    loss_axes, *other_axes = figure.subplots(1 + len(others), 1, sharex=True, height_ratios=[3] + [1] * len(others),
                                             squeeze=False)[:, 0]  # fmt: skip
    # Margins in inches, because to compute a layout takes as long as to draw.
    figure.subplots_adjust(1.15 / 8, 0.5 / height, 1 - 0.45 / 8, 1 - 0.3 / height, hspace=0.25)
    loss_axes.plot(tokens, [row["loss"] for row in record.curve], color="0.6", linewidth=1, label="training")
    for category in sorted({row["category"] for row in record.validation}):
        rows = [row for row in record.validation if row["category"] == category]
        loss_axes.plot(
            [tokens[row["step"] - 1] for row in rows],
            [row["loss"] for row in rows],
            marker="o",
            label=f"validation, {category}",
        )
    phases = [row["phase"] for row in record.curve]
    for phase in dict.fromkeys(phases):
        first = phases.index(phase)
        edge = tokens[first - 1] if first else 0
        loss_axes.axvline(edge, color="0.85", zorder=0)
        loss_axes.text(edge, 1.0, f" {phase}", transform=loss_axes.get_xaxis_transform(), fontsize=8, va="bottom")
    loss_axes.set_ylabel(f"loss, nats per {unit}")
    loss_axes.legend(frameon=False)
    for name, axes in zip(others, other_axes, strict=True):
        axes.plot(tokens, [row[name] for row in record.curve], color="tab:red", linewidth=1)
        axes.set_ylabel(name.replace("_", "\n"), fontsize=8)  # no higher than its panel
    figure.axes[-1].set_xlabel(f"{unit}s in the loss")
    save_figure(figure, path)


def plot_and_panels(
    height: float, num_panels: int, *, first: float = 2.0, above: float = 0.3
) -> tuple[Figure, GridSpec]:
    """A figure of 8 inches with one high row and rows of two panels below it, margins in inches.

    Args:
        first: height of the first row, in those of the others.
        above: room over the first row.
    """
    figure = Figure(figsize=(8, height))
    rows = num_panels // 2
    grid = figure.add_gridspec(1 + rows, 2, height_ratios=[first] + [1] * rows, left=0.7 / 8, right=1 - 0.2 / 8,
                               top=1 - above / height, bottom=0.5 / height, hspace=0.65, wspace=0.25)  # fmt: skip
    return figure, grid


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as SVG: the same bytes for the same numbers, on every system. Every plot of a recipe uses it."""
    with matplotlib.rc_context({"svg.hashsalt": "nemotron"}), open(path, "wb") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
