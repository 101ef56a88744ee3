"""The catalogues of recipe mutants, and how a verdict is read; tests/pipelines/test_power.py tries two of them."""

from collections import Counter
from pathlib import Path

import pytest

from nemotron.testing.power import CATALOGUES, FAMILIES, Mutant, Verdict, moved, read_catalogue, totals, verdict
from nemotron.testing.session import Session

ROOT = Path(__file__).parents[3]
STAGES = sorted(path.relative_to(ROOT / CATALOGUES) for path in (ROOT / CATALOGUES).rglob("stage*.toml"))
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


@pytest.fixture(params=STAGES, ids=lambda path: path.parent.name)  # not its own name: -k stage0 is for the stage
def catalogue(request):
    return read_catalogue(ROOT / CATALOGUES / request.param)[0]


def test_every_mutant_fits_the_source_and_still_compiles(catalogue):
    for mutant in catalogue:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} has its old text not once"
        compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_a_stage_has_forty_eight_mutants_in_eight_families_half_of_them_from_incidents(catalogue):
    assert len(catalogue) >= 48
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
        Mutant("a", "data", "", "training.py", "1", "2").apply(tmp_path)
    assert (tmp_path / "training.py").read_text() == text


def session(*differences, exit_code=1, failed=()):
    reports = {"mine/first": {"equal": not differences, "differences": list(differences)}}
    return Session(exit_code, failed, reports, {}, "")


def difference(rung, golden="1.0", run="1.5"):
    return {"step": "training", "rung": rung, "golden": golden, "run": run}


def test_config_alone_does_not_count_as_killed_without_it():
    found = verdict("a", session(difference("config")))
    assert (found.killed, found.killed_without_config, found.rung) == (True, False, "")


def test_the_first_rung_beyond_config_killed_it():
    found = verdict("a", session(difference("config"), difference("curve", "2.0", "2.5"), difference("final weights")))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "training: curve", "mine/first")
    assert found.largest_moved == 0.5


def test_a_test_that_fails_killed_it():
    found = verdict("a", session(failed=("test_of_resume",)))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "test: test_of_resume", "")


def test_tests_that_cannot_run_killed_it():
    found = verdict("a", session(exit_code=4))
    assert (found.killed_without_config, found.rung, found.first_red_stage) == (True, "crash", "crash")


def test_a_green_session_let_it_live():
    found = verdict("a", session(exit_code=0))
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
        Verdict("a", True, True, "mine/first", "training: curve", 1e-6),
        Verdict("b", False, False, "", "", 0.0),
        Verdict("c", True, False, "mine/first", "", 0.0),
    ]
    assert totals("mine/first", list(zip(mutants, verdicts, strict=True))) == [
        "killed: 2 of 3 (67%)",
        "killed without the config rung: 1 of 3 (33%)",
        "killed of real incidents: 1 of 2 (50%)",
        "first red stage is mine/first: 2 of 2 (100%)",
        "weakest killed: a, moved by 1e-06",
    ]
