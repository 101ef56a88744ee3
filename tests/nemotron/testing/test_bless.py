"""Bless on a copy of the example recipe in its own repository: a changed number fails, is blessed, passes; refusals."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing import bless as blessing
from nemotron.testing.bless import BlessError, change_line, changes_table, headline
from nemotron.testing.compare import parse_golden
from nemotron.testing.session import SUMMARY

EXAMPLE = Path(__file__).parents[3] / "examples" / "letters"
TRAINING = "letters/stage0_bigram/training.py"
GOLDEN = Path("golden", "letters", "stage0_bigram.json")


class Repository:
    """A copy of the example recipe in its own git repository."""

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

    def bless(self, stage: str = "stage0", reason: str = "a larger step") -> list[str]:
        """Bless a stage; return the lines shown."""
        lines: list[str] = []
        blessing.bless(self.root, stage, reason, lines.append)
        return lines

    def change(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def change_learning_rate(self) -> None:
        """Raise it by 0.01 %."""
        self.change(
            "letters/stage0_bigram/training.py",
            "learning_rate: PositiveFloat = 8.0\n",
            "learning_rate: PositiveFloat = 8.0008\n",
        )

    def pytest(self) -> tuple[int, str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", SUMMARY)}
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


def test_small_change_fails_with_its_cause_and_passes_after_a_bless(repository):
    repository.change_learning_rate()
    code, output = repository.pytest()
    assert code == 1
    assert "first broken rung: training, config, learning_rate, step 0 (relative difference 1e-04)" in output
    assert "first result that differs: training, curve, loss, step 1" in output

    repository.commit()
    before = repository.golden
    lines = repository.bless("letters/stage0_bigram")
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


def test_table_shows_headline_numbers_before_and_after(repository):
    repository.change_learning_rate()
    repository.commit()
    repository.bless()
    lines, unexplained = changes_table(repository.root, "HEAD")
    assert not unexplained
    assert lines[0] == "| golden | what | before | after |"
    assert any(line.startswith("| golden/letters/stage0_bigram.json | bits_per_letter | 4.17") for line in lines)
    assert (
        "| golden/letters/stage0_bigram.json | first | 8.0 | 8.0008 (training, config, learning_rate, step 0) |"
        in lines
    )
    repository.commit()
    assert changes_table(repository.root, "HEAD") == (["No golden differs."], [])
    with pytest.raises(BlessError, match="'nowhere' is not a commit"):
        changes_table(repository.root, "nowhere")


def test_table_shows_deleted_and_new_goldens(repository):
    (repository.root / GOLDEN).rename(repository.root / GOLDEN.with_name("stage0_trigram.json"))
    lines, unexplained = changes_table(repository.root, "HEAD")
    assert lines[2].startswith("| golden/letters/stage0_bigram.json | deleted | 5")
    assert lines[3].startswith("| golden/letters/stage0_trigram.json | new |  | 5")
    assert not unexplained


def test_table_names_a_golden_that_changed_without_a_reason(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr(sys, "argv", ["bless", "--table", "HEAD"])
    (repository.root / "golden" / "CHANGES.md").write_text("- `letters/stage0_bigram` at `abc`: an earlier reason\n")
    repository.commit()
    repository.change(str(GOLDEN), '"value": 8.0}', '"value": 9.0}')
    assert blessing.main() == 1
    out, err = capsys.readouterr()
    assert "| golden/letters/stage0_bigram.json | entries that differ |  | 1 |" in out
    assert err.startswith("golden/letters/stage0_bigram.json changed without a new line in CHANGES.md")
    with open(repository.root / "golden" / "CHANGES.md", "a") as file:
        file.write("- `letters/stage0_bigram` at `abc`: another reason\n")
    assert blessing.main() == 0


def test_differences_are_shown_before_the_golden_is_written(repository, monkeypatch):
    repository.change_learning_rate()
    repository.commit()
    before, shown = repository.golden, []

    def full_disk(*arguments):
        assert any("learning_rate" in line for line in shown)
        raise OSError("no space")

    monkeypatch.setattr(blessing, "write_golden", full_disk)
    with pytest.raises(OSError, match="no space"):
        blessing.bless(repository.root, "stage0", "a larger step", shown.append)
    assert repository.golden == before


@pytest.mark.parametrize(
    ("reason", "code", "sentence"),
    [
        ("a larger step", 0, "- `letters/stage0_bigram` at `"),
        ("", 2, "not blessed: reason='' must be one line of text"),
    ],
    ids=["blessed", "refused"],
)
def test_command_prints_the_change_or_the_refusal(repository, monkeypatch, capsys, reason, code, sentence):
    repository.change_learning_rate()
    repository.commit()
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr(sys, "argv", ["bless", "letters/stage0_bigram", "--reason", reason])
    assert blessing.main() == code
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines()[-1].startswith(sentence)


def test_run_within_the_policy_changes_no_byte(repository):
    before = repository.golden
    assert repository.bless() == ["letters/stage0_bigram reproduces its golden: to the last bit"]
    assert repository.golden == before
    assert not (repository.root / "golden" / "CHANGES.md").exists()


def test_bless_keeps_a_tighter_policy(repository):
    repository.change(str(GOLDEN), '"rtol": 1e-09', '"rtol": 1e-11')
    repository.change_learning_rate()
    repository.commit()
    repository.bless()
    assert parse_golden(repository.golden)[1].rtol == 1e-11


def test_bless_is_refused_in_ci(repository, monkeypatch):
    for variable in ("CI", "GITHUB_ACTIONS"):
        with monkeypatch.context() as context:
            context.setenv(variable, "true")
            with pytest.raises(BlessError, match=f"{variable} is set, and CI must not replace a golden"):
                repository.bless()


@pytest.mark.parametrize("reason", ["", "   ", "two\nlines"])
def test_bless_needs_a_reason_of_one_line(repository, reason):
    with pytest.raises(BlessError, match="must be one line of text"):
        repository.bless(reason=reason)


def test_uncommitted_changes_are_refused(repository):
    repository.change_learning_rate()
    before = repository.golden
    with pytest.raises(BlessError, match=r"not committed \(letters/stage0_bigram/training.py\)"):
        repository.bless()
    (repository.root / "new").mkdir()
    (repository.root / "new" / "module.py").write_text("")
    repository.git("config", "status.showUntrackedFiles", "no")
    with pytest.raises(BlessError, match=r"not committed \(letters/stage0_bigram/training.py, new/module.py\)"):
        repository.bless()
    assert repository.golden == before


def test_directory_without_a_repository_is_refused(repository):
    shutil.rmtree(repository.root / ".git")
    with pytest.raises(BlessError, match="is not a git repository"):
        repository.bless()


def test_bless_without_git_is_refused(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository.root))
    with pytest.raises(BlessError, match="git is not installed"):
        repository.bless()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("default_rng(config.seed)", "default_rng()", "two runs of letters/stage0_bigram differ"),
        (
            "num_steps: PositiveInt = 40",
            "num_steps: PositiveInt = 1",
            "fix them first: test_stage0_is_better_than_guessing",
        ),
    ],
    ids=["random", "failing"],  # without the name of a stage, by which -k selects
)
def test_random_or_failing_run_is_not_blessed(repository, old, new, sentence):
    repository.change(TRAINING, old, new)
    repository.commit()
    before = repository.golden
    with pytest.raises(BlessError, match=sentence):
        repository.bless()
    assert repository.golden == before


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (
            TRAINING,
            "    dataset = Dataset.load",
            "    1 / 0\n    dataset = Dataset.load",
            "it crashed in its step training: ZeroDivisionError: division by zero",
        ),
        (
            "letters/stage0_bigram/evaluation.py",
            'ladder.add("headline", metrics)',
            'ladder.add("headline", {**metrics, "bits_per_letter": float("nan")})',
            "is nan, which is not equal to any number",
        ),
        (str(GOLDEN), '"schema_version": 1', '"schema_version": ', "the golden is not valid JSON"),
    ],
    ids=["crash", "NaN", "damaged golden"],
)
def test_run_that_cannot_be_compared_is_refused_with_the_cause(repository, file, old, new, sentence):
    repository.change(file, old, new)
    repository.commit()
    code, output = repository.pytest()
    assert code == 1
    assert sentence in output
    with pytest.raises(BlessError, match=f"letters/stage0_bigram cannot be recorded: .*{sentence}"):
        repository.bless()


def test_golden_test_that_fails_although_the_run_is_equal_counts_as_failed(repository):
    repository.change("test_stage0.py", "== stage0.document\n", "== stage0.document\n    assert not stage0\n")
    repository.commit()
    with pytest.raises(BlessError, match="fix them first: test_stage0_reproduces_its_golden"):
        repository.bless()


@pytest.mark.parametrize("stage", ["stage7", "numbers/stage0_bigram"], ids=["number", "recipe"])
def test_name_that_selects_no_stage_is_refused(repository, stage):
    with pytest.raises(BlessError, match="did not run"):
        repository.bless(stage)


def test_inner_pytest_does_not_write_the_summary_of_the_job(repository, monkeypatch, tmp_path):
    monkeypatch.setenv(SUMMARY, str(tmp_path / "summary.md"))
    repository.bless()
    assert not (tmp_path / "summary.md").exists()


def test_line_of_changes_shows_headline_numbers_before_and_after():
    entries = [("headline", "loss", 2.5), ("curve", "loss", 9.0), ("headline", "num_right", 7)]
    ladder = [{"rung": rung, "name": name, "step": 0, "value": value} for rung, name, value in entries]
    numbers = headline({"stage": "mine/first", "ladder": {"evaluation": ladder}})
    assert numbers == {"loss": 2.5, "num_right": 7}
    line = change_line("mine/first", "abc", " longer ", {"loss": 3.0}, numbers)
    assert line == "- `mine/first` at `abc`: longer (loss 3 → 2.5, num_right - → 7)\n"
