"""Stage 5, all steps, from the teacher on. Run: python -m nemotron.recipes.nano2.stage5_compress --scale tiny"""

from dataclasses import replace

from pydantic.dataclasses import dataclass

from nemotron import Artifact, whole_stage
from nemotron.config import by_scale, nested, our_choice, parse_command_line
from nemotron.pipe import print_page, step_process
from nemotron.recipes.nano2.stage5_compress import control, data_curation, evaluation, final, plan, search, training
from nemotron.testing.stage import print_stage_complete

STAGE = "nano2/stage5_compress"  # names the golden
STEPS, OPTIONAL_STEPS = (data_curation, search, training, control, evaluation), (final,)  # each has its directory


@dataclass
class Config(data_curation.Inputs):
    """Prune Nemotron Nano 2 until it fits into memory, distill it, and compare it with its teacher."""

    final_stages: bool = by_scale(tiny=False, small=False, medium=True, full=our_choice(True))
    """Run the final stages of the published chain too, and compare what they made."""
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    prune: search.Config = nested(search.Config, "search")
    train: training.Config = nested(training.Config, "training")
    scratch: control.Config = nested(control.Config, "control")
    chain: final.Config = nested(final.Config, "final")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")


def main(config: Config) -> dict[str, Artifact]:
    """Run the steps, each on the output of the one before, after a check of all; return their artifacts by name."""
    with whole_stage(config := plan.check(config), plan.steps_of(config, STEPS, OPTIONAL_STEPS)) as run:
        dataset = run(data_curation.main, replace(config.data, **data_curation.inputs_of(config)))
        pruned = run(search.main, replace(config.prune, dataset_path=dataset.path))
        checkpoint = run(training.main, replace(config.train, checkpoint_path=pruned.path))
        last: Artifact = run(control.main, replace(config.scratch, checkpoint_path=checkpoint.path))
        made: dict[str, Artifact] = dict(dataset=dataset, pruned=pruned, checkpoint=checkpoint, control=last)
        if config.final_stages:
            made["final"] = last = run(final.main, replace(config.chain, checkpoint_path=last.path, force=config.force))
        return made | {"results": run(evaluation.main, replace(config.eval, checkpoint_path=last.path))}


if __name__ == "__main__":
    config = parse_command_line(Config)
    with step_process():
        if config.plan:
            print_page(plan.page(config))
        print_stage_complete(STAGE, config, main(config))
