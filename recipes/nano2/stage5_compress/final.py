"""The final stages of the published chain, on the distilled model: DPO, GRPO, a short distillation, RLHF, a merge.

In: the distilled Checkpoint of training.py, or the control that was made after it; through it the teacher. Out:
FinalStages, which names the merged Checkpoint. Every link of the chain is a step of another stage, called as a
function: it reads the model that the link before wrote, and writes its artifact below <output_dir>_links. A link that
is current is not run again.
Source: arXiv 2508.14444, section 4. Published: the order; about 0.4B tokens of distillation in rows of 262,144; a
linear merge at 0.5 of the last two checkpoints. How much data the other links had, and all their other numbers, is
undisclosed: here each has a quarter of the data that its stage has (more at tiny). Values that are not in the Config or
in `links_of` are those of its stage.
Run: python -m nemotron.recipes.nano2.stage5_compress.final --scale tiny --checkpoint-path <directory>

The teacher of the short distillation is the one of the long distillation, which nothing has trained since. Its rows are
the first of the same streams, so the student has seen their tokens (our choice).
Left out: several processes. The links train in this one; to spread one of them over devices, start it by itself.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from nemotron import Artifact, print_complete, whole_stage
from nemotron.artifact import working_directory
from nemotron.config import (
    Fraction,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    our_choice,
    output_below,
    parse_command_line,
    published,
    switch,
)
from nemotron.pipe import step_process
from nemotron.recipes.nano2.models import DEVICES
from nemotron.recipes.nano2.stage2_rlvr import data_curation as grpo_data
from nemotron.recipes.nano2.stage2_rlvr import training as grpo
from nemotron.recipes.nano2.stage3_dpo import data_curation as dpo_data
from nemotron.recipes.nano2.stage3_dpo import training as dpo
from nemotron.recipes.nano2.stage4_rlhf import data_curation as rlhf_data
from nemotron.recipes.nano2.stage4_rlhf import merging, reward_model
from nemotron.recipes.nano2.stage4_rlhf import training as rlhf
from nemotron.recipes.nano2.stage5_compress import data_curation as distillation_data
from nemotron.recipes.nano2.stage5_compress import training as distillation
from nemotron.recipes.nano2.stage5_compress.control import made_checkpoints
from nemotron.recipes.training.state import check_before_work

LINKS = {
    "dpo_data": dpo_data,
    "dpo": dpo,
    "grpo_data": grpo_data,
    "grpo": grpo,
    "distillation_data": distillation_data,
    "distillation": distillation,
    "rlhf_data": rlhf_data,
    "reward_model": reward_model,
    "rlhf": rlhf,
    "merging": merging,
}
"""Folder of a link -> its step, in the published order."""


@dataclass
class Config(ScaledConfig):
    """Run the final stages of the published chain on the distilled model."""

    seed: int = 1234
    """Seed of every link."""
    output_dir: Path = output_below("nano2", "stage5_compress", "final")
    """Where the record of the chain goes; its links go into the directory beside it whose name ends in _links."""
    checkpoint_path: Path | None = input_path()
    """Directory of the distilled Checkpoint, or of the control; read from the pipe if left out."""

    # DPO, as in stage 3.
    tool_tasks: PositiveInt = by_scale(tiny=1_200, small=1_500, medium=1_000, full=our_choice(4_000))
    """Tasks with tools before any filter, of which the scale takes its share."""
    preference_rounds: PositiveInt = at_every_scale(our_choice(1))
    """Times that the policy tries every task."""
    preference_steps: PositiveInt = by_scale(tiny=2, small=3, medium=5, full=our_choice(12))
    """Optimizer steps of a round."""

    # GRPO, as in stage 2.
    instruction_prompts: PositiveInt = by_scale(tiny=1_600, small=5_000, medium=4_000, full=our_choice(4_000))
    """Prompts before any filter, of which the scale takes its share."""

    # The short distillation.
    distillation_length: PositiveInt = by_scale(
        tiny=512, small=1024, medium=16_384, full=published(262_144, "section 4")
    )
    """Predicted tokens of a row."""
    distillation_sequences: PositiveInt = by_scale(
        tiny=4, small=16, medium=80, full=published(1_526, "section 4, about 0.4B tokens")
    )
    """Rows."""
    distillation_batch: PositiveInt = by_scale(tiny=1, small=4, medium=8, full=our_choice(48))
    """Rows per optimizer step."""
    distillation_learning_rate: PositiveFloat = by_scale(
        tiny=4e-5, small=2e-5, medium=1e-5, full=our_choice(1e-5, "where the long distillation ends")
    )
    """Learning rate after one step of warmup; it stays."""

    # RLHF and the merge, as in stage 4.
    chat_pairs: PositiveInt = by_scale(tiny=3_200, small=7_500, medium=10_000, full=our_choice(10_000))
    """Pairs for the reward model before any filter, of which the scale takes its share."""
    chat_prompts: PositiveInt = by_scale(tiny=800, small=1_600, medium=4_000, full=our_choice(4_000))
    """Prompts, of which the scale takes its share."""
    merge_weight: Fraction = at_every_scale(published(0.5, "section 4"))
    """Weight of the model after RLHF; that of the model before it is the rest."""

    device: str = by_scale(**DEVICES, recorded=False)
    """Where every link computes: cpu, cuda, cuda:1, ..."""
    resume: bool = switch()
    """Continue unfinished trainings of links even if the code has changed. Without it, one goes on only with the same
    code."""
    force: bool = switch(of_whole_run=True)
    """Run every link, also those whose artifact is current."""

    def check(self) -> None:
        if self.merge_weight in (0, 1):
            raise ValueError(f"merge_weight={self.merge_weight} is a parent; give a number between 0 and 1")


class FinalStages(Artifact):
    """The chain from the distilled model to the merge; metrics: the steps of each training and its last loss."""

    given_path: Path
    """The distilled Checkpoint, from which the chain started, or the control that was made after it."""
    checkpoint_path: Path
    """The merged Checkpoint, at the end of the chain."""


@dataclass
class Links:
    """The Config of every link, by the names of LINKS, and what `whole_stage` reads of a stage."""

    output_dir: Path
    force: bool
    dpo_data: Any
    dpo: Any
    grpo_data: Any
    grpo: Any
    distillation_data: Any
    distillation: Any
    rlhf_data: Any
    reward_model: Any
    rlhf: Any
    merging: Any


def links_of(config: Config) -> Links:
    """The Config of every link, without its inputs: that of its stage, with the values of this one.

    A training that was interrupted goes on: its `resume` is set.

    Raises:
        ValueError: if a value does not fit its link, or there is an unfinished training that cannot go on.
    """
    place = config.output_dir.with_name(f"{config.output_dir.name}_links")
    folders = {step: name for name, step in LINKS.items()}
    where: dict[str, Any] = {"device": config.device}

    def link(step: Any, **values: Any) -> Any:
        shared = {"scale": config.scale, "seed": config.seed, "flag_prefix": config.flag_prefix}
        made = step.Config(output_dir=place / folders[step], **shared, **values)
        if hasattr(made, "resume"):
            made.resume = config.resume
            made.resume = check_before_work(made) or config.resume
        return made

    return Links(
        output_dir=place,
        force=config.force,
        dpo_data=link(dpo_data, raw_tasks=config.tool_tasks, **where),
        dpo=link(dpo, rounds=config.preference_rounds, steps_per_round=config.preference_steps, **where),
        grpo_data=link(grpo_data, raw_prompts=config.instruction_prompts, **where),
        grpo=link(grpo, rollout_processes=0, **where),
        distillation_data=link(
            distillation_data,
            lengths=(config.distillation_length,),
            sequences=(config.distillation_sequences,),
            calibration_samples=4,  # the fewest with both sources; nothing is pruned any more
        ),
        distillation=link(
            distillation,
            batch_sequences=(config.distillation_batch,),
            micro_batch_sequences=(1,),
            learning_rate=config.distillation_learning_rate,
            min_learning_rate=config.distillation_learning_rate,
            warmup_steps=1,
            **where,
        ),
        rlhf_data=link(rlhf_data, raw_pairs=config.chat_pairs, raw_prompts=config.chat_prompts, **where),
        reward_model=link(reward_model, **where),
        rlhf=link(rlhf, **where),
        merging=link(merging, weights=(config.merge_weight,), **where),
    )


def main(config: Config) -> FinalStages:
    """Run the links whose artifact is not current, each on what the one before wrote, and return the record."""
    data, made = made_checkpoints(config.checkpoint_path, config.scale)
    distilled = made["distilled"]
    links = links_of(config)
    with whole_stage(links, list(LINKS.values())) as run:
        # 1. DPO: pairs of the model's own tries at tasks with tools.
        tasks = run(dpo_data.main, replace(links.dpo_data, base_checkpoint_path=distilled.path))
        preferring = run(dpo.main, replace(links.dpo, dataset_path=tasks.path))

        # 2. GRPO: instructions that a rule can check.
        prompts = run(grpo_data.main, replace(links.grpo_data, base_checkpoint_path=preferring.path))
        following = run(grpo.main, replace(links.grpo, dataset_path=prompts.path))

        # 3. A short distillation from the same teacher: what the two before made worse comes back.
        rows = run(
            distillation_data.main,
            replace(
                links.distillation_data,
                base_checkpoint_path=data.base_checkpoint_path,
                fine_tuning_path=data.fine_tuning_path,
                pretraining_path=data.pretraining_path,
                student_path=following.path,
            ),
        )
        restored = run(distillation.main, replace(links.distillation, dataset_path=rows.path))

        # 4. RLHF: a reward model from pairs, and the policy that learns from it.
        pairs = run(rlhf_data.main, replace(links.rlhf_data, base_checkpoint_path=restored.path))
        scorer = run(reward_model.main, replace(links.reward_model, dataset_path=pairs.path))
        policy = run(rlhf.main, replace(links.rlhf, rewardmodel_path=scorer.path))

        # 5. The merge of the last two: the policy, and the model that it started from.
        merged = run(merging.main, replace(links.merging, checkpoint_path=policy.path))

    trained = {"dpo": preferring, "grpo": following, "distillation": restored, "rlhf": policy}
    metrics = {f"num_steps/{name}": float(one.num_steps) for name, one in trained.items()}
    metrics |= {f"training_loss/{name}": one.training_loss for name, one in trained.items()}
    with working_directory(config.output_dir, FinalStages) as work:
        FinalStages(
            path=work,
            given_path=made.get("scratch", distilled).path,
            checkpoint_path=merged.path,
            metrics=metrics | merged.metrics,
        ).save(config)
    return FinalStages.load(config.output_dir)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        print_complete({"finalstages": main(config)})
