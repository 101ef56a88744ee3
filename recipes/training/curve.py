"""The curve of a training run as a plot.

In: a run's record. Out: an SVG file, the same bytes whenever the numbers are the same.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nemotron.recipes.training.state import Record


def plot_curve(record: Record, path: Path) -> None:
    """Training and validation loss over the tokens seen, phases marked, the learning rate below."""
    tokens = np.cumsum([row["tokens"] for row in record.curve])
    figure = Figure(figsize=(8, 5), layout="constrained")
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
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
    loss_axes.set_ylabel("loss, nats per token")
    loss_axes.legend(frameon=False)
    rate_axes.plot(tokens, [row["learning_rate"] for row in record.curve], color="tab:red", linewidth=1)
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_xlabel("tokens in the loss")
    with matplotlib.rc_context({"svg.hashsalt": "nemotron"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
