"""The catalogues of recipe mutants, and how a verdict is read; tests/pipelines/test_power.py tries two of them."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from nemotron.testing import power
from nemotron.testing.power import (
    FAMILIES,
    CampaignError,
    Mutant,
    Verdict,
    catalogue_of,
    moved,
    read_catalogue,
    stages_with_catalogue,
    totals,
    try_mutant,
    verdict,
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


@pytest.fixture(params=range(len(STAGES)))  # not by name: -k stage0 is for the stage
def catalogue(request):
    return read_catalogue(catalogue_of(ROOT, STAGES[request.param]))[0]


def test_every_mutant_fits_the_source_and_still_compiles(catalogue):
    for mutant in catalogue:
        compile(mutant.applied(ROOT), mutant.file, "exec")


def test_a_stage_has_forty_mutants_in_eight_families_half_of_them_from_incidents(catalogue):
    assert len(catalogue) >= 40
    assert set(Counter(mutant.family for mutant in catalogue)) == set(FAMILIES)
    assert sum(mutant.incident for mutant in catalogue) >= len(catalogue) / 2
    assert all(mutant.source for mutant in catalogue if mutant.incident)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "catalogue.toml").write_text(TESTS + TABLE + TABLE)
    with pytest.raises(ValueError, match="label-shift stands there 2 times"):
        read_catalogue(tmp_path / "catalogue.toml")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('family = "data"', "mutant label-shift: .*family"),
        ('old = "tokens[:, 1:]"', "mutant label-shift: .*old"),
    ],
)
def test_a_mutant_that_lacks_a_field_is_refused(tmp_path, line, sentence):
    (tmp_path / "catalogue.toml").write_text(TESTS + TABLE.replace(line, ""))
    with pytest.raises(ValueError, match=sentence):
        read_catalogue(tmp_path / "catalogue.toml")


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family 'luck' is none of data, batching"):
        Mutant("a", "luck", "", "training.py", "old", "new")


@pytest.mark.parametrize("text", ["nothing of it", "twice: 1 + 1"])
def test_a_mutant_that_does_not_fit_its_source_is_refused(tmp_path, text):
    (tmp_path / "training.py").write_text(text)
    with pytest.raises(ValueError, match="the source moved on"):
        Mutant("a", "data", "", "training.py", "1", "2").applied(tmp_path)
    with pytest.raises(ValueError, match=r"stands 0 times in gone\.py"):
        Mutant("a", "data", "", "gone.py", "1", "2").applied(tmp_path)


MUTANT = Mutant("a", "data", "", "training.py", "old", "new")


def session(*differences, exit_code=1, failed=(), output="", error=""):
    report = {"equal": not (differences or error), "differences": list(differences), "error": error}
    return Session(exit_code, failed, {"mine/stage0_first": report}, {}, output)


def difference(rung, golden="1.0", run="1.5"):
    return {"step": "training", "rung": rung, "golden": golden, "run": run}


def test_config_alone_does_not_count_as_killed_without_it():
    found = verdict(MUTANT, session(difference("config")))
    assert (found.killed, found.killed_without_config, found.rung) == (True, False, "")


def test_the_first_rung_beyond_config_killed_it():
    found = verdict(MUTANT, session(difference("config"), difference("curve", "2.0", "2.5"), difference("weights")))
    assert (found.mutant, found.killed_without_config, found.rung) == ("a", True, "training: curve")
    assert found.first_red_stage == "mine/stage0_first"
    assert found.largest_moved == 0.5


def test_the_first_red_stage_is_the_one_that_runs_first():
    later = {"mine/stage1_second": {"equal": False, "differences": [difference("inputs")], "error": ""}}
    found = session(difference("curve"))
    found = verdict(MUTANT, Session(1, (), {**later, **found.reports}, {}, ""))
    assert (found.first_red_stage, found.rung) == ("mine/stage0_first", "training: curve")


def test_a_test_that_fails_killed_it():
    found = verdict(MUTANT, session(failed=("test_of_resume",)))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "test: test_of_resume", "")


def test_a_stage_that_crashes_is_red():
    found = verdict(MUTANT, session(error="it crashed", failed=("test_of_golden",)))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "crash", "mine/stage0_first")


def test_a_mutant_that_cannot_be_imported_is_killed_at_no_stage():
    found = verdict(MUTANT, session(exit_code=2, output="E   ImportError: cannot import name"))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "crash", "")


@pytest.mark.parametrize(
    ("mutant", "output"), [(MUTANT, "OSError: No space left on device"), (None, "ImportError: no module torch")]
)
def test_tests_that_cannot_run_end_the_campaign(mutant, output):
    with pytest.raises(CampaignError, match=output):
        verdict(mutant, session(exit_code=3, output=output))


@pytest.mark.parametrize("exit_code", [0, 5])
def test_a_green_session_let_it_live(exit_code):
    found = verdict(MUTANT, session(exit_code=exit_code))
    assert not found.killed
    assert not found.killed_without_config


@pytest.mark.parametrize(
    ("golden", "run", "far"), [("2.0", "2.5", 0.25), ("1", "2", 0.0), ("nothing", "2.0", 0.0), ("0.0", "1.0", 0.0)]
)
def test_how_far_a_float_moved(golden, run, far):
    assert moved(difference("curve", golden, run)) == far


def test_the_totals_count_incidents_and_leave_config_out():
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
        "weakest killed: a, moved by 1e-06",
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
    """A repository with two stages that have a catalogue; returns what was tried, as (stage, name)."""
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

    def try_mutant(root, stage, mutant, tests):
        tried.append((stage, mutant and mutant.name))
        killed = mutant is not None and not mutant.survives
        return Verdict(mutant.name if mutant else "", killed, killed, stage if killed else "", "curve", 0.0)

    monkeypatch.setattr(power, "try_mutant", try_mutant)
    return tried


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["power", "--jobs", "1", *arguments])
    return power.main()


def test_without_arguments_every_catalogue_of_a_stage_is_tried(project, monkeypatch, capsys, tmp_path):
    assert run_main(monkeypatch, "--json", "verdicts.json") == 0
    assert sorted(project, key=str) == sorted(
        [(f"mine/{n}", m) for n in ("stage0_first", "stage1_second") for m in (None, f"{n}-a", f"{n}-b")], key=str
    )
    err = capsys.readouterr().err
    assert "data: stage0_first-a: killed by curve" in err
    assert "data: stage1_second-b: SURVIVED nobody counts" in err
    assert "killed: 1 of 2 (50%)" in err
    assert len(json.loads((tmp_path / "verdicts.json").read_text())) == 4


def test_only_the_named_mutants_are_tried(project, monkeypatch):
    assert run_main(monkeypatch, "--only", "stage1_second-a") == 0
    assert project == [("mine/stage1_second", None), ("mine/stage1_second", "stage1_second-a")]


@pytest.mark.parametrize(
    ("killed", "says"),
    [
        (True, "stage0_first-b: killed by curve, though it should survive: nobody counts"),
        (False, "-a: SURVIVED"),
    ],
)
def test_a_fate_that_the_catalogue_does_not_explain_is_red(project, monkeypatch, capsys, killed, says):
    def all_alike(root, stage, mutant, tests):
        return Verdict("", killed and mutant is not None, killed and mutant is not None, "", "curve", 0.0)

    monkeypatch.setattr(power, "try_mutant", all_alike)
    assert run_main(monkeypatch, "mine/stage0_first") == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stage0"], "stage0 has no catalogue in tests/mutants; there is mine/stage0_first, mine/stage1_second"),
        (["mine/stage0_first", "--only", "label-shift"], "no mutant label-shift; there is stage0_first-a, stage0_fir"),
    ],
)
def test_a_name_that_is_unknown_is_refused_with_those_that_are_known(project, monkeypatch, capsys, arguments, sentence):
    assert run_main(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not project


def test_a_mutant_that_does_not_fit_is_found_before_anything_is_tried(project, monkeypatch, capsys, tmp_path):
    (tmp_path / "recipes" / "mine" / "stage1_second.py").write_text("0")
    assert run_main(monkeypatch) == 2
    assert "the source moved on" in capsys.readouterr().err
    assert not project


def test_an_error_ends_the_campaign_with_its_sentence(project, monkeypatch, capsys, tmp_path):
    unmutated = power.try_mutant

    def full_disk(root, stage, mutant, tests):
        found = unmutated(root, stage, mutant, tests)
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


def test_a_stage_that_is_red_by_itself_is_refused(project, monkeypatch, capsys):
    monkeypatch.setattr(power, "try_mutant", lambda *arguments: Verdict("", True, True, "", "curve", 0.0))
    assert run_main(monkeypatch) == 2
    assert "mine/stage0_first is red without a mutant (curve)" in capsys.readouterr().err


class Installation:
    """A repository that pip can install, in which pytest is replaced: what it was called with, and what it says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, sessions: list[Session]) -> None:
        self.root, self.calls, self.sessions = root, [], sessions
        for name in ("nemotron", "golden", "tests"):
            (root / name).mkdir(exist_ok=True)
        for name in ("README.md", "LICENSE", "conftest.py"):
            (root / name).write_text("")
        (root / "pyproject.toml").write_text(
            "[project]\nname = 'mine'\nversion = '0'\n[tool.setuptools]\npackages = []\n"
        )
        monkeypatch.setattr(power, "run_pytest", self.run_pytest)

    def run_pytest(self, root, arguments, environment):
        self.calls.append([argument for argument in arguments if argument not in ("-p", "no:cacheprovider")])
        return self.sessions.pop(0)


def first_mutant(root, stage="mine/stage1_second"):
    mutants, tests = read_catalogue(catalogue_of(root, stage))
    return stage, mutants[0], tests


def test_the_goldens_of_the_stages_before_are_compared_as_well(project, monkeypatch, tmp_path):
    installation = Installation(tmp_path, monkeypatch, [session(difference("curve"))])
    found = try_mutant(tmp_path, *first_mutant(tmp_path))
    assert installation.calls == [["tests/stage1_second", "tests/stage0_first", "--only-golden"]]
    assert found.first_red_stage == "mine/stage0_first"


def test_a_mutant_that_the_golden_does_not_see_runs_the_other_tests_of_its_own_stage(project, monkeypatch, tmp_path):
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


def test_tests_that_compare_no_golden_of_the_stage_prove_nothing(project, monkeypatch, tmp_path):
    Installation(tmp_path, monkeypatch, [session(exit_code=0), session(exit_code=0)])
    with pytest.raises(CampaignError, match="no test in tests/stage1_second compares the golden of mine/stage1_second"):
        try_mutant(tmp_path, "mine/stage1_second", None, ["tests/stage1_second"])
    Installation(tmp_path, monkeypatch, [session(exit_code=0), session(exit_code=5)])
    assert not try_mutant(tmp_path, "mine/stage0_first", None, ["tests/stage0_first"]).killed


def test_a_mutant_that_only_the_config_shows_is_killed_by_it(project, monkeypatch, tmp_path):
    Installation(tmp_path, monkeypatch, [session(difference("config")), session(exit_code=5)])
    found = try_mutant(tmp_path, *first_mutant(tmp_path))
    assert (found.killed, found.killed_without_config) == (True, False)


def test_an_installation_that_fails_shows_what_pip_says(project, monkeypatch, tmp_path):
    Installation(tmp_path, monkeypatch, [])
    project_file = tmp_path / "pyproject.toml"
    project_file.write_text(project_file.read_text().replace("packages = []", "packages = ['gone']"))
    with pytest.raises(CampaignError, match=r"pip cannot install stage1_second-a:\n(.*\n)*.*'gone' does not exist"):
        try_mutant(tmp_path, *first_mutant(tmp_path))
