"""What compression at a scale would take: which shapes fit the budget and why, the schedule of lengths, the cost.

In: the Config of the stage. Out: text for `--plan`. Every number comes from the function that the run itself calls; the
published numbers stand beside those of `full`.
Run: python -m nemotron.recipes.nano2.stage5_compress --scale full --plan

Which layers are removed is known only after their importance was measured. At full the plan takes the patterns of
FULL_GRID; at the other scales it keeps every layer and shows the widths alone.
Left out: memory and time of the search, of the evaluation and of the final stages, and communication between devices.
"""

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
from nemotron.recipes.nemotron_h.model import ATTENTION, PUBLISHED_9B, ModelConfig
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
    grid, target = planned_grid(teacher, config.prune)
    needs = {"context_tokens": config.prune.context_tokens, "sequences": config.prune.sequences}
    found = candidates(teacher, grid, budget_bytes=budget, **needs)
    parts = training.training_parts(data_curation.planned_phases(config.data), config.train)
    whole = Candidate(teacher, inference_memory_bytes(teacher, **needs), budget)
    published = next((one for one in found if one.config == target), None)  # None: the flags leave it out of the grid
    chosen = published or next(one for one in found if one.fits)
    lines = [
        f"Compression at scale {config.scale}",
        "",
        f"  budget                     {budget:,} bytes, {budget / 2**30:.2f} GiB",
        f"  context                    {config.prune.context_tokens:,} tokens, {config.prune.sequences} at a time",
        f"  teacher                    {shape_text(teacher)}",
        f"    parameters               {count_parameters(teacher):,}",
        f"    memory                   {whole.verdict}",
        f"  grid                       {sum(one.fits for one in found):,} of {len(found):,} shapes fit",
        "",
        f"  {'the published 9B' if published else 'the largest that fits'}",
        *shape_lines(chosen),
        "",
        "  one step of the grid from it",
    ]
    for name, one in neighbors(grid, chosen.config, found).items():
        lines += [f"    {name:<28}{count_parameters(one.config):,} parameters", f"      {one.verdict}"]
    lines += ["", "  the largest that fit, of which each would be distilled for a while"]
    for one in [one for one in found if one.fits][: config.prune.num_candidates]:
        lines += [f"    {shape_text(one.config)}", f"      {one.verdict}"]
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


def planned_grid(teacher: ModelConfig, config: search.Config) -> tuple[Grid, ModelConfig | None]:
    """The grid, and the published shape if the teacher is the published 12B; otherwise every layer stays."""
    target = PUBLISHED_9B if teacher == MODELS["full"] else None
    known = [pattern for pattern in FULL_GRID.hybrid_override_pattern if len(pattern) in config.depths]
    patterns = tuple(known) if target and known else (teacher.hybrid_override_pattern,)
    widths = (config.hidden_sizes, config.intermediate_sizes, config.mamba_heads, (teacher.mamba_head_dim,))
    return Grid(patterns, *widths), target


def shape_text(config: ModelConfig) -> str:
    """A shape in one line."""
    pattern = config.hybrid_override_pattern
    return (
        f"{len(pattern)} layers ({pattern.count(ATTENTION)} of attention), hidden {config.hidden_size}, MLP "
        f"{config.intermediate_size}, {config.mamba_num_heads} Mamba heads"
    )


def shape_lines(candidate: Candidate) -> list[str]:
    """What a shape is and needs."""
    return [
        f"    shape                    {shape_text(candidate.config)}",
        f"    layers                   {candidate.config.hybrid_override_pattern}",
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
