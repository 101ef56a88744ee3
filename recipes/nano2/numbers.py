"""Every number of full with its origin, as the last section of README.md beside this file shows it.

In: the Configs of all steps, the model and the blend. Out: the section as Markdown. A test compares it with README.md.
Run: python -m nemotron.recipes.nano2.numbers
"""

import argparse
import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from nemotron.command_line import checked_arguments, program_name
from nemotron.config import Marked, origin_of
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.blend import BLEND, LONG_DOCUMENT_QA_SHARE
from nemotron.recipes.nano2.models import FULL_SHAPE
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage1_sft import __main__ as stage1_sft
from nemotron.recipes.nano2.stage2_rlvr import __main__ as stage2_rlvr
from nemotron.recipes.nano2.stage3_dpo import __main__ as stage3_dpo
from nemotron.recipes.nano2.stage4_rlhf import __main__ as stage4_rlhf
from nemotron.recipes.nano2.stage5_compress import __main__ as stage5_compress
from nemotron.terminal import whole_output

STAGES = (stage0_pretrain, stage1_sft, stage2_rlvr, stage3_dpo, stage4_rlhf, stage5_compress)
HEADING = "## Every number of full"


def page() -> str:
    """The section: one table for the model, one for the blend, one for each stage."""
    blend = f"{LONG_DOCUMENT_QA_SHARE:.0%} of the long-context phase are questions on long documents (published)."
    return "\n".join(
        [
            HEADING,
            "",
            "`python -m nemotron.recipes.nano2.numbers` prints this section, and a test compares it with the code.",
            "What a number means is written below it in the `Config` of its step, and in `--help`.",
            "",
            *folded(
                "The model", ("number", "at full", "origin"), ((name, *cells(one)) for name, one in FULL_SHAPE.items())
            ),
            f"The blend, in percent of a phase. Proxy: Nemotron 3 Nano. {blend}",
            "The rest of that phase has the shares of phase 3.",
            "",
            *folded("The blend", ("category", "phase 1", "phases 2 and 3"), blend_rows()),
            *(line for stage in STAGES for line in stage_table(stage)),
        ]
    )


def stage_table(stage: ModuleType) -> list[str]:
    """The numbers of the steps of a stage, as its orchestrator lists them."""
    rows = [
        (step.__name__.rpartition(".")[2], item.name, *cells(item.metadata["by_scale"]["full"]))
        for step in (*stage.STEPS, *getattr(stage, "OPTIONAL_STEPS", ()))
        for item in dataclasses.fields(step.Config)
        if origin_of(step.Config, item.name, "full")
    ]
    return folded(stage.STAGE.partition("/")[2], ("step", "number", "at full", "origin"), rows)


def blend_rows() -> Iterator[tuple[str, ...]]:
    """Category, percent of phase 1, percent of phases 2 and 3."""
    for category in BLEND["phase1"]:
        yield category, *(str(BLEND[phase].get(category, 0)) for phase in ("phase1", "phase2"))


def cells(number: Marked) -> tuple[str, str]:
    """A number and its origin, as cells of a table."""
    return f"`{shown(number.value)}`", number.origin


def shown(value: Any) -> str:
    """A value as a person reads it: 3,814 and 4.5e-06."""
    if isinstance(value, tuple):
        return "; ".join(map(shown, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def folded(title: str, head: tuple[str, ...], rows: Any) -> list[str]:
    """A table that a reader opens."""
    table = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    table.insert(1, "|---" * len(head) + "|")
    return [f"<details><summary>{title}</summary>", "", *table, "", "</details>", ""]


def main() -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(
        prog=program_name(), description="Print every number of full with its origin.", allow_abbrev=False
    )
    with whole_output():
        parser.parse_args(checked_arguments())
    with step_process():
        print_page(page())


if __name__ == "__main__":
    main()
