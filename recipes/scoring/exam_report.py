"""The exam for a person: the rows of a table, and a plot.

In: the metrics of exam.py, and how to call each model. Out: lines of Markdown, and an SVG file that has the same bytes
whenever the numbers are the same.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nemotron.recipes.scoring.exam import difference_suffix
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.curve import save_figure

ALL_BUT_LONG = "**all but long_context**"
OBEYED = {"think": "with /think", "no_think": "with /no_think"}


def exam_rows(metrics: Mapping[str, float], names: Mapping[str, str]) -> list[str]:
    """Lines of Markdown: exact match of every family and model with differences and chance level; obedience; faults.

    Args:
        names: model -> what a reader calls it, in the order of the exam.
    """
    models, columns = list(names), " | ".join(names.values())
    pairs = list(pairwise(models))
    changes = (
        ["difference, points"]
        if len(pairs) == 1
        else [f"{names[after]} less {names[before]}, points" for before, after in pairs]
    )
    lines = [
        f"| exact match | {' | '.join([columns, *changes])} | chance level |",
        f"|---|{'---|' * (len(models) + len(changes))}---|",
    ]
    for family in asked_families(metrics):
        cells = [
            f"{metrics[f'exact_match/{family}/{model}']:.1%} ± {metrics[f'standard_error/{family}/{model}']:.1%}"
            for model in models
        ]
        for _, after in pairs:
            name = f"{family}{difference_suffix(after, models)}"
            change, error = (100 * metrics[f"{kind}/{name}"] for kind in ("difference", "difference_error"))
            cells.append(f"{change:+.1f} ± {error:.1f}")
        cells.append(f"{metrics[f'chance/{family}']:.1%}")
        lines.append(f"| {ALL_BUT_LONG if family == 'all' else family} | {' | '.join(cells)} |")
    lines += ["", f"| thinks or not, as asked | {columns} |", f"|---|{'---|' * len(models)}"]
    for mode, label in OBEYED.items():
        shares = [f"{metrics[f'obeyed/{model}/{mode}']:.1%}" for model in models]
        lines.append(f"| {label} | {' | '.join(shares)} |")
    if f"verifier_faults/exam/{models[0]}" in metrics:
        shares = [f"{metrics[f'verifier_faults/exam/{model}']:.1%}" for model in models]
        lines.append(f"| not judged, because the verifier failed | {' | '.join(shares)} |")
    return [*lines, "", "Means over replies with and without thinking, with standard errors; differences are paired."]


def asked_families(metrics: Mapping[str, float]) -> list[str]:
    """The families that have exercises, in their order, and `all`."""
    return [family for family in [*FAMILIES, "all"] if f"chance/{family}" in metrics]


def plot_exam(metrics: Mapping[str, float], names: Mapping[str, str], path: Path) -> None:
    """The exam by family, a bar for each model, with standard errors; the chance level as a line.

    Args:
        names: model -> what a reader calls it, in the order of the exam; the last one is in color.
    """
    families = [family for family in asked_families(metrics) if family != "all"]
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    places, width = np.arange(len(families)), 0.72 / len(names)
    for index, (model, name) in enumerate(names.items()):
        shares = [metrics[f"exact_match/{family}/{model}"] for family in families]
        errors = [metrics[f"standard_error/{family}/{model}"] for family in families]
        before_last = len(names) - 2 - index
        color = "C0" if before_last < 0 else f"{0.6 + 0.25 * before_last / max(1, len(names) - 2)}"  # older is lighter
        left = (index - (len(names) - 1) / 2) * width
        axes.bar(places + left, shares, width, yerr=errors, label=name, color=color, ecolor="0.3")
    for place, family in zip(places, families, strict=True):
        axes.plot([place - 0.4, place + 0.4], [metrics[f"chance/{family}"]] * 2, color="C3", linewidth=1,
                  label="best constant reply" if place == 0 else None)  # fmt: skip
    axes.set_xticks(places, [family.replace("_", "\n") for family in families])
    axes.set_ylabel("exact match, percent")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.set_ylim(0, 1.05)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(names) + 1, frameon=False)
    save_figure(figure, path)
