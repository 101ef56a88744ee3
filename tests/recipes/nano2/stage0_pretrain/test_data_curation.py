"""What the tiny stage curated, and the parts of the step; test_curation_runs.py curates other sources."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.nano2.blend import RELEASED
from nemotron.recipes.nano2.stage0_pretrain import data_curation
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Config
from nemotron.recipes.sources import Document
from nemotron.recipes.sources.documents import read_documents, write_documents
from nemotron.recipes.sources.problems.families import generate_problems


def rows_of(dataset, name):
    return pq.read_table(getattr(dataset, f"{name}_path")).to_pylist()


def test_docstrings_and_source_of_a_module_are_on_one_side_of_the_split(stage0):
    splits = {}
    for row in rows_of(stage0.dataset, "documents"):
        splits.setdefault(row["module"], set()).add(row["split"])
    assert max(map(len, splits.values())) == 1
    assert len(splits) < stage0.dataset.num_documents / 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"raw_documents": 0}, r"raw_documents\S*=0: Input should be greater than 0"),
        ({"sequence_length": -1}, "sequence_length=-1: Input should be greater than 0"),
        ({"num_sequences": 0}, "num_sequences=0: Input should be greater than 0"),
        ({"long_context_sequences": -1}, "long_context_sequences=-1: Input should be greater than or equal to 0"),
        ({"package_share": 1.5}, "package_share=1.5: Input should be less than or equal to 1"),
        ({"vocab_size": 268}, "vocab_size=268.* 269"),
        ({"text_column": "content"}, "text_column='content' has no effect without --sources"),
        ({"package_share": 0.5, "sources": ("a.txt",)}, "package_share=0.5 has no effect on files; leave it out"),
        ({"package_share": 0.5, "scale": "full"}, "package_share=0.5 has no effect on files; leave it out"),
        ({"raw_documents": "all"}, "raw_documents=all needs --sources"),
    ],
)
def test_a_config_that_cannot_work_cannot_be_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


@given(st.integers(1, 10**12), st.integers(1, 1000))
def test_phases_share_all_sequences_and_switch_at_60_and_90_percent_of_the_batches(num_sequences, batch):
    config = Config(num_sequences=num_sequences, batch_sequences=batch, long_context_sequences=7)
    phases = data_curation.planned_phases(config)
    assert [phase.name for phase in phases] == ["phase1", "phase2", "phase3", data_curation.LONG_CONTEXT]
    first, second, third, long = (phase.num_sequences for phase in phases)
    assert first + second + third == num_sequences
    assert first == num_sequences * 6 // (10 * batch) * batch
    assert first + second == num_sequences * 9 // (10 * batch) * batch
    assert long == 7


def test_every_phase_has_a_file_and_the_length_of_its_sequences():
    phases = data_curation.planned_phases(Config(sequence_length=64, long_context_length=256))
    assert [phase.sequence_length for phase in phases] == [64, 64, 64, 256]
    assert [[path.as_posix() for path in phase.paths(Path("data"))] for phase in phases] == [
        [f"data/{phase.name}/00000.parquet"] for phase in phases
    ]


@pytest.fixture
def asked(monkeypatch):
    """Records what the sources are asked for, and answers with one document."""
    calls = {}

    def package(num_documents):
        calls["package_documents"] = num_documents
        return [Document("a::f", "a", "academic", "text", "MIT", "sympy 1.14.0")], []

    def write(sources, directory, *, text_column, num_documents):
        calls.update(sources=sources, text_column=text_column, num_documents=num_documents)
        write_documents(directory / "a.parquet", [Document("a#0", "a#0", "code", "text", "unknown", "a")])
        return [directory / "a.parquet"], []

    monkeypatch.setattr(data_curation, "package_documents", package)
    monkeypatch.setattr(data_curation, "write_sources", write)
    return calls


@pytest.mark.parametrize(("scale", "packages", "problems"), [("tiny", 900, 600), ("small", 5250, 9750)])
def test_the_offline_corpus_has_its_share_of_package_text_and_the_rest_are_problems(
    asked, scale, packages, problems, tmp_path
):
    paths, _ = data_curation.raw_documents(Config(scale=scale, raw_documents=150_000), tmp_path)
    assert asked == {"package_documents": packages}
    families = [document.id.split("/")[1] for document in read_documents(paths) if document.category == "math"]
    assert (families.count("arithmetic"), families.count("lookup")) == (problems / 2, problems / 2)


@pytest.mark.parametrize(("scale", "num_documents"), [("medium", 6_000_000), ("full", None)])
def test_large_scales_read_the_released_datasets_by_category(asked, scale, num_documents, tmp_path):
    data_curation.raw_documents(Config(scale=scale), tmp_path)
    assert set(asked["sources"]) == {f"{category}={uri}" for category, uris in RELEASED.items() for uri in uris}
    assert asked["num_documents"] == num_documents


def test_a_scale_reads_its_share_of_the_rows_of_sources(asked, tmp_path):
    data_curation.raw_documents(Config(sources=("a.jsonl",), text_column="content", raw_documents=1000), tmp_path)
    assert asked == {"sources": ("a.jsonl",), "text_column": "content", "num_documents": 10}


def test_no_evaluation_problem_repeats_a_task_of_training(stage0):
    questions = set(pq.read_table(stage0.dataset.problems_path)["question"].to_pylist())
    training = generate_problems(600, 1234, "train")
    assert len(questions) == 100
    assert not questions & {problem.question for problem in training}


def test_the_dataset_records_scorers_and_buckets(stage0):
    assert [scorer.label for scorer in stage0.dataset.scorers] == ["has_example", "exported"]
    buckets = {row["bucket"] for row in rows_of(stage0.dataset, "documents") if row["category"] == "academic"}
    assert buckets <= set(range(7, 20))
    assert all(row["bucket"] is None for row in rows_of(stage0.dataset, "documents") if row["category"] != "academic")


def test_every_origin_is_credited_with_its_license(stage0):
    counted = {(item.origin, item.licence): item.num_documents for item in stage0.dataset.attribution}
    assert sum(counted.values()) == stage0.dataset.num_documents
    packages = {"jinja2 3.1.6", "mpmath 1.3.0", "networkx 3.6.1", "sympy 1.14.0"}
    assert {origin for origin, _ in counted} == {*packages, "procedural"}


def test_long_validation_rows_are_as_long_as_the_long_context_phase(stage0):
    rows = rows_of(stage0.dataset, "long_validation")
    assert rows
    assert {len(row["tokens"]) for row in rows} == {stage0.dataset.long_context_length + 1}
