"""What pretraining at a scale would take: parameters, tokens, steps, learning rates, memory, operations, hours.

In: the configs of data_curation.py and training.py. Out: a Plan, and its text for `--plan`.
Every number comes from the function that the run itself calls, so the plan cannot differ from the run.
Run: python -m nemotron.recipes.nano2.stage0_pretrain --scale full --plan

Left out: time and memory of curation and evaluation, and communication between devices.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from nemotron import apply_scale
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nemotron_h.plan import (
    HARDWARE,
    count_parameters,
    floating_point_operations_per_token,
    training_hours,
)
from nemotron.recipes.training.batches import TrainingPhase
from nemotron.recipes.training.memory import check_fits, memory_lines
from nemotron.recipes.training.run import check_stage

MAX_STEPS = 20_000_000  # our choice: the plan has the learning rate of each; the published run has 3.2 million
# Published: arXiv 2508.14444, sections 2.4 and 2.6.
PUBLISHED_BUT_NOT_BUILT = (
    "  what full needs beyond this code",
    "    matrix products in FP8     published: E4M3, weights in blocks of 128 x 128, activations in tiles of 1 x 128;",
    "                               the first and the last four products stay in bfloat16",
    "    rows on several devices    published, for rows of 524,288 tokens: 8-way tensor parallelism and 16-way context",
    "                               parallelism. Here a row is on one device, which no card is large enough for",
    "    weights in bfloat16        the bfloat16 copies of the weights are whole on each device; FSDP2 can gather",
    "                               them in bfloat16 instead",
)


@dataclass(frozen=True)
class Plan:
    """The numbers of one pretraining run."""

    scale: str
    layers: str
    num_parameters: int
    raw_documents: int | str
    """Documents that are read, or "all" rows of the sources."""
    phases: list[TrainingPhase]
    learning_rates: list[float]
    """Of every optimizer step, over all phases."""
    schedule: dict[str, int]
    """Turning point of the learning rate -> its step, counted from 0."""
    memory: list[str]
    """What a training step needs on each device, and the cards with enough."""
    floating_point_operations: float
    dtype: str

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases)

    @property
    def num_tokens(self) -> int:
        return sum(phase.data.num_sequences * phase.data.sequence_length for phase in self.phases)


def check(config: Any) -> Any:
    """Raise ValueError for what training or evaluation would refuse, before any work is done; return the config.

    Args:
        config: Config of the stage.
    """
    config = check_stage(config)
    if config.data.batch_sequences != config.train.batch_sequences:
        raise ValueError(
            f"data.batch_sequences={config.data.batch_sequences} rounds the phases to whole batches, and "
            f"train.batch_sequences={config.train.batch_sequences} reads them; give both the same value"
        )
    phases = training.training_phases(config.train, data_curation.planned_phases(config.data))
    if not config.plan:
        check_fits(MODELS[config.scale], config.train, [phase.forward_pass(documents=False) for phase in phases])
    return config


def page(config: Any) -> str:
    """The plan of a run with this Config of the stage, as a page for the terminal.

    Raises:
        ValueError: as `pretraining_plan`, or if a size is too large for a float.
    """
    try:
        return plan_text(pretraining_plan(config.data, config.train, config.devices))
    except OverflowError as error:
        raise ValueError(f"a size of the run is too large to plan with ({error}); give a smaller one") from None


def pretraining_plan(data: data_curation.Config, train: training.Config, devices: int = 1) -> Plan:
    """The plan of a run with these configs, both of the same scale, on so many devices.

    Raises:
        ValueError: if the sizes do not fit each other, which the run would raise too, or the plan would be too long.
    """
    model = replace(MODELS[train.scale], vocab_size=data.vocab_size)
    phases = training.training_phases(train, data_curation.planned_phases(data))
    base_steps = training.base_steps(phases)
    num_steps = sum(phase.num_steps for phase in phases)
    if num_steps > MAX_STEPS:
        raise ValueError(f"the run has {num_steps:,} steps; a plan has at most {MAX_STEPS:,}, so give fewer sequences")
    learning_rates = [training.learning_rate_at(step, base_steps, train) for step in range(num_steps)]
    if not all(map(math.isfinite, learning_rates)):
        raise ValueError(f"learning_rate={train.learning_rate} is too large for a schedule; give a lower one")
    return Plan(
        scale=train.scale,
        layers=model.hybrid_override_pattern,
        num_parameters=count_parameters(model),
        raw_documents="all" if data.raw_documents == "all" else apply_scale(data.raw_documents, data.scale),
        phases=phases,
        learning_rates=learning_rates,
        schedule={
            "start of the warmup": 0,
            "end of the warmup": learning_rates.index(max(learning_rates)),
            "last step at the peak": num_steps - 1 - learning_rates[::-1].index(max(learning_rates)),
            "end of the decay": base_steps - 1,
            "end of the long context": num_steps - 1,
        },
        memory=memory_lines(model, train, [phase.forward_pass(documents=False) for phase in phases], devices=devices),
        floating_point_operations=sum(
            phase.data.num_sequences
            * phase.data.sequence_length
            * floating_point_operations_per_token(model, phase.length)
            for phase in phases
        ),
        dtype=train.dtype,
    )


def plan_text(plan: Plan) -> str:
    """The plan as a page for the terminal."""
    raw_documents = "every row of the sources" if plan.raw_documents == "all" else f"{plan.raw_documents:,}"
    lines = [
        f"Pretraining at scale {plan.scale}",
        "",
        f"  parameters                 {plan.num_parameters:,}",
        f"  layers                     {plan.layers}",
        f"  arithmetic                 {plan.dtype}",
        f"  raw documents              {raw_documents}",
        f"  steps                      {plan.num_steps:,}",
        f"  tokens                     {plan.num_tokens:,}",
        f"  operations                 {plan.floating_point_operations:.3g}",
        "",
        f"  {'phase':<14}{'steps':>12}{'sequences/step':>16}{'length':>10}{'tokens':>22}",
    ]
    for phase in plan.phases:
        tokens = phase.data.num_sequences * phase.data.sequence_length
        lines.append(
            f"  {phase.name:<14}{phase.num_steps:>12,}{phase.batch_sequences:>16,}{phase.length:>10,}{tokens:>22,}"
        )
    lines += ["", f"  learning rate  {sparkline(plan.learning_rates)}"]
    for name, step in plan.schedule.items():
        lines.append(f"    {name:<26}step {step:>12,}   {plan.learning_rates[step]:.3e}")
    if plan.scale == "full":
        lines += ["", *PUBLISHED_BUT_NOT_BUILT]
    lines += ["", *plan.memory, "", "  expected time"]
    for name in HARDWARE:
        hours = training_hours(plan.floating_point_operations, name)
        lines.append(f"    {name:<44}{duration(hours)}")
    return "\n".join(lines)


def sparkline(values: list[float], width: int = 60) -> str:
    """Values as a row of blocks; each block shows the last of the values that it represents."""
    blocks = "▁▂▃▄▅▆▇█"
    width, highest = min(width, len(values)), max(values)
    shown = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    return "".join(blocks[round(value / highest * (len(blocks) - 1))] for value in shown)


def duration(hours: float) -> str:
    """Hours in the unit that a person would use."""
    if hours < 1 / 60:
        return f"{hours * 3600:,.0f} s"
    if hours < 1:
        return f"{hours * 60:,.0f} min"
    if hours < 48:
        return f"{hours:,.1f} h"
    return f"{hours / 24:,.0f} days"
