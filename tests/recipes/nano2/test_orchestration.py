from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron import Scale
from nemotron.recipes.nano2.orchestration import handed_down


@dataclass
class Step:
    scale: Scale = "tiny"
    seed: int = 1234
    output_dir: Path | None = None
    dataset_path: Path | None = None
    num_steps: int | None = None


OWNED = {"scale": "small", "seed": 7, "output_dir": Path("out/training")}


def test_a_step_gets_the_orchestrators_scale_seed_and_directory():
    step = Step(num_steps=5)
    assert handed_down(step, "train", **OWNED) == Step("small", 7, Path("out/training"), None, 5)
    assert step == Step(num_steps=5)


def test_repeating_the_orchestrators_value_is_no_error():
    assert handed_down(Step(scale="small", seed=7), "train", **OWNED).seed == 7


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (
            Step(scale="medium"),
            "--train.scale medium differs from the run's own small; use --scale medium for all steps",
        ),
        (Step(seed=8), "--train.seed 8 differs from the run's own 7; use --seed 8 for all steps"),
        (Step(output_dir=Path("x")), "--train.output-dir x differs from the run's own out/training; use --output-dir"),
        (
            Step(dataset_path=Path("d")),
            "--train.dataset-path has no place here, the step before writes that input; run",
        ),
    ],
)
def test_a_nested_flag_that_the_orchestrator_owns_is_refused(step, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        handed_down(step, "train", **OWNED)
