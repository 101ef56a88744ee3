"""Stage 4, all steps, from the Checkpoint before it. Run: python -m nemotron.recipes.nano2.stage4_rlhf --scale tiny"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from nemotron import Artifact, StageConfig, whole_stage
from nemotron.config import input_path, nested, output_below, parse_command_line
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2 import rollout_plan as plan
from nemotron.recipes.nano2.stage4_rlhf import data_curation, evaluation, merging, reward_model, training
from nemotron.testing.stage import print_stage_complete

STAGE = "nano2/stage4_rlhf"  # names the golden
STEPS = (data_curation, reward_model, training, merging, evaluation)  # in their order; each has its directory


@dataclass
class Config(StageConfig):
    """Train Nemotron Nano 2 on the scores of a reward model, merge it with the model before, and test both."""

    output_dir: Path = output_below("nano2", "stage4_rlhf")
    """Where the artifacts go, one folder per step."""
    base_checkpoint_path: Path = input_path("nano2", "stage3_dpo", "training")
    """Directory of the Checkpoint of the stage before, or of a published model."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    reward: reward_model.Config = nested(reward_model.Config, "reward_model")
    train: training.Config = nested(training.Config, "training")
    merge: merging.Config = nested(merging.Config, "merging")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the steps, each on the output of the one before, after a check of all; return their artifacts by name."""
    with whole_stage(config := plan.check(config), STEPS) as run:
        dataset = run(data_curation.main, replace(config.data, base_checkpoint_path=config.base_checkpoint_path))
        scorer = run(reward_model.main, replace(config.reward, dataset_path=dataset.path))
        policy = run(training.main, replace(config.train, rewardmodel_path=scorer.path))
        checkpoint = run(merging.main, replace(config.merge, checkpoint_path=policy.path))
        results = run(evaluation.main, replace(config.eval, checkpoint_path=checkpoint.path))
    return dict(dataset=dataset, reward_model=scorer, policy=policy, checkpoint=checkpoint, results=results)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config))
        print_stage_complete(STAGE, config, main(config))
