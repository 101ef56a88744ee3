"""Reading the artifacts of a run: what is missing, damaged or unfinished."""

import re

import pytest

from nemotron.report.run import Stage, read_run

MODULE = "nemotron.recipes.nano2.stage0_pretrain"


def test_steps_come_after_what_they_were_made_from(tmp_path, step):
    data = step(tmp_path / "stage0" / "z_data", f"{MODULE}.data_curation")
    training = step(tmp_path / "stage0" / "m_training", f"{MODULE}.training", inputs=(data,))
    step(tmp_path / "stage0" / "a_evaluation", f"{MODULE}.evaluation", inputs=(training,))
    (stage,) = read_run(tmp_path)
    assert [one.name for one in stage.steps] == ["data_curation", "training", "evaluation"]
    assert (stage.name, stage.recipe) == ("stage0", "nemotron.recipes.nano2")
    assert stage.step("training") is stage.steps[1]
    assert stage.step("merging") is None


def test_the_directory_of_one_stage_is_a_run(tmp_path, step):
    step(tmp_path / "data_curation", f"{MODULE}.data_curation")
    (stage,) = read_run(tmp_path)
    assert (stage.name, len(stage.steps)) == ("stage0_pretrain", 1)


def test_an_unfinished_step_is_named(tmp_path, step):
    step(tmp_path / "stage0" / "data_curation", f"{MODULE}.data_curation")
    (tmp_path / "stage0" / "training.incomplete").mkdir()
    (tmp_path / "stage0" / "training.incomplete" / "metadata.json.partial").touch()
    (tmp_path / "stage1" / "data.incomplete").mkdir(parents=True)
    (tmp_path / "stage1" / "data.incomplete" / "metadata.json.partial").touch()
    (tmp_path / "notes").mkdir()
    stages = read_run(tmp_path)
    assert stages[0].unfinished == ["training.incomplete"]
    assert stages[1] == Stage("stage1", "", [], ["data.incomplete"])
    assert len(stages) == 2


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_a_directory_without_artifacts_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty" / "stage0" / "training").mkdir(parents=True)
    with pytest.raises(ValueError, match="give the output directory of a recipe"):
        read_run(tmp_path / name)


def test_damaged_metadata_is_refused(tmp_path, step):
    place = step(tmp_path / "stage0" / "data", f"{MODULE}.data_curation") / "metadata.json"
    place.write_text(place.read_text().replace('"dataset"', '"datasets"'))
    with pytest.raises(ValueError, match="does not match its content"):
        read_run(tmp_path)


def test_a_changed_or_missing_file_is_refused(tmp_path, step):
    place = step(tmp_path / "stage0" / "data", f"{MODULE}.data_curation", {"page.md": b"text"})
    (stage,) = read_run(tmp_path)
    assert stage.steps[0].text("page.md") == "text"
    (place / "page.md").write_text("other")
    with pytest.raises(ValueError, match=re.escape("page.md has changed since it was saved")):
        stage.steps[0].text("page.md")
    (place / "page.md").unlink()
    with pytest.raises(ValueError, match=re.escape("page.md is missing")):
        stage.steps[0].text("page.md")


def test_what_is_no_parquet_is_one_sentence(tmp_path, step):
    step(tmp_path / "stage0" / "data", f"{MODULE}.data_curation", {"rows.parquet": b"no parquet"})
    (stage,) = read_run(tmp_path)
    with pytest.raises(ValueError, match=r"rows\.parquet: .*; run the step again"):
        stage.steps[0].rows("rows.parquet")


def test_a_text_is_shown_as_a_terminal_would_have_to_show_it(tmp_path, step):
    step(tmp_path / "stage0" / "data", f"{MODULE}.data_curation", {"page.md": b"\x1b[2J\xff\n"})
    (stage,) = read_run(tmp_path)
    assert stage.steps[0].text("page.md") == "\\x1b[2J\ufffd\n"
