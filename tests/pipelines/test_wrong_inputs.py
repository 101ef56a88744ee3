"""What every step says if it is given an artifact of another type or of another step."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from nemotron.recipes.nano2.__main__ import STAGES
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage5_compress import final

STEPS = [step for stage in STAGES.values() for step in (*stage.STEPS, *getattr(stage, "OPTIONAL_STEPS", ()))]
MADE_FROM = {
    **{f"stage{number}.data_curation": {"base_checkpoint_path": base} for number, base in enumerate(
        ("stage0.training", "stage1.training", "stage2.training", "stage3.training", "stage4.merging"), 1
    )},
    **{f"stage{number}.training": {"dataset_path": f"stage{number}.data_curation"} for number in range(4)},
    **{f"stage{number}.evaluation": {"checkpoint_path": f"stage{number}.training"} for number in range(4)},
    "stage4.reward_model": {"dataset_path": "stage4.data_curation"},
    "stage4.training": {"dataset_path": "stage4.reward_model"},
    "stage4.merging": {"dataset_path": "stage4.training"},
    "stage4.evaluation": {"checkpoint_path": "stage4.merging"},
    "stage5.search": {"dataset_path": "stage5.data_curation"},
    "stage5.training": {"dataset_path": "stage5.search"},
    "stage5.control": {"dataset_path": "stage5.training"},
    "stage5.final": {"given_path": "stage5.control", "checkpoint_path": "stage4.merging"},
    "stage5.evaluation": {"checkpoint_path": "stage5.training", "given_path": "stage5.control"},
}  # fmt: skip
"""Step -> field of its artifact -> the step that wrote what the field names."""
MADE_FROM["stage5.data_curation"] |= {
    "fine_tuning_path": "stage1.data_curation",
    "pretraining_path": "stage0.data_curation",
}
READS = {
    **{name: {field: {step} for field, step in found.items()} for name, found in MADE_FROM.items()},
    "stage4.training": {"rewardmodel_path": {"stage4.reward_model"}},
    "stage4.merging": {"checkpoint_path": {"stage4.training"}},
    "stage5.training": {"checkpoint_path": {"stage5.search"}, "dataset_path": {"stage5.data_curation"}},
    "stage5.control": {"checkpoint_path": {"stage5.training"}},
    "stage5.final": {"checkpoint_path": {"stage5.training", "stage5.control"}},
    "stage5.evaluation": {"checkpoint_path": {"stage5.training", "stage5.control", "stage5.final"}},
}
"""Step -> field of its Config -> the steps whose artifact it may name."""
ANY_MODEL = "base_checkpoint_path"
"""The field for which every Checkpoint will do; so it will for student_path, which test_compress_runs.py tests."""


def short_name(step) -> str:
    """stage1.training for nemotron.recipes.nano2.stage1_sft.training."""
    *_, stage, name = step.__name__.split(".")
    return f"{stage.partition('_')[0]}.{name}"


BY_NAME = {short_name(step): step for step in STEPS}


def stand_in(annotation: Any, path: Path) -> Any:
    """A value of a type; of a path, that of an empty file in the directory."""
    if Path in (annotation, *get_args(annotation)):
        path.write_text("")
        return path
    return (get_origin(annotation) or annotation)(1 if annotation in (int, float) else ())


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Step -> its artifact, with the fields and the inputs of a real one, and without its content."""
    made = {}

    def make(name):
        if name not in made:
            inputs = {field: make(source).path for field, source in MADE_FROM.get(name, {}).items()}
            kind = get_type_hints(BY_NAME[name].main)["return"]
            path = tmp_path_factory.mktemp(name)
            needed = {field: one for field, one in kind.model_fields.items() if one.is_required()}
            values = {
                field: stand_in(one.annotation, path / field)
                for field, one in needed.items()
                if field not in ("path", *inputs)
            }
            made[name] = kind(path=path, **values, **inputs).save(BY_NAME[name].Config())
        return made[name]

    for name in BY_NAME:
        make(name)
    return made


def fields_of(name):
    """The fields of a step's Config that name an artifact."""
    inputs = [item.name for item in dataclasses.fields(BY_NAME[name].Config) if item.metadata.get("input")]
    return [field for field in inputs if field != "student_path"]


def test_the_tables_of_this_test_have_every_step_and_every_input():
    assert {name: set(READS.get(name, {})) for name in BY_NAME} == {name: set(fields_of(name)) for name in BY_NAME}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in BY_NAME for field in fields_of(name)])
def test_a_step_says_what_it_was_given_and_what_it_expects(artifacts, name, field, random_base_model, tmp_path):
    beside = {"output_dir": tmp_path / "out"}
    if field in ("fine_tuning_path", "pretraining_path"):  # read after a model with a chat format
        beside["base_checkpoint_path"] = random_base_model(tmp_path, CHAT.template).path
    if field == "pretraining_path":
        beside["fine_tuning_path"] = artifacts["stage1.data_curation"].path
    step, accepted = BY_NAME[name], READS[name][field]
    expected = artifacts[min(accepted, key=lambda one: (one == "stage5.final", one))].type_name()
    for other, given in artifacts.items():
        if other in accepted or (field == ANY_MODEL and given.type_name() == "checkpoint"):
            continue
        config = step.Config(**{field: given.path}, **beside)
        found = f"{given.path}: type='{given.type_name()}', written by '{BY_NAME[other].__name__}', expected "
        with pytest.raises(ValueError, match=rf"^{re.escape(found)}") as error:
            step.main(config)
        sentence = str(error.value)
        assert f"expected '{expected}'" in sentence
        assert sentence.endswith(f"; give the path of such a {expected}")
        if field != ANY_MODEL:
            named = set(re.findall(r"[\w.]+", sentence.partition(", expected ")[2])) & {one.__name__ for one in STEPS}
            assert named == {BY_NAME[one].__name__ for one in accepted} - {final.__name__}
    assert not (tmp_path / "out").exists()
