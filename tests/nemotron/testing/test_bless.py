"""Bless, on a copy of the example recipe in a repository of its own: what it refuses, and red, blessed, green."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing.bless import Refused, bless, change_line, changes_table, headline
from nemotron.testing.compare import parse_golden

EXAMPLE = Path(__file__).parents[3] / "examples" / "letters"
TRAINING = "letters/stage0_bigram/training.py"
GOLDEN = Path("golden", "letters", "stage0_bigram.json")


class Repository:
    """The example under version control, in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(EXAMPLE, root, ignore=shutil.ignore_patterns("__pycache__", ".golden_report", "outputs"))
        (root / ".gitignore").write_text("__pycache__/\n.golden_report/\n.pytest_cache/\n")
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=self.root, check=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a change")

    def change(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def change_learning_rate(self) -> None:
        """By 0.01 %."""
        self.change(
            "letters/stage0_bigram/training.py", "learning_rate: float = 8.0\n", "learning_rate: float = 8.0008\n"
        )

    def pytest(self) -> tuple[int, str]:
        environment = {**os.environ, "PYTEST_ADDOPTS": ""}
        command = [sys.executable, "-m", "pytest", "-q"]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    @property
    def golden(self) -> bytes:
        return (self.root / GOLDEN).read_bytes()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for variable in ("CI", "GITHUB_ACTIONS", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(variable, raising=False)
    return Repository(tmp_path / "letters")


def test_one_part_in_ten_thousand_is_red_with_its_cause_and_green_after_a_bless(repository):
    repository.change_learning_rate()
    code, output = repository.pytest()
    assert code == 1
    assert "first broken rung: training, config, learning_rate, step 0 (off by 1e-04, relative)" in output
    assert "first number that moves: training, curve, loss, step 1" in output

    repository.commit()
    before = repository.golden
    lines = bless(repository.root, "stage0", "a larger step")
    assert any("learning_rate" in line for line in lines)
    assert repository.golden != before
    (line,) = (repository.root / "golden" / "CHANGES.md").read_text().splitlines()
    assert line.startswith("- `letters/stage0_bigram` at `")
    assert "a larger step (bits_per_letter 4.17876" in line
    assert "→" in line

    repository.commit()
    code, output = repository.pytest()
    assert code == 0, output
    assert "reproduces its golden: to the last bit" in output


def test_the_table_shows_headline_numbers_of_both_commits(repository):
    repository.change_learning_rate()
    repository.commit()
    bless(repository.root, "stage0", "a larger step")
    lines = changes_table(repository.root, "HEAD")
    assert lines[0] == "| golden | what | before | after |"
    assert any(line.startswith("| golden/letters/stage0_bigram.json | bits_per_letter | 4.17") for line in lines)
    assert (
        "| golden/letters/stage0_bigram.json | first | 8.0 | 8.0008 (training, config, learning_rate, step 0) |"
        in lines
    )
    repository.commit()
    assert changes_table(repository.root, "HEAD") == ["No golden differs."]
    with pytest.raises(Refused, match="'nowhere' is no commit"):
        changes_table(repository.root, "nowhere")


def test_a_run_within_the_policy_changes_no_byte(repository):
    before = repository.golden
    assert bless(repository.root, "stage0", "nothing") == [
        "letters/stage0_bigram reproduces its golden: to the last bit"
    ]
    assert repository.golden == before
    assert not (repository.root / "golden" / "CHANGES.md").exists()


def test_a_bless_keeps_a_stricter_policy(repository):
    repository.change(str(GOLDEN), '"rtol": 1e-09', '"rtol": 1e-11')
    repository.change_learning_rate()
    repository.commit()
    bless(repository.root, "stage0", "a larger step")
    assert parse_golden(repository.golden)[1].rtol == 1e-11


def test_ci_does_not_bless(repository, monkeypatch):
    for variable in ("CI", "GITHUB_ACTIONS"):
        with monkeypatch.context() as context:
            context.setenv(variable, "true")
            with pytest.raises(Refused, match=f"{variable} is set, and CI must not bless"):
                bless(repository.root, "stage0", "a larger step")


@pytest.mark.parametrize("reason", ["", "   ", "two\nlines"])
def test_a_bless_needs_a_reason_in_one_line(repository, reason):
    with pytest.raises(Refused, match="a bless needs its reason"):
        bless(repository.root, "stage0", reason)


def test_what_is_not_committed_is_not_blessed(repository):
    repository.change_learning_rate()
    before = repository.golden
    with pytest.raises(Refused, match=r"not committed \(letters/stage0_bigram/training.py\)"):
        bless(repository.root, "stage0", "a larger step")
    assert repository.golden == before


def test_a_directory_without_version_control_is_refused(repository):
    shutil.rmtree(repository.root / ".git")
    with pytest.raises(Refused, match="not under version control"):
        bless(repository.root, "stage0", "a larger step")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("default_rng(config.seed)", "default_rng()", "two different runs"),
        ("num_steps: int = 40", "num_steps: int = 1", "mend them first: test_stage0_is_better_than_guessing"),
    ],
)
def test_a_run_that_nobody_could_repeat_or_that_fails_is_not_blessed(repository, old, new, sentence):
    repository.change(TRAINING, old, new)
    repository.commit()
    before = repository.golden
    with pytest.raises(Refused, match=sentence):
        bless(repository.root, "stage0", "another result")
    assert repository.golden == before


def test_a_stage_that_crashes_is_not_blessed_and_the_test_names_the_step(repository):
    repository.change(
        "letters/stage0_bigram/training.py", "    dataset = Dataset.load", "    1 / 0\n    dataset = Dataset.load"
    )
    repository.commit()
    code, output = repository.pytest()
    assert code == 1
    assert "stage letters/stage0_bigram crashed in its step training" in output
    with pytest.raises(Refused, match="mend them first: test_stage0_reproduces_its_golden"):
        bless(repository.root, "stage0", "faster")


def test_a_name_that_selects_no_stage_is_refused(repository):
    with pytest.raises(Refused, match="did not run"):
        bless(repository.root, "stage7", "a larger step")


def test_the_line_of_changes_holds_headline_numbers_before_and_after():
    entries = [("headline", "loss", 2.5), ("curve", "loss", 9.0), ("headline", "num_right", 7)]
    ladder = [{"rung": rung, "name": name, "step": 0, "value": value} for rung, name, value in entries]
    numbers = headline({"stage": "mine/first", "ladder": {"evaluation": ladder}})
    assert numbers == {"loss": 2.5, "num_right": 7}
    line = change_line("mine/first", "abc", " longer ", {"loss": 3.0}, numbers)
    assert line == "- `mine/first` at `abc`: longer (loss 3 → 2.5, num_right - → 7)\n"
