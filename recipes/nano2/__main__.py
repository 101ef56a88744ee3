"""Nemotron Nano 2, all stages in order: 0, pretraining, 1, fine-tuning, 2, learning from verifiable rewards, 3, from
preferences between its own tries at tasks with tools, 4, from a reward model, with a merge at the end, and 5,
compression.

Run: python -m nemotron.recipes.nano2 --scale tiny
"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from nemotron import Artifact, print_complete, whole_stage
from nemotron.config import ScaledConfig, nested, output_below, parse_command_line, switch
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage0_pretrain import plan
from nemotron.recipes.nano2.stage1_sft import __main__ as stage1_sft
from nemotron.recipes.nano2.stage2_rlvr import __main__ as stage2_rlvr
from nemotron.recipes.nano2.stage3_dpo import __main__ as stage3_dpo
from nemotron.recipes.nano2.stage4_rlhf import __main__ as stage4_rlhf
from nemotron.recipes.nano2.stage5_compress import __main__ as stage5_compress
from nemotron.recipes.nano2.stage5_compress import plan as compression_plan
from nemotron.recipes.training.run import check_stage
from nemotron.testing.stage import report_reproduction


@dataclass
class Config(ScaledConfig):
    """Train Nemotron Nano 2, from raw text to final evaluation; meant for --scale tiny and small."""

    output_dir: Path = output_below("nano2")
    """Where the artifacts go, one folder per stage."""
    plan: bool = switch(of_whole_run=True)
    """Print what the scale would do in stage 0, and do none of it."""
    pretrain: stage0_pretrain.Config = nested(stage0_pretrain.Config, "stage0_pretrain")
    sft: stage1_sft.Config = nested(stage1_sft.Config, "stage1_sft")
    rlvr: stage2_rlvr.Config = nested(stage2_rlvr.Config, "stage2_rlvr")
    dpo: stage3_dpo.Config = nested(stage3_dpo.Config, "stage3_dpo")
    rlhf: stage4_rlhf.Config = nested(stage4_rlhf.Config, "stage4_rlhf")
    compress: stage5_compress.Config = nested(stage5_compress.Config, "stage5_compress")


def main(config: Config) -> dict[str, dict[str, Artifact]]:
    """Run the stages in order, each on the checkpoint of the one before; return their artifacts by stage and name."""
    config = replace(config)  # validates again: a field of a nested Config may have changed since
    # Refuse now what a later stage would refuse after hours.
    pretrain = plan.check(config.pretrain, "--pretrain.train.resume")
    stage1_sft.data_curation.check_sources(config.sft.data)
    stage2_rlvr.data_curation.check_sources(config.rlvr.data)
    stage4_rlhf.data_curation.check_sources(config.rlhf.data)
    sft = check_stage(MODELS[config.scale], config.sft, "--sft.train.resume")
    rlvr = check_stage(MODELS[config.scale], config.rlvr, "--rlvr.train.resume")
    dpo = check_stage(MODELS[config.scale], config.dpo, "--dpo.train.resume")
    rlhf = check_stage(MODELS[config.scale], config.rlhf, "--rlhf.train.resume")
    compress = compression_plan.check(config.compress, "--compress.train.resume")
    with (
        whole_stage(pretrain, stage0_pretrain.STEPS),
        whole_stage(sft, stage1_sft.STEPS),
        whole_stage(rlvr, stage2_rlvr.STEPS),
        whole_stage(dpo, stage3_dpo.STEPS),
        whole_stage(rlhf, stage4_rlhf.STEPS),
        whole_stage(compress, stage5_compress.STEPS),
    ):
        base = stage0_pretrain.main(pretrain)
        tuned = stage1_sft.main(replace(sft, base_checkpoint_path=base["checkpoint"].path))
        reinforced = stage2_rlvr.main(replace(rlvr, base_checkpoint_path=tuned["checkpoint"].path))
        preferring = stage3_dpo.main(replace(dpo, base_checkpoint_path=reinforced["checkpoint"].path))
        liked = stage4_rlhf.main(replace(rlhf, base_checkpoint_path=preferring["checkpoint"].path))
        small = stage5_compress.main(replace(compress, base_checkpoint_path=liked["checkpoint"].path))
    return {
        stage0_pretrain.STAGE: base,
        stage1_sft.STAGE: tuned,
        stage2_rlvr.STAGE: reinforced,
        stage3_dpo.STAGE: preferring,
        stage4_rlhf.STAGE: liked,
        stage5_compress.STAGE: small,
    }


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config.pretrain.data, config.pretrain.train))
        else:
            stages = main(config)
            print_complete(stages[stage5_compress.STAGE])
            for stage, artifacts in stages.items():
                report_reproduction(stage, config.scale, artifacts["results"].path.parent)
