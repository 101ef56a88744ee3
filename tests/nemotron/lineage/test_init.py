"""Lineage: the calls to a tracker, the tree of an artifact, and the record of how it was made."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nemotron
from nemotron import Artifact, LineageTracker, set_lineage_tracker
from nemotron.artifact import working_directory
from nemotron.directory import METADATA
from nemotron.lineage import (
    code_version,
    library_versions,
    log_files,
    origin_by_step,
    producer_record,
    step_name,
)
from nemotron.process import process


class Dataset(Artifact):
    pass


class Checkpoint(Artifact):
    dataset_path: Path
    base_path: Path | None = None


class Recorder:
    """A tracker that records the calls it receives."""

    def __init__(self, places: Mapping[str, Path] | None = None, broken: bool = False) -> None:
        self.received: list[tuple[Any, ...]] = []
        self.places = places or {}
        self.broken = broken

    @property
    def calls(self) -> list[tuple[Any, ...]]:
        """What it has received, once nothing waits for it any more."""
        assert process.tracker is None or process.tracker.wait(10)
        return self.received

    def record(self, *call: Any) -> None:
        self.received.append(call)
        if self.broken:
            raise ConnectionError("the server is down")

    def log_artifact(self, artifact: Artifact) -> None:
        self.record("log", artifact.type_name(), artifact.path, [r.digest for r in artifact.inputs.values()])

    def use_artifact(self, artifact: Artifact | str, artifact_type: str) -> Path:
        self.record("use", artifact if isinstance(artifact, str) else artifact.path, artifact_type)
        return self.places[artifact] if isinstance(artifact, str) else artifact.path

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None, *, producer: str = "") -> None:
        self.record("metrics", dict(metrics), step, producer)

    def log_files(self, paths: Sequence[Path]) -> None:
        self.record("files", list(paths))


@pytest.fixture(autouse=True)
def remove_tracker() -> Iterator[None]:
    yield
    set_lineage_tracker(None)


def tracked(**options: Any) -> Recorder:
    recorder = Recorder(**options)
    set_lineage_tracker(recorder)
    return recorder


# --- the tracker


def test_a_finished_artifact_is_logged_in_its_final_place(tmp_path: Path):
    recorder = tracked()
    dataset = Dataset(path=tmp_path / "dataset", metrics={"documents": 3}).save()
    with working_directory(tmp_path / "checkpoint", Checkpoint) as work:
        Checkpoint(path=work, dataset_path=dataset.path).save()
        assert [call[0] for call in recorder.calls] == ["metrics", "log"]
    assert recorder.calls == [
        ("metrics", {"documents": 3.0}, None, __name__),
        ("log", "dataset", tmp_path / "dataset", []),
        ("log", "checkpoint", tmp_path / "checkpoint", [dataset.digest]),
    ]


def test_an_artifact_below_a_link_is_logged_once(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    recorder = tracked()
    with working_directory(tmp_path / "outputs" / "dataset", Dataset) as work:
        Dataset(path=work).save()
    assert recorder.calls == [("log", "dataset", tmp_path / "disk" / "dataset", [])]


def test_an_unfinished_artifact_is_not_logged(tmp_path: Path):
    recorder = tracked()
    with pytest.raises(KeyboardInterrupt), working_directory(tmp_path / "dataset", Dataset):
        raise KeyboardInterrupt
    assert recorder.calls == []


def test_inputs_are_logged_except_those_that_the_process_wrote(tmp_path: Path):
    Dataset(path=tmp_path / "dataset").save()
    recorder = tracked()
    Dataset.load(tmp_path / "dataset")
    Dataset(path=tmp_path / "own", metrics={"a": 1}).save()
    Dataset.load(tmp_path / "own")
    assert [call for call in recorder.calls if call[0] == "use"] == [("use", tmp_path / "dataset", "dataset")]


def test_an_artifact_is_loaded_by_its_name_in_the_tracker(tmp_path: Path):
    dataset = Dataset(path=tmp_path / "dataset").save()
    recorder = tracked(places={"corpus:v3": tmp_path / "dataset"})
    assert Dataset.load(name="corpus:v3").digest == dataset.digest
    assert recorder.calls == [("use", "corpus:v3", "dataset")]


def test_a_name_without_a_tracker_is_refused():
    with pytest.raises(
        ValueError, match="name='corpus:v3' needs a lineage tracker; call set_lineage_tracker first, or"
    ):
        Dataset.load(name="corpus:v3")


def test_a_failing_tracker_causes_a_warning_and_loses_no_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Dataset(path=tmp_path / "old", metrics={"a": 1}).save()
    tracked(broken=True)
    Dataset(path=tmp_path / "new").save()
    Dataset.load(tmp_path / "old")
    set_lineage_tracker(None)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: Recorder did not log {tmp_path / 'new'}: ConnectionError('the server is down')",
        "warning: Recorder lacks 2 calls of this run; its artifacts are on disk",
    ]
    assert Dataset.load(tmp_path / "new")


def test_an_object_without_the_tracker_methods_is_refused():
    assert isinstance(Recorder(), LineageTracker)
    with pytest.raises(
        ValueError, match="int is not a lineage tracker; add log_artifact, use_artifact, log_metrics and log_files"
    ):
        set_lineage_tracker(5)  # type: ignore[arg-type]


def test_files_beside_the_artifacts_are_logged(tmp_path: Path):
    log_files(tmp_path / "report.html")
    recorder = tracked()
    log_files(tmp_path / "report.html")
    assert recorder.calls == [("files", [tmp_path / "report.html"])]


def test_a_removed_tracker_is_not_called(tmp_path: Path):
    recorder = tracked()
    set_lineage_tracker(None)
    Dataset(path=tmp_path / "dataset").save()
    assert recorder.calls == []


# --- the tree


def of_step(artifact: Artifact, step: str) -> Artifact:
    """The artifact, saved, with a record that this step wrote it."""
    artifact.save()
    file = artifact.path / METADATA
    metadata = json.loads(file.read_text())
    metadata["producer"]["step"] = step
    file.write_text(json.dumps(metadata))
    return artifact


def test_the_nearest_artifact_of_a_step_is_found(tmp_path: Path):
    """Also behind others, and not the one that it is asked of."""
    first = of_step(Dataset(path=tmp_path / "first"), "curate")
    base = of_step(Checkpoint(path=tmp_path / "base", dataset_path=first.path), "train")
    second = of_step(Dataset(path=tmp_path / "second"), "curate again")
    tuned = of_step(Checkpoint(path=tmp_path / "tuned", dataset_path=second.path, base_path=base.path), "train")
    assert origin_by_step(tuned, "curate") == tmp_path / "first"
    assert origin_by_step(str(tuned.path), "curate again") == tmp_path / "second"
    assert origin_by_step(tuned.path, "train") == tmp_path / "base"


def test_an_origin_that_is_not_there_is_refused(tmp_path: Path):
    dataset = of_step(Dataset(path=tmp_path / "dataset"), "curate")
    checkpoint = of_step(Checkpoint(path=tmp_path / "checkpoint", dataset_path=dataset.path), "train")
    with pytest.raises(ValueError, match=r"checkpoint was not made from anything that chat wrote, or its directory is"):
        origin_by_step(checkpoint, "chat")
    shutil.rmtree(dataset.path)
    with pytest.raises(ValueError, match="was not made from anything that curate wrote, or its directory is gone; run"):
        origin_by_step(checkpoint, "curate")


# --- the producer record


@dataclass
class Config:
    seed: int = 3
    output_dir: Path = Path("outputs/x")
    sources: tuple[str, ...] = ("a", "b")


def test_the_producer_record_holds_the_config_as_it_was_given():
    record = producer_record(__name__, Config())
    assert record["config"] == {"seed": 3, "output_dir": "outputs/x", "sources": ["a", "b"]}
    assert record["seed"] == 3
    assert producer_record(__name__, None)["config"] == {}
    assert producer_record(__name__, {"seed": 4})["seed"] == 4


def test_the_step_is_the_module_of_the_config_class_before_that_of_the_artifact_class():
    assert producer_record("nemotron.artifact", Config())["step"] == __name__
    for config in ({"seed": 4}, None):
        assert producer_record("nemotron.artifact", config)["step"] == "nemotron.artifact"


def test_library_versions_cover_the_declared_dependencies():
    versions = library_versions()
    assert versions["python"].split(".")[:2] == [str(number) for number in sys.version_info[:2]]
    assert versions["sympy"] == importlib.metadata.version("sympy")
    assert "pytest" not in versions


def test_the_version_is_in_the_package_and_needs_no_metadata(monkeypatch: pytest.MonkeyPatch):
    """A clone that is not installed, or next to the `nemotron` of PyPI, still says what it is."""

    def only_the_other_project(name: str) -> object:
        if name == "nemotron":
            return "9.9"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", only_the_other_project)
    monkeypatch.setattr(importlib.metadata, "requires", only_the_other_project)
    assert nemotron.__version__[0].isdigit()
    assert nemotron.__version__ != "9.9"
    assert code_version.__wrapped__(None) == nemotron.__version__
    assert list(library_versions.__wrapped__()) == ["python"]


@pytest.mark.parametrize(
    "program",
    [
        "from nemotron.lineage import producer_record\nprint(producer_record(__name__, None)['step'])\n",
        """
from dataclasses import dataclass
from nemotron.lineage import producer_record

@dataclass
class Config:
    seed: int = 1

print(producer_record("nemotron.artifact", Config())["step"])
""",
    ],
)
@pytest.mark.parametrize("launch", ["-m package.step", "package/step.py"])
def test_a_step_that_runs_as_main_is_recorded_under_its_own_name(tmp_path: Path, launch: str, program: str):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "step.py").write_text(program)
    command = [sys.executable, *launch.split()]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == ("package.step\n" if launch.startswith("-m") else "step\n")


def test_a_recipe_step_that_runs_as_a_file_is_recorded_under_its_importable_name(monkeypatch: pytest.MonkeyPatch):
    file = str(Path(__file__).parents[3] / "recipes" / "nano2" / "models.py")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert step_name("__main__", file) == "nemotron.recipes.nano2.models"
    assert step_name("__main__", None) == "__main__"
    assert step_name("nemotron.recipes.nano2.models", file) == "nemotron.recipes.nano2.models"


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_code_version_names_the_commit_and_marks_uncommitted_changes(tmp_path: Path):
    step = tmp_path / "step.py"
    step.write_text("one")
    (tmp_path / "other.py").write_text("other")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "other.py")
    git(tmp_path, "commit", "-q", "-m", "zero")
    plain = nemotron.__version__
    assert code_version.__wrapped__(str(step)) == plain  # an untracked file is in no commit
    git(tmp_path, "add", "step.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version.__wrapped__(str(step)) == f"{plain}+{commit}"
    step.write_text("two")
    assert code_version.__wrapped__(str(step)) == f"{plain}+{commit}-dirty"


def test_the_code_version_without_git_is_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version.__wrapped__(__file__) == nemotron.__version__
    assert code_version.__wrapped__(None) == nemotron.__version__
