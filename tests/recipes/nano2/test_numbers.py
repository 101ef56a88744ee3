"""The numbers of every step at all four scales, pinned: only the tiny run has a golden that would notice a change."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from nemotron import SCALES
from nemotron.config import Marked, origin_of
from nemotron.ladder import Ladder
from nemotron.recipes.nano2.models import DEVICES, DTYPES, FULL_SHAPE, MODELS
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.testing.compare import run_document
from nemotron.testing.stage import step_name

RECIPE = Path(stage0_pretrain.__file__).parents[1]
STAGES = [
    importlib.import_module(f"nemotron.recipes.nano2.{path.parent.name}.__main__")
    for path in sorted(RECIPE.glob("stage*/__main__.py"))
]
STEPS = {f"{stage.STAGE}/{step_name(step)}": step for stage in STAGES for step in stage.STEPS}
NUMBERS = [
    (name, item.name)
    for name, step in STEPS.items()
    for item in dataclasses.fields(step.Config)
    if origin_of(step.Config, item.name, "full")
]


def numbers_of_all_scales():
    """One ladder per step: scale/name -> [value, origin]; and one for the model."""
    models = Ladder()
    for scale in SCALES:
        shape = dataclasses.asdict(MODELS[scale]) | {"dtype": DTYPES[scale], "device": DEVICES[scale]}
        shape |= FULL_SHAPE if scale == "full" else {}
        for name, value in shape.items():
            number = [value.value, value.origin] if isinstance(value, Marked) else value
            models.add("config", {f"{scale}/{name}": number})
    ladders = {"models": models.entries}
    for name, step in STEPS.items():
        ladder = Ladder()
        for scale in SCALES:
            config = step.Config(scale=scale)
            for item in dataclasses.fields(config):
                value, origin = getattr(config, item.name), origin_of(step.Config, item.name, scale)
                if item.metadata.get("only_if_given"):
                    continue  # what a user asks for beside the step's own result
                if origin or item.metadata.get("recorded", True):
                    value = list(value) if isinstance(value, tuple) else value
                    ladder.add("config", {f"{scale}/{item.name}": [value, origin]})
        ladders[name] = ladder.entries
    return run_document("nano2/numbers", ladders)


def test_the_numbers_of_all_scales_are_as_recorded(golden):
    assert golden(name="nano2/numbers") == numbers_of_all_scales()


@pytest.mark.parametrize(("step", "name"), NUMBERS, ids=lambda value: value)
def test_a_number_says_where_it_comes_from(step, name):
    for scale in SCALES:
        origin = origin_of(STEPS[step].Config, name, scale)
        assert re.match(r"(our choice|published|proxy: \w)", origin)


def test_full_scale_trains_on_the_published_number_of_tokens():
    data, train = data_curation.Config(scale="full"), training.Config(scale="full")
    *base, long = data_curation.planned_phases(data)
    num_tokens = sum(phase.num_sequences for phase in base) * data.sequence_length
    assert num_tokens == pytest.approx(20e12, rel=1e-6)
    assert long.num_sequences * long.sequence_length == pytest.approx(18.9e9, rel=1e-3)
    batch_tokens = train.batch_sequences * data.sequence_length
    assert train.long_context_batch_sequences * long.sequence_length == batch_tokens == training.TOKENS_PER_STEP


@pytest.mark.parametrize("scale", SCALES)
def test_no_phase_of_pretraining_ends_with_part_of_a_batch(scale):
    """A step on few sequences would have a noisier gradient at the same learning rate."""
    phases = data_curation.planned_phases(data_curation.Config(scale=scale))
    for phase in training.training_phases(training.Config(scale=scale), phases):
        assert phase.data.num_sequences == phase.num_steps * phase.batch_sequences


def test_a_new_number_is_one_line_of_its_step_and_the_golden():
    """No second place repeats the values: they are in the Config of the step, and nowhere else in the recipe."""
    texts = {path.relative_to(RECIPE): path.read_text(encoding="utf-8") for path in RECIPE.rglob("*.py")}
    for name in {name for _, name in NUMBERS} - {"dtype", "device", "vocab_size"}:
        line = re.compile(rf"^    {name}: .* = (by_scale|at_every_scale)\(", re.M)
        places = sorted(path.as_posix() for path, text in texts.items() if line.search(text))
        assert places == sorted(f"{step.partition('/')[2]}.py" for step, owned in NUMBERS if owned == name)
