"""Artifacts: an artifact loads as it was saved, also after a move, and every violation is one sentence."""

import json
import math
import os
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, model_validator

from nemotron import Artifact
from nemotron.artifact import working_directory

validations: list[str] = []  # the path of every Dataset that was validated, in order


class Dataset(Artifact):
    num_examples: int = Field(gt=0)
    train_path: Path
    valid_path: Path | None = None

    @model_validator(mode="after")
    def _note(self) -> "Dataset":
        validations.append(str(self.path))
        return self


class Checkpoint(Artifact):
    num_steps: int
    model_path: Path
    dataset_path: Path
    base_path: Path | None = None


class Report(BaseModel):
    threshold: float
    examples: list[tuple[str, float]] = []


class Everything(Artifact):
    """An artifact with every kind of field that a recipe may use."""

    count: int
    share: float
    flag: bool
    text: str
    note: str | None
    kind: Literal["a", "b"]
    reports: dict[str, Report]
    weights: dict[int, float]
    words: list[str]
    pair: tuple[int, str]
    anything: Any
    own_file: Path
    own_directory: Path
    maybe_path: Path | None


@dataclass
class Config:
    seed: int = 7
    output_dir: Path = Path("outputs/here")
    limit: float = math.inf


def make_dataset(path: Path, content: str = "one\n", num_examples: int = 3) -> Dataset:
    path.mkdir(parents=True, exist_ok=True)
    (path / "train.txt").write_text(content)
    return Dataset(path=path, num_examples=num_examples, train_path=path / "train.txt").save(Config())


def make_checkpoint(path: Path, dataset: Dataset) -> Checkpoint:
    (path / "model").mkdir(parents=True)
    (path / "model" / "weights.bin").write_bytes(b"\x00\x01")
    return Checkpoint(path=path, num_steps=2, model_path=path / "model", dataset_path=dataset.path).save()


def edit_metadata(path: Path, **changes: Any) -> None:
    """Change metadata.json as an attacker would: with a matching digest."""
    from nemotron.directory import Metadata

    metadata = json.loads((path / "metadata.json").read_text()) | changes
    metadata["digest"] = Metadata.model_validate(metadata).compute_digest()
    (path / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture(scope="module", autouse=True)
def skip_fsync() -> Iterator[None]:
    """These tests write thousands of small files; test_directory.py tests fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@contextmanager
def fresh_directory() -> Iterator[Path]:
    """A temporary directory for one example of a property test; the examples would share tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


# --- save and load

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
file_names = st.text(string.ascii_letters + "äß .-_*?'\"\\\n", min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and not name.startswith("metadata.json")
)
file_trees = st.dictionaries(file_names, st.binary(max_size=50), min_size=1, max_size=4)
plain_fields = st.fixed_dictionaries(
    {
        "count": st.integers(),
        "share": finite,
        "flag": st.booleans(),
        "text": st.text(),
        "note": st.none() | st.text(),
        "kind": st.sampled_from(["a", "b"]),
        "reports": st.dictionaries(
            st.text(),
            st.builds(Report, threshold=finite, examples=st.lists(st.tuples(st.text(), finite), max_size=2)),
            max_size=2,
        ),
        "weights": st.dictionaries(st.integers(), finite, max_size=3),
        "words": st.lists(st.text(), max_size=3),
        "pair": st.tuples(st.integers(), st.text()),
        "anything": json_values,
        "metrics": st.dictionaries(st.text(), finite, max_size=3),
    }
)


def make_everything(path: Path, fields: dict[str, Any], files: dict[str, bytes]) -> Everything:
    (path / "parts").mkdir(parents=True)
    for name, content in files.items():
        (path / "parts" / name).write_bytes(content)
    own_file = path / "parts" / min(files)
    return Everything(path=path, own_file=own_file, own_directory=path / "parts", maybe_path=None, **fields)


@given(plain_fields, file_trees)
def test_any_artifact_loads_as_it_was_saved(fields: dict[str, Any], files: dict[str, bytes]):
    with fresh_directory() as root:
        saved = make_everything(root / "artifact", fields, files).save(Config())
        loaded = Everything.load(root / "artifact")
        for name in Everything.model_fields:
            assert getattr(loaded, name) == getattr(saved, name)
        assert {name: (root / "artifact" / name).read_bytes() for name in loaded.files} == {
            f"parts/{name}": content for name, content in files.items()
        }
        assert (loaded.digest, loaded.created_at, loaded.producer) == (saved.digest, saved.created_at, saved.producer)


@given(plain_fields, file_trees, file_names, st.booleans())
def test_any_moved_or_copied_artifact_has_the_same_digest(
    fields: dict[str, Any], files: dict[str, bytes], new_name: str, copied: bool
):
    with fresh_directory() as root:
        digest = make_everything(root / "artifact", fields, files).save().digest
        place = root / "elsewhere" / new_name
        shutil.copytree(root / "artifact", place) if copied else shutil.move(root / "artifact", place)
        moved = Everything.load(place)
        assert moved.digest == digest
        assert moved.own_directory == place / "parts"


@given(plain_fields, file_trees, st.data())
def test_load_refuses_any_changed_byte_in_a_file(fields: dict[str, Any], files: dict[str, bytes], data: st.DataObject):
    with fresh_directory() as root:
        artifact = make_everything(root / "artifact", fields, files | {"last": b"x"}).save()
        name = data.draw(st.sampled_from(sorted(name for name, record in artifact.files.items() if record.size)))
        content = bytearray((artifact.path / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        (artifact.path / name).write_bytes(content)
        with pytest.raises(ValueError, match="has sha256") as error:
            Everything.load(artifact.path)
        assert f"the file {name} " in str(error.value)


@settings(max_examples=150)
@given(st.data())
def test_a_changed_byte_in_the_metadata_is_refused_or_outside_the_digest(data: st.DataObject):
    with fresh_directory() as root:
        saved = make_dataset(root / "dataset")
        file = root / "dataset" / "metadata.json"
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        try:
            loaded = Dataset.load(root / "dataset")
        except ValueError:
            return
        assert loaded.saved.compute_digest() == saved.digest
        assert (loaded.num_examples, loaded.train_path) == (saved.num_examples, saved.train_path)


def test_load_checks_every_file_before_it_validates_fields(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    (tmp_path / "dataset" / "train.txt").write_text("two\n")
    validations.clear()
    with pytest.raises(ValueError, match="has sha256"):
        Dataset.load(tmp_path / "dataset")
    assert not validations


def test_the_digest_does_not_depend_on_place_or_config(tmp_path: Path):
    first = make_dataset(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.txt").write_text("one\n")
    second = Dataset(path=tmp_path / "b", num_examples=3, train_path=tmp_path / "b" / "train.txt").save(Config(seed=8))
    assert second.digest == first.digest


@pytest.mark.parametrize("change", ["file", "field", "metric", "name", "input", "type"])
def test_different_content_has_a_different_digest(tmp_path: Path, change: str):
    class Other(Dataset):
        pass

    def digest(name: str, changed: bool) -> str:
        dataset = make_dataset(tmp_path / name / "dataset", "two\n" if changed and change == "input" else "one\n")
        path = tmp_path / name / "checkpoint"
        path.mkdir()
        file = path / ("other" if changed and change == "name" else "train.txt")
        file.write_text("2" if changed and change == "file" else "1")
        kind = Other if changed and change == "type" else Dataset
        metrics = {"loss": 2.0 if changed and change == "metric" else 1.0}
        num_examples = 2 if changed and change == "field" else 1
        artifact = kind(
            path=path, num_examples=num_examples, train_path=file, valid_path=dataset.path, metrics=metrics
        )  # fmt: skip
        return artifact.save().digest

    assert digest("unchanged", changed=False) != digest("changed", changed=True)


def test_an_artifact_may_have_no_files(tmp_path: Path):
    class Results(Artifact):
        pass

    Results(path=tmp_path / "results", metrics={"accuracy": 0.5}).save()
    assert Results.load(tmp_path / "results").metrics == {"accuracy": 0.5}


class StandInLadder:
    """A ladder with the one method that `save` calls."""

    def write(self, directory: Path) -> None:
        (directory / "ladder.json").write_text('[{"rung": "config", "name": "seed", "step": null, "value": 7}]')


def test_save_writes_the_ladder_as_a_file_of_the_artifact(tmp_path: Path):
    with working_directory(tmp_path / "dataset", Dataset) as work:
        (work / "train.txt").write_text("one\n")
        Dataset(path=work, num_examples=3, train_path=work / "train.txt").save(Config(), ladder=StandInLadder())
    assert sorted(Dataset.load(tmp_path / "dataset").files) == ["ladder.json", "train.txt"]
    (tmp_path / "dataset" / "ladder.json").write_text("[]")
    with pytest.raises(ValueError, match=r"the file ladder.json"):
        Dataset.load(tmp_path / "dataset")


def test_save_writes_no_ladder_into_an_artifact_of_another_type(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    with pytest.raises(ValueError, match="type='dataset', expected 'everything'"):
        Everything.model_construct(path=tmp_path / "dataset", metrics={}).save(ladder=StandInLadder())
    assert Dataset.load(tmp_path / "dataset")


def test_paths_may_be_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_dataset(Path("dataset"))
    dataset = Dataset(path=Path("dataset"), num_examples=3, train_path=Path("dataset/train.txt"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert dataset.save().path == tmp_path / "dataset"
    assert Dataset.load("../dataset").train_path == tmp_path / "dataset" / "train.txt"


def test_metadata_records_how_and_when_the_artifact_was_made(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    dataset = Dataset.load(checkpoint.dataset_path)
    assert dataset.producer["config"] == {"seed": 7, "output_dir": "outputs/here", "limit": "Infinity"}
    assert dataset.producer["seed"] == 7
    assert dataset.producer["step"] == __name__
    assert dataset.producer["libraries"]["pydantic"]
    assert checkpoint.producer["inputs"] == {
        "dataset_path": {"type": "dataset", "digest": dataset.digest, "path": "../dataset"}
    }
    assert dataset.created_at.utcoffset() is not None
    assert abs(dataset.created_at - checkpoint.created_at) < timedelta(minutes=1)


def test_metadata_holds_no_absolute_path(tmp_path: Path):
    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    assert str(tmp_path) not in (tmp_path / "checkpoint" / "metadata.json").read_text()


# --- references


def test_a_checkpoint_finds_its_dataset_in_a_moved_tree(tmp_path: Path):
    dataset = make_dataset(tmp_path / "outputs" / "stage" / "data")
    make_checkpoint(tmp_path / "outputs" / "stage" / "training", dataset)
    shutil.move(tmp_path / "outputs", tmp_path / "archive")
    checkpoint = Checkpoint.load(tmp_path / "archive" / "stage" / "training")
    assert checkpoint.dataset_path == tmp_path / "archive" / "stage" / "data"
    assert Dataset.load(path=checkpoint.dataset_path).digest == dataset.digest
    assert checkpoint.inputs["dataset_path"].digest == dataset.digest


def test_a_missing_reference_is_an_error_only_when_it_is_loaded(tmp_path: Path):
    dataset = make_dataset(tmp_path / "dataset")
    make_checkpoint(tmp_path / "checkpoint", dataset)
    shutil.rmtree(tmp_path / "dataset")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'dataset'} does not exist")):
        Dataset.load(checkpoint.dataset_path)


def test_a_changed_reference_is_refused(tmp_path: Path):
    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    shutil.rmtree(tmp_path / "dataset")
    make_dataset(tmp_path / "dataset", "two\n")
    with pytest.raises(ValueError, match=r"checkpoint: dataset_path had digest \w{12}, but .*/dataset now has"):
        Checkpoint.load(tmp_path / "checkpoint")


def test_a_reference_to_a_directory_that_is_no_longer_an_artifact_is_refused(tmp_path: Path):
    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    (tmp_path / "dataset" / "metadata.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint: dataset_path: .* has no metadata.json"):
        Checkpoint.load(tmp_path / "checkpoint")


def test_a_reference_through_a_link_resolves_to_the_artifact(tmp_path: Path):
    dataset = make_dataset(tmp_path / "disk" / "dataset")
    (tmp_path / "latest").symlink_to(dataset.path)
    (tmp_path / "checkpoint" / "model").mkdir(parents=True)
    (tmp_path / "checkpoint" / "model" / "w").write_text("w")
    Checkpoint(
        path=tmp_path / "checkpoint", num_steps=1, model_path=tmp_path / "checkpoint" / "model",
        dataset_path=tmp_path / "latest",
    ).save()  # fmt: skip
    assert Checkpoint.load(tmp_path / "checkpoint").dataset_path == dataset.path


@pytest.mark.parametrize("place", ["nowhere", "directory", "file"])
def test_a_path_that_is_neither_inside_nor_an_artifact_is_refused(tmp_path: Path, place: str):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dataset").mkdir()
    dataset = Dataset(path=tmp_path / "dataset", num_examples=1, train_path=tmp_path / place)
    with pytest.raises(ValueError, match="dataset: train_path is neither inside this artifact nor another one"):
        dataset.save()
    assert not (tmp_path / "dataset" / "metadata.json").exists()


@pytest.mark.parametrize("name", ["missing.txt", "empty", ".", "metadata.json"])
def test_a_path_inside_the_artifact_without_a_file_is_refused(tmp_path: Path, name: str):
    (tmp_path / "dataset" / "empty").mkdir(parents=True)
    dataset = Dataset(path=tmp_path / "dataset", num_examples=1, train_path=tmp_path / "dataset" / name)
    with pytest.raises(ValueError, match=r"dataset: train_path=.* is not a file and holds none; write it before"):
        dataset.save()


def test_a_path_inside_a_container_is_refused(tmp_path: Path):
    class Shards(Artifact):
        shards: dict[str, list[Path]]

    tmp_path.joinpath("a").write_text("a")
    with pytest.raises(ValueError, match="shards contains a path inside a value; give each path its own field"):
        Shards(path=tmp_path, shards={"a": [tmp_path / "a"]}).save()


def test_a_path_type_that_load_would_not_recognize_is_refused(tmp_path: Path):
    class Hidden(Artifact):
        file: Annotated[Path, "note"] | None

    tmp_path.joinpath("a").write_text("a")
    with pytest.raises(ValueError, match=r"file=.* would load as"):
        Hidden(path=tmp_path, file=tmp_path / "a").save()


# --- errors


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_examples": 0}, "num_examples"),
        ({"num_examples": "many"}, "num_examples"),
        ({"unknown": 1}, "unknown"),
        ({"metrics": {"loss": math.nan}}, "metrics.loss"),
        ({"metrics": {"loss": math.inf}}, "metrics.loss"),
    ],
)
def test_an_invalid_field_is_refused_when_the_artifact_is_constructed(fields: dict[str, Any], sentence: str):
    with pytest.raises(ValidationError, match=sentence):
        Dataset(**{"path": "x", "num_examples": 1, "train_path": "x/y"} | fields)


def test_an_artifact_is_frozen(tmp_path: Path):
    with pytest.raises(ValidationError, match="frozen"):
        make_dataset(tmp_path / "dataset").num_examples = 4


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"\xff", object(), (1, 2), {1: "a", "1": "b"}])
def test_a_value_that_json_would_change_is_refused(tmp_path: Path, value: Any):
    class Loose(Artifact):
        value: Any

    with pytest.raises(ValueError, match=r"value.* (would load as|cannot be written as JSON)"):
        Loose(path=tmp_path, value=value).save()
    assert not (tmp_path / "metadata.json").exists()


def test_an_unsaved_artifact_has_no_digest(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the dataset at .* is not saved yet; call save\(\) first"):
        _ = Dataset(path=tmp_path, num_examples=1, train_path=tmp_path / "a").digest


def test_an_artifact_of_another_type_is_refused_with_both_types(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    written, expected = (rf"written by '?{re.escape(one.__module__)}'?" for one in (Dataset, Checkpoint))
    sentence = f"dataset: type='dataset', {written}, expected 'checkpoint', {expected}; give the path of such a chec"
    with pytest.raises(ValueError, match=sentence):
        Checkpoint.load(tmp_path / "dataset")


def test_save_does_not_overwrite_an_artifact_of_another_type(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    with pytest.raises(ValueError, match="type='dataset', expected 'everything'"):
        Everything.model_construct(path=tmp_path / "dataset", metrics={}).save()
    assert Dataset.load(tmp_path / "dataset")


def test_load_with_a_path_and_a_name_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="are both given; give one of them"):
        Dataset.load(tmp_path, name="dataset:v1")


def test_a_missing_file_is_refused(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    (tmp_path / "dataset" / "train.txt").unlink()
    with pytest.raises(ValueError, match=r"dataset: the file train.txt is missing; copy the artifact again"):
        Dataset.load(tmp_path / "dataset")


def test_an_added_file_is_refused(tmp_path: Path):
    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    (tmp_path / "checkpoint" / "model" / "more.bin").write_text("")
    with pytest.raises(ValueError, match=r"the file model/more.bin is not part of the artifact; move it elsewhere"):
        Checkpoint.load(tmp_path / "checkpoint")


def test_a_truncated_file_is_refused_by_its_size(tmp_path: Path):
    make_dataset(tmp_path / "dataset", "four")
    (tmp_path / "dataset" / "train.txt").write_text("")
    with pytest.raises(ValueError, match=r"the file train.txt has 0 bytes, but had 4 when it was saved"):
        Dataset.load(tmp_path / "dataset")


@pytest.mark.parametrize("where", ["file", "directory", "metadata"])
def test_load_refuses_a_link_inside_an_artifact(tmp_path: Path, where: str):
    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    inside = {"file": "model/weights.bin", "directory": "model", "metadata": "metadata.json"}[where]
    shutil.move(tmp_path / "checkpoint" / inside, tmp_path / "outside")
    (tmp_path / "checkpoint" / inside).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{inside} is not a regular file; replace the link or device"):
        Checkpoint.load(tmp_path / "checkpoint")


def test_save_refuses_a_link_inside_an_artifact(tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "dataset" / "train.txt").symlink_to(tmp_path / "outside")
    dataset = Dataset(path=tmp_path / "dataset", num_examples=1, train_path=tmp_path / "dataset" / "train.txt")
    with pytest.raises(
        ValueError, match=r"train.txt is not a regular file; replace the link or device with a copy of the file"
    ):
        dataset.save()


@pytest.mark.posix
def test_load_refuses_a_named_pipe_without_reading_it(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    os.mkfifo(tmp_path / "dataset" / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        Dataset.load(tmp_path / "dataset")


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/hostname", "train.txt/../../outside.txt", "", ".", "nothing"])
def test_a_stored_path_that_leaves_the_artifact_is_refused(tmp_path: Path, path: str):
    make_dataset(tmp_path / "dataset")
    (tmp_path / "outside.txt").write_text("secret")
    edit_metadata(tmp_path / "dataset", fields={"num_examples": 1, "train_path": path})
    with pytest.raises(ValueError, match=r"train_path=.* is not one of its files, and a path may not point outside"):
        Dataset.load(tmp_path / "dataset")


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname"])
def test_a_listed_file_outside_the_artifact_is_refused(tmp_path: Path, name: str):
    files = make_dataset(tmp_path / "dataset").files
    (tmp_path / "outside.txt").write_text("one\n")
    edit_metadata(tmp_path / "dataset", files={name: files["train.txt"].model_dump()})
    with pytest.raises(ValueError, match=r"the file train.txt is not part of the artifact"):
        Dataset.load(tmp_path / "dataset")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_examples": 0, "train_path": "train.txt"}, "num_examples=0: Input should be greater than 0"),
        ({"train_path": "train.txt"}, "num_examples=.*: Field required"),
        ({"num_examples": 1, "train_path": "train.txt", "more": 1}, "more=1: Extra inputs are not permitted"),
        ({"num_examples": 1, "train_path": 5}, "train_path=5: Input is not a valid path"),
    ],
)
def test_stored_fields_that_do_not_match_the_class_are_refused(tmp_path: Path, fields: dict[str, Any], sentence: str):
    make_dataset(tmp_path / "dataset")
    edit_metadata(tmp_path / "dataset", fields=fields)
    with pytest.raises(ValueError, match=rf"dataset: Dataset: {sentence}.*; run the step again$"):
        Dataset.load(tmp_path / "dataset")


def test_the_artifact_of_another_stage_is_refused_with_the_step_that_wrote_it(tmp_path: Path):
    """Artifacts of all stages have the same types, and a list of their fields helps nobody."""
    make_dataset(tmp_path / "dataset")
    producer = {"step": "other.curation"}
    edit_metadata(tmp_path / "dataset", fields={"phases": [], "num_rows": 3}, producer=producer)
    found = r"dataset: type='dataset', written by 'other\.curation', expected 'dataset', written by "
    with pytest.raises(ValueError, match=f"{found}{re.escape(Dataset.__module__)}; give the path of such a dataset$"):
        Dataset.load(tmp_path / "dataset")
    with pytest.raises(ValueError, match=f"{found}mine or yours; give the path of such a dataset$"):
        Dataset.load(tmp_path / "dataset", made_by="mine or yours")


def test_an_artifact_of_an_earlier_version_of_the_step_is_not_called_that_of_another(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    edit_metadata(tmp_path / "dataset", fields={"phases": [], "num_rows": 3}, producer={"step": Dataset.__module__})
    with pytest.raises(ValueError, match=r"dataset lacks num_examples, train_path: an earlier version of its step"):
        Dataset.load(tmp_path / "dataset")


def test_an_input_of_another_step_is_an_error_about_what_was_given(tmp_path: Path):
    """It was made from another type than its reader expects: what is wrong is the checkpoint."""
    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    checkpoint = Checkpoint.load(tmp_path / "checkpoint", made_by="mine")
    sentence = r"checkpoint: type='checkpoint', written by .*, expected 'checkpoint', written by mine; give the path of"
    with pytest.raises(ValueError, match=sentence):
        Everything.load(checkpoint.dataset_path, given=checkpoint)


# --- inputs that another run replaces


def replace_dataset(path: Path) -> None:
    """What another process does: write another dataset over the one at `path`."""
    program = f"""
from pathlib import Path
from nemotron import Artifact
from nemotron.artifact import working_directory

class Dataset(Artifact):
    num_examples: int
    train_path: Path
    valid_path: Path | None = None

with working_directory({str(path)!r}, Dataset) as work:
    (work / "train.txt").write_text("two\\n")
    Dataset(path=work, num_examples=3, train_path=work / "train.txt").save()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_dataset_replaced_after_it_was_loaded_is_not_recorded_in_its_place(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    dataset = Dataset.load(tmp_path / "dataset")
    replace_dataset(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"dataset had digest \w{12} when it was loaded, and now has \w{12}"):
        make_checkpoint(tmp_path / "checkpoint", dataset)
    assert not (tmp_path / "checkpoint" / "metadata.json").exists()
    with pytest.raises(ValueError, match="because another run replaced it; run this step again"):
        dataset.check_unchanged()


def test_a_dataset_that_was_removed_after_it_was_loaded_is_refused(tmp_path: Path):
    dataset = make_dataset(tmp_path / "dataset")
    dataset.check_unchanged()
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"the dataset that is being read is gone: .*/dataset does not exist"):
        dataset.check_unchanged()
    with pytest.raises(ValueError, match="dataset_path is neither inside this artifact nor another one"):
        make_checkpoint(tmp_path / "checkpoint", dataset)


def test_a_dataset_that_was_loaded_again_or_written_by_this_process_is_recorded(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    Dataset.load(tmp_path / "dataset")
    replace_dataset(tmp_path / "dataset")
    replaced = Dataset.load(tmp_path / "dataset")
    assert make_checkpoint(tmp_path / "a", replaced).inputs["dataset_path"].digest == replaced.digest
    for number in (4, 5):  # in its place, and by a swap
        with working_directory(tmp_path / "b", Dataset) as work:
            make_dataset(work, num_examples=number)
        dataset = make_dataset(tmp_path / "dataset", num_examples=number)
        assert make_checkpoint(tmp_path / f"c{number}", dataset).inputs["dataset_path"].digest == dataset.digest
        swapped = Dataset.load(tmp_path / "b")
        assert make_checkpoint(tmp_path / f"d{number}", swapped).inputs["dataset_path"].digest == swapped.digest


def test_an_input_of_an_input_that_was_replaced_is_refused_by_save(tmp_path: Path):
    class Results(Artifact):
        checkpoint_path: Path

    make_checkpoint(tmp_path / "checkpoint", make_dataset(tmp_path / "dataset"))
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    replace_dataset(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"checkpoint: dataset_path had digest \w{12}, but .*/dataset now has"):
        Results(path=tmp_path / "results", checkpoint_path=checkpoint.path).save()


# --- the working directory


def produce(output_dir: Path, kind: type[Artifact], write: Callable[[Path], object], keep: bool = False) -> None:
    """Run a step that writes its artifact with `write`."""
    with working_directory(output_dir, kind, keep_on_failure=keep) as work:
        write(work)


def never(work: Path) -> None:
    pytest.fail("the step started")


def write_dataset(output_dir: Path, content: str = "one\n") -> Dataset:
    produce(output_dir, Dataset, lambda work: make_dataset(work, content))
    return Dataset.load(output_dir)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_artifact_appears_when_the_block_ends(tmp_path: Path):
    with working_directory(tmp_path / "a" / "b" / "dataset", Dataset) as work:
        make_dataset(work)
        assert names(tmp_path / "a" / "b") == ["dataset.incomplete"]
    assert names(tmp_path / "a" / "b") == ["dataset"]
    assert Dataset.load(tmp_path / "a" / "b" / "dataset").train_path.read_text() == "one\n"


def test_the_old_artifact_remains_until_the_new_one_is_finished(tmp_path: Path):
    write_dataset(tmp_path / "dataset")
    with working_directory(tmp_path / "dataset", Dataset) as work:
        make_dataset(work, "two\n")
        assert Dataset.load(tmp_path / "dataset").train_path.read_text() == "one\n"
    assert Dataset.load(tmp_path / "dataset").train_path.read_text() == "two\n"
    assert names(tmp_path) == ["dataset"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failed_block_removes_its_own_files_only(tmp_path: Path, error: BaseException):
    old = write_dataset(tmp_path / "dataset")

    def fail(work: Path) -> None:
        make_dataset(work, "two\n")
        raise error

    with pytest.raises(type(error)):
        produce(tmp_path / "dataset", Dataset, fail)
    assert names(tmp_path) == ["dataset"]
    assert Dataset.load(tmp_path / "dataset").digest == old.digest


def test_a_failed_block_can_keep_its_files_for_the_next_run(tmp_path: Path):
    def stop(work: Path) -> None:
        (work / "step-1").write_text("state")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(tmp_path / "d", Dataset, stop, keep=True)
    assert names(tmp_path) == ["d.incomplete"]
    with working_directory(tmp_path / "d", Dataset, keep_on_failure=True) as work:
        assert (work / "step-1").read_text() == "state"
        make_dataset(work)
    assert list(Dataset.load(tmp_path / "d").files) == ["step-1", "train.txt"]


def test_the_next_artifact_contains_no_files_of_a_killed_run(tmp_path: Path):
    make_dataset(tmp_path / "dataset.incomplete" / "deep")
    make_dataset(tmp_path / "dataset.incomplete")
    assert list(write_dataset(tmp_path / "dataset").files) == ["train.txt"]


def test_a_kept_directory_must_be_saved_again(tmp_path: Path):
    make_dataset(tmp_path / "dataset.incomplete")
    with pytest.raises(ValueError, match=r"the step did not save a dataset; call save\(\) before the block ends"):
        produce(tmp_path / "dataset", Dataset, lambda work: None, keep=True)
    assert names(tmp_path) == ["dataset.incomplete"]


def test_a_file_written_after_save_is_refused_before_the_swap(tmp_path: Path):
    old = write_dataset(tmp_path / "dataset")

    def write_late(work: Path) -> None:
        make_dataset(work, "two\n")
        (work / "late.txt").write_text("late")

    with pytest.raises(ValueError, match=r"the file late.txt is not part of the artifact"):
        produce(tmp_path / "dataset", Dataset, write_late)
    assert Dataset.load(tmp_path / "dataset").digest == old.digest


def test_a_block_that_saves_another_type_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="type='dataset', expected 'checkpoint'"):
        produce(tmp_path / "checkpoint", Checkpoint, make_dataset)
    assert names(tmp_path) == []


def test_references_from_the_working_directory_are_valid_after_the_swap(tmp_path: Path):
    dataset = write_dataset(tmp_path / "dataset")
    with working_directory(tmp_path / "checkpoint", Checkpoint) as work:
        make_checkpoint(work, dataset)
    assert Checkpoint.load(tmp_path / "checkpoint").dataset_path == dataset.path


def test_a_reference_to_the_artifact_being_replaced_is_refused(tmp_path: Path):
    dataset = write_dataset(tmp_path / "dataset")
    with working_directory(tmp_path / "checkpoint", Checkpoint) as work:
        make_checkpoint(work, dataset)
    old = Checkpoint.load(tmp_path / "checkpoint")

    def refer_to_old(work: Path) -> None:
        (work / "w").write_text("w")
        paths = {"model_path": work / "w", "dataset_path": dataset.path, "base_path": old.path}
        Checkpoint(path=work, num_steps=1, **paths).save()

    with pytest.raises(ValueError, match=r"base_path=.* is inside .*checkpoint, which this artifact will replace"):
        produce(tmp_path / "checkpoint", Checkpoint, refer_to_old)
    assert Checkpoint.load(tmp_path / "checkpoint").digest == old.digest


@pytest.mark.locks
def test_a_second_writer_of_the_same_directory_is_refused(tmp_path: Path):
    with working_directory(tmp_path / "dataset", Dataset) as work:
        with pytest.raises(ValueError, match=r"another process is writing .*dataset.incomplete; wait for it"):
            produce(tmp_path / "dataset", Dataset, never)
        make_dataset(work)
    assert Dataset.load(tmp_path / "dataset")


def put_file(place: Path) -> None:
    place.write_text("precious")


def put_directory_with_a_file(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("precious")


def put_link(place: Path) -> None:
    place.with_name("target").mkdir()
    place.symlink_to(place.with_name("target"))


def put_broken_link(place: Path) -> None:
    place.symlink_to("nowhere")


def put_other_type(place: Path) -> None:
    make_checkpoint(place, make_dataset(place.with_name("some dataset")))


def put_artifact_with_a_foreign_file(place: Path) -> None:
    make_dataset(place)
    (place / "notes").mkdir()
    (place / "notes" / "thesis.txt").write_text("precious")


def put_artifact_of_a_later_schema(place: Path) -> None:
    make_dataset(place)
    text = (place / "metadata.json").read_text()
    (place / "metadata.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))


def put_artifact_with_another_artifact_inside(place: Path) -> None:
    make_dataset(place)
    make_dataset(place / "inner")


@pytest.mark.parametrize(
    ("put", "sentence"),
    [
        (put_file, "is a file, a link or a mount point, not a plain directory; choose another output_dir"),
        (put_link, "is a file, a link or a mount point"),
        (put_broken_link, "is a file, a link or a mount point"),
        (put_directory_with_a_file, "will not be replaced, so delete it or choose another: .* has no metadata.json"),
        (
            put_other_type,
            "will not be replaced, so delete it or choose another: .*type='checkpoint', expected 'dataset'",
        ),
        (
            put_artifact_with_a_foreign_file,
            "holds notes/thesis.txt, which is not part of the dataset; move it elsewhere",
        ),
        (put_artifact_with_another_artifact_inside, "holds inner/metadata.json, which is not part of the dataset"),
        (put_artifact_of_a_later_schema, "schema_version=2, but this version of nemotron reads 1"),
    ],
)
def test_content_that_would_be_lost_is_refused_before_the_step_starts(tmp_path: Path, put: Any, sentence: str):
    place = tmp_path / "there"
    put(place)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{place}.*{sentence}"):
        produce(place, Dataset, never)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".incomplete", ".incomplete.replaced"])
def test_a_link_in_place_of_a_working_directory_is_not_emptied(tmp_path: Path, suffix: str):
    put_directory_with_a_file(tmp_path / "precious")
    (tmp_path / f"dataset{suffix}").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a file, a link"):
        produce(tmp_path / "dataset", Dataset, never)
    assert names(tmp_path / "precious") == ["thesis.txt"]


def test_an_output_directory_inside_an_artifact_is_refused(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"output_dir=.* is inside the artifact .*/dataset; choose one outside"):
        produce(tmp_path / "dataset" / "deep" / "inner", Dataset, never)


def test_an_output_directory_with_a_reserved_suffix_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="which are reserved for unfinished work; choose another name"):
        produce(tmp_path / "x.incomplete", Dataset, never)


def test_an_output_directory_below_a_file_is_refused_before_the_step_starts(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="/file is a file, not a directory; choose another output_dir"):
        produce(tmp_path / "file" / "dataset", Dataset, never)


def test_an_output_directory_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_dataset(tmp_path / "dataset")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"dataset is not writable; change its permissions or choose another"):
        produce(tmp_path / "dataset", Dataset, never)


def test_an_empty_output_directory_is_accepted(tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    assert write_dataset(tmp_path / "dataset").num_examples == 3


def test_a_damaged_artifact_is_replaced(tmp_path: Path):
    make_dataset(tmp_path / "dataset")
    (tmp_path / "dataset" / "train.txt").unlink()
    assert write_dataset(tmp_path / "dataset", "two\n").train_path.read_text() == "two\n"


def test_a_file_that_appears_in_the_output_directory_during_the_step_is_not_lost(tmp_path: Path):
    def write(work: Path) -> None:
        make_dataset(work)
        put_directory_with_a_file(tmp_path / "dataset")

    with pytest.raises(ValueError, match=r"has no metadata.json.*the finished dataset is in .*dataset.incomplete$"):
        produce(tmp_path / "dataset", Dataset, write)
    assert names(tmp_path / "dataset") == ["thesis.txt"]
    assert Dataset.load(tmp_path / "dataset.incomplete").num_examples == 3


def test_the_output_directory_may_be_below_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    assert write_dataset(tmp_path / "outputs" / "dataset").path == tmp_path / "disk" / "dataset"


class Note(Artifact):
    text: str = "x"


@dataclass
class ScaleConfig(Config):
    scale: str = "small"


def test_an_artifact_of_another_scale_is_read_with_a_warning(tmp_path, capsys):
    Note(path=tmp_path / "a").save(ScaleConfig())
    Note(path=tmp_path / "b").save(Config())  # of a program without scales
    for name, scale in (("a", "small"), ("a", None), ("b", "tiny")):
        Note.load(tmp_path / name, scale=scale)
    assert capsys.readouterr().err == ""
    Note.load(tmp_path / "a", scale="tiny")
    sentence = f"{tmp_path / 'a'} was made at --scale small, and this step runs at --scale tiny"
    assert capsys.readouterr().err == f"warning: {sentence}\n"
