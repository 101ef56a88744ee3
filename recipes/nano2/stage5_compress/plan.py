"""What compression at a scale would take: which shapes fit the budget and why, the schedule of lengths, the cost.

In: the Config of the stage. Out: text for `--plan`. Every number comes from the function that the run itself calls; the
page of `full` has the published numbers too.
Run: python -m nemotron.recipes.nano2.stage5_compress --scale full --plan

Which layers are removed is known only after their importance was measured. At full the plan takes the patterns of
FULL_GRID; otherwise it has a pattern for every number of layers of a kind that may stay, in no order of layers.
Left out: memory and time of the search, of the evaluation and of the final stages, and communication between devices.
"""

from dataclasses import fields
from functools import partial
from typing import Any

from nemotron import apply_scale
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain.plan import duration
from nemotron.recipes.nano2.stage5_compress import data_curation, final, search, training
from nemotron.recipes.nemotron_h.inference_memory import (
    FULL_GRID,
    Candidate,
    Grid,
    candidates,
    inference_memory_bytes,
    neighbors,
)
from nemotron.recipes.nemotron_h.model import ATTENTION, MAMBA, MLP, PUBLISHED_9B, ModelConfig
from nemotron.recipes.nemotron_h.plan import (
    HARDWARE,
    count_parameters,
    floating_point_operations_per_token,
    forward_operations_per_token,
    training_hours,
)
from nemotron.recipes.training.batches import TrainingPhase
from nemotron.recipes.training.memory import Pass, check_fits, memory_lines
from nemotron.recipes.training.published import shape_of
from nemotron.recipes.training.run import check_stage

# Published, arXiv 2508.14444, section 4 and tables 5, 6 and 9, and the model cards.
PUBLISHED_CHAIN = (
    "  published",
    "    order                      depth first, with 60B tokens of distillation, then width with 50B; here one grid",
    "    depth, after 6B tokens     52 layers 44.92, 54 layers 47.35, 56 layers 51.48 (mean of benchmarks)",
    "    width, after 19B tokens    hidden 4480, MLP 15680, 128 heads: 63.02, and 156.42 tokens/s at batch 8",
)
PUBLISHED_SCORES = {
    "MMLU": (78.24, 74.53),
    "MMLU-Pro": (63.98, 59.43),
    "GSM8K": (91.66, 91.36),
    "MATH": (83.54, 80.50),
    "HumanEval+": (61.03, 58.50),
    "MBPP+": (61.55, 58.95),
    "ARC-C": (93.26, 90.70),
    "RULER-128K": (84.74, 82.22),
}
"""Benchmark -> the 12B base model and the 9B base model."""


def steps_of(config: Any, steps: tuple[Any, ...], optional: tuple[Any, ...]) -> tuple[Any, ...]:
    """The steps of a run with this Config of the stage, in order; the optional ones come before the evaluation."""
    return (*steps[:-1], *optional, steps[-1]) if config.final_stages else steps


def check(config: Any) -> Any:
    """Raise ValueError for what a later step would refuse, before any work is done; return the config.

    Args:
        config: of the stage.
    """
    config, teacher = check_stage(config), shape_of(config.base_checkpoint_path) or MODELS[config.scale]
    phases = data_curation.planned_phases(config.data)
    parts = [training.training_parts(phases, step) for step in (config.train, config.scratch)]
    if config.final_stages:
        final.links_of(config.chain)
    search.check_rows(phases[0], config.prune)
    search.check_grid(teacher, config.prune)
    shapes = [one.config for one in search.narrowest_shapes(teacher, config.prune)]
    if not config.plan:  # the shape may be larger, and rows are longer than a token: training checks again
        smallest = min(shapes, key=count_parameters)
        for step, of_step, beside in zip((config.train, config.scratch), parts, ([teacher], []), strict=True):
            check_fits(smallest, step, [Pass(part.batch_sequences, 1, 1) for part in of_step], beside)
    return config


def page(config: Any) -> str:
    """The plan of a run with this Config of the stage, as a page for the terminal.

    Raises:
        ValueError: as the search, if the budget is above the teacher or below the smallest shape.
    """
    teacher, budget = shape_of(config.base_checkpoint_path) or MODELS[config.scale], config.prune.budget_bytes
    patterns, known = planned_patterns(teacher, config.prune)
    widths = (config.prune.hidden_sizes, config.prune.intermediate_sizes, config.prune.mamba_heads)
    grid = Grid(tuple(patterns), *widths, (teacher.mamba_head_dim,))
    needs = {"context_tokens": config.prune.context_tokens, "sequences": config.prune.sequences}
    found = candidates(teacher, grid, budget_bytes=budget, **needs)
    parts = training.training_parts(data_curation.planned_phases(config.data), config.train)
    whole = Candidate(teacher, inference_memory_bytes(teacher, **needs), budget)
    fitting = [one for one in found if one.fits]
    published = next((one for one in found if known and one.config == PUBLISHED_9B), None)  # None: not in the grid
    chosen = published or fitting[0]
    tried = fitting[: config.prune.num_candidates]
    lines = [
        f"Compression at scale {config.scale}",
        "",
        f"  budget                     {budget:,} bytes, {budget / 2**30:.2f} GiB",
        f"  context                    {config.prune.context_tokens:,} tokens, {config.prune.sequences} at a time",
        f"  teacher                    {shape_text(teacher)}",
        f"    parameters               {count_parameters(teacher):,}",
        f"    memory                   {whole.verdict}",
        f"  grid                       {len(fitting):,} of {len(found):,} shapes fit",
        "",
        f"  {'the published 9B, whose shape is that of the paper' if published else 'the largest that fits'}",
        *shape_lines(chosen, known),
        "",
        "  one step of the grid from it",
    ]
    for name, one in neighbors(grid, chosen.config, found).items():
        lines += [f"    {name:<28}{count_parameters(one.config):,} parameters", f"      {one.verdict}"]
    lines += ["", "  the largest that fit, of which each would be distilled for a while"]
    for one in tried:
        lines += [f"    {shape_text(one.config)}", f"      {one.verdict}"]
    if not known:
        lines.append("    with the layers that importance leaves there may be others")
    if published and published not in tried:
        lines.append("    the published 9B is not one of them: the rule is to take those that need most of the budget")
    if over := [one for one in found if not one.fits]:
        # They are from most to least memory: of equally near ones, the smallest.
        nearest = min(reversed(over), key=partial(grid_steps, grid, chosen.config))
        steps = grid_steps(grid, chosen.config, nearest)
        lines += ["", f"  the nearest that does not fit, {steps} steps of the grid away"]
        lines += [f"    {shape_text(nearest.config)}", f"      {nearest.verdict}"]
    passes = [part.forward_pass(documents=True) for part in parts]
    lines += ["", *schedule_lines(parts, teacher, chosen.config, config)]
    lines += ["", *memory_lines(chosen.config, config.train, passes, [teacher], devices=config.devices)]
    if config.final_stages:
        lines += ["", *final_lines(config.chain)]
    if config.scale == "full":
        lines += ["", *PUBLISHED_CHAIN, "", f"  {'published, base models':<28}{'12B':>8}{'9B':>8}"]
        lines += [f"    {name:<26}{before:>8.2f}{after:>8.2f}" for name, (before, after) in PUBLISHED_SCORES.items()]
    return "\n".join(lines)


def final_lines(config: final.Config) -> list[str]:
    """The links of the final stages, and how much each of them reads."""
    tokens = config.distillation_length * config.distillation_sequences
    share = partial(apply_scale, scale=config.scale)
    return [
        "  final stages",
        f"    DPO                        {share(config.tool_tasks):,} tasks with tools before the filters",
        f"    GRPO                       {share(config.instruction_prompts):,} prompts before the filters",
        f"    distillation               {tokens:,} tokens in rows of {config.distillation_length:,}",
        f"    RLHF                       {share(config.chat_pairs):,} pairs and {share(config.chat_prompts):,} prompts",
        f"    merge                      {config.merge_weight:g} of the policy, the rest of the model before it",
    ]


def planned_patterns(teacher: ModelConfig, config: search.Config) -> tuple[list[str], bool]:
    """The patterns of layers that the plan shows, and whether they are the published ones.

    Raises:
        ValueError: as the search, if the teacher cannot be pruned to a shape of the grid, fits the budget, or no shape
            does.
    """
    search.check_grid(teacher, config)
    fits = {one.config.hybrid_override_pattern: one.fits for one in search.narrowest_shapes(teacher, config)}
    if teacher == MODELS["full"]:
        known = [one for one in FULL_GRID.hybrid_override_pattern if fits.get(sorted_layers(one))]
        if known:
            return known, True
    return sorted(fits, key=lambda pattern: (len(pattern), pattern.count(MAMBA))), False


def sorted_layers(pattern: str) -> str:
    """The pattern with its layers by kind, as `narrowest_shapes` writes it."""
    return "".join(letter * pattern.count(letter) for letter in (MAMBA, MLP, ATTENTION))


def grid_steps(grid: Grid, config: ModelConfig, other: Candidate) -> int:
    """How many steps of the grid a candidate is away from a shape of the grid, over all fields."""
    axes = [(getattr(grid, field.name), field.name) for field in fields(Grid)]
    return sum(abs(one.index(getattr(config, name)) - one.index(getattr(other.config, name))) for one, name in axes)


def shape_text(config: ModelConfig) -> str:
    """A shape in one line."""
    pattern = config.hybrid_override_pattern
    return (
        f"{len(pattern)} layers ({pattern.count(ATTENTION)} of attention, {pattern.count(MAMBA)} of Mamba-2), hidden "
        f"{config.hidden_size}, MLP {config.intermediate_size}, {config.mamba_num_heads} Mamba heads"
    )


def shape_lines(candidate: Candidate, known: bool) -> list[str]:
    """What a shape is and needs; `known`: whether its pattern is an order of layers, and not only how many."""
    pattern = candidate.config.hybrid_override_pattern
    kinds = {"Mamba-2": MAMBA, "MLP": MLP, "attention": ATTENTION}
    numbers = ", ".join(f"{pattern.count(letter)} {name}" for name, letter in kinds.items())
    return [
        f"    shape                    {shape_text(candidate.config)}",
        f"    layers                   {pattern if known else f'{numbers}; which ones, importance says'}",
        f"    parameters               {count_parameters(candidate.config):,}",
        f"    memory                   {candidate.verdict}",
    ]


def schedule_lines(parts: list[TrainingPhase], teacher: ModelConfig, student: ModelConfig, config: Any) -> list[str]:
    """Steps, tokens and cost of distillation: forward and backward of the student, forward of the teacher."""
    lines = [f"  {'distillation':<16}{'steps':>10}{'rows/step':>12}{'length':>10}{'tokens':>20}{'KL in memory':>16}"]
    operations = 0.0
    for part in parts:
        tokens = part.data.num_sequences * part.length
        logits = 2 * 4 * min(config.train.chunk_tokens, part.micro_batch_sequences * part.length) * student.vocab_size
        lines.append(
            f"  {part.name:<16}{part.num_steps:>10,}{part.batch_sequences:>12,}{part.length:>10,}{tokens:>20,}"
            f"{logits / 2**30:>12.3f} GiB"
        )
        operations += tokens * floating_point_operations_per_token(student, part.length)
        operations += tokens * sum(forward_operations_per_token(teacher, part.length).values())
    lines += ["", f"  operations                 {operations:.3g}", "  expected time"]
    lines += [f"    {name:<44}{duration(training_hours(operations, name))}" for name in HARDWARE]
    return lines
