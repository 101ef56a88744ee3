"""A directory that no step wrote, as the input of one: found, known by its content, shown, and checked."""

import os
import shutil
from pathlib import Path

import pytest

from nemotron.artifact import Artifact
from nemotron.directory import file_record
from nemotron.lineage.__main__ import answer_lines, read_tree, tree_lines
from nemotron.published import is_published, published_metadata, read_reference


class Made(Artifact):
    """What a step made of a model."""

    base_path: Path
    model_path: Path | None = None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory in the layout of a model; here its content does not matter."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model-1.safetensors").write_bytes(b"weights")
    return directory


def made_of(model: Path, place: Path) -> Made:
    place.mkdir()
    return Made(path=place, base_path=model).save()


def test_a_directory_with_a_file_that_only_a_model_has_is_one(model: Path, tmp_path: Path) -> None:
    assert is_published(model)
    assert not is_published(tmp_path)
    assert not is_published(made_of(model, tmp_path / "made").path)
    (model / "metadata.json").write_text("{}")
    assert not is_published(model)


def test_the_digest_is_that_of_the_files(model: Path, tmp_path: Path) -> None:
    found = published_metadata(model)
    assert found.files == {name: file_record(model / name) for name in ("config.json", "model-1.safetensors")}
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert published_metadata(copy).digest == found.digest
    (copy / ".cache").mkdir()
    (copy / ".gitattributes").write_text("")
    assert published_metadata(copy).digest == found.digest
    (copy / "model-1.safetensors").write_bytes(b"Weights")
    assert published_metadata(copy).digest != found.digest


def test_a_download_cache_of_links_has_the_digest_of_the_files(model: Path, tmp_path: Path) -> None:
    links = tmp_path / "snapshot"
    links.mkdir()
    for file in model.iterdir():
        os.symlink(file, links / file.name)
    assert published_metadata(links).digest == published_metadata(model).digest


def test_a_file_is_hashed_again_only_if_it_changed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(file: Path) -> object:
        hashed.append(file.name)
        return file_record(file)

    monkeypatch.setattr("nemotron.published.file_record", counted)
    published_metadata(model)
    published_metadata(model)
    assert hashed == ["config.json", "model-1.safetensors"]
    (model / "config.json").write_text('{"a": 1}')
    published_metadata(model)
    assert hashed[2:] == ["config.json"]


def test_an_artifact_names_the_model_that_it_was_made_from(model: Path, tmp_path: Path) -> None:
    made = made_of(model, tmp_path / "made")
    reference = made.inputs["base_path"]
    assert (reference.type, reference.digest) == ("publishedmodel", published_metadata(model).digest)
    assert Made.load(made.path).base_path == model
    before = sorted(model.iterdir())
    assert before == sorted(model.iterdir())  # nothing was written there


def test_a_model_that_changed_is_named(model: Path, tmp_path: Path) -> None:
    made = made_of(model, tmp_path / "made")
    (model / "model-1.safetensors").write_bytes(b"others!")
    with pytest.raises(
        ValueError, match=r"base_path had digest \w{12}, but .*model now has \w{12}; restore the old pub"
    ):
        Made.load(made.path)
    (tree,) = read_tree(made.path).inputs
    assert tree.broken.startswith("replaced: another publishedmodel is there now")
    shutil.rmtree(model)
    assert Made.load(made.path).digest == made.digest  # it may be on another machine
    (tree,) = read_tree(made.path).inputs
    assert tree.broken.startswith("missing")


def test_the_lineage_shows_the_model_and_the_sha256_of_its_files(model: Path, tmp_path: Path) -> None:
    tree = read_tree(made_of(model, tmp_path / "made").path)
    assert [line for line in tree_lines(tree)][1].endswith(
        f"publishedmodel {published_metadata(model).digest[:12]}  {model}"
    )
    lines = list(answer_lines(tree))
    for name in ("config.json", "model-1.safetensors"):
        assert f"  {file_record(model / name).sha256[:12]}  {model / name}" in lines
    assert not any(node.broken for node in tree.inputs)


def test_another_type_is_not_taken_for_a_model(model: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metadata\.json, so it is not a complete artifact"):
        read_reference(model, "checkpoint")
