"""The results of stage 1's evaluation for a person: a Markdown table, a plot, sample conversations.

In: what evaluation.py measured. Out: text, and an SVG file that has the same bytes whenever the numbers are the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.exam_report import ALL_BUT_LONG
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.training.curve import save_figure
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import LINES, fenced, printable

MODELS = {"base": "base model", "tuned": "fine-tuned"}
MODES = {"base": "base model", "think": "thinking", "no_think": "not thinking", "budget": "thinking within a budget"}


def results_table(
    checkpoint: Checkpoint, metrics: dict[str, float], families: Sequence[str], chance: Mapping[str, Chance]
) -> str:
    """The metrics as Markdown."""
    lines = [
        "# Stage 1: fine-tuned model",
        "",
        f"{checkpoint.num_parameters:,} parameters, {checkpoint.num_steps:,} steps, "
        f"{int(metrics['num_exercises']):,} exercises that training has not seen.",
        "",
        f"| exact match | {' | '.join(MODES.values())} | chance level |",
        f"|---|{'---|' * len(MODES)}---|",
    ]
    for family in [*families, "all"]:
        shares = [f"{metrics[f'exact_match/{family}/{mode}']:.0%}" for mode in MODES]
        shares.append(f"{metrics[f'chance/{family}']:.0%}")
        lines.append(f"| {ALL_BUT_LONG if family == 'all' else family} | {' | '.join(shares)} |")
    lines += ["", f"| nats per token of the right reply | {' | '.join(MODELS.values())} |"]
    lines.append(f"|---|{'---|' * len(MODELS)}")
    for family in [*families, "all"]:
        losses = [f"{metrics[f'reply_loss/{family}/{model}']:.2f}" for model in MODELS]
        lines.append(f"| {ALL_BUT_LONG if family == 'all' else family} | {' | '.join(losses)} |")
    rows = {
        "thinks or not, as asked": "obeyed",
        "any error of format": "format_errors",
        "ends its turn": "stopped",
        "tool calls that fit their tools": "valid_tool_calls",
    }
    if any(name.startswith("verifier_faults/") for name in metrics):
        rows["not judged, because the verifier failed"] = "verifier_faults"
    lines += ["", f"| format | {' | '.join(MODES.values())} |", f"|---|{'---|' * len(MODES)}"]
    for name, metric in rows.items():
        shares = [f"{metrics[f'{metric}/{mode}']:.0%}" if f"{metric}/{mode}" in metrics else "-" for mode in MODES]
        lines.append(f"| {name} | {' | '.join(shares)} |")
    closed = int(metrics["num_closed_by_budget"])
    thoughts = [f"{metrics[f'thought_tokens/{mode}']:.1f}" for mode in MODES]
    lines.append(f"| tokens of thought | {' | '.join(thoughts)} |")
    constants = ", ".join(f"`{level.reply[:40]!r}` ({family})" for family, level in chance.items())
    lines += [
        "",
        f"{metrics['within_budget']:.0%} of the thoughts stay within the budget and its grace; "
        f"the budget closed {closed:,} of them.",
        "The base model was never taught the format, so it scores if any line of its output is correct.",
        f"The chance level is what the best constant reply gets: {constants}. Refusing every safety request, with the "
        f"owner's name, gets {metrics['always_refusing/safety']:.0%}.",
        "",
    ]
    return "\n".join(lines)


def plot_results(metrics: dict[str, float], families: Sequence[str], path: Path) -> None:
    """Plot every family: the exact match, one bar per mode, and the loss of the right reply, one bar per model."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes, loss_axes = figure.subplots(2)
    places = np.arange(len(families))
    for index, (mode, name) in enumerate(MODES.items()):
        shares = [metrics[f"exact_match/{family}/{mode}"] for family in families]
        bars = axes.bar(places + (index - 1.5) * 0.2, shares, 0.2, label=name)
        axes.bar_label(bars, [f"{share:.0%}"[:-1] for share in shares], fontsize=6)  # also where there is no bar
    axes.set_ylabel("exact match, percent")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.set_ylim(0, 1.05)
    for index, (model, name) in enumerate(MODELS.items()):
        losses = [metrics[f"reply_loss/{family}/{model}"] for family in families]
        color = {"base": "C0", "tuned": "0.4"}[model]  # the base model as above; fine-tuned in no color of a mode
        bars = loss_axes.bar(places + (index - 0.5) * 0.4, losses, 0.4, label=name, color=color)
        loss_axes.bar_label(bars, [f"{loss:.2f}" for loss in losses], fontsize=6)
    loss_axes.set_ylabel("nats per token of the right reply")
    for panel, columns in ((axes, len(MODES)), (loss_axes, len(MODELS))):
        panel.set_xticks(places, [family.replace("_", "\n") for family in families])
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False)
    save_figure(figure, path)


def samples_page(samples: Sequence[tuple[str, Exercise, str, bool]]) -> str:
    """Markdown: what was asked and what the model wrote.

    Args:
        samples: mode, exercise, reply with the beginning that the prompt gave, and whether it is right.
    """
    lines = ["# Sample conversations", ""]
    for mode, exercise, text, right in samples:
        asked = [f"{message['role']}: {message['content']}" for message in exercise.messages]
        if mode == "think":
            lines += [f"## {exercise.family}", "", fenced("\n".join(asked)), ""]
        lines += [f"{MODES[mode]}, {'right' if right else 'wrong'}:", "", fenced(text.rstrip()), ""]
    return printable("\n".join(lines), keep=LINES)
