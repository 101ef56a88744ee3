"""How the orchestrator of stage 5 connects its five steps; what holds for all is in ../stage1_sft/test_main.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemotron import SCALES
from nemotron.config import parse_command_line
from nemotron.directory import working_name
from nemotron.recipes.nano2.__main__ import Config as RecipeConfig
from nemotron.recipes.nano2.__main__ import main as recipe_main
from nemotron.recipes.nano2.stage5_compress import __main__ as stage5_compress
from nemotron.recipes.nano2.stage5_compress.__main__ import OPTIONAL_STEPS, STAGE, STEPS, Config
from nemotron.testing.stage import stage_name, step_name


def test_the_golden_has_the_name_of_the_package():
    assert stage_name("nemotron.recipes.nano2.stage5_compress") == STAGE


def test_the_recipe_knows_the_stage_as_compress():
    assert type(RecipeConfig().compress) is Config


def test_every_step_gets_the_stages_scale_and_seed_and_its_own_directory():
    config = Config(scale="small", seed=7, output_dir=Path("out"))
    steps = (config.data, config.prune, config.train, config.scratch, config.eval)
    assert [type(step) for step in steps] == [step.Config for step in STEPS]
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 5
    assert [step.output_dir for step in steps] == [Path("out") / step_name(step) for step in STEPS]


def test_each_step_reads_what_the_one_before_wrote(monkeypatch, tmp_path):
    given = {}

    class Written:
        def __init__(self, path):
            self.path = path

    for step in STEPS:

        def write(config, step=step):
            given[step_name(step)] = config
            return Written(config.output_dir)

        monkeypatch.setattr(step, "main", write)
    artifacts = stage5_compress.main(Config(output_dir=tmp_path / "out", base_checkpoint_path=tmp_path / "base"))
    assert {name: one.path.relative_to(tmp_path / "out").as_posix() for name, one in artifacts.items()} == {
        "dataset": "data_curation",
        "pruned": "search",
        "checkpoint": "training",  # what the chat takes
        "control": "control",
        "results": "evaluation",
    }
    assert given["data_curation"].base_checkpoint_path == tmp_path / "base"
    assert given["search"].dataset_path == artifacts["dataset"].path
    assert given["training"].checkpoint_path == artifacts["pruned"].path
    assert given["control"].checkpoint_path == artifacts["checkpoint"].path
    assert given["evaluation"].checkpoint_path == artifacts["control"].path


@pytest.mark.parametrize("wanted", [True, False])
def test_the_final_stages_are_a_step_before_the_evaluation_if_they_are_asked_for(wanted, monkeypatch, tmp_path):
    called = {}

    class Written:
        def __init__(self, path):
            self.path = path

    for step in (*STEPS, *OPTIONAL_STEPS):

        def write(config, step=step):
            called[step_name(step)] = config
            return Written(config.output_dir)

        monkeypatch.setattr(step, "main", write)
    config = Config(output_dir=tmp_path / "out", base_checkpoint_path=tmp_path, final_stages=wanted, force=True)
    made = stage5_compress.main(config)
    assert list(called)[4:] == (["final", "evaluation"] if wanted else ["evaluation"])
    assert called["evaluation"].checkpoint_path == made["final" if wanted else "control"].path
    if wanted:
        assert called["final"].checkpoint_path == made["control"].path
        assert called["final"].force


def test_the_final_stages_are_for_medium_and_full_unless_they_are_asked_for():
    assert [Config(scale=scale).final_stages for scale in SCALES] == [False, False, True, True]
    assert parse_command_line(Config, ["--final-stages"]).final_stages
    assert not parse_command_line(Config, ["--scale", "full", "--no-final-stages"]).final_stages


def test_an_unfinished_training_of_the_final_stages_that_cannot_be_read_is_refused_before_any_work(tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run", final_stages=True)
    state = tmp_path / "run" / "final_links" / "grpo.incomplete" / "training_state" / "step-00000001"
    state.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"grpo\.incomplete holds an unfinished run of which no state can be read"):
        stage5_compress.main(config)
    config.final_stages = False
    with pytest.raises(ValueError, match="holds no model"):  # what the steps themselves say
        stage5_compress.main(replace(config, base_checkpoint_path=tmp_path / "none"))


@pytest.mark.parametrize("name", ["prune", "train", "scratch", "chain", "eval"])
def test_a_missing_device_of_any_step_is_refused_before_any_work(name, tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run")
    getattr(config, name).device = "cuda:99"
    with pytest.raises(ValueError, match="device=cuda:99: this machine has"):
        stage5_compress.main(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train", "scratch"])
def test_an_unfinished_run_of_either_training_that_cannot_be_read_is_refused_before_any_work(name, tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run")
    state = working_name(getattr(config, name).output_dir) / "training_state" / "step-00000001"
    state.mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"{state.parents[1]} holds an unfinished run of which no state can be read"):
        stage5_compress.main(config)


@pytest.mark.parametrize(
    ("name", "field"), [("prune", "dataset_path"), ("train", "checkpoint_path"), ("scratch", "checkpoint_path")]
)
def test_an_input_of_a_step_is_refused_in_a_whole_run(name, field):
    step = replace(getattr(Config(), name), **{field: Path("elsewhere")})
    with pytest.raises(ValueError, match=rf"^{name}\.{field}=elsewhere is set by the step before it in a whole run"):
        Config(**{name: step})


@pytest.mark.parametrize(
    ("name", "field", "value", "sentence"),
    [
        ("prune", "mamba_heads", (7,), r"^n_groups=2 does not divide mamba_num_heads=7"),
        (
            "prune",
            "budget_bytes",
            10**4,
            r"^budget_bytes=10,000 is below the 2\d\d,\d{3} bytes of the smallest candidate",
        ),
        ("prune", "budget_bytes", 10**6, r"^budget_bytes=1,000,000 is not below the 492,896 bytes of the teacher"),
        ("prune", "candidate_steps", 17, r"^candidate_steps=17 with batch_sequences=4 read 68 rows, and length_128 "),
        ("train", "batch_sequences", (4, 2), r"^batch_sequences=\(4, 2\) and the data has 3 lengths of rows"),
        ("scratch", "warmup_steps", 99, r"^warmup_steps=99, and the dataset has rows for 24 steps"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_before_any_work(name, field, value, sentence, tmp_path):
    config = Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run")
    setattr(getattr(config, name), field, value)
    with pytest.raises(ValueError, match=sentence):
        stage5_compress.main(config)
    recipe = RecipeConfig(output_dir=tmp_path / "recipe")
    setattr(getattr(recipe.compress, name), field, value)
    with pytest.raises(ValueError, match=sentence):
        recipe_main(recipe)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "recipe").exists()


def test_the_plan_is_a_flag_of_the_stage_alone():
    assert parse_command_line(Config, ["--plan"]).plan
    with pytest.raises(SystemExit):
        parse_command_line(RecipeConfig, ["--compress.plan"])
