"""Goldens under pytest, as a small project of someone else's sees them: recorded, compared, kept, never forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing.compare import Policy, encode_golden, parse_golden
from nemotron.testing.session import SUMMARY

STAGE = "mine/first"

PLUGINS = ("-p", "syrupy", "-p", "nemotron.testing.plugin")
TEST = """
import pathlib

def test_stage_reproduces_its_golden(golden):
    ladder = eval(pathlib.Path("ladder").read_text(), {"nan": float("nan")})
    assert golden(name="mine/first") == {"stage": "mine/first", "ladder": {"training": ladder}}

def test_something_else():
    pass
"""


class Project:
    """A directory with one test that compares the ladder in the file `ladder` with golden/mine/first.json."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.golden = directory / "golden" / "mine" / "first.json"
        self.golden.parent.mkdir(parents=True)
        (directory / "test_stage.py").write_text(TEST)
        (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        self.run_loss(2.25)

    def run_loss(self, loss: object) -> None:
        """Let the next run end with this loss, whatever it is."""
        entry = {"rung": "curve", "name": "loss", "step": 0, "value": loss}
        (self.directory / "ladder").write_text(repr([entry]))

    def record(self, loss: float, policy: Policy | None = None) -> bytes:
        """Write the golden of a run with this loss."""
        entry = {"rung": "curve", "name": "loss", "step": 0, "value": loss}
        text = encode_golden({"stage": STAGE, "ladder": {"training": [entry]}}, policy or Policy())
        self.golden.write_text(text)
        return text.encode()

    def change(self, old: str, new: str) -> None:
        """Edit the test."""
        path = self.directory / "test_stage.py"
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def report(self) -> dict[str, object]:
        """What report.json says of the stage."""
        return json.loads((self.directory / ".golden_report" / STAGE / "report.json").read_text())

    def pytest(
        self, *arguments: str, plugins: tuple[str, ...] = PLUGINS, cwd: str = ".", **environment: str
    ) -> tuple[int, str]:
        """Exit code and output of pytest in the project."""
        outer = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", SUMMARY)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugins, *arguments],
            cwd=self.directory / cwd,
            env={**outer, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_stage_without_a_golden_fails_and_says_how_to_record_one(project):
    code, output = project.pytest()
    assert code == 1
    assert "record it with --snapshot-update" in output
    assert not project.golden.exists()


def test_update_records_a_golden_that_the_next_run_reproduces(project):
    assert project.pytest("--snapshot-update")[0] == 0
    document, policy = parse_golden(project.golden.read_bytes())
    assert document["ladder"]["training"][0]["value"] == 2.25
    assert policy == Policy()
    assert [path.name for path in project.golden.parent.iterdir()] == ["first.json"]
    code, output = project.pytest()
    assert code == 0, output


def test_a_run_beyond_the_policy_fails_with_the_place_and_both_values(project):
    project.record(2.25)
    project.run_loss(2.2500001)
    code, output = project.pytest()
    assert code == 1
    assert "first broken rung: training, curve, loss, step 0 (off by 4e-08, relative)" in output
    assert "training, curve, loss, step 0: golden 2.25, run 2.2500001" in output


def test_update_inside_the_policy_changes_no_byte(project):
    before = project.record(2.25)
    modified = project.golden.stat().st_mtime_ns
    project.run_loss(2.25 * (1 + 5e-10))
    assert project.pytest("--snapshot-update")[0] == 0
    assert project.golden.read_bytes() == before
    assert project.golden.stat().st_mtime_ns == modified


def test_update_replaces_no_golden_and_says_what_does(project):
    before = project.record(2.25)
    project.run_loss(2.5)
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "FAILED golden/mine/first.json - --snapshot-update only records what is missing; to replace it" in output
    assert 'nox -s bless -- mine/first --reason "..."' in output
    assert project.golden.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("assert golden", "golden"),
        (") == {", ") != {"),
        ("def test_stage", "from pytest import mark\n@mark.xfail\ndef test_stage"),
        (") == {", ") and {"),
    ],
    ids=["no assert", "inverted", "xfail", "not compared"],
)
def test_a_gate_that_is_inverted_or_dropped_is_red(project, old, new):
    project.record(2.25)
    project.run_loss(2.5)
    project.change(old, new)
    for arguments in ([], ["-k", "reproduces"]):
        code, output = project.pytest(*arguments)
        assert code == 1
        assert "FAILED golden/mine/first.json - the run is not as recorded, yet no test failed" in output


@pytest.mark.parametrize("arguments", [[], ["--snapshot-update"]])
def test_a_run_is_not_compared_with_the_golden_of_another_stage(project, arguments):
    project.change('{"stage": "mine/first"', '{"stage": "mine/second"')
    code, output = project.pytest(*arguments)
    assert code == 1
    assert "the test compares golden(name='mine/first') with a run of mine/second" in output
    assert not project.golden.exists()


def test_what_is_no_document_is_refused_in_a_sentence(project):
    project.change('{"stage": "mine/first", "ladder": {"training": ladder}}', "ladder")
    code, output = project.pytest()
    assert code == 1
    assert "with list, no document of a run; take the document of mine/first" in output


@pytest.mark.parametrize("loss", [float("nan"), {1: 2.25}, (2.25,)], ids=["NaN", "integer key", "tuple"])
def test_update_writes_nothing_that_json_would_change(project, loss):
    before = project.record(2.25)
    project.run_loss(loss)
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "E   Failed: the run" not in output  # a sentence, without a traceback
    assert "yet no test failed" not in output
    assert "the run, " in project.report()["error"]
    assert project.report()["error"] in output
    assert "no test compared" not in output
    assert project.golden.read_bytes() == before


def test_update_does_not_touch_a_damaged_golden(project):
    project.golden.write_text("{")
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "the golden is damaged" in output
    assert project.report()["lines"][0].startswith("mine/first was not compared: the golden is damaged")
    assert "no test compared" not in output
    assert project.golden.read_text() == "{"


def test_update_after_a_rename_of_the_test_deletes_nothing(project):
    before = project.record(2.25)
    (project.directory / "test_stage.py").rename(project.directory / "test_other.py")
    (project.directory / "golden" / "mine" / "second.json").write_bytes(before)
    assert "no test compared a run with it" in project.pytest("--snapshot-update")[1]
    assert project.golden.read_bytes() == before
    assert (project.directory / "golden" / "mine" / "second.json").read_bytes() == before


def test_a_golden_that_no_test_compared_fails_a_full_run(project):
    before = project.record(2.25)
    project.golden.with_name("second.json").write_bytes(before)
    code, output = project.pytest()
    assert code == 1
    assert "FAILED golden/mine/second.json - no test compared a run with it" in output
    assert "first.json" not in output


def test_a_golden_is_missed_even_if_its_only_test_is_gone(project):
    project.record(2.25)
    (project.directory / "test_stage.py").write_text("def test_something_else():\n    pass\n")
    code, output = project.pytest()
    assert code == 1
    assert "no test compared a run with it; write that test" in output


@pytest.mark.parametrize("selection", [["-k", "something_else"], ["test_stage.py::test_something_else"]])
def test_a_selection_of_tests_may_leave_goldens_out_unless_it_says_otherwise(project, selection):
    project.record(2.25)
    assert project.pytest(*selection)[0] == 0
    (project.directory / "below").mkdir()
    (project.directory / "below" / "test_below.py").write_text("def test_below():\n    pass\n")
    assert project.pytest(cwd="below")[0] == 0
    code, output = project.pytest(*selection, "--every-golden")
    assert code == 1
    assert "FAILED golden/mine/first.json" in output


@pytest.mark.parametrize("call", ["golden", 'golden(name="first")', 'golden(name="../mine/first")'])
def test_a_golden_must_be_named_after_recipe_and_stage(project, call):
    test = project.directory / "test_stage.py"
    test.write_text(TEST.replace('golden(name="mine/first")', call))
    code, output = project.pytest("-k", "reproduces")
    assert code == 1
    assert "a golden is named after recipe and stage, as in nano2/stage0_pretrain" in output


def test_the_golden_of_another_stage_is_refused(project):
    project.record(2.25)
    project.golden.write_text(project.golden.read_text().replace(STAGE, "mine/second"))
    code, output = project.pytest()
    assert code == 1
    assert "the golden is of stage 'mine/second', the run of 'mine/first'" in output


def test_the_report_of_a_session_lies_in_its_directory(project):
    project.record(2.25)
    project.run_loss(2.5)
    _, output = project.pytest()
    report = project.directory / ".golden_report" / "mine" / "first"
    assert (report / "report.txt").read_text() in output
    assert json.loads((report / "report.json").read_text())["differences"][0]["run"] == "2.5"
    project.run_loss(2.25)
    project.pytest("--report-dir", "elsewhere")
    assert json.loads((project.directory / "elsewhere" / "mine" / "first" / "report.json").read_text())["equal"] is True


def test_the_summary_of_a_github_step_gets_the_same_lines(project):
    summary = project.directory / "summary.md"
    summary.write_text("before\n")
    project.record(2.25)
    project.run_loss(2.5)
    project.pytest(GITHUB_STEP_SUMMARY=str(summary))
    report = (project.directory / ".golden_report" / "mine" / "first" / "report.txt").read_text()
    assert summary.read_text() == f"before\n```\n{report}```\n"


def test_only_golden_runs_what_compares_a_golden(project):
    project.record(2.25)
    code, output = project.pytest("--only-golden")
    assert code == 0
    assert "1 passed, 1 deselected" in output


def test_without_syrupy_a_golden_test_fails_and_says_what_to_install(project):
    project.record(2.25)
    code, output = project.pytest(plugins=("-p", "nemotron.testing.plugin"))
    assert code == 1
    assert "goldens are compared with syrupy, which is not here; pip install 'nemotron[test]'" in output


def test_the_report_of_a_session_before_does_not_stay(project):
    project.record(2.25)
    project.pytest()
    assert project.report()["equal"]
    project.pytest("-k", "something_else")
    assert not list((project.directory / ".golden_report").rglob("*.*"))


def test_a_report_directory_that_cannot_be_written_turns_the_session_red(project):
    project.record(2.25)
    (project.directory / "file").write_text("")
    code, output = project.pytest("--report-dir", "file")
    assert code == 1
    assert "FAILED file - reports cannot be written there" in output
    assert "Traceback" not in output


def test_goldens_are_not_compared_in_several_processes(project):
    project.record(2.25)
    (project.directory / "conftest.py").write_text("def pytest_configure(config):\n    config.workerinput = {}\n")
    code, output = project.pytest("-p", "no:junitxml")
    assert code == 1
    assert "run these tests without -n of pytest-xdist" in output


def test_without_golden_runs_the_others(project):
    code, output = project.pytest("--without-golden")
    assert code == 0
    assert "1 passed, 1 deselected" in output


STEP = """
import json, pathlib
from dataclasses import dataclass
from types import SimpleNamespace

@dataclass
class Config:
    scale: str
    output_dir: pathlib.Path
    INPUT: object = None

def main(config):
    config.output_dir.mkdir()
    came = "INPUT" == "base_checkpoint_path" and config.INPUT and config.INPUT.relative_to(config.INPUT.parents[1])
    loss = float(pathlib.Path(__file__).with_name("loss").read_text())
    ladder = [{"rung": "inputs", "name": "base", "step": 0, "value": str(came)}]
    ladder += [{"rung": "curve", "name": "loss", "step": 0, "value": loss}]
    (config.output_dir / "ladder.json").write_text(json.dumps(ladder))
    return SimpleNamespace(path=config.output_dir)
"""
STAGE_TEST = """
def test_NAME_reproduces_its_golden(NAME, golden):
    assert golden(name="mine/NAME_a") == NAME.document

def test_NAME_is_silent(NAME):
    assert NAME.stdout == ""
"""


@pytest.fixture
def two_stages(project):
    """The project with stage1_a, which starts from the checkpoint of stage0_a, in the package `mine`."""
    root = project.directory
    (root / "test_stage.py").unlink()
    (root / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\npythonpath = .\n")
    (root / "conftest.py").write_text(
        "from nemotron.testing.plugin import stage_fixture\n"
        "stage0 = stage_fixture('mine.stage0_a')\nstage1 = stage_fixture('mine.stage1_a', after='stage0')\n"
    )
    inputs = {"data_curation": "base_checkpoint_path", "training": "dataset_path", "evaluation": "checkpoint_path"}
    for name in ("stage0", "stage1"):
        folder = root / "mine" / f"{name}_a"
        folder.mkdir(parents=True)
        (folder / "loss").write_text("1.0")
        for step, given in inputs.items():
            (folder / f"{step}.py").write_text(STEP.replace("INPUT", given))
        # stage1 first: what is said of it must not hang on the order of the tests
        (root / f"test_{1 - int(name[-1])}.py").write_text(STAGE_TEST.replace("NAME", name))
    return project


def test_a_stage_starts_from_the_checkpoint_of_the_one_before(two_stages):
    code, output = two_stages.pytest("--snapshot-update")
    assert code == 0, output
    ladders = parse_golden((two_stages.golden.parent / "stage1_a.json").read_bytes())[0]["ladder"]
    assert ladders["data_curation"][0]["value"] == "stage0_a0/training"
    assert ladders["training"][0]["value"] == "False"
    assert two_stages.pytest()[0] == 0


def test_a_later_stage_whose_input_differs_says_so_in_whatever_order_the_tests_ran(two_stages):
    two_stages.pytest("--snapshot-update")
    folder = two_stages.directory / "mine"
    (folder / "stage0_a" / "loss").write_text("2.0")
    path = folder / "stage1_a" / "data_curation.py"
    path.write_text(path.read_text().replace("str(came)", "'another'"))
    code, output = two_stages.pytest()
    assert code == 1
    assert output.index("test_0.py") < output.index("test_1.py")
    assert "mine/stage1_a: not compared, its input already differs since mine/stage0_a departs" in output


def test_the_tests_beside_a_golden_are_selected_by_its_name(two_stages):
    two_stages.pytest("--snapshot-update")
    code, output = two_stages.pytest("-k", "mine/stage0_a")
    assert code == 0
    assert "2 passed, 2 deselected" in output
    assert "mine/stage1_a" not in output


def test_a_stage_that_crashes_fails_its_tests_with_a_sentence_and_shows_its_traceback_once(two_stages):
    two_stages.pytest("--snapshot-update")
    path = two_stages.directory / "mine" / "stage0_a" / "training.py"
    path.write_text(path.read_text().replace("    loss =", "    raise OSError('no\\nspace')\n    loss ="))
    code, output = two_stages.pytest()
    assert code == 1
    assert "stage mine/stage0_a: it crashed in its step training: OSError: no space" in output
    assert output.count("raise OSError") == 1
    assert "no test compared" not in output
    report = json.loads((two_stages.directory / ".golden_report" / "mine" / "stage0_a" / "report.json").read_text())
    assert report["lines"][0] == "mine/stage0_a was not compared: it crashed in its step training: OSError: no space"
    assert 3 <= len(report["lines"]) <= 11
    assert len(output.splitlines()) < 60


def test_a_stage_whose_numbers_equal_nothing_fails_with_a_sentence(two_stages):
    (two_stages.directory / "mine" / "stage0_a" / "loss").write_text("nan")
    code, output = two_stages.pytest("-k", "stage0")
    assert code == 1
    assert "stage mine/stage0_a: " in output
    assert "holds NaN, which is no JSON and equals nothing" in output


def test_a_stage_without_a_step_module_fails_with_one_sentence(project):
    (project.directory / "conftest.py").write_text(
        "from nemotron.testing.plugin import stage_fixture\nstage0 = stage_fixture('mine.stage0_first')\n"
    )
    (project.directory / "test_stage.py").write_text("def test_stage(stage0):\n    pass\n")
    code, output = project.pytest()
    assert code == 1
    assert "stage mine/stage0_first: it crashed in its step data_curation" in output
    assert "No module named 'mine'" in output
