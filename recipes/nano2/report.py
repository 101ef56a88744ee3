"""What the report of this recipe adds: the exam of all stages side by side, the same prompts after each stage, rollouts
with their rewards, the merging sweep, the shapes that a compression tried.

In: the artifacts of a run; a stage that is missing, or that holds no exam, is left out. Out: sections and blocks. Names
of metrics are those of scoring/exam.py: `exact_match/<family>/<model>`, the first model being the one before the stage.
Run: python -m nemotron.report outputs/nano2/tiny
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nemotron.recipes.scoring.pass_at_k import Paired, paired_difference
from nemotron.report.blocks import Beside, Block, Code, Folded, Plot, Section, Table, Text
from nemotron.report.plots import GREY, LINES, STYLE, svg_of
from nemotron.report.run import Stage, Step
from nemotron.report.sections import shown
from nemotron.strict import parse_json

TITLE = "Nemotron Nano 2"
CAPTIONS = {
    "attribution": "Documents that were kept, by origin and licence",
    "quality_groups": "Documents in each bucket of quality",
    "scorers": "Scorers of quality, on held-out documents",
    "phases": "Rows for training",
    "tokens": "Tokens",
    "blend": "Blend of each phase",
    "unreadable": "The first unreadable rows",
    "num_unreadable": "unreadable rows",
}
ALL = "all but long_context"  # the family `all` of the exam
LONG_CONTEXT = "long_context"
SHOWN_PROMPTS = 3  # of a step of training, each with its best and its worst reply


# The exam -------------------------------------------------------------------------------------------------------------


@dataclass
class Column:
    """One model in the exam: its results by family."""

    label: str
    """stage 4, merged"""
    tick: str
    """The same below a plot: "4 merged"."""
    level: dict[str, Paired] = field(default_factory=dict)
    """Share right, and its standard error."""
    change: dict[str, Paired] = field(default_factory=dict)
    """Difference to the model before it, on the same exercises."""
    chance: dict[str, float] = field(default_factory=dict)
    """What the best constant reply gets in the same exam."""


def number_of(stage: Stage) -> str:
    """ "2" of stage2_rlvr."""
    return stage.name.partition("_")[0].removeprefix("stage")


def exam_columns(stages: Sequence[Stage]) -> list[Column]:
    """Every model that an evaluation asked the exam, in the order of training."""
    columns: list[Column] = []
    for stage in stages:
        step = stage.step("evaluation")
        if step is None:
            continue
        models = exam_models(step.metrics)
        if models:
            columns += later_columns(stage, step.metrics, models)
        elif step.has("replies.parquet") and any(name.startswith("chance/") for name in step.metrics):
            columns += first_columns(stage, step)
    return columns


def exam_models(metrics: Mapping[str, float]) -> list[str]:
    """The models of an exam, the one before the stage first; none if the metrics hold no exam."""
    found = (name.split("/") for name in metrics if name.startswith("standard_error/"))
    return list(dict.fromkeys(parts[2] for parts in found if len(parts) == 3))


def chance_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Family -> chance level, `all` last."""
    levels = {name.removeprefix("chance/"): level for name, level in metrics.items() if name.startswith("chance/")}
    return {family: levels[family] for family in sorted(levels, key=lambda family: family == "all")}


def later_columns(stage: Stage, metrics: Mapping[str, float], models: Sequence[str]) -> Iterator[Column]:
    """The models of a stage whose evaluation compares them with the model before them."""
    chance = chance_of(metrics)
    for model in models[1:]:
        number, several = number_of(stage), len(models) > 2
        column = Column(f"stage {number}, {model}" if several else f"stage {number}",
                        f"{number} {model}" if several else number, chance=chance)  # fmt: skip
        suffix = "" if model == models[-1] else f"/{model}"
        for family in chance:
            level = [metrics[f"{name}/{family}/{model}"] for name in ("exact_match", "standard_error")]
            change = [metrics[f"{name}/{family}{suffix}"] for name in ("difference", "difference_error")]
            column.level[family], column.change[family] = Paired(*level), Paired(*change)
        yield column


def first_columns(stage: Stage, step: Step) -> Iterator[Column]:
    """The base model and the fine-tuned one, from their replies; fine-tuned, the mean of both modes, as in the exam."""
    right: dict[str, dict[str, list[float]]] = {"base": {}, "tuned": {}}
    families: dict[str, str] = {}
    for row in step.rows("replies.parquet"):
        model = {"base": "base", "think": "tuned", "no_think": "tuned"}.get(row["mode"])
        if model:
            right[model].setdefault(row["id"], []).append(float(row["right"]))
            families[row["id"]] = row["family"]
    means = {model: {id: sum(one) / len(one) for id, one in found.items()} for model, found in right.items()}
    columns = [Column("base model", "base"), Column(f"stage {number_of(stage)}", number_of(stage))]
    for column in columns:
        column.chance = chance_of(step.metrics)
    for family in columns[0].chance:
        ids = [id for id, one in families.items() if one == family or (family == "all" and one != LONG_CONTEXT)]
        base, tuned = ([means[model][id] for id in ids] for model in right)
        nothing = [0.0] * len(ids)
        columns[0].level[family] = paired_difference(base, nothing)
        columns[1].level[family] = paired_difference(tuned, nothing)
        columns[1].change[family] = paired_difference(tuned, base)
    yield from columns


def exam_section(columns: Sequence[Column]) -> Section:
    """What each stage did to every ability."""
    families = list(dict.fromkeys(family for column in columns for family in column.chance))
    by_chance: dict[tuple[float, ...], list[Column]] = {}
    for column in columns:
        by_chance.setdefault(tuple(column.chance.values()), []).append(column)
    chances = list(by_chance.values())
    header = ["family", *(column.label for column in columns)]
    header += ["chance level"] if len(chances) == 1 else [f"chance, {spoken(of)}" for of in chances]
    levels, changes = [], []
    changed = [column for column in columns if column.change]
    for family in families:
        name = ALL if family == "all" else family
        cells = [percent(column.level.get(family)) for column in columns]
        levels.append([name, *cells, *(f"{100 * of[0].chance.get(family, 0):.1f}" for of in chances)])
        changes.append([name, *(points(column.change.get(family)) for column in changed)])
    blocks: list[Block] = [
        Text(
            "Exercises that no training has seen. A model's share is the mean over replies with and without thinking, "
            "± its standard error. The base model was never taught the format, so it scores if any line of its output "
            "is correct. The chance level is what the best constant reply gets; it depends on the exercises, of which "
            "the evaluation of each stage asks its own number."
        ),
        Plot(exam_svg(columns, families), exam_alt(columns)),
        Table(header, levels, "Exact match after each stage, in percent"),
    ]
    if changed:
        caption = "Change to the model before, in points, on the same exercises (* more than two standard errors)"
        blocks.append(Table(["family", *(column.label for column in changed)], changes, caption))
    return Section("What each stage did to every ability", blocks)


def spoken(columns: Sequence[Column]) -> str:
    """The ticks of columns that have something in common."""
    return columns[0].tick if len(columns) == 1 else f"{columns[0].tick} to {columns[-1].tick}"


def percent(one: Paired | None) -> str:
    return "-" if one is None else f"{100 * one.difference:.1f} ± {100 * one.standard_error:.1f}"


def points(one: Paired | None) -> str:
    if one is None:
        return "-"
    mark = " *" if abs(one.difference) > 2 * one.standard_error else ""
    return f"{100 * one.difference:+.1f} ± {100 * one.standard_error:.1f}{mark}"


def exam_alt(columns: Sequence[Column]) -> str:
    """The plot in words."""
    found = [f"{column.label} {column.level['all'].difference:.1%}" for column in columns if "all" in column.level]
    shown = f"Over {ALL}: {', '.join(found)}."
    return f"Exact match by family after each stage, with standard errors and chance levels. {shown}"


def exam_svg(columns: Sequence[Column], families: Sequence[str]) -> str:
    """A panel for each family: the share right after each stage with its standard error; the chance level dashed."""
    across, places = 3, range(len(columns))
    rows = -(-len(families) // across)
    heights = [one.difference + one.standard_error for column in columns for one in column.level.values()]
    top = min(1.03, 1.1 * max(*heights, *(level for column in columns for level in column.chance.values()), 0.1))
    with matplotlib.rc_context(STYLE):
        height = 0.9 + 1.5 * rows
        figure = Figure(figsize=(7.2, height))
        panels = figure.subplots(rows, across, sharex=True, sharey=True, squeeze=False).flat
        figure.subplots_adjust(0.08, 0.55 / height, 0.99, 1 - 0.55 / height, wspace=0.08, hspace=0.3)
        for axes, family in zip(panels, families, strict=False):
            found = [place for place in places if family in columns[place].level]
            level = [columns[place].level[family] for place in found]
            axes.errorbar(found, [one.difference for one in level], [one.standard_error for one in level], marker="o",
                          markersize=4, capsize=2, linewidth=1, color=LINES[0], label="share right")  # fmt: skip
            for place in found:
                chance, label = columns[place].chance[family], "chance level" if place == found[0] else None
                axes.plot([place - 0.4, place + 0.4], [chance] * 2, "--", color=LINES[1], linewidth=1.2, label=label)
            axes.set_title(ALL if family == "all" else family, loc="left")
            axes.set_xticks(list(places), [column.tick for column in columns], rotation=35, ha="right", fontsize=7)
            axes.set_ylim(-0.02, top)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.tick_params(labelsize=7)
        for axes in list(panels)[len(families) :]:
            axes.set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=2, fontsize=8)
    return svg_of(figure)


# The same prompts after each stage ------------------------------------------------------------------------------------


def same_prompts(stages: Sequence[Stage]) -> Section | None:
    """One exercise of each family, and what the model of each stage replied with thinking."""
    replies: dict[str, dict[str, Mapping[str, Any]]] = {}
    questions: dict[str, str] = {}
    for stage in stages:
        curation, step = stage.step("data_curation"), stage.step("evaluation")
        if curation is not None and curation.has("exercises.parquet"):
            for row in curation.rows("exercises.parquet"):
                messages = parse_json(row["messages"], "messages", advice="run the step again")
                questions.setdefault(row["id"], "\n".join(f"{one['role']}: {one['content']}" for one in messages))
        if step is None or not step.has("replies.parquet"):
            continue
        models = exam_models(step.metrics)
        labels = {"base": "base model", "think": f"stage {number_of(stage)}"}
        if models:
            labels = {
                f"{model}/think": f"stage {number_of(stage)}" + (f", {model}" if len(models) > 2 else "")
                for model in models[1:]
            }
        for row in step.rows("replies.parquet"):
            if row["mode"] in labels:
                replies.setdefault(labels[row["mode"]], {})[row["id"]] = row
    if not replies:
        return None
    common = [
        id for id in min(replies.values(), key=len) if id in questions and all(id in one for one in replies.values())
    ]
    first: dict[str, str] = {}
    for id in common:
        first.setdefault(next(iter(replies.values()))[id]["family"], id)
    shown: list[Block] = [
        Folded(
            f"{family}: {right_after([label for label, found in replies.items() if found[id]['right']])}",
            [
                Code(questions[id], "Asked, with thinking"),
                Beside([Code(of[id]["reply"], f"{label}, {verdict(of[id])}") for label, of in replies.items()]),
            ],
            is_printed=True,
        )
        for family, id in first.items()
    ]
    return Section("The same prompts after each stage", shown) if shown else None


def right_after(labels: Sequence[str]) -> str:
    """Which models were right, in a few words."""
    return f"right: {'; '.join(labels)}" if labels else "always wrong"


def verdict(row: Mapping[str, Any]) -> str:
    return "right" if row["right"] else "wrong"


def sections(stages: Sequence[Stage]) -> list[Section]:
    """What is about several stages."""
    columns = exam_columns(stages)
    prompts = same_prompts(stages)
    return [*([exam_section(columns)] if columns else []), *([prompts] if prompts else [])]


# One step -------------------------------------------------------------------------------------------------------------


def step_blocks(step: Step) -> list[Block]:
    """Rewards and rollouts of a step that trains on them; the sweep of a merge; the candidates of a compression."""
    blocks: list[Block] = []
    if step.has("tables/rewards.parquet"):
        blocks += reward_blocks(step.rows("tables/rewards.parquet"))
    if step.has("tables/rollouts.parquet"):
        blocks += rollout_blocks(step.rows("tables/rollouts.parquet"))
    if step.has("tables/candidates.parquet"):
        blocks.append(candidate_table(step.rows("tables/candidates.parquet")))
    if step.has("tables/sweep.parquet"):
        blocks.append(sweep_plot(step.rows("tables/sweep.parquet"), step.metrics["a"]))
    return blocks


def reward_blocks(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The mean reward of each verifier and part, in the first and in the last step that has any."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if {"verifier", "part", "mean"} <= row.keys():
            found.setdefault((row["verifier"], row["part"]), []).append(row["mean"])
    cells = [[*name, f"{means[0]:.3f}", f"{means[-1]:.3f}", str(len(means))] for name, means in found.items()]
    header = ["verifier", "part", "first step", "last step", "steps"]
    return [Table(header, cells, "Mean reward in training")] if cells else []


def rollout_blocks(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The best and the worst reply to the first prompts of each step that was written down."""
    rewarded = [row for row in rows if {"prompt", "asked", "text", "reward", "advantage"} <= row.keys()]
    blocks: list[Block] = []
    for step in dict.fromkeys(row["step"] for row in rewarded):
        inside: list[Block] = []
        of_step = [row for row in rewarded if row["step"] == step]
        for prompt in list(dict.fromkeys(row["prompt"] for row in of_step))[:SHOWN_PROMPTS]:
            replies = sorted((row for row in of_step if row["prompt"] == prompt), key=lambda row: -row["reward"])
            inside.append(Code(replies[0]["asked"], "Asked"))
            compared = []
            for name, row in {"Best": replies[0], "Worst": replies[-1]}.items():
                label = f"{name} of {len(replies)}: reward {row['reward']:.2f}, advantage {row['advantage']:+.2f}"
                compared.append(Code(row["text"], label))
            inside.append(Beside(compared))
        blocks.append(Folded(f"Rollouts of step {step + 1} with their rewards", inside, is_printed=True))
    return blocks


def candidate_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The shapes of a compression that were distilled for a while, and the one that was chosen."""
    columns = {"hybrid_override_pattern": "layers", "hidden_size": "width", "intermediate_size": "MLP",
               "mamba_num_heads": "Mamba-2 heads", "num_parameters": "parameters", "total_bytes": "memory, bytes",
               "pruned_kl": "KL, pruned", "distilled_kl": "KL, distilled"}  # fmt: skip
    tried = [row for row in rows if row["distilled_kl"] is not None]
    cells = [[*(shown(row[name]) for name in columns), "chosen" if row["chosen"] else ""] for row in tried]
    fitting = sum(row["fits"] for row in rows)
    caption = f"Shapes that were distilled for a while, of {len(rows):,} in the grid; {fitting:,} fit"
    return Table([*columns.values(), "verdict"], cells, caption)


def sweep_plot(rows: Sequence[Mapping[str, float]], chosen: float) -> Plot:
    """Chat and reasoning over the weight of the second model, with standard errors; the chosen one is marked."""
    weights = [row["a"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8))
        axes = figure.add_axes((0.08, 0.16, 0.65, 0.8))
        axes.axvline(chosen, color=GREY, linewidth=1, linestyle="--", label=f"chosen, a = {chosen:g}")
        for index, (name, label) in enumerate({"chat": "chat: rubric", "reasoning": "reasoning: exact match"}.items()):
            axes.errorbar(weights, [row[name] for row in rows], [row[f"{name}_error"] for row in rows], marker="o",
                          markersize=4, capsize=2, linewidth=1, color=LINES[index], label=label)  # fmt: skip
        axes.set_xlabel("a: 0 is the model before training, 1 the model after it")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    best = next(row for row in rows if row["a"] == chosen)
    alt = (
        f"Merging sweep over {len(rows)} weights: at the chosen a = {chosen:g}, chat {best['chat']:.1%} and reasoning "
        f"{best['reasoning']:.1%}; at 0, {rows[0]['chat']:.1%} and {rows[0]['reasoning']:.1%}; at 1, "
        f"{rows[-1]['chat']:.1%} and {rows[-1]['reasoning']:.1%}."
    )
    return Plot(svg_of(figure), alt)
