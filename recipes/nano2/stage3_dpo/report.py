"""The results of stage 3 for a person: a table, a plot of the training, a page of conversations.

In: what training recorded and evaluation measured. Out: Markdown, and an SVG file that has the same bytes whenever the
numbers are the same. The plot of the exam is in scoring/exam_report.py.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nemotron.recipes.nano2.stage3_dpo.data_curation import Dataset
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.exam_report import asked_families, exam_rows
from nemotron.recipes.sources.exercises.workplace import KINDS
from nemotron.recipes.training.curve import plot_and_panels, save_figure
from nemotron.recipes.training.run import Checkpoint
from nemotron.recipes.training.tries import LEVELS, Try, conversation_text
from nemotron.terminal import LINES, fenced, printable

NAMES = {"start": "stage 2", "policy": "policy"}
"""Name of a model in the metrics -> what a reader calls it."""
MEASURES = {
    "valid_calls": "calls that did what they say",
    "right_after_an_error": "right, of the tries whose first call failed",
    "ended": "conversations that the model ended",
    "broken": "conversations that broke the format",
}
PANELS: dict[str, dict[str, str]] = {
    "preference accuracy": {"accuracy": ""},
    "reward": {"chosen_reward": "chosen", "rejected_reward": "rejected", "margin": "margin"},
    "log-probability, nats": {"chosen_logprob": "chosen", "rejected_logprob": "rejected"},
    "tokens of a try": {"chosen_tokens": "chosen", "rejected_tokens": "rejected"},
    "pairs of a step": {"pairs": ""},
    "gradient norm": {"grad_norm": ""},
}
"""Label of an axis -> the numbers of the curve on it, each with its label in the legend."""
SHOWN_PAIRS = 4  # of a round, on the page of conversations


def results_table(checkpoint: Checkpoint, metrics: Mapping[str, float], constant: Chance) -> str:
    """The metrics as Markdown."""
    columns = " | ".join(NAMES.values())
    lines = [
        "# Stage 3: policy after DPO",
        "",
        f"{checkpoint.num_parameters:,} parameters, {checkpoint.num_steps:,} steps.",
        "",
        f"| held-out tasks that were done | {columns} | difference |",
        "|---|---|---|---|",
    ]
    for kind in [kind for kind in [*KINDS, "all"] if f"success_difference/{kind}" in metrics]:
        cells = [
            f"{metrics[f'success/{kind}/{model}']:.1%} ± {metrics[f'success_error/{kind}/{model}']:.1%}"
            for model in NAMES
        ]
        change = f"{metrics[f'success_difference/{kind}']:+.1%} ± {metrics[f'success_difference_error/{kind}']:.1%}"
        lines.append(f"| {'**all**' if kind == 'all' else kind} | {' | '.join(cells)} | {change} |")
    lines += ["", f"| conversations | {columns} |", "|---|---|---|"]
    for name, label in MEASURES.items():
        found = [f"{metrics[f'{name}/{model}']:.1%}" for model in NAMES]
        lines.append(f"| {label} | {' | '.join(found)} |")
    calls = [f"{metrics[f'calls_per_try/{model}']:.2f}" for model in NAMES]
    lines += [
        f"| calls in a conversation | {' | '.join(calls)} |",
        "",
        f"A policy that always says the same gets {metrics['success/best_constant']:.1%} (`{constant.reply[:60]!r}`).",
        "",
        preference_sentence(metrics),
        "",
        *exam_rows(metrics, NAMES),
        "",
        f"| nats per token of the right reply | {columns} |",
        "|---|---|---|",
    ]
    for family in asked_families(metrics)[:-1]:
        losses = [f"{metrics[f'nats/{family}/{model}']:.2f}" for model in NAMES]
        lines.append(f"| {family} | {' | '.join(losses)} |")
    return "\n".join([*lines, ""])


def preference_sentence(metrics: Mapping[str, float]) -> str:
    """How often the policy prefers the better try of a held-out pair, if there is a pair."""
    if not metrics["held_out_pairs"]:
        return "No held-out task has a better and a worse try of the model at the start, so no preference was measured."
    return (
        f"The policy prefers the better try of {metrics['preference_accuracy']:.1%} of "
        f"{metrics['held_out_pairs']:,.0f} held-out pairs, by {metrics['preference_margin']:+.2f} nats on average; "
        "the model at the start has a margin of 0."
    )


def success_by_round(checkpoint: Checkpoint, dataset: Dataset) -> list[float]:
    """Share of the tries that were right when each round began, at the tasks that are trained on."""
    rows = rows_of(checkpoint, "tries")
    shares = [dataset.solved]
    for step in dict.fromkeys(row["step"] for row in rows):
        of_round = [row for row in rows if row["step"] == step]
        num_tries = sum(len(row["levels"].split()) for row in of_round)
        shares.append(sum(row["right"] for row in of_round) / num_tries)
    return shares


def plot_training(checkpoint: Checkpoint, dataset: Dataset, metrics: Mapping[str, float], path: Path) -> None:
    """Step by step: the loss, what the policy thinks of the pairs, and how many tries are right in each round."""
    curve = pq.read_table(checkpoint.curve_path).to_pylist()
    steps = [row["step"] + 1 for row in curve]
    firsts = [index for index, row in enumerate(curve) if index == 0 or row["phase"] != curve[index - 1]["phase"]]
    figure, grid = plot_and_panels(8.5, len(PANELS), first=1.5, above=0.75)  # a legend is above the second plot
    loss, success = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    loss.plot(steps, [row["preference_loss"] for row in curve], ".-", color="0.1", linewidth=1)
    loss.axhline(0.6931471805599453, color="0.5", linestyle=":", linewidth=1, label="ln 2: policy = reference")
    loss.legend(frameon=False, fontsize=7)
    loss.set_ylabel("DPO loss", fontsize=8)
    shares = success_by_round(checkpoint, dataset)
    success.plot(range(1, len(shares) + 1), shares, "o-", color="C0", label="tasks of training, as each round begins")
    success.axhline(metrics["success/all/start"], color="0.6", label="held-out tasks, stage 2")
    success.axhline(metrics["success/all/policy"], color="C2", label="held-out tasks, policy")
    success.axhline(metrics["success/best_constant"], color="C3", linestyle=":", label="best constant policy, held out")
    success.set_ylim(0, 1.02)
    success.set_ylabel("share of tries that are right", fontsize=8)
    success.set_xlabel("round", fontsize=8)
    success.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=1, frameon=False, fontsize=7)
    panels = [loss]
    for index, (label, names) in enumerate(PANELS.items()):
        axes: Axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        for name, legend in names.items():
            axes.plot(steps, [row[name] for row in curve], ".-", linewidth=1, label=legend or None)
        if len(names) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=7)
        axes.set_ylabel(label, fontsize=8)
        panels.append(axes)
    for axes in panels:
        axes.set_xlabel("step", fontsize=8)
        for first in firsts:
            axes.axvline(steps[first] - 0.5, color="0.85", zorder=0)
    for axes in [*panels, success]:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def rows_of(checkpoint: Checkpoint, table: str) -> list[dict[str, Any]]:
    """The rows of a table that training recorded; none if it recorded none."""
    assert checkpoint.tables_path is not None
    path = checkpoint.tables_path / f"{table}.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else []


def text_of(message: Mapping[str, Any]) -> str:
    """What a message says, or the calls that it makes."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return json.dumps(calls, ensure_ascii=False) if calls else message["content"]


def conversations_page(
    checkpoint: Checkpoint, pairs: Sequence[Mapping[str, Try]], decode: Callable[[Sequence[int]], str]
) -> str:
    """Markdown: held-out tasks before and after, then pairs of the first and the last round.

    Args:
        pairs: by model, its try at a task.
    """
    lines = ["# Conversations", "", "## Held-out tasks, before and after", ""]
    for found in pairs:
        exercise = next(iter(found.values())).prompt.exercise
        tools = ", ".join(tool["name"] for tool in exercise.tools)
        said = [f"{message['role']}: {text_of(message)}" for message in exercise.messages]
        lines += [fenced("\n".join([*said, f"tools: {tools}"])), ""]
        for model, one in found.items():
            lines += [f"{NAMES[model]}, {LEVELS[one.level]}:", "", fenced(conversation_text(one, decode)), ""]
    rows = rows_of(checkpoint, "rollouts")
    for step in dict.fromkeys(row["step"] for row in rows):
        of_round = [row for row in rows if row["step"] == step]
        lines += [f"## Pairs of the round that begins with step {step + 1}", ""]
        for chosen, rejected in list(zip(of_round[::2], of_round[1::2], strict=True))[:SHOWN_PAIRS]:
            lines += [f"### {chosen['task']}", ""]
            for name, row in (("Chosen", chosen), ("Rejected", rejected)):
                lines += [f"{name}, {LEVELS[row['level']]}:", "", fenced(row["text"].rstrip()), ""]
    return printable("\n".join(lines), keep=LINES)
