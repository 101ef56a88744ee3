"""Goldens under pytest, as a small project of someone else's sees them: recorded, compared, kept, never forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing.compare import Policy, encode_golden, parse_golden

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

    def pytest(self, *arguments: str, plugins: tuple[str, ...] = PLUGINS, **environment: str) -> tuple[int, str]:
        """Exit code and output of pytest in the project."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugins, *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
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


def test_update_beyond_the_policy_keeps_the_policy_that_was_recorded(project):
    project.record(2.25, Policy(rtol=1e-10))
    project.run_loss(2.25 * (1 + 5e-10))
    assert project.pytest("--snapshot-update")[0] == 0
    document, policy = parse_golden(project.golden.read_bytes())
    assert document["ladder"]["training"][0]["value"] == 2.25 * (1 + 5e-10)
    assert policy == Policy(rtol=1e-10)


@pytest.mark.parametrize("loss", [float("nan"), {1: 2.25}, (2.25,)], ids=["NaN", "integer key", "tuple"])
def test_update_writes_nothing_that_json_would_change(project, loss):
    before = project.record(2.25)
    project.run_loss(loss)
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "GoldenError" in output
    assert project.golden.read_bytes() == before


def test_update_does_not_touch_a_damaged_golden(project):
    project.golden.write_text("{")
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "the golden is damaged" in output
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
    assert project.pytest()[0] == 1


@pytest.mark.parametrize("selection", [["-k", "something_else"], ["test_stage.py::test_something_else"]])
def test_a_selection_of_tests_may_leave_goldens_out_unless_it_says_otherwise(project, selection):
    project.record(2.25)
    assert project.pytest(*selection)[0] == 0
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


def test_a_stage_without_a_step_module_fails_with_one_sentence(project):
    (project.directory / "conftest.py").write_text(
        "from nemotron.testing.plugin import stage_fixture\nstage0 = stage_fixture('mine.stage0_first')\n"
    )
    (project.directory / "test_stage.py").write_text("def test_stage(stage0):\n    pass\n")
    code, output = project.pytest()
    assert code == 1
    assert "stage mine/stage0_first crashed in its step data_curation, so nothing was compared" in output
    assert "No module named 'mine'" in output
