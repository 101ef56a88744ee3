"""The results of stage 2 for a person: a table, a plot of the training, a page of rollouts.

In: what training recorded and evaluation measured. Out: Markdown, and SVG files that have the same bytes whenever the
numbers are the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nemotron.recipes.scoring.chance import COPIES, Chance
from nemotron.recipes.scoring.exam_report import exam_rows
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.sources.exercises.families import VERIFIERS
from nemotron.recipes.training.curve import plot_and_panels, save_figure
from nemotron.recipes.training.run import Checkpoint
from nemotron.terminal import LINES, fenced, printable

NAMES = {"tuned": "fine-tuned", "policy": "policy"}
MEASURES = {
    "reward": "reward",
    "strict_prompt": "all constraints, strict",
    "strict_instruction": "each constraint, strict",
    "loose_prompt": "all constraints, loose",
    "loose_instruction": "each constraint, loose",
}
FEW_STEPS = 20
PANELS: dict[str, dict[str, str]] = {
    "groups with a signal": {"groups_with_signal": ""},
    "KL, nats": {"kl": ""},
    "entropy, nats": {"entropy": ""},
    "tokens per reply": {"reply_tokens": ""},
    "shares": {"clipped_low": "clipped below", "clipped_high": "clipped above", "replies_cut": "replies cut"},
    "gradient norm": {"grad_norm": ""},
}
"""Label of an axis -> the numbers of the curve on it, each with its label in the legend."""


def results_table(checkpoint: Checkpoint, metrics: dict[str, float], constant: Chance, copying: Chance) -> str:
    """The metrics as Markdown."""
    change, error = metrics["reward_difference"], metrics["reward_difference_error"]
    lines = [
        "# Stage 2: policy after reinforcement learning",
        "",
        f"{checkpoint.num_parameters:,} parameters, {checkpoint.num_steps:,} steps.",
        "",
        f"| held-out instructions | {' | '.join(NAMES.values())} |",
        "|---|---|---|",
    ]
    tries = sorted({int(name.partition("@")[2].partition("/")[0]) for name in metrics if name.startswith("pass@")})
    rows = MEASURES | {f"pass@{k}": f"right in {k} {'try' if k == 1 else 'tries'}" for k in tries}
    if "verifier_faults/policy" in metrics:
        rows["verifier_faults"] = "not judged, because the verifier failed"
    for name, label in rows.items():
        shares = [f"{metrics[f'{name}/{model}']:.1%}" for model in NAMES]
        lines.append(f"| {label} | {' | '.join(shares)} |")
    lines += [
        "",
        f"The reward changed by {100 * change:+.1f} points (standard error {100 * error:.1f}, paired by question). The "
        f"best constant reply earns {metrics['reward/best_constant']:.1%} (`{constant.reply[:40]!r}`), the best of "
        f"{len(COPIES)} ways of copying from the question {metrics['reward/best_copying']:.1%} ({copying.reply}).",
        "",
        *exam_rows(metrics, NAMES),
        "",
    ]
    return "\n".join(lines)


def plot_training(checkpoint: Checkpoint, metrics: dict[str, float], path: Path) -> None:
    """Step by step: the reward of each verifier, and the numbers that show whether training is healthy."""
    curve = pq.read_table(checkpoint.curve_path).to_pylist()
    rewards = rows_of(checkpoint, "rewards")
    steps = [row["step"] + 1 for row in curve]
    figure, grid = plot_and_panels(8.5, len(PANELS))
    top = figure.add_subplot(grid[0, :])
    box = top.get_position()
    top.set_position((box.x0, box.y0, 0.66, box.height))  # a legend is beside it
    for index, family in enumerate(VERIFIERS):
        found = {row["step"] + 1: row["mean"] for row in rewards if (row["verifier"], row["part"]) == (family, "all")}
        if found:
            marker = "." if len(found) < FEW_STEPS else None  # one point has no line
            top.plot(list(found), smoothed(list(found.values())), marker=marker, color=f"C{index}", linewidth=1,
                     label=family)  # fmt: skip
    top.plot(steps, smoothed([row["reward"] for row in curve]), color="0.1", linewidth=2, label="all prompts")
    top.axhline(
        metrics["reward/best_constant"], color="0.5", linestyle=":", label="best constant reply,\nheld-out instructions"
    )
    top.set_ylabel("reward, mean of the last five values")
    top.set_xlabel("step", fontsize=8)
    top.set_ylim(0, 1.02)
    top.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    for index, (label, names) in enumerate(PANELS.items()):
        axes: Axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        for name, legend in names.items():
            axes.plot(steps, [row[name] for row in curve], linewidth=1, label=legend or None)
        if len(names) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=7)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label, fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def smoothed(values: list[float], window: int = 5) -> list[float]:
    """The mean of each value and those before it, at most `window` in all."""
    means = []
    for end in range(1, len(values) + 1):
        last = values[max(0, end - window) : end]
        means.append(sum(last) / len(last))
    return means


def rows_of(checkpoint: Checkpoint, table: str) -> list[dict[str, Any]]:
    """The rows of a table that training recorded."""
    assert checkpoint.tables_path is not None
    return pq.read_table(checkpoint.tables_path / f"{table}.parquet").to_pylist()


def rollouts_page(checkpoint: Checkpoint, pairs: Sequence[tuple[Prompt, dict[str, tuple[str, float]]]]) -> str:
    """Markdown: held-out instructions before and after, then the rollouts of the first and the last step.

    Args:
        pairs: a prompt, and by model its reply and what that earned.
    """
    lines = ["# Rollouts", "", "## Held-out instructions, before and after", ""]
    for prompt, replies_of in pairs:
        lines += asked_part(prompt.exercise.id, prompt.thinking, prompt.exercise.messages[-1]["content"])
        for model, (text, reward) in replies_of.items():
            lines += [f"{NAMES[model]}, reward {reward:.2f}:", "", fenced(text.rstrip()), ""]
    rows = rows_of(checkpoint, "rollouts")
    for step in dict.fromkeys(row["step"] for row in rows):
        lines += [f"## Step {step + 1}", ""]
        of_step = [row for row in rows if row["step"] == step]
        for id in dict.fromkeys(row["prompt"] for row in of_step):
            replies = [row for row in of_step if row["prompt"] == id]
            lines += asked_part(id, replies[0].get("thinking"), replies[0]["asked"])
            for row in sorted(replies, key=lambda row: -row["reward"]):  # from the best to the worst
                lines += [f"Reward {row['reward']:.2f}, advantage {row['advantage']:+.2f}:", ""]
                lines += [fenced(row["text"].rstrip()), ""]
    return printable("\n".join(lines), keep=LINES)


def asked_part(id: str, thinking: bool | None, question: str) -> list[str]:
    """The lines that say what was asked; an id, which a user may have chosen, stays on its line.

    Args:
        thinking: whether the prompt asks for it; None if the table of an earlier run does not say.
    """
    how = {True: ", with thinking", False: ", without thinking", None: ""}[thinking]
    return [f"### {printable(id)}{how}", "", fenced(question), ""]
