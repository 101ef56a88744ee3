"""One documented line a number, at four scales: what a Config has, shows, checks and refuses."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveFloat, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from nemotron import SCALES
from nemotron.config import (
    BelowOne,
    ScaledConfig,
    at_every_scale,
    by_scale,
    input_path,
    nested,
    only_if_given,
    origin_of,
    output_below,
    parse_command_line,
    proxy,
    published,
    recorded_values,
)
from nemotron.recipes.nano2 import __main__ as nano2


@dataclass
class Step(ScaledConfig):
    """Train something."""

    seed: int = 1234
    """Seed of the weights."""
    output_dir: Path = output_below("recipe", "stage0", "training")
    """Where the Checkpoint goes."""
    dataset_path: Path | None = input_path()
    """Directory of the Dataset; read from the pipe if left out."""
    learning_rate: PositiveFloat = by_scale(tiny=4e-3, small=2e-3, medium=1e-3, full=published(4.5e-4, "section 2.5"))
    """Peak learning rate."""
    min_learning_rate: PositiveFloat = by_scale(tiny=4e-5, small=2e-5, medium=1e-5, full=proxy(4.5e-6, "Other 1"))
    """Learning rate at the end."""
    beta1: BelowOne = at_every_scale(published(0.9))
    """Decay of the first moment."""
    documents: PositiveInt | Literal["all"] = by_scale(tiny=10, small=20, medium=30, full="all")
    """Documents to read."""

    def check(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}")


@dataclass
class Stage(ScaledConfig):
    """Run a stage."""

    output_dir: Path = output_below("recipe", "stage0")
    """Where the artifacts go."""
    train: Step = nested(Step, "training")


@dataclass
class Recipe(ScaledConfig):
    """Run all stages."""

    output_dir: Path = output_below("recipe")
    """Where the artifacts go."""
    stage0: Stage = nested(Stage, "stage0")


def help_of(config_class, *args, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_command_line(config_class, [*args, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("scale", "rate", "documents"),
    [("tiny", 4e-3, 10), ("small", 2e-3, 20), ("medium", 1e-3, 30), ("full", 4.5e-4, "all")],
)
def test_a_config_has_the_numbers_of_its_scale(scale, rate, documents):
    config = Step(scale=scale)
    assert (config.learning_rate, config.documents) == (rate, documents)
    assert config.output_dir == Path("outputs", "recipe", scale, "stage0", "training")
    assert parse_command_line(Step, ["--scale", scale]) == config


def test_a_given_number_replaces_only_itself():
    config = Step(scale="small", learning_rate=1.0)
    assert (config.learning_rate, config.min_learning_rate) == (1.0, 2e-5)
    assert parse_command_line(Step, ["--scale=small", "--learning-rate", "1.0"]) == config


def test_the_default_scale_is_tiny():
    assert Step() == Step(scale="tiny") == parse_command_line(Step, [])


def test_one_scale_with_the_numbers_of_another_cannot_be_made():
    config = Step(scale="small")
    for change in (lambda: dataclasses.replace(config, scale="full"), lambda: setattr(config, "scale", "full")):
        with pytest.raises(
            ValueError, match=r"scale=full with the numbers of small; make a new Config\(scale='full'\)"
        ):
            change()
    assert config == Step(scale="small")


def test_help_shows_the_numbers_of_the_scale_with_their_origin(capsys):
    text = help_of(Step, "--scale", "full", capsys=capsys)
    assert "Peak learning rate. [> 0; published, section 2.5] (default: 0.00045)" in text
    assert "Learning rate at the end. [> 0; proxy: Other 1] (default: 4.5e-06)" in text
    assert "Documents to read. [our choice] (default: all)" in text
    assert "Train something." in text
    assert "Sizes of everything: tiny" in text
    assert "Seed of the weights." in text  # not the text of the base class
    assert "Peak learning rate. [> 0; our choice] (default: 0.002)" in help_of(Step, "--scale", "small", capsys=capsys)


def test_help_of_a_recipe_is_short_and_names_its_stages_whose_flags_it_takes(capsys):
    text = help_of(Recipe, capsys=capsys)
    assert "--output-dir" in text
    assert f"--stage0.* in {__name__}" in text
    assert "--stage0.train" not in text
    assert parse_command_line(Recipe, ["--stage0.train.learning-rate", "0.25"]).stage0.train.learning_rate == 0.25
    assert "--train.learning-rate" in help_of(Stage, capsys=capsys)


def test_help_shows_the_bounds_of_a_number(capsys):
    assert "Decay of the first moment. [>= 0, < 1; published] (default: 0.9)" in help_of(Step, capsys=capsys)


def test_help_is_that_of_the_scale_also_beside_a_mistake(capsys):
    text = help_of(Step, "--seed", "many", "--scale", "full", capsys=capsys)
    assert "(default: 0.00045)" in text


def test_help_says_none_for_inputs_only(capsys):
    assert help_of(Step, capsys=capsys).count("(default: None)") == 1


@pytest.mark.parametrize("scale", SCALES)
def test_every_number_has_an_origin(scale):
    assert origin_of(Step, "learning_rate", scale) == ("published, section 2.5" if scale == "full" else "our choice")
    assert origin_of(Step, "beta1", scale) == "published"
    assert origin_of(Step, "seed", scale) == ""


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("learning_rate", -1.0, "^learning_rate=-1.0: Input should be greater than 0"),
        ("learning_rate", float("nan"), "^learning_rate=nan: Input should be a finite number"),
        ("beta1", 1, "^beta1=1: Input should be less than 1"),
        ("documents", "some", "documents"),
        ("min_learning_rate", 1.0, "min_learning_rate=1.0 is above learning_rate=0.004"),
    ],
)
def test_a_bad_value_is_refused_when_made_replaced_or_assigned(name, value, sentence):
    config = Step()
    for change in (
        lambda: Step(**{name: value}),
        lambda: dataclasses.replace(config, **{name: value}),
        lambda: setattr(config, name, value),
    ):
        with pytest.raises(ValueError, match=sentence) as refused:
            change()
        assert "\n" not in str(refused.value)
    assert config == Step()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--learning-rate", "-1"], "learning_rate=-1.0: Input should be greater than 0"),
        (["--min-learning-rate", "1"], "min_learning_rate=1.0 is above learning_rate=0.004"),
        (["--scale", "huge"], "'tiny', 'small', 'medium', 'full'"),
        (["--numbers-of", "full"], "Unrecognized options"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(args, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_command_line(Step, args)
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_an_unknown_field_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="Step has no field learning_rat; its fields are scale, seed, output_dir"):
        Step(learning_rat=1.0)
    with pytest.raises(ValueError, match="Step has no field learning_rat"):
        Step().learning_rat = 1.0


def test_an_argument_given_twice_is_refused():
    with pytest.raises(ValueError, match="Step: scale is given twice; use keywords"):
        Step("small", scale="full")
    with pytest.raises(ValueError, match="Step: 20 values for 8 fields; use keywords"):
        Step(*["small"] * 20)


def test_an_unknown_scale_is_refused_with_the_four_that_exist():
    with pytest.raises(ValueError, match="scale='huge' is unknown; use tiny, small, medium, full"):
        Step(scale="huge")


def test_a_config_without_the_checks_of_pydantic_is_refused():
    @dataclasses.dataclass
    class Unchecked(ScaledConfig):
        """Made with the wrong decorator."""

    with pytest.raises(TypeError, match=r"decorate .*Unchecked with pydantic\.dataclasses\.dataclass"):
        Unchecked()


def test_an_orchestrator_hands_down_scale_seed_and_directory():
    for config in (
        Recipe(scale="small", seed=7, output_dir=Path("out")),
        parse_command_line(Recipe, ["--scale", "small", "--seed", "7", "--output-dir", "out"]),
    ):
        step = config.stage0.train
        assert step == Step(scale="small", seed=7, output_dir=Path("out", "stage0", "training"))


@dataclass
class PlainStage(ScaledConfig):
    """Run a stage that writes to one place at every scale."""

    seed: int = 7
    """Of all steps."""
    output_dir: Path = Path("outputs")
    """Where the artifacts go."""
    train: Step = nested(Step, "training")


def test_a_nested_config_given_as_a_dict_takes_over_nothing_silently():
    """pydantic makes Configs from dicts, also inside of another: the numbers are those of the scale that is given."""
    for made in (
        lambda values: Stage(train=values),
        lambda values: TypeAdapter(Stage).validate_python({"train": values}),
    ):
        with pytest.raises(ValueError, match=r"train\.scale=small differs from tiny of the whole run"):
            made({"scale": "small"})
    directory = Path("outputs", "recipe", "tiny", "stage0", "training")
    assert Stage(train={"learning_rate": 1.0}).train == Step(learning_rate=1.0, output_dir=directory)
    assert TypeAdapter(Step).validate_python({"scale": "small"}) == Step(scale="small")


def test_flags_may_be_spelled_with_underscores():
    config = parse_command_line(Recipe, ["--output_dir", "out", "--scale=small"])
    assert config.stage0.train.output_dir == Path("out", "stage0", "training")


def test_an_orchestrator_hands_down_plain_defaults():
    for config in (PlainStage(), parse_command_line(PlainStage, [])):
        assert (config.train.seed, config.train.output_dir) == (7, Path("outputs", "training"))


def test_a_nested_flag_changes_one_step():
    config = parse_command_line(Recipe, ["--scale", "small", "--stage0.train.learning-rate", "1.5"])
    assert config.stage0.train == dataclasses.replace(Recipe(scale="small").stage0.train, learning_rate=1.5)


@dataclass
class Reading(ScaledConfig):
    """Reads files."""

    output_dir: Path = output_below("recipe", "reading")
    data_sources: tuple[str, ...] = ()


@dataclass
class ReadingStage(ScaledConfig):
    """Has a step that reads files."""

    output_dir: Path = output_below("recipe")
    read: Reading = nested(Reading, "reading")


@pytest.mark.parametrize(("config_class", "flag"), [(Reading, "--data-sources"), (ReadingStage, "--read.data-sources")])
def test_a_flag_of_several_values_without_any_is_refused(config_class, flag, capsys):
    assert parse_command_line(config_class, [flag, "a", "b"]) != parse_command_line(config_class, [])
    with pytest.raises(SystemExit) as ended:
        parse_command_line(config_class, ["--seed", "1", flag])
    assert ended.value.code == 2
    sentence = f"{flag} names nothing; give at least one value after it, or leave the flag out"
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize("flag", ["scale", "seed", "output-dir", "dataset-path", "numbers-of"])
def test_a_flag_that_could_only_be_refused_does_not_exist(flag, capsys):
    assert f"--stage0.train.{flag}" not in help_of(Recipe, capsys=capsys)
    with pytest.raises(SystemExit):
        parse_command_line(Stage, [f"--train.{flag}", "1"])


@pytest.mark.parametrize(
    "nested_values", [{"seed": 1234}, {"seed": 7, "scale": "small"}, {"seed": 7, "output_dir": "x"}]
)
def test_a_nested_value_that_differs_is_refused_even_if_it_is_the_default(nested_values):
    with pytest.raises(ValueError, match=r"train\.\w+=\S+ differs from \S+ of the whole run; set"):
        Stage(seed=7, train=Step(**nested_values))


def test_an_input_of_a_nested_stage_is_refused_because_the_stage_before_sets_it():
    with pytest.raises(ValueError, match=r"sft\.base_checkpoint_path=mine is set by the step before it"):
        nano2.Config(sft={"base_checkpoint_path": "mine"})


def test_an_orchestrator_without_an_output_directory_is_refused_in_a_sentence():
    @dataclass
    class Placeless(ScaledConfig):
        """It says nowhere where its artifacts go."""

        train: Step = nested(Step, "training")

    with pytest.raises(ValueError, match="Placeless needs a field output_dir"):
        Placeless()


def test_fields_of_a_nested_config_can_be_assigned():
    config = Stage()
    config.train.dataset_path = "somewhere"
    config.train.learning_rate = 1.0
    assert (config.train.dataset_path, config.train.learning_rate) == (Path("somewhere"), 1.0)


def test_an_assignment_that_a_run_would_ignore_is_refused_when_the_run_checks_its_config():
    for name, value in (("dataset_path", "somewhere"), ("output_dir", "elsewhere"), ("seed", 7)):
        config = Stage()
        setattr(config.train, name, value)
        with pytest.raises(ValueError, match=rf"^train\.{name}="):
            dataclasses.replace(config)


def test_the_orchestrator_of_the_design_document_works_as_printed(tmp_path):
    """Stdlib dataclass, default_factory, assignment of the path, tyro on main."""
    script = tmp_path / "orchestrator.py"
    script.write_text(
        """
from dataclasses import dataclass, field
from pathlib import Path
import tyro
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Config as DataConfig
from nemotron.recipes.nano2.stage0_pretrain.training import Config as TrainConfig

@dataclass
class StageConfig:
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

def main(config: StageConfig) -> None:
    config.train.dataset_path = Path("dataset")
    print(config.train.dataset_path, config.train.batch_sequences, config.data.num_sequences)

if __name__ == "__main__":
    tyro.cli(main)
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "dataset 8 800\n"), done.stderr


def test_a_field_that_only_adds_is_recorded_if_it_is_given():
    @dataclass
    class Adding(ScaledConfig):
        tasks: tuple[str, ...] = only_if_given(())
        """Beside the rest."""

    assert "tasks" not in recorded_values(Adding())
    assert recorded_values(Adding(tasks=("a",)))["tasks"] == ("a",)
