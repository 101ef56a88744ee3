"""Stage 0, run once at tiny scale: it reproduces its golden, and it does its job."""

from pathlib import Path

import pyarrow.parquet as pq


def test_the_stage_reproduces_its_golden(stage0, golden):
    assert golden(name="nano2/stage0_pretrain") == stage0.document


def test_the_steps_are_silent_on_stdout(stage0):
    assert stage0.stdout == ""


def test_validation_is_ten_percent_below_the_unigram_baseline(stage0):
    metrics = stage0.results.metrics
    assert metrics["bits_per_byte/all"] <= 0.9 * metrics["unigram_bits_per_byte/all"]


def test_every_filter_drops_a_document_and_keeps_one(stage0):
    assert stage0.dataset.filters
    for name, report in stage0.dataset.filters.items():
        assert 1 <= report.num_dropped < report.num_seen, name


def test_every_filter_shows_documents_that_it_dropped(stage0):
    for name, report in stage0.dataset.filters.items():
        assert 1 <= len(report.examples) <= 5, name


def test_the_results_lead_back_to_the_dataset(stage0):
    from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
    from nemotron.recipes.training.run import Checkpoint

    checkpoint = Checkpoint.load(path=stage0.results.checkpoint_path)
    assert checkpoint.digest == stage0.checkpoint.digest
    assert Dataset.load(path=checkpoint.dataset_path).digest == stage0.dataset.digest


def test_the_artifacts_record_how_they_were_made(stage0):
    for artifact, step in (
        (stage0.dataset, "data_curation"),
        (stage0.checkpoint, "training"),
        (stage0.results, "evaluation"),
    ):
        assert artifact.producer["step"] == f"nemotron.recipes.nano2.stage0_pretrain.{step}"
        assert artifact.producer["seed"] == 1234
        assert artifact.producer["config"]["scale"] == "tiny"
        assert {"torch", "daft", "sympy"} <= artifact.producer["libraries"].keys()


def test_training_read_every_sequence_of_the_dataset_once(stage0):
    curve = pq.read_table(stage0.checkpoint.curve_path).to_pylist()
    for phase in stage0.dataset.phases:
        assert pq.read_metadata(*phase.paths(stage0.dataset.path)).num_rows == phase.num_sequences
        tokens = sum(row["tokens"] for row in curve if row["phase"] == phase.name)
        assert tokens == phase.num_sequences * phase.sequence_length
    assert stage0.checkpoint.num_steps == len(curve) == 105


def test_every_file_of_an_artifact_is_recorded_in_it(stage0):
    for artifact in (stage0.dataset, stage0.checkpoint, stage0.results):
        path = Path(artifact.path)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"metadata.json"}
        assert found == set(artifact.files)


def test_no_unfinished_directory_is_left_behind(stage0):
    assert sorted(path.name for path in stage0.directory.iterdir()) == ["data_curation", "evaluation", "training"]
