"""Goldens in pytest runs of a small project: recorded, compared, never replaced, never left out."""

import json
import os
import subprocess
import sys
from enum import Enum
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemotron.testing.compare import Policy, encode_golden, parse_golden
from nemotron.testing.plugin import is_full_run, reports
from nemotron.testing.plugin import pytest_collection_modifyitems as collect
from nemotron.testing.session import SUMMARY

STAGE = "mine/first"

PLUGINS = ("-p", "syrupy", "-p", "nemotron.testing.plugin")
DECLARES_A_STAGE = """
from nemotron.testing.plugin import stage_fixture

stage0 = stage_fixture("mine.first")
"""
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
        """Set the loss of the next run."""
        entry = {"rung": "curve", "name": "loss", "step": 0, "value": loss}
        (self.directory / "ladder").write_text(repr([entry]))

    def record(self, loss: float, policy: Policy | None = None) -> bytes:
        """Write and return the golden of a run with this loss."""
        entry = {"rung": "curve", "name": "loss", "step": 0, "value": loss}
        text = encode_golden({"stage": STAGE, "ladder": {"training": [entry]}}, policy or Policy())
        self.golden.write_text(text)
        return text.encode()

    def change(self, old: str, new: str) -> None:
        """Replace text in the test."""
        path = self.directory / "test_stage.py"
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def report(self) -> dict[str, object]:
        """The stage's report.json."""
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


def test_stage_without_a_golden_fails_and_says_how_to_record_one(project):
    code, output = project.pytest()
    assert code == 1
    assert "record one with --snapshot-update" in output
    assert not project.golden.exists()


def test_update_records_a_golden_that_the_next_run_reproduces(project):
    assert project.pytest("--snapshot-update")[0] == 0
    document, policy = parse_golden(project.golden.read_bytes())
    assert document["ladder"]["training"][0]["value"] == 2.25
    assert policy == Policy()
    assert [path.name for path in project.golden.parent.iterdir()] == ["first.json"]
    code, output = project.pytest()
    assert code == 0, output


def test_run_beyond_the_policy_fails_with_the_place_and_both_values(project):
    project.record(2.25)
    project.run_loss(2.2500001)
    code, output = project.pytest()
    assert code == 1
    assert "first broken rung: training, curve, loss, step 0 (relative difference 4e-08)" in output
    assert "training, curve, loss, step 0: golden 2.25, run 2.2500001" in output


def test_update_within_the_policy_changes_no_byte(project):
    before = project.record(2.25)
    modified = project.golden.stat().st_mtime_ns
    project.run_loss(2.25 * (1 + 5e-10))
    assert project.pytest("--snapshot-update")[0] == 0
    assert project.golden.read_bytes() == before
    assert project.golden.stat().st_mtime_ns == modified


def test_update_does_not_replace_a_golden_and_names_the_command_that_does(project):
    before = project.record(2.25)
    project.run_loss(2.5)
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "FAILED golden/mine/first.json - --snapshot-update only writes missing goldens; to replace this" in output
    assert 'run python -m nemotron.testing.bless mine/first --reason "..."' in output
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
def test_session_fails_if_the_assertion_on_a_golden_is_disabled(project, old, new):
    project.record(2.25)
    project.run_loss(2.5)
    project.change(old, new)
    for arguments in ([], ["-k", "reproduces"]):
        code, output = project.pytest(*arguments)
        assert code == 1
        assert "FAILED golden/mine/first.json - the run differs, but no test failed" in output


@pytest.mark.parametrize("arguments", [[], ["--snapshot-update"]])
def test_run_is_not_compared_with_the_golden_of_another_stage(project, arguments):
    project.change('{"stage": "mine/first"', '{"stage": "mine/second"')
    code, output = project.pytest(*arguments)
    assert code == 1
    assert "the test compares golden(name='mine/first') with a run of mine/second" in output
    assert not project.golden.exists()


def test_value_that_is_not_a_document_is_refused(project):
    project.change('{"stage": "mine/first", "ladder": {"training": ladder}}', "ladder")
    code, output = project.pytest()
    assert code == 1
    assert "with a list, not the document of a run; use the document of mine/first" in output


@pytest.mark.parametrize("loss", [float("nan"), {1: 2.25}, (2.25,)], ids=["NaN", "integer key", "tuple"])
def test_update_refuses_values_that_json_would_change(project, loss):
    before = project.record(2.25)
    project.run_loss(loss)
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "E   Failed: the run" not in output  # a sentence without a traceback
    assert "but no test failed" not in output
    assert "the run, " in project.report()["error"]
    assert project.report()["error"] in output
    assert "no test compared" not in output
    assert project.golden.read_bytes() == before


def test_update_does_not_change_a_damaged_golden(project):
    project.golden.write_text("{")
    code, output = project.pytest("--snapshot-update")
    assert code == 1
    assert "the golden is not valid JSON" in output
    assert project.report()["lines"][0].startswith("mine/first was not compared: the golden is not valid JSON")
    assert "no test compared" not in output
    assert project.golden.read_text() == "{"


def test_update_after_renaming_the_test_deletes_nothing(project):
    before = project.record(2.25)
    (project.directory / "test_stage.py").rename(project.directory / "test_other.py")
    (project.directory / "golden" / "mine" / "second.json").write_bytes(before)
    assert "no test compared a run with it" in project.pytest("--snapshot-update")[1]
    assert project.golden.read_bytes() == before
    assert (project.directory / "golden" / "mine" / "second.json").read_bytes() == before


def test_full_session_fails_if_no_test_compared_a_golden(project):
    before = project.record(2.25)
    project.golden.with_name("second.json").write_bytes(before)
    code, output = project.pytest()
    assert code == 1
    assert "FAILED golden/mine/second.json - no test compared a run with it" in output
    assert "first.json" not in output


def test_full_session_fails_if_the_only_golden_test_was_deleted(project):
    project.record(2.25)
    (project.directory / "test_stage.py").write_text("def test_something_else():\n    pass\n")
    (project.directory / "conftest.py").write_text(DECLARES_A_STAGE)
    code, output = project.pytest()
    assert code == 1
    assert "no test compared a run with it; write that test" in output


@pytest.mark.parametrize("selection", [["-k", "something_else"], ["test_stage.py::test_something_else"]])
def test_partial_session_may_leave_goldens_out_unless_given_every_golden(project, selection):
    project.record(2.25)
    assert project.pytest(*selection)[0] == 0
    (project.directory / "below").mkdir()
    (project.directory / "below" / "test_below.py").write_text("def test_below():\n    pass\n")
    assert project.pytest(cwd="below")[0] == 0
    code, output = project.pytest(*selection, "--every-golden")
    assert code == 1
    assert "FAILED golden/mine/first.json" in output


@pytest.mark.parametrize("call", ["golden", 'golden(name="first")', 'golden(name="../mine/first")'])
def test_golden_must_be_named_after_recipe_and_stage(project, call):
    test = project.directory / "test_stage.py"
    test.write_text(TEST.replace('golden(name="mine/first")', call))
    code, output = project.pytest("-k", "reproduces")
    assert code == 1
    assert "must be recipe and stage, such as nano2/stage0_pretrain" in output


def test_golden_of_another_stage_is_refused(project):
    project.record(2.25)
    project.golden.write_text(project.golden.read_text().replace(STAGE, "mine/second"))
    code, output = project.pytest()
    assert code == 1
    assert "the golden belongs to stage 'mine/second', the run to 'mine/first'" in output


def test_session_writes_its_report(project):
    project.record(2.25)
    project.run_loss(2.5)
    _, output = project.pytest()
    report = project.directory / ".golden_report" / "mine" / "first"
    assert (report / "report.txt").read_text() in output
    assert json.loads((report / "report.json").read_text())["differences"][0]["run"] == "2.5"
    project.run_loss(2.25)
    project.pytest("--golden-report-dir", "elsewhere")
    assert json.loads((project.directory / "elsewhere" / "mine" / "first" / "report.json").read_text())["equal"] is True


def test_github_step_summary_shows_the_report(project):
    summary = project.directory / "summary.md"
    summary.write_text("before\n")
    project.record(2.25)
    project.run_loss(2.5)
    project.pytest(GITHUB_STEP_SUMMARY=str(summary))
    report = (project.directory / ".golden_report" / "mine" / "first" / "report.txt").read_text()
    assert summary.read_text() == f"before\n```\n{report}```\n"


def test_only_golden_runs_the_tests_that_compare_a_golden(project):
    project.record(2.25)
    code, output = project.pytest("--only-golden")
    assert code == 0
    assert "1 passed, 1 deselected" in output


METADATA = """
import importlib.metadata

original = importlib.metadata.version

def version(name):
    if name != "syrupy":
        return original(name)
    found = VERSION
    if found is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return found

importlib.metadata.version = version
"""


def test_golden_test_without_syrupy_fails_and_says_what_to_install(project):
    project.record(2.25)
    for version, sentence in (
        ("7.0.2", "goldens need syrupy 6 or 7, which is installed and not loaded; add -p syrupy"),
        ("5.0.0", "goldens need syrupy 6 or 7, and 5.0.0 is installed; pip install 'nemotron-recipes[test]'"),
        (None, "goldens need syrupy 6 or 7, which is not installed; pip install 'nemotron-recipes[test]'"),
    ):
        (project.directory / "conftest.py").write_text(METADATA.replace("VERSION", repr(version)))
        code, output = project.pytest(plugins=("-p", "nemotron.testing.plugin"))
        assert code == 1
        assert sentence in output
        assert "another exception" not in output


def test_session_deletes_the_reports_of_the_previous_one(project):
    project.record(2.25)
    project.pytest()
    assert project.report()["equal"]
    project.pytest("-k", "something_else")
    assert not list((project.directory / ".golden_report").rglob("*.*"))


def test_session_fails_if_reports_cannot_be_written(project):
    project.record(2.25)
    (project.directory / "file").write_text("")
    code, output = project.pytest("--golden-report-dir", "file")
    assert code == 1
    assert "FAILED file - cannot write reports there" in output
    assert "Traceback" not in output


def test_goldens_are_refused_in_several_processes(project):
    project.record(2.25)
    (project.directory / "conftest.py").write_text("def pytest_configure(config):\n    config.workerinput = {}\n")
    code, output = project.pytest("-p", "no:junitxml")
    assert code == 1
    assert "run these tests without xdist's -n" in output


def test_without_golden_runs_the_other_tests(project):
    code, output = project.pytest("--without-golden")
    assert code == 0
    assert "1 passed, 1 deselected" in output


# --- other people's projects ---


def contents(directory):
    """Every file of a directory with its bytes."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_project_without_stages_and_goldens_is_left_alone(project):
    project.record(2.25)
    (project.directory / "golden" / "answers.json").write_text("[42]")
    report = project.directory / ".golden_report" / "mine" / "first" / "report.txt"
    report.parent.mkdir(parents=True)
    report.write_text("of somebody else")
    (project.directory / "test_stage.py").write_text("def test_something_else():\n    pass\n")
    (project.directory / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--report-dir', default='reports')\n"
    )
    before = contents(project.directory)
    for arguments in ([], ["-v"], ["--snapshot-update"], ["--report-dir", "."], ["--collect-only"]):
        code, output = project.pytest(*arguments, PYTHONDONTWRITEBYTECODE="1")
        assert code == 0, output
        assert "golden" not in output
    assert contents(project.directory) == before


@pytest.mark.parametrize("owner", ["conftest", "a plugin", "a later plugin"])
def test_project_keeps_its_own_fixture_golden(project, owner):
    (project.directory / "test_stage.py").write_text("def test_answer(golden):\n    assert golden == 42\n")
    module = "conftest" if owner == "conftest" else "somebody"
    text = "import pytest\n\n@pytest.fixture\ndef golden():\n    return 42\n"
    (project.directory / f"{module}.py").write_text(text)
    plugins = {"conftest": PLUGINS, "a plugin": ("-p", "somebody", *PLUGINS)}.get(owner, (*PLUGINS, "-p", "somebody"))
    for arguments, passed in (
        ([], "1 passed"),
        (["--without-golden"], "1 passed"),
        (["--only-golden"], "1 deselected"),
    ):
        code, output = project.pytest(*arguments, plugins=plugins, PYTHONPATH=".")
        assert passed in output, output
        assert "golden/" not in output
        assert code == (5 if arguments == ["--only-golden"] else 0)


def test_other_files_in_the_directory_of_goldens_are_not_goldens(project):
    project.record(2.25)
    for name, text in (("answers.json", "[42]"), ("pages/index.json", "{}"), ("mine/data/rows.json", "{}")):
        path = project.directory / "golden" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    code, output = project.pytest()
    assert code == 0, output


NEW_SINCE_PYTEST_7_4 = (
    *("Dir", "Directory", "FixtureDef", "HIDDEN_PARAM", "PytestFDWarning", "RaisesExc", "RaisesGroup", "ScopeName"),
    *("SubtestReport", "Subtests", "TerminalReporter", "register_fixture"),
)
"""Names that pytest 9.2 exports and pytest 7.4 does not."""


def test_plugin_needs_no_name_that_pytest_7_4_lacks(monkeypatch):
    for name in NEW_SINCE_PYTEST_7_4:
        monkeypatch.delattr(pytest, name, raising=False)
    spec = find_spec("nemotron.testing.plugin")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.stage_fixture


def test_full_session_is_recognized_by_pytest_7_4(tmp_path):
    """Which has two of the three names of where the paths came from, and the third one misspelled."""
    source = Enum("ArgsSource", ["ARGS", "INCOVATION_DIR", "TESTPATHS"])
    place = SimpleNamespace(dir=tmp_path)
    found = []
    for name in ("ARGS", "INCOVATION_DIR", "TESTPATHS"):
        config = SimpleNamespace(args_source=source[name], ArgsSource=source, stash=pytest.Stash(), rootpath=tmp_path)
        config.getoption, config.invocation_params = lambda name, default=None: name == "collectonly" or default, place
        config.stash[reports] = {}
        collect(config, [])
        found.append(is_full_run(SimpleNamespace(config=config, shouldstop=False, shouldfail=False)))
    assert found == [False, True, True]


def test_session_of_xdist_counts_no_golden_as_forgotten(project):
    """Its processes collect and select the tests, so that the first one cannot know what was left out."""
    project.record(2.25)
    (project.directory / "conftest.py").write_text(
        f"{DECLARES_A_STAGE}\n"
        "import pytest\n\n"
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_collection(session):\n    return True\n\n"
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_runtestloop(session):\n    session.testscollected = 1\n"
        "    return True\n"
    )
    code, output = project.pytest("-k", "something_else")
    assert code == 0, output
    code, output = project.pytest("--every-golden")
    assert code == 1
    assert "FAILED golden/mine/first.json - no test compared a run with it" in output


STEP = """
import json, pathlib
from types import SimpleNamespace

from pydantic.dataclasses import dataclass

from nemotron.config import ScaledConfig

@dataclass
class Config(ScaledConfig):
    '''A step.'''

    output_dir: pathlib.Path = pathlib.Path("STEP")
    '''A place.'''
    INPUT: pathlib.Path | None = None
    '''What it reads.'''

def main(config):
    config.output_dir.mkdir()
    came = "INPUT" == "base_checkpoint_path" and config.INPUT and config.INPUT.relative_to(config.INPUT.parents[1])
    loss = float(pathlib.Path(__file__).with_name("loss").read_text())
    ladder = [{"rung": "inputs", "name": "base", "step": 0, "value": str(came)}]
    ladder += [{"rung": "curve", "name": "loss", "step": 0, "value": loss}]
    (config.output_dir / "ladder.json").write_text(json.dumps(ladder))
    return SimpleNamespace(path=config.output_dir)
"""
ORCHESTRATOR = """
import pathlib
from dataclasses import replace

from pydantic.dataclasses import dataclass

from nemotron.config import ScaledConfig, nested
from PACKAGE import data_curation, evaluation, training

STEPS = (data_curation, training, evaluation)

@dataclass
class Config(ScaledConfig):
    '''A stage.'''

    output_dir: pathlib.Path = pathlib.Path("outputs")
    '''A place.'''
    base_checkpoint_path: pathlib.Path | None = None
    '''Where it starts from.'''
    data: data_curation.Config = nested(data_curation.Config, "data_curation")
    train: training.Config = nested(training.Config, "training")
    eval: evaluation.Config = nested(evaluation.Config, "evaluation")

def main(config):
    dataset = data_curation.main(replace(config.data, base_checkpoint_path=config.base_checkpoint_path))
    checkpoint = training.main(replace(config.train, dataset_path=dataset.path))
    results = evaluation.main(replace(config.eval, checkpoint_path=checkpoint.path))
    return {"dataset": dataset, "checkpoint": checkpoint, "results": results}
"""
STAGE_TEST = """
def test_NAME_reproduces_its_golden(NAME, golden):
    assert golden(name="mine/NAME_a") == NAME.document

def test_NAME_is_silent(NAME):
    assert NAME.stdout == ""
"""


@pytest.fixture
def two_stages(project):
    """The project with a package `mine`: stage0_a, and stage1_a, which starts from its checkpoint."""
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
            (folder / f"{step}.py").write_text(STEP.replace("INPUT", given).replace("STEP", step))
        (folder / "__main__.py").write_text(ORCHESTRATOR.replace("PACKAGE", f"mine.{name}_a"))
        # stage1 is tested first: the report must not depend on the order of the tests
        (root / f"test_{1 - int(name[-1])}.py").write_text(STAGE_TEST.replace("NAME", name))
    return project


def test_stage_starts_from_the_checkpoint_of_the_previous_one(two_stages):
    code, output = two_stages.pytest("--snapshot-update")
    assert code == 0, output
    ladders = parse_golden((two_stages.golden.parent / "stage1_a.json").read_bytes())[0]["ladder"]
    assert ladders["data_curation"][0]["value"] == "stage0_a0/training"
    assert ladders["training"][0]["value"] == "False"
    assert two_stages.pytest()[0] == 0


def test_report_of_a_later_stage_does_not_depend_on_the_order_of_tests(two_stages):
    two_stages.pytest("--snapshot-update")
    folder = two_stages.directory / "mine"
    (folder / "stage0_a" / "loss").write_text("2.0")
    path = folder / "stage1_a" / "data_curation.py"
    # Of another length: within a second, Python does not see other changes.
    path.write_text(path.read_text().replace("str(came)", "'something else'"))
    code, output = two_stages.pytest()
    assert code == 1
    assert output.index("test_0.py") < output.index("test_1.py")
    assert "mine/stage1_a differs first in its inputs, from mine/stage0_a, which differs; mend that first" in output


def test_name_of_a_golden_selects_the_tests_of_its_file(two_stages):
    two_stages.pytest("--snapshot-update")
    code, output = two_stages.pytest("-k", "mine/stage0_a")
    assert code == 0
    assert "2 passed, 2 deselected" in output
    assert "mine/stage1_a" not in output


def test_crash_of_a_stage_is_one_sentence_per_test_and_one_traceback(two_stages):
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


def test_stage_that_computes_nan_fails_with_a_sentence(two_stages):
    (two_stages.directory / "mine" / "stage0_a" / "loss").write_text("nan")
    code, output = two_stages.pytest("-k", "stage0")
    assert code == 1
    assert "stage mine/stage0_a: " in output
    assert "holds NaN" in output


def test_crash_outside_of_the_steps_names_the_orchestrator(two_stages):
    path = two_stages.directory / "mine" / "stage0_a" / "__main__.py"
    path.write_text(path.read_text().replace("    results =", "    raise OSError('no space')\n    results ="))
    code, output = two_stages.pytest("-k", "stage0")
    assert code == 1
    assert "stage mine/stage0_a: it crashed in its orchestrator: OSError: no space" in output


def test_missing_stage_fails_with_one_sentence(project):
    (project.directory / "conftest.py").write_text(
        "from nemotron.testing.plugin import stage_fixture\nstage0 = stage_fixture('mine.stage0_first')\n"
    )
    (project.directory / "test_stage.py").write_text("def test_stage(stage0):\n    pass\n")
    code, output = project.pytest()
    assert code == 1
    assert "stage mine/stage0_first: it crashed in its orchestrator: ModuleNotFoundError: No module named" in output


def test_missing_step_module_fails_with_its_name(two_stages):
    (two_stages.directory / "mine" / "stage0_a" / "evaluation.py").unlink()
    code, output = two_stages.pytest("-k", "stage0")
    assert code == 1
    assert "stage mine/stage0_a: it crashed in its orchestrator: ImportError: cannot import name 'evaluation'" in output
