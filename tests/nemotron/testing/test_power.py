"""The catalogues of recipe mutants and their verdicts; tests/pipelines/test_power.py tries two mutants."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.testing import power
from nemotron.testing.power import (
    FAMILIES,
    CampaignError,
    Mutant,
    Verdict,
    catalogue_of,
    judge_session,
    read_catalogue,
    relative_change,
    stages_with_catalogue,
    totals,
    try_mutant,
)
from nemotron.testing.session import Session

ROOT = Path(__file__).parents[3]
STAGES = stages_with_catalogue(ROOT)
TESTS = 'tests = ["tests"]\n'
TABLE = """
[[mutant]]
name = "label-shift"
family = "data"
story = "Targets are the inputs."
file = "training.py"
old = "tokens[:, 1:]"
new = "tokens[:, :-1]"
"""


@pytest.fixture(params=range(len(STAGES)))  # by index: -k stage0 must not select these tests
def catalogue(request):
    return read_catalogue(catalogue_of(ROOT, STAGES[request.param]))[0]


def test_every_mutant_fits_the_source_and_compiles(catalogue):
    for mutant in catalogue:
        assert compile(mutant.mutated_source(ROOT), mutant.file, "exec")


def test_stage_has_many_mutants_half_of_them_from_incidents(catalogue):
    """Pretraining and fine-tuning share most code, so their catalogues have every family."""
    assert len(catalogue) >= 16
    assert sum(mutant.incident for mutant in catalogue) >= len(catalogue) / 2
    assert all(mutant.source for mutant in catalogue if mutant.incident)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.split("/")[1][:6] in ("stage0", "stage1")])
def test_the_first_stages_have_forty_mutants_in_eight_families(stage):
    catalogue = read_catalogue(catalogue_of(ROOT, stage))[0]
    assert len(catalogue) >= 40
    assert set(Counter(mutant.family for mutant in catalogue)) == set(FAMILIES)


def test_repeated_mutant_name_is_refused(tmp_path):
    (tmp_path / "catalogue.toml").write_text(TESTS + TABLE + TABLE)
    with pytest.raises(ValueError, match="the name label-shift occurs 2 times"):
        read_catalogue(tmp_path / "catalogue.toml")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('family = "data"', "mutant label-shift: .*family"),
        ('old = "tokens[:, 1:]"', "mutant label-shift: .*old"),
    ],
)
def test_mutant_without_a_required_field_is_refused(tmp_path, line, sentence):
    (tmp_path / "catalogue.toml").write_text(TESTS + TABLE.replace(line, ""))
    with pytest.raises(ValueError, match=sentence):
        read_catalogue(tmp_path / "catalogue.toml")


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family='luck' must be one of data, batching"):
        Mutant("a", "luck", "", "training.py", "old", "new")


@pytest.mark.parametrize("text", ["nothing of it", "twice: 1 + 1"])
def test_mutant_that_does_not_fit_its_source_is_refused(tmp_path, text):
    (tmp_path / "training.py").write_text(text)
    with pytest.raises(ValueError, match="update the mutant to the present source"):
        Mutant("a", "data", "", "training.py", "1", "2").mutated_source(tmp_path)
    with pytest.raises(ValueError, match=r"must occur once in gone\.py .* occurs 0 times"):
        Mutant("a", "data", "", "gone.py", "1", "2").mutated_source(tmp_path)


MUTANT = Mutant("a", "data", "", "training.py", "old", "new")


def session(*differences, exit_code=1, failed=(), output="", error=""):
    report = {"equal": not (differences or error), "differences": list(differences), "error": error}
    return Session(exit_code, failed, {"mine/stage0_first": report}, {}, output)


def difference(rung, golden="1.0", run="1.5"):
    return {"step": "training", "rung": rung, "golden": golden, "run": run}


def test_config_rung_does_not_count_as_killed_without_config():
    found = judge_session(MUTANT, session(difference("config")))
    assert (found.killed, found.killed_without_config, found.rung) == (True, False, "")


def test_verdict_names_the_first_broken_rung_after_config():
    changes = [difference("config"), difference("curve", "2.0", "2.5"), difference("weights")]
    found = judge_session(MUTANT, session(*changes))
    assert (found.mutant, found.killed_without_config, found.rung) == ("a", True, "training: curve")
    assert found.first_red_stage == "mine/stage0_first"
    assert found.largest_change == 0.5


def test_first_red_stage_is_the_first_in_running_order():
    later = {"mine/stage1_second": {"equal": False, "differences": [difference("inputs")], "error": ""}}
    found = session(difference("curve"))
    found = judge_session(MUTANT, Session(1, (), {**later, **found.reports}, {}, ""))
    assert (found.first_red_stage, found.rung) == ("mine/stage0_first", "training: curve")


def test_failed_test_kills_the_mutant():
    found = judge_session(MUTANT, session(failed=("test_of_resume",)))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "test: test_of_resume", "")


def test_crash_of_a_stage_kills_the_mutant():
    found = judge_session(MUTANT, session(error="it crashed", failed=("test_of_golden",)))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "crash", "mine/stage0_first")


def test_mutant_that_cannot_be_imported_is_killed_without_a_red_stage():
    found = judge_session(MUTANT, session(exit_code=2, output="E   ImportError: cannot import name"))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "crash", "")


@pytest.mark.parametrize(
    ("mutant", "output"), [(MUTANT, "OSError: No space left on device"), (None, "ImportError: no module torch")]
)
def test_pytest_that_cannot_run_stops_the_campaign(mutant, output):
    with pytest.raises(CampaignError, match=output):
        judge_session(mutant, session(exit_code=3, output=output))


@pytest.mark.parametrize("exit_code", [0, 5])
def test_mutant_survives_a_session_without_failures(exit_code):
    found = judge_session(MUTANT, session(exit_code=exit_code))
    assert not found.killed
    assert not found.killed_without_config


@pytest.mark.parametrize(
    ("golden", "run", "change"), [("2.0", "2.5", 0.25), ("1", "2", 0.0), ("nothing", "2.0", 0.0), ("0.0", "1e-3", 1.0)]
)
def test_relative_change_of_a_pair_of_floats(golden, run, change):
    assert relative_change(difference("curve", golden, run)) == change


def test_totals_count_incidents_and_leave_config_out():
    mutants = [Mutant(name, "data", "", "f", "o", "n", incident=name != "c") for name in "abc"]
    verdicts = [
        Verdict("a", True, True, "mine/stage0_first", "training: curve", 1e-6),
        Verdict("b", False, False, "", "", 0.0),
        Verdict("c", True, False, "mine/stage0_first", "", 0.0),
    ]
    assert totals("mine/stage0_first", list(zip(mutants, verdicts, strict=True))) == [
        "killed: 2 of 3 (67%)",
        "killed without the config rung: 1 of 3 (33%)",
        "killed of real incidents: 1 of 2 (50%)",
        "first red stage is mine/stage0_first: 2 of 2 (100%)",
        "weakest killed: a, relative difference 1e-06",
    ]


TWO_MUTANTS = """
[[mutant]]
name = "NAME-a"
family = "data"
story = "One for another."
file = "recipes/mine/NAME.py"
old = "1"
new = "2"

[[mutant]]
name = "NAME-b"
family = "data"
story = "Two for another."
file = "recipes/mine/NAME.py"
old = "1"
new = "3"
survives = "nobody counts"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with catalogues for two stages; the list of the mutants tried, as (stage, name)."""
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / power.CATALOGUES / "mine").mkdir(parents=True)
    (tmp_path / power.CATALOGUES / "compare.toml").write_text("[cosmic-ray]\n")
    for name in ("stage0_first", "stage1_second"):
        (tmp_path / "recipes" / "mine" / f"{name}.py").write_text("1")
        (tmp_path / power.CATALOGUES / "mine" / f"{name}.toml").write_text(
            f'tests = ["tests/{name}"]\n' + TWO_MUTANTS.replace("NAME", name)
        )
    monkeypatch.chdir(tmp_path)
    tried = []

    def try_mutant(root, stage, mutant, tests, stages):
        tried.append((stage, mutant and mutant.name))
        killed = mutant is not None and not mutant.survives
        return Verdict(mutant.name if mutant else "", killed, killed, stage if killed else "", "curve", 0.0)

    monkeypatch.setattr(power, "try_mutant", try_mutant)
    return tried


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["power", "--jobs", "1", *arguments])
    return power.main()


def test_command_without_arguments_tries_every_catalogue(project, monkeypatch, capsys, tmp_path):
    assert run_main(monkeypatch, "--json", "verdicts.json") == 0
    assert sorted(project, key=str) == sorted(
        [(f"mine/{n}", m) for n in ("stage0_first", "stage1_second") for m in (None, f"{n}-a", f"{n}-b")], key=str
    )
    err = capsys.readouterr().err
    assert "data: stage0_first-a: killed by curve" in err
    assert "data: stage1_second-b: SURVIVED nobody counts" in err
    assert "killed: 1 of 2 (50%)" in err
    assert len(json.loads((tmp_path / "verdicts.json").read_text())) == 4


def test_only_tries_the_named_mutants(project, monkeypatch):
    assert run_main(monkeypatch, "--only", "stage1_second-a") == 0
    assert project == [("mine/stage1_second", None), ("mine/stage1_second", "stage1_second-a")]


@pytest.mark.parametrize(
    ("killed", "says"),
    [
        (True, "stage0_first-b: killed by curve, but it should survive: nobody counts; remove that line"),
        (False, "-a: SURVIVED"),
    ],
)
def test_unexpected_result_fails_the_command(project, monkeypatch, capsys, killed, says):
    def all_alike(root, stage, mutant, tests, stages):
        return Verdict("", killed and mutant is not None, killed and mutant is not None, "", "curve", 0.0)

    monkeypatch.setattr(power, "try_mutant", all_alike)
    assert run_main(monkeypatch, "mine/stage0_first") == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stage0"], "stage0 has no catalogue in tests/mutants; catalogues: mine/stage0_first, mine/stage1_second"),
        (["mine/stage0_first", "--only", "label-shift"], "there is no mutant label-shift; mutants: stage0_first-a, st"),
    ],
)
def test_unknown_name_is_refused_with_the_known_ones(project, monkeypatch, capsys, arguments, sentence):
    assert run_main(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not project


def test_mutant_that_does_not_fit_is_refused_before_any_is_tried(project, monkeypatch, capsys, tmp_path):
    (tmp_path / "recipes" / "mine" / "stage1_second.py").write_text("0")
    assert run_main(monkeypatch) == 2
    assert "update the mutant to the present source" in capsys.readouterr().err
    assert not project


def test_error_stops_the_campaign_with_its_message(project, monkeypatch, capsys, tmp_path):
    unmutated = power.try_mutant

    def full_disk(root, stage, mutant, tests, stages):
        found = unmutated(root, stage, mutant, tests, stages)
        if mutant is not None:
            time.sleep(0.05)
            raise CampaignError("pytest could not run")
        return found

    with open(catalogue_of(tmp_path, "mine/stage0_first"), "a") as file:
        for number in range(10):
            file.write(TWO_MUTANTS.replace("NAME-", f"{number}-").replace("NAME", "stage0_first"))
    monkeypatch.setattr(power, "try_mutant", full_disk)
    assert run_main(monkeypatch) == 2
    assert capsys.readouterr().err == "pytest could not run\n"
    assert len(project) < 10


def test_stage_that_fails_without_a_mutant_is_refused(project, monkeypatch, capsys):
    monkeypatch.setattr(power, "try_mutant", lambda *arguments: Verdict("", True, True, "", "curve", 0.0))
    assert run_main(monkeypatch) == 2
    assert "mine/stage0_first fails without a mutant (curve)" in capsys.readouterr().err


class Installation:
    """A repository that pip can install, with a fake pytest: records its arguments, returns the given sessions."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, sessions: list[Session]) -> None:
        self.root, self.calls, self.kept, self.sessions = root, [], [], sessions
        for name in ("nemotron", "golden", "tests"):
            (root / name).mkdir(exist_ok=True)
        for name in ("README.md", "LICENSE", "conftest.py"):
            (root / name).write_text("")
        (root / "pyproject.toml").write_text(
            "[project]\nname = 'mine'\nversion = '0'\n[tool.setuptools]\npackages = []\n"
        )
        monkeypatch.setattr(power, "run_pytest", self.run_pytest)

    def run_pytest(self, root, arguments, environment):
        option, kept = arguments[-1].split("=")
        assert (*arguments[-3:-1], option) == ("-p", "no:cacheprovider", "--stages-at")
        self.calls.append(list(arguments[:-3]))
        self.kept.append(sorted(path.name for path in Path(kept).glob("*/*")))
        return self.sessions.pop(0)


def first_mutant(root, stage="mine/stage1_second"):
    mutants, tests = read_catalogue(catalogue_of(root, stage))
    return stage, mutants[0], tests, root / "stages"


def test_goldens_of_earlier_stages_are_compared_too(project, monkeypatch, tmp_path):
    installation = Installation(tmp_path, monkeypatch, [session(difference("curve"))])
    found = try_mutant(tmp_path, *first_mutant(tmp_path))
    assert installation.calls == [["tests/stage1_second", "tests/stage0_first", "--only-golden"]]
    assert found.first_red_stage == "mine/stage0_first"


def test_other_tests_of_the_stage_run_if_the_golden_is_equal(project, monkeypatch, tmp_path):
    sessions = [session(difference("config")), session(failed=("test_of_resume",))]
    installation = Installation(tmp_path, monkeypatch, sessions)
    found = try_mutant(tmp_path, *first_mutant(tmp_path, "mine/stage0_first"))
    assert installation.calls[0] == ["tests/stage0_first", "--only-golden"]
    assert installation.calls[1] == ["tests/stage0_first", "--without-golden", "--exitfirst"]
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (
        True,
        "test: test_of_resume",
        "mine/stage0_first",
    )


def test_tests_of_the_mutated_module_run_before_those_of_its_stage(project, monkeypatch, tmp_path):
    sessions = [session(exit_code=0), session(failed=("test_of_first",))]
    installation = Installation(tmp_path, monkeypatch, sessions)
    (tmp_path / "tests" / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "tests" / "recipes" / "mine" / "test_stage0_first.py").touch()
    try_mutant(tmp_path, *first_mutant(tmp_path, "mine/stage0_first"))
    assert installation.calls[1][:2] == ["tests/recipes/mine/test_stage0_first.py", "tests/stage0_first"]


@pytest.mark.parametrize(
    ("file", "kept"), [("recipes/mine/stage0_first.py", ["curve"]), ("nemotron/pipe.py", []), ("nemotron/code.py", [])]
)
def test_mutant_starts_from_a_copy_of_the_stages_except_in_modules_that_only_show(
    project, monkeypatch, tmp_path, file, kept
):
    installation = Installation(tmp_path, monkeypatch, [session(difference("curve"))])
    (tmp_path / file).write_text("1")
    (tmp_path / "stages" / "stage0_first").mkdir(parents=True)
    (tmp_path / "stages" / "stage0_first" / "curve").touch()
    stage, mutant, tests, stages = first_mutant(tmp_path, "mine/stage0_first")
    try_mutant(tmp_path, stage, replace(mutant, file=file), tests, stages)
    assert installation.kept == [kept]


def test_catalogue_without_a_golden_test_is_refused(project, monkeypatch, tmp_path):
    Installation(tmp_path, monkeypatch, [session(exit_code=0), session(exit_code=0)])
    with pytest.raises(CampaignError, match="no test in tests/stage1_second compares the golden of mine/stage1_second"):
        try_mutant(tmp_path, "mine/stage1_second", None, ["tests/stage1_second"], tmp_path / "stages")
    Installation(tmp_path, monkeypatch, [session(exit_code=0), session(exit_code=5)])
    assert not try_mutant(tmp_path, "mine/stage0_first", None, ["tests/stage0_first"], tmp_path / "stages").killed


def test_mutant_that_changes_only_config_is_killed_by_config(project, monkeypatch, tmp_path):
    Installation(tmp_path, monkeypatch, [session(difference("config")), session(exit_code=5)])
    found = try_mutant(tmp_path, *first_mutant(tmp_path))
    assert (found.killed, found.killed_without_config) == (True, False)


def test_failed_installation_shows_the_output_of_pip(project, monkeypatch, tmp_path):
    Installation(tmp_path, monkeypatch, [])
    project_file = tmp_path / "pyproject.toml"
    project_file.write_text(project_file.read_text().replace("packages = []", "packages = ['gone']"))
    with pytest.raises(CampaignError, match=r"pip cannot install stage1_second-a:\n(.*\n)*.*'gone' does not exist"):
        try_mutant(tmp_path, *first_mutant(tmp_path))
