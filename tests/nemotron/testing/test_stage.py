"""A stage is run by its own orchestrator, and a finished tiny run compares itself with the golden in the package."""

import json
import os
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron.testing import stage as stage_module
from nemotron.testing.compare import parse_golden
from nemotron.testing.stage import (
    StageError,
    captured_stdout,
    crashed_step,
    print_stage_complete,
    report_reproduction,
    reproduction,
    run_stage,
    stage_document,
    stage_name,
    step_name,
)

# --- running a stage ---

STEP = """
import json, os
from types import SimpleNamespace

def main(name, config):
    directory = config["output_dir"] / name
    directory.mkdir()
    print(f"{name} prints")
    os.write(1, b"and writes\\n")
    ladder = [{"rung": "config", "name": item, "step": None, "value": str(config.get(item))} for item in FIELDS]
    (directory / "ladder.json").write_text(json.dumps(ladder))
    return SimpleNamespace(path=directory)

FIELDS = ("scale", "base_checkpoint_path")
"""
ORCHESTRATOR = """
from PACKAGE import rollouts, training

STEPS = (rollouts, training)
Config = dict

def main(config):
    return {"rollouts": rollouts.main("rollouts", config), "checkpoint": training.main("training", config)}
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Folder of the package mine.stage0_a, whose two steps are rollouts and training."""
    folder = tmp_path / "source" / "mine" / "stage0_a"
    folder.mkdir(parents=True)
    for step in ("rollouts", "training"):
        (folder / f"{step}.py").write_text(STEP)
    (folder / "__main__.py").write_text(ORCHESTRATOR.replace("PACKAGE", "mine.stage0_a"))
    monkeypatch.syspath_prepend(tmp_path / "source")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.fixture
def output(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_stage_runs_by_its_own_orchestrator_at_tiny_scale(stage, output):
    run = run_stage("mine.stage0_a", output)
    assert (run.name, run.directory) == ("mine/stage0_a", output)
    assert {name: artifact.path for name, artifact in run.artifacts.items()} == {
        "rollouts": output / "rollouts",
        "checkpoint": output / "training",
    }
    assert run.checkpoint is run.artifacts["checkpoint"]
    assert run.document == stage_document("mine/stage0_a", output, ["rollouts", "training"])
    assert [entry["value"] for entry in run.document["ladder"]["training"]] == ["tiny", "None"]


def test_stage_gets_the_checkpoint_of_the_previous_one(stage, output):
    run = run_stage("mine.stage0_a", output, Path("base"))
    assert [entry["value"] for entry in run.document["ladder"]["rollouts"]] == ["tiny", "base"]


def test_what_the_steps_write_to_stdout_is_kept(stage, output, capfd):
    run = run_stage("mine.stage0_a", output)
    assert "rollouts prints" in run.stdout
    assert run.stdout.count("and writes") == 2
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_captured_stdout_ends_with_the_block(error, capfd):
    def write_and_raise():
        print("through Python")
        os.write(1, b"through the descriptor")
        raise error

    with pytest.raises(error), captured_stdout() as written:
        write_and_raise()
    assert written == ["through Python\n", "through the descriptor"]
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_crash_names_the_step(stage, output):
    change(stage / "training.py", "    directory.mkdir()", "    raise OSError('no\\nspace')")
    with pytest.raises(StageError, match=r"^it crashed in its step training: OSError: no space$") as crash:
        run_stage("mine.stage0_a", output)
    assert isinstance(crash.value.__cause__, OSError)


def test_crash_outside_of_the_steps_names_the_orchestrator(stage, output):
    change(stage / "__main__.py", "    return {", "    raise ValueError('no step')\n    return {")
    with pytest.raises(StageError, match=r"^it crashed in its orchestrator: ValueError: no step$"):
        run_stage("mine.stage0_a", output)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("STEPS = ", "OTHERS = ", "has no attribute 'STEPS'"),
        ("Config = dict", "", "has no attribute 'Config'"),
        ("def main", "def other", "has no attribute 'main'"),
    ],
)
def test_incomplete_orchestrator_is_named(stage, output, old, new, sentence):
    change(stage / "__main__.py", old, new)
    with pytest.raises(StageError, match=f"^it crashed in its orchestrator: AttributeError: .*{sentence}"):
        run_stage("mine.stage0_a", output)


def test_missing_stage_is_named(output):
    with pytest.raises(
        StageError, match=r"^it crashed in its orchestrator: ModuleNotFoundError: No module named 'his'"
    ):
        run_stage("his.stage0_a", output)


def test_step_without_a_ladder_is_named(stage, output):
    change(stage / "training.py", "    (directory", "    name == 'training' or (directory")
    with pytest.raises(StageError, match=r"training.ladder\.json does not exist; the step that writes"):
        run_stage("mine.stage0_a", output)


def test_crash_is_of_the_first_step_in_the_traceback():
    """A step that calls another one is the one that crashed."""
    outer, inner = SimpleNamespace(__name__="a.stage0_b.outer"), SimpleNamespace(__name__="a.stage0_b.inner")
    frames = [SimpleNamespace(tb_frame=SimpleNamespace(f_globals={"__name__": name})) for name in
              ("somewhere", "a.stage0_b.outer", "a.stage0_b.inner")]  # fmt: skip
    for frame, following in zip(frames, [*frames[1:], None], strict=True):
        frame.tb_next = following
    assert crashed_step([inner, outer], frames[0]) == "its step outer"
    assert crashed_step([inner], frames[0]) == "its step inner"
    assert crashed_step([], frames[0]) == crashed_step([outer], None) == "its orchestrator"


def test_names_are_the_last_parts_of_a_package():
    assert stage_name("nemotron.recipes.nano2.stage0_pretrain") == "nano2/stage0_pretrain"
    assert step_name(SimpleNamespace(__name__="nemotron.recipes.nano2.stage0_pretrain.training")) == "training"


# --- a finished run and its golden ---

STAGE = "nano2/stage0_pretrain"


@pytest.fixture
def ladders():
    golden = resources.files("nemotron.golden").joinpath(f"{STAGE}.json").read_bytes()
    return parse_golden(golden)[0]["ladder"]


def write(directory, ladders):
    for step, ladder in ladders.items():
        (directory / step).mkdir()
        (directory / step / "ladder.json").write_text(json.dumps(ladder))
    return directory


def test_recorded_numbers_are_reproduced_to_the_last_bit(ladders, tmp_path):
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert line == f"reproduces golden/{STAGE}.json: yes (to the last bit)"


def loss_at(ladders, step):
    """The entry of the loss curve at a training step."""
    (entry,) = (e for e in ladders["training"] if (e["rung"], e["name"], e["step"]) == ("curve", "loss", step))
    return entry


def test_difference_within_the_policy_is_measured(ladders, tmp_path):
    loss_at(ladders, 41)["value"] *= 1 + 2**-40
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert line.endswith("yes (largest relative difference 9e-13, training, curve, loss, step 41)")


def test_run_that_differs_names_the_place(ladders, tmp_path):
    loss_at(ladders, 41)["value"] *= 1.5
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert f"reproduces golden/{STAGE}.json: no, it differs at training, curve, loss, step 41: golden" in line
    assert "relative difference 5e-01" in line


def test_run_that_cannot_be_compared_says_why(ladders, tmp_path):
    loss_at(ladders, 41)["value"] = float("nan")
    assert "cannot be compared" in reproduction(STAGE, write(tmp_path, ladders))


def test_stage_without_a_golden_says_so(tmp_path):
    assert reproduction("nano2/stage9_dreams", tmp_path) == "nothing is recorded for nano2/stage9_dreams"


def test_only_a_tiny_run_is_compared_and_on_stderr(ladders, tmp_path, capsys):
    write(tmp_path, ladders)
    report_reproduction(STAGE, "small", tmp_path)
    assert capsys.readouterr() == ("", "")
    report_reproduction(STAGE, "tiny", tmp_path)
    assert capsys.readouterr() == ("", f"reproduces golden/{STAGE}.json: yes (to the last bit)\n")


def test_run_without_a_step_of_the_golden_cannot_be_compared(ladders, tmp_path):
    del ladders["evaluation"]
    line = reproduction(STAGE, write(tmp_path, ladders))
    assert line.startswith(f"reproduces golden/{STAGE}.json: cannot be compared, ")
    assert "evaluation" in line


@pytest.mark.parametrize("plan", [True, False])
def test_a_stage_prints_what_it_made_and_a_plan_made_nothing(plan, tmp_path, monkeypatch):
    done = []
    config = SimpleNamespace(plan=plan, scale="tiny", output_dir=tmp_path)
    monkeypatch.setattr(stage_module, "print_complete", done.append)
    monkeypatch.setattr(stage_module, "report_reproduction", lambda *given: done.append(given))
    print_stage_complete("a/stage", config, {"ran": 1})
    assert done == ([] if plan else [{"ran": 1}, ("a/stage", "tiny", tmp_path)])
