"""Curation as the tiny stage did it, and its parts; tests/pipelines/test_curation_runs.py curates other sources."""

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT
from nemotron.recipes.nano2.blend import RELEASED
from nemotron.recipes.nano2.stage0_pretrain import data_curation
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Config
from nemotron.recipes.sources import Document


def rows_of(dataset, name):
    return pq.read_table(getattr(dataset, f"{name}_path")).to_pylist()


def test_docstrings_and_source_of_one_module_fall_on_one_side(stage0):
    splits = {}
    for row in rows_of(stage0.dataset, "documents"):
        splits.setdefault(row["module"], set()).add(row["split"])
    assert max(map(len, splits.values())) == 1
    assert len(splits) < stage0.dataset.num_documents / 2


def test_no_end_of_document_follows_what_a_chat_template_rendered():
    rows = [{"tokens": [5, 6], "category": name, "split": "train"} for name in ("code", "code-sft")]
    streams = data_curation.streams_of(rows, "train", min_tokens=1)
    assert {name: stream.tokens.tolist() for name, stream in streams.items()} == {
        "code": [5, 6, END_OF_DOCUMENT],
        "code-sft": [5, 6],
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"raw_documents": 0}, "raw_documents=0"),
        ({"sequence_length": -1}, "sequence_length=-1"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"long_context_steps": -1}, "long_context_steps=-1"),
        ({"vocab_size": 268}, "vocab_size=268.* 269"),
        ({"text_column": "content"}, "text_column='content' has no effect without --sources"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_any_work(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


@pytest.fixture
def asked(monkeypatch):
    """What the sources are asked for, instead of asking them."""
    calls = {}

    def package(num_documents):
        calls["package_documents"] = num_documents
        return [Document("a::f", "a", "academic", "text", "MIT", "sympy 1.14.0")], []

    def read(sources, *, text_column, num_documents):
        calls.update(sources=sources, text_column=text_column, num_documents=num_documents)
        return [Document("a#0", "a#0", "code", "text", "unknown", "a")], []

    monkeypatch.setattr(data_curation, "package_documents", package)
    monkeypatch.setattr(data_curation, "read_sources", read)
    return calls


@pytest.mark.parametrize(("scale", "packages", "problems"), [("tiny", 900, 600), ("small", 5250, 9750)])
def test_the_offline_corpus_is_package_text_to_its_share_and_problems_for_the_rest(asked, scale, packages, problems):
    documents, _ = data_curation.raw_documents(Config(scale=scale, raw_documents=150_000))
    assert asked == {"package_documents": packages}
    families = [document.id.split("/")[1] for document in documents if document.category == "math"]
    assert (families.count("arithmetic"), families.count("lookup")) == (problems / 2, problems / 2)


@pytest.mark.parametrize("scale", ["medium", "full"])
def test_large_scales_read_the_released_datasets_under_their_categories(asked, scale):
    data_curation.raw_documents(Config(scale=scale))
    assert set(asked["sources"]) == {f"{category}={uri}" for category, uris in RELEASED.items() for uri in uris}
    assert asked["num_documents"] is None


def test_the_scale_takes_its_share_of_the_user_s_rows_too(asked):
    data_curation.raw_documents(Config(sources=("a.jsonl",), text_column="content", raw_documents=1000))
    assert asked == {"sources": ("a.jsonl",), "text_column": "content", "num_documents": 10}


def test_no_evaluation_problem_repeats_a_task_of_training(stage0):
    questions = set(pq.read_table(stage0.dataset.problems_path)["question"].to_pylist())
    training = data_curation.generated_problems(600, 1234, "train")
    assert len(questions) == 100
    assert not questions & {problem.question for problem in training}


def test_problems_come_from_easy_to_hard_and_other_documents_by_digest():
    rows = [
        {"id": "math/lookup/000007", "origin": "procedural"},
        {"id": "math/arithmetic/000006", "origin": "procedural"},
        {"id": "math/arithmetic/000007", "origin": "procedural"},
    ]
    ordered = sorted(rows, key=lambda row: data_curation.training_order(row, 1))
    assert [row["id"][5:] for row in ordered] == ["arithmetic/000006", "arithmetic/000007", "lookup/000007"]
    others = [{"id": f"a{number}", "origin": "a"} for number in range(20)]
    orders = [sorted(others, key=lambda row, seed=seed: data_curation.training_order(row, seed)) for seed in (1, 2)]
    assert orders[0] != orders[1] != others


def test_scorers_and_buckets_stand_in_the_dataset(stage0):
    assert [scorer.label for scorer in stage0.dataset.scorers] == ["has_example", "exported"]
    buckets = {row["bucket"] for row in rows_of(stage0.dataset, "documents") if row["category"] == "academic"}
    assert buckets <= set(range(7, 20))
    assert all(row["bucket"] is None for row in rows_of(stage0.dataset, "documents") if row["category"] != "academic")


def test_every_origin_is_attributed_with_its_licence(stage0):
    counted = {(item.origin, item.licence): item.num_documents for item in stage0.dataset.attribution}
    assert sum(counted.values()) == stage0.dataset.num_documents
    packages = {"jinja2 3.1.6", "mpmath 1.3.0", "networkx 3.6.1", "sympy 1.14.0"}
    assert {origin for origin, _ in counted} == {*packages, "procedural"}


def test_long_validation_rows_are_as_long_as_the_long_context_phase(stage0):
    rows = rows_of(stage0.dataset, "long_validation")
    assert rows
    assert {len(row["tokens"]) for row in rows} == {stage0.dataset.long_context_length + 1}
