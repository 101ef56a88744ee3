"""Nemotron Nano 2, all stages in order: 0, pretraining, 1, fine-tuning, 2, learning from verifiable rewards, 3, from
preferences between its own tries at tasks with tools, 4, from a reward model, with a merge at the end, and 5,
compression.

The same command again goes on where the last one stopped: nemotron/stage.py decides what has to run.
Run: python -m nemotron.recipes.nano2 --scale tiny
"""

from contextlib import ExitStack
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from nemotron import Artifact, StageConfig, print_complete, whole_stage
from nemotron.config import nested, output_below, parse_command_line
from nemotron.lineage import log_files
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage1_sft import __main__ as stage1_sft
from nemotron.recipes.nano2.stage2_rlvr import __main__ as stage2_rlvr
from nemotron.recipes.nano2.stage3_dpo import __main__ as stage3_dpo
from nemotron.recipes.nano2.stage4_rlhf import __main__ as stage4_rlhf
from nemotron.recipes.nano2.stage5_compress import __main__ as stage5_compress
from nemotron.report import write_report
from nemotron.stage import chosen_stages
from nemotron.terminal import print_line
from nemotron.testing.stage import report_reproduction

STAGES = {
    "pretrain": stage0_pretrain,
    "sft": stage1_sft,
    "rlvr": stage2_rlvr,
    "dpo": stage3_dpo,
    "rlhf": stage4_rlhf,
    "compress": stage5_compress,
}
"""Field of Config -> its stage, in order. Each stage starts from the Checkpoint of the one before."""


@dataclass
class Config(StageConfig):
    """Train Nemotron Nano 2, from raw text to final evaluation; meant for --scale tiny and small."""

    output_dir: Path = output_below("nano2")
    """Where the artifacts go, one folder per stage."""
    stages: str = field(default="", metadata={"recorded": False})
    """One stage, or a range with its ends, as in stage1_sft:stage3_dpo, 1:3 or 2:. All if left out."""
    pretrain: stage0_pretrain.Config = nested(stage0_pretrain.Config, "stage0_pretrain")
    sft: stage1_sft.Config = nested(stage1_sft.Config, "stage1_sft")
    rlvr: stage2_rlvr.Config = nested(stage2_rlvr.Config, "stage2_rlvr")
    dpo: stage3_dpo.Config = nested(stage3_dpo.Config, "stage3_dpo")
    rlhf: stage4_rlhf.Config = nested(stage4_rlhf.Config, "stage4_rlhf")
    compress: stage5_compress.Config = nested(stage5_compress.Config, "stage5_compress")


def main(config: Config) -> dict[str, dict[str, Artifact]]:
    """Run the stages in order, each on the Checkpoint of the one before; return their artifacts by stage and name."""
    config = replace(config)  # validates again: a field of a nested Config may have changed since
    names = chosen_stages(config.stages, [stage.STAGE for stage in STAGES.values()])
    stages = {name: stage for name, stage in STAGES.items() if stage.STAGE in names}
    configs: dict[str, Any] = {}
    for name, stage in stages.items():
        given = replace(getattr(config, name), plan=config.plan, force=config.force, devices=config.devices)
        if name != "pretrain":  # where the stage before has written its Checkpoint, now or earlier
            place = given.base_checkpoint_path.relative_to(Config(scale=config.scale).output_dir)
            given = replace(given, base_checkpoint_path=config.output_dir / place)
            if not configs and not given.base_checkpoint_path.is_dir():
                raise ValueError(
                    f"stages={config.stages} begins with {given.base_checkpoint_path}, which does not exist; run the "
                    f"stage before it first, or name the output_dir that holds it"
                )
        # Refuse now what a later stage would refuse after hours.
        if not config.plan and hasattr(stage.data_curation, "check_sources"):
            stage.data_curation.check_sources(given.data)
        configs[name] = stage.plan.check(given)
    if config.plan:
        for name, stage in stages.items():
            print_page(stage.plan.page(configs[name]))
    with ExitStack() as opened:
        for name, stage in stages.items():
            optional = getattr(stage, "OPTIONAL_STEPS", ())
            steps = stage.plan.steps_of(configs[name], stage.STEPS, optional) if optional else stage.STEPS
            opened.enter_context(whole_stage(configs[name], steps))
        return {stage.STAGE: stage.main(configs[name]) for name, stage in stages.items()}


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        stages = main(config)
        if not config.plan:
            print_complete(list(stages.values())[-1])
            report = write_report(config.output_dir, only_if_changed=True)
            log_files(report)
            print_line(f"report: {report}")
            for stage, artifacts in stages.items():
                report_reproduction(stage, config.scale, artifacts["results"].path.parent)
