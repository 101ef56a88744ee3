"""Stage 5, all steps, from the teacher on. Run: python -m nemotron.recipes.nano2.stage5_compress --scale tiny"""

from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from nemotron import Artifact, whole_stage
from nemotron.config import nested, output_below, parse_command_line
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.stage5_compress import control, data_curation, evaluation, plan, search, training
from nemotron.testing.stage import print_stage_complete

STAGE = "nano2/stage5_compress"  # names the golden
STEPS = (data_curation, search, training, control, evaluation)  # in their order; each has its directory


@dataclass
class Config(data_curation.Inputs):
    """Prune Nemotron Nano 2 until it fits into memory, distill it, and compare it with its teacher."""

    output_dir: Path = output_below("nano2", "stage5_compress")
    """Where the artifacts go, one folder per step."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    prune: search.Config = nested(search.Config, "search")
    train: training.Config = nested(training.Config, "training")
    scratch: control.Config = nested(control.Config, "control")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the steps, each on the output of the one before, after a check of all; return their artifacts by name."""
    with whole_stage(config := plan.check(config), STEPS) as run:
        dataset = run(data_curation.main, replace(config.data, **data_curation.inputs_of(config)))
        pruned = run(search.main, replace(config.prune, dataset_path=dataset.path))
        checkpoint = run(training.main, replace(config.train, checkpoint_path=pruned.path))
        last = run(control.main, replace(config.scratch, checkpoint_path=checkpoint.path))
        results = run(evaluation.main, replace(config.eval, checkpoint_path=last.path))
    return dict(dataset=dataset, pruned=pruned, checkpoint=checkpoint, control=last, results=results)


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config))
        print_stage_complete(STAGE, config, main(config))
