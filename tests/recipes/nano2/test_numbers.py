"""The numbers of every step at all four scales, pinned: only the tiny run has a golden that would notice a change."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from nemotron import SCALES
from nemotron.config import Marked, origin_of
from nemotron.ladder import Ladder
from nemotron.recipes.nano2 import numbers
from nemotron.recipes.nano2.models import DEVICES, DTYPES, FULL_SHAPE, MODELS
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.testing.compare import run_document
from nemotron.testing.stage import step_name

ROOT = Path(__file__).parents[3]
RECIPE = Path(stage0_pretrain.__file__).parents[1]
STAGES = [
    importlib.import_module(f"nemotron.recipes.nano2.{path.parent.name}.__main__")
    for path in sorted(RECIPE.glob("stage*/__main__.py"))
]


def steps_of(stage):
    """The steps of a stage, those that run only if they are asked for included."""
    return (*stage.STEPS, *getattr(stage, "OPTIONAL_STEPS", ()))


STEPS = {f"{stage.STAGE}/{step_name(step)}": step for stage in STAGES for step in steps_of(stage)}
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


README = (RECIPE / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_every_number_of_full_with_its_origin():
    section = README[README.index(numbers.HEADING) :]
    assert section == numbers.page(), (
        "put the output of python -m nemotron.recipes.nano2.numbers at the end of README.md"
    )


def test_every_proxy_and_every_reading_of_ours_is_an_open_question():
    """The table of what we do not know names each number of another model, by its field."""
    rows = re.findall(r"^\| .* \| (.*) \|$", README[: README.index(numbers.HEADING)], re.MULTILINE)
    named = {
        (int(stage), name)
        for row in rows
        for stages, names in re.findall(r"stages? ([\d, ]+): ((?:`\w+`(?:, )?)+)", row)
        for stage in stages.split(", ")
        for name in re.findall(r"`(\w+)`", names)
    }
    known = {(int(step[len("nano2/stage")]), name) for step, name in NUMBERS}
    uncertain = re.compile("^proxy|our reading|as in pretraining")
    marked = {
        (int(step[len("nano2/stage")]), name)
        for step, name in NUMBERS
        if uncertain.search(origin_of(STEPS[step].Config, name, "full"))
    }
    assert len(marked) > 40
    of_control = {(5, name) for name in ("learning_rate", "min_learning_rate", "beta1", "beta2", "weight_decay")}
    assert marked - named <= of_control
    assert named <= known


def test_a_tuple_a_switch_and_a_large_number_are_shown_as_they_are_read():
    assert [numbers.shown(value) for value in ((1536, 48), True, 0.5, 13_427_734)] == [
        "1,536; 48", "True", "0.5", "13,427,734",
    ]  # fmt: skip


def test_the_command_prints_the_section(capfd, monkeypatch):
    monkeypatch.setattr("sys.argv", ["numbers"])
    numbers.main()
    assert capfd.readouterr().out == numbers.page()
