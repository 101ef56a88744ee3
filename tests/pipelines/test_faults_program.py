"""The program behind `nox -s faults`: which calls it finds in a log of strace, which it tries, and what it counts."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

spec = importlib.util.spec_from_file_location("faults_program", Path(__file__).with_name("faults.py"))
assert spec is not None
assert spec.loader is not None
faults = importlib.util.module_from_spec(spec)
sys.modules["faults_program"] = faults  # dataclasses look their module up
spec.loader.exec_module(faults)

LOG = """\
11 openat(AT_FDCWD</there>, "/usr/lib/a.py", O_RDONLY|O_CLOEXEC) = 3</usr/lib/a.py>
11 mkdir("/place/work/output.incomplete", 0777) = 0
11 openat(AT_FDCWD</there>, "/place/work/data", O_RDONLY) = 3</place/work/data>
12 openat(AT_FDCWD</there>, "/place/work/data", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 4</place/work/data>
11 write(2</place/stderr>, ""..., 12) = 12
11 write(4</place/work/data>, ""..., 4096) = 4096
11 write(4</place/work/data>, ""..., 4096 <unfinished ...>
12 <... write resumed>) = 4096
11 --- SIGCHLD {si_signo=SIGCHLD} ---
11 fsync(4</place/work/data>) = 0
11 unlinkat(5</place/work>, "data", 0) = 0
11 +++ exited with 0 +++
"""


def test_calls_are_those_that_change_the_place_with_their_number_in_their_thread():
    calls = faults.changing_calls(LOG, Path("/place/work"))
    assert [(call.name, call.number) for call in calls] == [
        ("mkdir", 1), ("openat", 1), ("write", 2), ("write", 3), ("fsync", 1), ("unlinkat", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("every_write", "writes"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (100, [1, 7])])
def test_of_writes_in_a_row_the_first_the_last_and_every_nth_are_tried(every_write, writes):
    calls = [faults.Call("write", number, "") for number in range(1, 8)]
    around = [faults.Call("mkdir", 1, ""), *calls, faults.Call("fsync", 1, ""), faults.Call("write", 8, "")]
    tried = list(faults.chosen(around, every_write))
    assert [call.number for call in tried if call.name == "write"] == [*writes, 8]
    assert [call.name for call in tried if call.name != "write"] == ["mkdir", "fsync"]


def test_equal_directories_have_equal_digests_and_others_have_not(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "empty").mkdir(parents=True)
        (tmp_path / name / "file").write_text("content")
    digest = faults.tree_digest(tmp_path / "one")
    assert digest == faults.tree_digest(tmp_path / "two")
    (tmp_path / "two" / "file").write_text("contents")
    (tmp_path / "one" / "empty").rmdir()
    assert len({digest, faults.tree_digest(tmp_path / "one"), faults.tree_digest(tmp_path / "two")}) == 3


def test_every_shortened_step_runs_on_what_the_one_before_made(tmp_path):
    """The faults themselves take hours, so no other test notices a step that the program cannot run."""
    program = f"import faults; print(len(faults.shortened(faults.Path({str(tmp_path)!r}))))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "12\n"), run.stderr[-2000:]


def test_without_strace_the_program_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["faults.py"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert faults.main() == 2
    assert capsys.readouterr().err.startswith("error: strace is not installed")


@pytest.mark.parametrize(
    ("fault", "first", "second", "counted"),
    [
        ("kill", -9, 0, {}),
        ("kill", 1, 0, {"no_sentence": 1}),
        ("kill", 0, 0, {"survived": 1}),
        ("kill", -9, 2, {"stuck": 1}),
        ("kill", -9, -14, {"stuck": 1}),
        ("ENOSPC", 2, 0, {}),
        ("ENOSPC", 1, 0, {"no_sentence": 1}),
        ("EIO", -9, 0, {"no_sentence": 1}),
    ],
)
def test_what_the_two_runs_do_is_counted(tmp_path, monkeypatch, fault, first, second, counted):
    """With the exit codes of the runs given; the real ones are those of the program."""
    codes = iter([first, second])

    def run_step(case, place, resume, tracer=()):
        os.makedirs(place / "work" / "output", exist_ok=True)
        (place / "stdout").write_text("")
        (place / "stderr").write_text("warning: something\nerror: the disk is full\n")
        return next(codes)

    monkeypatch.setattr(faults, "run_step", run_step)
    monkeypatch.setattr(faults, "digest_in", lambda place: "digest")
    tally, case = faults.Tally(), faults.Case("step", "module", SimpleNamespace())
    wrong = faults.disturb(case, faults.Call("fsync", 1, "fsync()"), fault, tmp_path / "place", "digest", tally)
    names = ("survived", "other_digests", "stuck", "no_sentence", "lost")
    assert {name: getattr(tally, name) for name in names if getattr(tally, name)} == counted
    assert len(wrong) == sum(number for name, number in counted.items() if name != "survived")


def test_another_digest_and_a_lost_artifact_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "run_step", lambda case, place, resume, tracer=(): 0)
    monkeypatch.setattr(faults, "prepare", lambda case, place: _empty_place(place))
    tally, case = faults.Tally(), faults.Case("step", "module", SimpleNamespace(), has_artifact=True)
    wrong = faults.disturb(case, faults.Call("fsync", 1, ""), "kill", tmp_path, "digest", tally)
    assert (tally.other_digests, tally.lost, len(wrong)) == (1, 1, 2)


def _empty_place(place: Path) -> None:
    (place / "work").mkdir()
    (place / "stderr").write_text("")
    (place / "stdout").write_text("")
