"""The matrix of environments covers every pair of settings, is small, and contains only what the processor supports."""

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from nemotron.testing import alarms
from nemotron.testing.alarms import (
    DIRECTORIES,
    HASH_SEEDS,
    KERNELS,
    LOCALES,
    ORDERS,
    PLACES,
    THREADS,
    Cell,
    another_locale,
    pairwise_cells,
    run_stage_in_cell,
    supported_kernels,
)
from nemotron.testing.session import Session
from nemotron.testing.session import run_pytest as real_run_pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "letters"
STAGE = "letters/stage0_bigram"


def test_cells_cover_every_pair_of_settings():
    cells = {astuple(cell) for cell in pairwise_cells(tuple(KERNELS))}
    settings = (tuple(KERNELS), THREADS, HASH_SEEDS, range(len(PLACES)), ORDERS, DIRECTORIES)
    for (i, first), (j, second) in itertools.combinations(enumerate(settings), 2):
        met = {(cell[i], cell[j]) for cell in cells}
        assert met == set(itertools.product(first, second))


def test_matrix_has_at_most_eighteen_cells():
    assert len(pairwise_cells(tuple(KERNELS))) <= 18


@pytest.mark.parametrize("kernels", supported_kernels())
def test_cell_selects_its_kernels_and_threads(kernels):
    program = "import torch; print(torch.backends.cpu.get_cpu_capability().lower(), torch.get_num_threads())"
    environment = {**os.environ, **Cell(kernels, "2", "0", 0).environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kernels, "2"]


@pytest.mark.posix
@pytest.mark.parametrize(
    ("listed", "name"), [("C\nC.utf8\nde_DE.utf8\n", "de_DE.UTF-8"), ("C\nPOSIX\n", LOCALES[-1]), (None, LOCALES[-1])]
)
def test_second_locale_is_an_installed_one(tmp_path, monkeypatch, listed, name):
    if listed is not None:
        (tmp_path / "locale").write_text(f"#!/bin/sh\nprintf '{listed}'\n")
        (tmp_path / "locale").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    another_locale.cache_clear()
    try:
        assert Cell("default", "1", "0", 1).environment["LC_ALL"] == name
    finally:
        another_locale.cache_clear()
    assert Cell("default", "1", "0", 0).environment["LC_ALL"] == "C"


@pytest.fixture
def example(tmp_path, monkeypatch):
    ignored = shutil.ignore_patterns("__pycache__", ".golden_report", "outputs")
    monkeypatch.chdir(shutil.copytree(EXAMPLE, tmp_path / "letters", ignore=ignored))
    monkeypatch.setattr(sys, "argv", ["alarms"])
    return tmp_path / "letters"


@pytest.mark.parametrize(("order", "directory"), [("file", "root"), ("random", "elsewhere")])
def test_cell_runs_the_tests_of_a_stage(example, monkeypatch, order, directory):
    calls = []

    def run_pytest(root, arguments, *, environment, cwd):
        calls.append((arguments, cwd))
        return real_run_pytest(root, arguments, environment=environment, cwd=cwd)

    monkeypatch.setattr(alarms, "run_pytest", run_pytest)
    session = run_stage_in_cell(example, STAGE, Cell("default", "1", "1", 1, order, directory))
    assert session.exit_code == 0, session.output
    assert session.reports[STAGE]["equal"] is True
    assert "2 passed" in session.output
    ((arguments, cwd),) = calls
    assert ("--random-order" in arguments) == (order == "random")
    assert (cwd == example) == (directory == "root")


def report(**changes):
    return {STAGE: {"equal": True, "largest": 2e-15, "lines": ["it differs", "at the loss", "and more"], **changes}}


@pytest.mark.parametrize(
    ("session", "code", "verdict"),
    [
        (Session(0, (), report(), {}, ""), 0, ": 2e-15"),
        (Session(0, (), report(equal=False), {}, ""), 1, ": ALARM it differs; at the loss"),
        (Session(1, (), report(equal=False, lines=["not recorded"]), {}, ""), 1, ": ALARM not recorded"),
        (Session(1, ("test_of_resume",), report(), {}, ""), 1, ": ALARM test_of_resume"),
        (Session(4, (), {}, {}, "usage"), 1, ": ALARM usage"),
    ],
)
@pytest.mark.parametrize("names", [[], ["stage0"], [STAGE]])
def test_command_shows_every_cell_and_fails_after_an_alarm(example, monkeypatch, capsys, session, code, verdict, names):
    monkeypatch.setattr(alarms, "run_stage_in_cell", lambda *arguments: session)
    monkeypatch.setattr(sys, "argv", ["alarms", *names])
    assert alarms.main() == code
    cells = [line for line in capsys.readouterr().err.splitlines() if line.startswith(STAGE)]
    assert len(cells) == len(pairwise_cells(supported_kernels()))
    assert all(line.endswith(verdict) for line in cells)


def test_stage_without_a_golden_is_refused(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alarms", "stage0", "stage7"])
    assert alarms.main() == 2
    err = capsys.readouterr().err
    assert "no golden for stage7" in err
    assert f"goldens: {STAGE}" in err
