"""The results of stage 4 for a person: tables, and plots of reliability, training, merging, frontier and exam.

In: what the steps recorded and measured. Out: Markdown, and SVG files that have the same bytes whenever the numbers are
the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.exam_report import asked_families, exam_rows
from nemotron.recipes.sources.rubric import WEIGHTS
from nemotron.recipes.training.curve import plot_and_panels, save_figure
from nemotron.recipes.training.preference import Reliability
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import LINES, fenced, printable

NAMES = {"base": "stage before", "policy": "policy", "merged": "merged"}
MARKERS = {"base": "o", "policy": "s", "merged": "D"}
COLORS = {"base": "0.6", "policy": "C0", "merged": "C2"}
SOURCES = {"all": "all pairs", "clean": "label is not noise"}
PANELS: dict[str, dict[str, str]] = {
    "score of the reward model": {"reward": ""},
    "rubric": {"rubric": ""},
    "tokens per reply": {"reply_tokens": ""},
    "words per answer": {"answer_words": ""},
    "shares": {"repetition": "repetitions", "replies_cut": "replies cut"},
    "KL, nats": {"kl": ""},
    "entropy, nats": {"entropy": ""},
    "gradient norm": {"grad_norm": ""},
}
"""Label of an axis -> the numbers of the curve on it, each with its label in the legend."""


# The reward model -----------------------------------------------------------------------------------------------------


def reliability_table(bins: Reliability, metrics: dict[str, float]) -> str:
    """Held-out accuracy and the bins of the reliability as Markdown."""
    lines = ["# Reward model, held-out pairs", "", "| pairs | accuracy |", "|---|---|"]
    for name, value in metrics.items():
        if name.startswith("accuracy/"):
            group = name.removeprefix("accuracy/")
            error = f" ± {metrics['accuracy_error/clean']:.1%}" if group == "clean" else ""
            lines.append(f"| {SOURCES.get(group, f'{group}, not noise')} | {value:.1%}{error} |")
    lines += ["", "| the model is sure to | pairs | mean | right |", "|---|---|---|---|"]
    num_bins = len(bins.num_pairs)
    for index, (number, confidence, right) in enumerate(zip(*(values.tolist() for values in bins), strict=True)):
        low, high = (0.5 + 0.5 * edge / num_bins for edge in (index, index + 1))
        shown = f"{confidence:.1%} | {right:.1%}" if number else "- | -"
        lines.append(f"| {low:.0%} to {high:.0%} | {number} | {shown} |")
    lines += ["", f"Expected calibration error {metrics['calibration_error']:.1%}. Right is what the label says, noise "
              "included.", ""]  # fmt: skip
    return "\n".join(lines)


def plot_reliability(bins: Reliability, metrics: dict[str, float], path: Path) -> None:
    """How often the reward model is right, by how sure it is; the area of a point is its number of pairs."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    filled = bins.num_pairs > 0
    confidence, right, number = (
        values[filled].numpy() for values in (bins.confidence, bins.share_right, bins.num_pairs)
    )
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linewidth=1, label="calibrated")
    axes.plot(confidence, right, color="C0", linewidth=1, label="reward model")
    axes.scatter(confidence, right, s=20 + 300 * number / number.sum(), color="C0")
    for x, y, pairs in zip(confidence, right, number, strict=True):
        axes.annotate(f"{pairs}", (x, y), xytext=(9, -9), textcoords="offset points", fontsize=8)
    axes.set_xlabel("probability that the better-scored reply is better, percent")
    axes.set_ylabel("share in which the label agrees, percent")
    axes.set_title(f"{metrics['accuracy/clean']:.1%} of the pairs whose label is not noise", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.set_xlim(0.49, 1.03)
    axes.set_ylim(min(0.45, float(right.min()) - 0.05), 1.05)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    save_figure(figure, path)


# Merging --------------------------------------------------------------------------------------------------------------


def sweep_table(sweep: Sequence[dict[str, float]], chosen: float, loss: float) -> str:
    """What every weight earns on the validation, as Markdown."""
    header = "| a | chat: rubric | reasoning: exact match | nats per token of the right reply |"
    lines = ["# Merging: w = (1 - a) w1 + a w2", "", header, "|---|---|---|---|"]
    for row in sweep:
        label = {0.0: "0, before", 1.0: "1, after"}.get(row["a"], f"{row['a']:g}")
        label = f"**{label}, chosen**" if row["a"] == chosen else label
        lines.append(
            f"| {label} | {row['chat']:.1%} ± {row['chat_error']:.1%} | {row['reasoning']:.1%} ± "
            f"{row['reasoning_error']:.1%} | {row['nats']:.3f} |"
        )
    lines += ["", f"The chosen merge is at most {max(loss, 0):.1%} below the better parent in either ability.", ""]
    return "\n".join(lines)


def plot_sweep(sweep: Sequence[dict[str, float]], chosen: float, path: Path) -> None:
    """Chat and reasoning over a, with standard errors; the chosen a is marked."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    weights = [row["a"] for row in sweep]
    for name, label, color in (("chat", "chat: rubric", "C0"), ("reasoning", "reasoning: exact match", "C1")):
        values, errors = [row[name] for row in sweep], [row[f"{name}_error"] for row in sweep]
        axes.errorbar(weights, values, yerr=errors, color=color, linewidth=1, marker="o", markersize=3, label=label)
    axes.axvline(chosen, color="0.6", linestyle=":", label=f"chosen, a = {chosen:g}")
    axes.set_xlabel("a: 0 is the model before reinforcement learning, 1 the one after it")
    axes.set_ylabel("percent, validation")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.set_ylim(0, 1.05)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_frontier(sweep: Sequence[dict[str, float]], metrics: dict[str, float], path: Path) -> None:
    """Reasoning against chat: every a on the validation, and the parents and the merge on the evaluation."""
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    axes = figure.subplots()
    chat, reasoning = ([row[name] for row in sweep] for name in ("chat", "reasoning"))
    axes.plot(chat, reasoning, color="0.75", linewidth=1, marker=".", label="every a, validation")
    for row in sweep:
        if row["a"] in (0, 0.5, 1):  # more would lie on each other
            axes.annotate(f"{row['a']:g}", (row["chat"], row["reasoning"]), xytext=(3, 4), textcoords="offset points",
                          fontsize=8, color="0.4")  # fmt: skip
    for model, name in NAMES.items():
        axes.errorbar(
            metrics[f"rubric/{model}"], metrics[f"reasoning/{model}"], xerr=metrics[f"rubric_error/{model}"],
            yerr=metrics[f"reasoning_error/{model}"], color=COLORS[model], marker=MARKERS[model], linewidth=1,
            fillstyle="none", markersize=9, label=f"{name}, evaluation",
        )  # fmt: skip
    axes.set_xlabel("chat: rubric, percent")
    axes.set_ylabel("reasoning: exact match with thinking, percent")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


# Training and results -------------------------------------------------------------------------------------------------


def plot_training(checkpoint: Checkpoint, path: Path) -> None:
    """Step by step: the parts of the rubric, and the numbers that show whether the reward can be trusted."""
    curve = pq.read_table(checkpoint.curve_path).to_pylist()
    rewards = rows_of(checkpoint, "rewards")
    steps = [row["step"] + 1 for row in curve]
    figure, grid = plot_and_panels(9.5, len(PANELS))
    top = figure.add_subplot(grid[0, :])
    box = top.get_position()
    top.set_position((box.x0, box.y0, 0.66, box.height))  # a legend is beside it
    for index, part in enumerate(WEIGHTS):
        sums: dict[int, list[float]] = {}
        for row in rewards:
            if row["part"] == part:
                sums.setdefault(row["step"] + 1, []).append(row["mean"])
        if sums:
            means = [sum(values) / len(values) for values in sums.values()]
            top.plot(list(sums), means, marker=".", linewidth=1, color=f"C{index}", label=part)
    top.plot(steps, [row["rubric"] for row in curve], color="0.1", linewidth=2, label="rubric")
    top.set_ylabel("parts of the rubric")
    top.set_xlabel("step", fontsize=8)
    top.set_ylim(0, 1.05)
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    for index, (label, names) in enumerate(PANELS.items()):
        axes: Axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        for name, legend in names.items():
            axes.plot(steps, [row[name] for row in curve], linewidth=1, label=legend or None)
        if len(names) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=7)
        if label not in ("score of the reward model", "rubric"):
            axes.set_ylim(bottom=0)
        axes.set_ylabel(label, fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def results_table(checkpoint: Checkpoint, metrics: dict[str, float], constant: Chance) -> str:
    """The metrics as Markdown."""
    header = [f"| {' | '.join(NAMES.values())} |", "|---|" + "---|" * len(NAMES)]
    lines = [
        "# Stage 4: policy after learning from a reward model, and the merge",
        "",
        f"{checkpoint.num_parameters:,} parameters, {checkpoint.num_steps:,} steps, merged with a = {metrics['a']:g}.",
        "",
        f"| held-out conversations {header[0]}",
        header[1],
        row_of("rubric", "rubric", metrics, error=True),
        *(row_of(f"part, {part}", f"part/{part}", metrics) for part in WEIGHTS if f"part/{part}/base" in metrics),
        row_of("reward model's score", "score", metrics, percent=False),
        row_of("tokens per reply", "reply_tokens", metrics, percent=False),
        "",
    ]
    for model in ("policy", "merged"):
        lines.append(
            f"The {NAMES[model]} model wins {metrics[f'wins/{model}']:.1%} against the stage before, loses "
            f"{metrics[f'losses/{model}']:.1%} and ties {metrics[f'ties/{model}']:.1%}: win rate "
            f"{metrics[f'win_rate/{model}']:.1%} ± {metrics[f'win_rate_error/{model}']:.1%}, a tie counting as a half."
        )
    lines += ["", f"The best constant reply earns {constant.share:.1%} of the rubric (`{constant.reply!r}`)."]
    lines += ["", f"| reasoning families, with thinking {header[0]}", header[1]]
    lines += [row_of("exact match", "reasoning", metrics, error=True), "", merge_sentence(metrics), ""]
    lines += exam_rows(metrics, NAMES)
    lines += ["", f"| nats per token of the right reply {header[0]}", header[1]]
    lines += [row_of(family, f"nats/{family}", metrics, percent=False) for family in asked_families(metrics)[:-1]]
    lines.append("")
    return "\n".join(lines)


def merge_sentence(metrics: dict[str, float]) -> str:
    """By how much the merge is above or below the better parent in each of the two abilities that it must keep."""
    differences = []
    for label, name in (("chat", "rubric"), ("reasoning", "reasoning")):
        better = max(metrics[f"{name}/base"], metrics[f"{name}/policy"])
        differences.append(f"{label} {100 * (metrics[f'{name}/merged'] - better):+.1f} points")
    return f"The merged model less the better of its parents: {', '.join(differences)}."


def row_of(label: str, name: str, metrics: dict[str, float], *, error: bool = False, percent: bool = True) -> str:
    """One row of a table: a metric of every model."""
    cells = []
    for model in NAMES:
        value = metrics[f"{name}/{model}"]
        cells.append(f"{value:.1%}" if percent else f"{value:.2f}")
        cells[-1] += f" ± {metrics[f'{name}_error/{model}']:.1%}" if error else ""
    return f"| {label} | {' | '.join(cells)} |"


def rows_of(checkpoint: Checkpoint, table: str) -> list[dict[str, Any]]:
    """The rows of a table that a step recorded."""
    assert checkpoint.tables_path is not None
    return pq.read_table(checkpoint.tables_path / f"{table}.parquet").to_pylist()


def replies_page(shown: Sequence[tuple[str, dict[str, tuple[str, float]]]]) -> str:
    """Markdown: held-out conversations and the reply of each model.

    Args:
        shown: a question, and by model its reply and what the rubric gives it.
    """
    lines = ["# Held-out conversations", ""]
    for question, replies_of in shown:
        lines += [fenced(question), ""]
        for model, (text, total) in replies_of.items():
            lines += [f"{NAMES[model]}, rubric {total:.2f}:", "", fenced(text.rstrip()), ""]
    return printable("\n".join(lines), keep=LINES)
