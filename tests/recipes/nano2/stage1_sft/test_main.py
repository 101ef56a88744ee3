"""How the orchestrators of stages and recipe connect their steps, and what they refuse before any work."""

from operator import attrgetter
from pathlib import Path

import pytest
import torch

from nemotron.config import flag_of, parse_command_line
from nemotron.directory import locked, working_name
from nemotron.recipes.nano2.__main__ import Config as RecipeConfig
from nemotron.recipes.nano2.__main__ import main as recipe_main
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain import __main__ as stage0_pretrain
from nemotron.recipes.nano2.stage1_sft import __main__ as stage1_sft
from nemotron.recipes.nano2.stage2_rlvr import __main__ as stage2_rlvr
from nemotron.recipes.nano2.stage3_dpo import __main__ as stage3_dpo
from nemotron.recipes.nano2.stage4_rlhf import __main__ as stage4_rlhf
from nemotron.recipes.nano2.stage5_compress import __main__ as stage5_compress
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.recipes.training.state import Record, compared_values, write_training_state
from nemotron.testing.stage import step_name

STAGES = {"sft": stage1_sft, "rlvr": stage2_rlvr, "dpo": stage3_dpo}
"""The stages that start from the Checkpoint of the one before, by their names in the recipe's Config."""
BEFORE = {
    "sft": ("stage0_pretrain", "pretrain"),
    "rlvr": ("stage1_sft", "sft"),
    "dpo": ("stage2_rlvr", "rlvr"),
}
"""The stage before, and its name in the recipe's Config."""


@pytest.fixture(params=STAGES)
def name(request):
    return request.param


@pytest.fixture
def stage(name):
    return STAGES[name]


def test_every_step_gets_the_stages_scale_and_seed_and_its_own_directory(stage):
    config = stage.Config(scale="small", seed=7, output_dir=Path("out"))
    steps = (config.data, config.train, config.eval)
    assert [type(step) for step in steps] == [step.Config for step in stage.STEPS]
    assert [(step.scale, step.seed) for step in steps] == [("small", 7)] * 3
    assert [step.output_dir for step in steps] == [Path("out") / step_name(step) for step in stage.STEPS]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("sft.data.raw_conversations", "raw_conversations=all needs --sources"),
        ("rlvr.data.raw_prompts", "raw_prompts=all needs --sources"),
        ("rlhf.data.raw_pairs", "raw_pairs=all needs --sources"),
    ],
)
def test_everything_of_no_source_is_refused_before_pretraining(path, sentence, tmp_path):
    recipe = RecipeConfig(output_dir=tmp_path / "run")
    config, _, field = path.rpartition(".")
    setattr(attrgetter(config)(recipe), field, "all")
    with pytest.raises(ValueError, match=sentence):
        recipe_main(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sft", "rlvr", "rlhf"])
@pytest.mark.parametrize(
    ("source", "sentence"),
    [("typo.jsonl", r"^typo\.jsonl does not exist"), ("empty", r"^empty holds no file that ends in \.txt, \.jsonl")],
)
def test_a_source_that_is_not_there_is_refused_before_pretraining(name, source, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    recipe = RecipeConfig(output_dir=tmp_path / "run")
    getattr(recipe, name).data.sources = (source,)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        recipe_main(recipe)
    assert not (tmp_path / "run").exists()


def test_each_step_reads_what_the_one_before_wrote(stage, monkeypatch, tmp_path):
    given = {}

    class Written:
        def __init__(self, path):
            self.path = path

    for step in stage.STEPS:

        def write(config, step=step):
            given[step_name(step)] = config
            return Written(config.output_dir)

        monkeypatch.setattr(step, "main", write)
    artifacts = stage.main(stage.Config(output_dir=tmp_path / "out", base_checkpoint_path=tmp_path / "base"))
    assert {name: one.path for name, one in artifacts.items()} == {
        "dataset": tmp_path / "out" / "data_curation",
        "checkpoint": tmp_path / "out" / "training",
        "results": tmp_path / "out" / "evaluation",
    }
    assert given["data_curation"].base_checkpoint_path == tmp_path / "base"
    assert given["training"].dataset_path == artifacts["dataset"].path
    assert given["evaluation"].checkpoint_path == artifacts["checkpoint"].path


def test_the_model_to_start_from_is_by_default_where_the_stage_before_writes_it(name, stage):
    folder, field = BEFORE[name]
    base = Path("outputs", "nano2", "small", folder, "training")
    assert getattr(RecipeConfig(scale="small"), field).train.output_dir == base
    assert stage.Config(scale="small").base_checkpoint_path == base
    assert stage.Config(scale="small", base_checkpoint_path=Path("mine")).base_checkpoint_path == Path("mine")


def test_a_missing_model_is_refused_with_the_command_that_makes_it(name, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = rf"make one with python -m nemotron\.recipes\.nano2\.{BEFORE[name][0]} --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        stage.main(stage.Config(scale="small"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_given_to_only_one_step_is_refused(stage, tmp_path):
    data = stage.data_curation.Config(base_checkpoint_path=tmp_path)
    with pytest.raises(ValueError, match=r"^data\.base_checkpoint_path=.* is set by the step before it in a whole run"):
        stage.Config(data=data)


def test_the_recipe_gives_every_stage_its_scale_and_a_directory():
    config = RecipeConfig(scale="small", seed=7, output_dir=Path("out"))
    stages = {
        "stage0_pretrain": config.pretrain,
        "stage1_sft": config.sft,
        "stage2_rlvr": config.rlvr,
        "stage3_dpo": config.dpo,
        "stage4_rlhf": config.rlhf,
        "stage5_compress": config.compress,
    }
    assert {(stage.scale, stage.seed) for stage in stages.values()} == {("small", 7)}
    for name, stage in stages.items():
        assert stage.output_dir == Path("out", name)
        assert stage.train.output_dir == Path("out", name, "training")


@pytest.mark.parametrize(
    ("name", "step"), [("sft", "train"), ("sft", "eval"), ("rlvr", "data"), ("rlvr", "train"), ("rlvr", "eval")]
)
def test_a_missing_device_is_refused_before_any_stage_begins(name, step, tmp_path):
    config = STAGES[name].Config(base_checkpoint_path=tmp_path, output_dir=tmp_path / "run")
    getattr(config, step).device = "cuda:99"
    with pytest.raises(ValueError, match="device=cuda:99: this machine has"):
        STAGES[name].main(config)
    recipe = RecipeConfig(output_dir=tmp_path / "run")
    getattr(getattr(recipe, name), step).device = "cuda:99"
    with pytest.raises(ValueError, match="device=cuda:99: this machine has"):
        recipe_main(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "field"), [("train", "dataset_path"), ("eval", "checkpoint_path")])
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_an_input_of_a_step_is_refused_in_a_whole_run(stage, name, field):
    step = {"train": stage.training, "eval": stage.evaluation}[name].Config(**{field: Path("elsewhere")})
    with pytest.raises(ValueError, match=rf"^{name}\.{field}=elsewhere is set by the step before it in a whole run"):
        stage.Config(**{name: step})


def test_the_recipe_runs_each_stage_on_the_checkpoint_of_the_one_before(monkeypatch, tmp_path):
    class Written:
        def __init__(self, path):
            self.path = path

    given = {}
    for orchestrator in (stage0_pretrain, stage1_sft, stage2_rlvr, stage3_dpo, stage4_rlhf, stage5_compress):

        def run(config, stage=orchestrator.STAGE):
            given[stage] = config
            return {"checkpoint": Written(config.train.output_dir), "results": Written(config.eval.output_dir)}

        monkeypatch.setattr(orchestrator, "main", run)
    stages = recipe_main(RecipeConfig(output_dir=tmp_path / "run"))
    names = ["stage0_pretrain", "stage1_sft", "stage2_rlvr", "stage3_dpo", "stage4_rlhf", "stage5_compress"]
    assert list(stages) == list(given) == [f"nano2/{name}" for name in names]
    assert given["nano2/stage1_sft"].base_checkpoint_path == tmp_path / "run/stage0_pretrain/training"
    assert given["nano2/stage2_rlvr"].base_checkpoint_path == tmp_path / "run/stage1_sft/training"
    assert given["nano2/stage3_dpo"].base_checkpoint_path == tmp_path / "run/stage2_rlvr/training"
    assert given["nano2/stage4_rlhf"].base_checkpoint_path == tmp_path / "run/stage3_dpo/training"
    assert given["nano2/stage5_compress"].base_checkpoint_path == tmp_path / "run/stage4_rlhf/merging"


def unfinished_run(config):
    """A run that was killed after its first state."""
    model = NemotronH(MODELS["tiny"])
    initialize(model, 0)
    weights = {"initial": weight_fingerprint(model)}
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    row = {"step": 0, "phase": "everything", "batch": "b" * 16, "tokens": 3, "loss": 5.0}
    record = Record([row], weights=weights | {"after step 1": weight_fingerprint(model)})
    identity = {"dataset": "d" * 64, "config": compared_values(config)}
    write_training_state(working_name(config.output_dir), identity, model, optimizer, record)


def never(config):
    pytest.fail("curation started")


def resumable(config, prefix=""):
    """The places of the Configs with a flag to resume in that of a stage or of the recipe, as "rlhf.train"."""
    for name, value in vars(config).items():
        if hasattr(value, "resume"):
            yield f"{prefix}{name}"
        elif hasattr(value, "flag_prefix"):
            yield from resumable(value, f"{prefix}{name}.")


ORCHESTRATORS = (stage0_pretrain, *STAGES.values(), stage4_rlhf, stage5_compress)
RESUMABLE = [
    pytest.param(config_class, path, id=f"{config_class.__module__.split('.')[-2]} {path}")
    for config_class in (*(stage.Config for stage in ORCHESTRATORS), RecipeConfig)
    for path in resumable(config_class())
]
RESUMABLE_TRAININGS = [one for one in RESUMABLE if not one.values[1].endswith(("prune", "chain"))]


def test_every_step_that_can_be_resumed_is_found():
    whole = [one.values[1] for one in RESUMABLE if one.values[0] is RecipeConfig]
    compress = [f"compress.{name}" for name in ("prune", "train", "scratch", "chain")]
    assert whole == ["pretrain.train", "sft.train", "rlvr.train", "dpo.train", "rlhf.reward", "rlhf.train", *compress]


@pytest.mark.parametrize(("config_class", "path"), RESUMABLE)
def test_the_flag_that_the_sentences_of_a_nested_step_name_is_one_of_the_command(config_class, path):
    flag = flag_of(attrgetter(path)(config_class()), "resume")
    assert attrgetter(path)(parse_command_line(config_class, [flag])).resume


@pytest.mark.parametrize(("config_class", "path"), RESUMABLE_TRAININGS)
def test_an_unfinished_run_of_other_code_is_refused_before_curation_with_a_flag_of_the_command(
    config_class, path, tmp_path, monkeypatch
):
    config = config_class(output_dir=tmp_path / "run")
    train, flag = attrgetter(path)(config), f"--{path}.resume"
    unfinished_run(train)
    for stage in ORCHESTRATORS:
        monkeypatch.setattr(stage.data_curation, "main", never)
    run = ({stage.Config: stage.main for stage in ORCHESTRATORS} | {RecipeConfig: recipe_main})[config_class]
    with pytest.raises(ValueError, match=f"at step-00000001, which other code began; add {flag} to go on with"):
        run(config)
    resumed = parse_command_line(config_class, [f"--output-dir={tmp_path / 'run'}", flag])
    assert attrgetter(path)(resumed).resume
    attrgetter(path)(resumed).learning_rate = 0.125
    with pytest.raises(ValueError, match=r"\.incomplete was trained with learning_rate=.*, not 0\.125"):
        run(resumed)


@pytest.mark.parametrize("orchestrator", ORCHESTRATORS, ids=[f"stage {number}" for number in range(6)])
def test_a_stage_beside_a_running_one_is_refused_before_curation(orchestrator, tmp_path, monkeypatch):
    """The other trains: without this, its dataset would be replaced under it."""
    config = orchestrator.Config(output_dir=tmp_path / "run", seed=7)
    monkeypatch.setattr(orchestrator.data_curation, "main", never)
    unfinished_run(config.train)  # it has written a state: no reason to advise --train.resume
    work = working_name(config.train.output_dir)
    sentence = r"another process is writing .*training\.incomplete; wait for it"
    with locked(work), pytest.raises(ValueError, match=sentence):
        orchestrator.main(config)
