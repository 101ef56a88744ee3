"""Curation of small sources with documents planted in them."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from nemotron.recipes.curation import dedup, held_out, rows, tokenized
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, train_tokenizer
from nemotron.recipes.nano2.blend import BLEND, LONG_DOCUMENT_QA
from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Config, Dataset

PHASES = ("phase1", "phase2", "phase3", "long_context")
SEQUENCE_FILES = (*PHASES, "validation", "long_validation", "recall")

SMALL = {
    "vocab_size": 400,
    "sequence_length": 64,
    "long_context_length": 256,
    "num_sequences": 80,
    "long_context_sequences": 6,
}


NOUNS = (
    "graph",
    "matrix",
    "field",
    "group",
    "series",
    "parser",
    "kernel",
    "vector",
    "module",
    "filter",
    "limit",
    "tree",
)


VERBS = ("returns", "computes", "transforms", "checks", "reduces", "expands", "prints", "compares", "copies", "splits")


def prose(seed, sentences=8):
    draw = random.Random(seed)

    def drawn(words):
        return words[int(draw.random() * len(words))]

    return " ".join(
        f"The {drawn(NOUNS)} {drawn(VERBS)} the {drawn(NOUNS)} of a {drawn(NOUNS)} and {drawn(VERBS)} {seed} of them."
        for _ in range(sentences)
    )


def code(seed):
    names = prose(seed).replace(".", "").lower().split()
    return "\n".join(f"def {one}_{seed}({two}):\n    return {two} + {seed}" for one, two in pairwise(names[:40]))


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Files of three categories; prose has one document for each filter to find."""
    directory = tmp_path_factory.mktemp("sources")
    texts = [prose(seed) for seed in range(80)]
    texts[11] = texts[10]
    texts[21] = texts[20] + " More."
    texts[30] = "Die Funktion gibt den kürzesten Weg zwischen zwei Knoten eines Graphen zurück, sofern es einen gibt."
    texts[40] = "This is the end."
    wiki = write_jsonl(directory / "wiki.jsonl", texts)
    with wiki.open("a") as file:
        file.write(json.dumps({"title": "no text here"}) + "\n")
    written = write_jsonl(directory / "code.jsonl", [code(seed) for seed in range(40)])
    math = write_jsonl(directory / "math.jsonl", [f"Question: What is {n} + {n}?\nAnswer: {2 * n}" for n in range(300)])
    return (f"wiki={wiki}", f"code={written}", f"math={math}")


@pytest.fixture(scope="module")
def curated(sources, tmp_path_factory):
    """A Dataset of these files."""
    output_dir = tmp_path_factory.mktemp("curated") / "dataset"
    return data_curation.main(Config(sources=sources, output_dir=output_dir, **SMALL))


def rows_of(dataset, name):
    """The rows of a file, or of the files of a phase."""
    paths = {phase.name: phase.paths(dataset.path) for phase in dataset.phases}
    return [
        row for path in paths.get(name, [dataset.path / f"{name}.parquet"]) for row in pq.read_table(path).to_pylist()
    ]


def test_the_dataset_lists_its_phases_in_training_order(curated):
    assert [phase.name for phase in curated.phases] == list(PHASES)
    assert [(phase.num_sequences, phase.sequence_length) for phase in curated.phases] == [
        (48, 64),
        (24, 64),
        (8, 64),
        (6, 256),
    ]
    assert curated.num_examples == 86


def test_every_phase_has_the_sequences_and_the_length_that_it_states(curated):
    for phase in curated.phases:
        rows = pq.read_table(*phase.paths(curated.path))["tokens"].to_pylist()
        assert len(rows) == phase.num_sequences
        assert {len(tokens) for tokens in rows} == {phase.sequence_length + 1}
    assert all(len(row["tokens"]) <= curated.sequence_length + 1 for row in rows_of(curated, "validation"))


def test_each_category_is_read_on_from_phase_to_phase(curated):
    tokenizer = Tokenizer.from_file(str(curated.tokenizer_path / "tokenizer.json"))
    in_training = {row["id"]: row for row in rows_of(curated, "documents") if row["split"] == "train"}
    for category in ("code", "math", "wiki"):
        rows = [row["tokens"] for phase in PHASES for row in rows_of(curated, phase) if row["category"] == category]
        assert all(after[0] == before[-1] for before, after in pairwise(rows))
        stream = [rows[0][0], *(token for row in rows for token in row[1:])]
        total = sum(row["num_tokens"] + 1 for row in in_training.values() if row["category"] == category)
        repeated = len(stream) - total
        assert repeated < 0 or stream[total:] == stream[:repeated]
        # Until the stream starts over, no document comes twice.
        text = tokenizer.decode(stream[:total], skip_special_tokens=False).split("</s>")[:-1]
        assert len(text) == len(set(text)) > 0


def test_training_and_validation_share_no_module_and_no_document(curated):
    documents = rows_of(curated, "documents")
    modules = {
        split: {row["module"] for row in documents if row["split"] == split} for split in ("train", "validation")
    }
    assert not modules["train"] & modules["validation"]
    assert len(modules["train"]) > len(modules["validation"]) > 0
    assert {row["category"] for row in documents if row["split"] == "validation"} == {"code", "math", "wiki"}
    assert len({row["id"] for row in documents}) == len(documents) == curated.num_documents


def test_the_tokenizer_is_trained_on_the_training_split_only(sources, tmp_path, monkeypatch):
    seen = []

    def train(texts, vocab_size):
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr(tokenized, "train_tokenizer", train)
    dataset = data_curation.main(Config(sources=sources, output_dir=tmp_path / "dataset", **SMALL))
    assert len(seen) == sum(row["split"] == "train" for row in rows_of(dataset, "documents")) < dataset.num_documents


def test_the_validation_rows_are_the_held_out_documents_in_order(curated):
    for category in ("code", "math", "wiki"):
        rows = [row["tokens"] for row in rows_of(curated, "validation") if row["category"] == category]
        stream = [rows[0][0], *(token for row in rows for token in row[1:])]
        held_out = [
            row for row in rows_of(curated, "documents") if row["category"] == category and row["split"] != "train"
        ]
        assert len(stream) == sum(row["num_tokens"] + 1 for row in held_out)
        assert stream.count(END_OF_DOCUMENT) == len(held_out)


def test_each_filter_sees_what_the_one_before_it_kept(curated):
    reports = list(curated.filters.values())
    assert reports[0].num_seen == 80 + 40 + 300
    for before, after in pairwise(reports):
        assert after.num_seen == before.num_seen - before.num_dropped
    assert curated.num_documents == reports[-1].num_seen - reports[-1].num_dropped


@pytest.mark.parametrize(
    ("name", "row"), [("exact duplicates", 11), ("near-duplicates", 21), ("language", 30), ("quality: words", 40)]
)
def test_each_planted_document_is_dropped_by_its_filter(curated, name, row):
    assert [example.id.rpartition("#")[2] for example in curated.filters[name].examples] == [str(row)]


def test_a_row_without_text_is_counted_and_listed(curated):
    assert curated.num_unreadable == 1
    assert "wiki.jsonl#80" in curated.unreadable[0].id


def test_the_blend_is_the_published_one_over_the_present_categories(curated):
    assert curated.absent_categories == sorted(set(BLEND["phase1"]) - {"code", "math", "wiki"})
    for phase in PHASES:
        rows = rows_of(curated, phase)
        shares = curated.blend[phase]
        assert sum(share.weight for share in shares.values()) == pytest.approx(1)
        for category, share in shares.items():
            assert share.num_sequences == sum(row["category"] == category for row in rows)
            assert abs(share.num_sequences - share.weight * len(rows)) < len(shares)
    first = curated.blend["phase1"]
    assert first["code"].weight / first["wiki"].weight == pytest.approx(18.6 / 63.9)  # code to prose
    assert curated.blend["long_context"][LONG_DOCUMENT_QA].weight == pytest.approx(0.2)


def test_the_epochs_of_a_category_are_its_tokens_read_by_its_tokens(curated):
    documents = [row for row in rows_of(curated, "documents") if row["split"] == "train" and row["category"] == "math"]
    num_tokens = sum(row["num_tokens"] + 1 for row in documents)
    read = sum(
        len(row["tokens"]) - 1 for phase in PHASES for row in rows_of(curated, phase) if row["category"] == "math"
    )
    assert sum(curated.blend[phase]["math"].epochs for phase in PHASES) == pytest.approx(read / num_tokens)


def test_the_same_config_gives_the_same_digest_and_another_seed_gives_other_sequences(curated, sources, tmp_path):
    again = data_curation.main(Config(sources=sources, output_dir=tmp_path / "again", **SMALL))
    assert again.digest == curated.digest
    other = data_curation.main(Config(sources=sources, output_dir=tmp_path / "other", seed=1, **SMALL))
    assert rows_of(other, "phase1") != rows_of(curated, "phase1")
    assert other.filters == curated.filters


def ladder_of(dataset):
    return json.loads((dataset.path / "ladder.json").read_text())


def test_rungs_follow_the_order_of_events(curated):
    ladder = ladder_of(curated)
    rungs = list(dict.fromkeys(entry["rung"] for entry in ladder))
    assert rungs == [
        "package versions",
        "config",
        "inputs",
        "filters",
        "bucket filter",
        "documents",
        "split",
        "tokenizer",
        "tokens",
        "blend",
        "token ids",
    ]
    assert {entry["name"] for entry in ladder if entry["rung"] == "token ids"} == set(SEQUENCE_FILES)
    assert [entry["name"] for entry in ladder if entry["rung"] == "filters"] == list(curated.filters)[:-1]
    assert "output_dir" not in {entry["name"] for entry in ladder}


OFFLINE = SMALL | {"vocab_size": 480, "raw_documents": 45_000, "num_problems": 20, "num_sequences": 40}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A Dataset of the text of packages, which has all that the scorers learn from."""
    return data_curation.main(Config(output_dir=tmp_path_factory.mktemp("offline") / "dataset", **OFFLINE))


def another_seed(position):
    """A change of a function: its argument at this position is one more."""
    return lambda real: lambda *given, **named: real(*given[:position], given[position] + 1, *given[position + 1 :])


def exchanged_drop(name):
    """A change of `apply_to_dataframe`: the filter keeps the first item that it dropped, and drops one that it kept."""

    def change(real):
        def exchanged(rule):
            done = set()

            def fault(document):
                found = rule.fault(document)
                if (found is None) in done:
                    return found
                done.add(found is None)
                return "dropped instead of another" if found is None else None

            return replace(rule, fault=fault)

        def apply(documents, rules, *others):
            return real(documents, [exchanged(rule) if rule.name == name else rule for rule in rules], *others)

        return apply

    return change


def longer(documents):
    """Documents, of which the first has one token more."""
    return [np.append(documents[0], documents[0][-1:]), *documents[1:]]


def exchanged_weights(weights):
    first, second, *_ = weights
    return weights | {first: weights[second], second: weights[first]}


PLACES = {
    ("inputs", "sha256"): (
        data_curation,
        "package_documents",
        lambda real: lambda number: ([replace(real(number)[0][0], text="x"), *real(number)[0][1:]], []),
    ),
    ("inputs", "problems"): (
        data_curation,
        "generate_problems",
        lambda real: lambda number, seed, split: real(number, seed + (split == "evaluation"), split),
    ),
    **{
        ("filters", name): (data_curation, "apply_to_dataframe", exchanged_drop(name))
        for name in ("licence", "language", "quality: stop words", "near-duplicates")
    },
    ("scorers", "has_example"): (data_curation, "add_buckets", another_seed(1)),
    ("bucket filter", "quality bucket"): (data_curation, "apply_to_dataframe", exchanged_drop("quality bucket")),
    ("documents", "sha256"): (tokenized, "training_order", another_seed(2)),
    ("split", "sha256"): (tokenized, "held_out_modules", another_seed(2)),
    ("tokenizer", "sha256"): (tokenized, "train_tokenizer", lambda real: lambda texts, n: real(list(texts)[::2], n)),
    ("tokens", "train/math"): (tokenized, "encode_documents", lambda real: lambda *given: longer(real(*given))),
    ("blend", "phase1"): (data_curation, "renormalised", lambda real: lambda *given: exchanged_weights(real(*given))),
    ("token ids", "phase1"): (data_curation, "blend_order", lambda real: lambda *given: real(*given)[::-1]),
    ("token ids", "validation"): (held_out, "cut_once", lambda real: lambda *given: real(*given)[::-1]),
    ("token ids", "recall"): (
        held_out,
        "recall_rows",
        lambda real: lambda *given, seed, **named: real(*given, seed=seed + 1, **named),
    ),
}
"""The first entry of the ladder that changes -> the function that does this part of the work, and how it is changed."""


@pytest.mark.parametrize("entry", PLACES, ids=" ".join)
def test_a_change_at_each_place_shows_first_in_its_own_entry(entry, offline, tmp_path, monkeypatch):
    """So the entries are in the order of the work, and no change hides behind an equal count."""
    module, name, change = PLACES[entry]
    monkeypatch.setattr(module, name, change(getattr(module, name)))
    before = ladder_of(offline)
    after = ladder_of(data_curation.main(Config(output_dir=tmp_path / "dataset", **OFFLINE)))
    first = next(ours for ours, theirs in zip(before, after, strict=True) if ours != theirs)
    assert (first["rung"], first["name"]) == entry
    if "filter" in entry[0]:  # as many dropped as before, and others
        (changed,) = (theirs for theirs in after if (theirs["rung"], theirs["name"]) == entry)
        assert changed["value"]["num_dropped"] == first["value"]["num_dropped"]


@pytest.fixture(scope="module")
def in_parts(sources, tmp_path_factory):
    """The Dataset of the same files, with limits so small that everything is in several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "SHARD_TOKENS", 700)
        patch.setattr(tokenized, "FILE_BYTES", 9_000)
        patch.setattr(dedup, "MAX_KEYS", 1_000)
        directory = tmp_path_factory.mktemp("in_parts") / "dataset"
        return data_curation.main(Config(sources=sources, output_dir=directory, **SMALL))


def test_nothing_depends_on_how_many_files_there_are(curated, in_parts):
    assert [phase.num_files for phase in in_parts.phases] == [5, 3, 1, 3]
    assert ladder_of(in_parts) == ladder_of(curated)
    assert in_parts.attribution == curated.attribution
    for name in (*PHASES, "documents"):
        assert rows_of(in_parts, name) == rows_of(curated, name)


def test_nothing_but_the_dataset_is_left(curated):
    names = {path.name for path in curated.path.iterdir()}
    files = {f"{name}.parquet" for name in ("validation", "long_validation", "recall", "problems", "documents")}
    assert names == {*PHASES, *files, "tokenizer", "ladder.json", "metadata.json"}


@pytest.mark.parametrize("workers", [1, 3])
def test_ray_gives_the_dataset_of_one_process(curated, sources, tmp_path, workers):
    """On a real cluster on this machine, with this many workers."""
    program = (
        "import ray, sys\n"
        f"ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False)\n"
        "from nemotron.recipes.nano2.stage0_pretrain import data_curation\n"
        f"config = data_curation.Config(sources={sources!r}, output_dir='dataset', raw_documents='all', **{SMALL!r})\n"
        "print(data_curation.main(config).digest)\n"
    )
    config = Config(sources=sources, output_dir=tmp_path / "native", raw_documents="all", **SMALL)
    environment = os.environ | {"DAFT_RUNNER": "ray"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    native = data_curation.main(config)
    assert done.stdout.split()[-1] == native.digest
    assert rows_of(native, "phase1") == rows_of(curated, "phase1")  # the limit of tiny takes every row too


def refuses_to_train(dataset_path, tmp_path):
    with pytest.raises(ValueError, match=r".") as refused:
        training.main(training.Config(dataset_path=dataset_path, output_dir=tmp_path / "training", batch_sequences=8))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_file_of_a_phase_that_is_missing_or_changed_is_named(in_parts, tmp_path):
    copy = shutil.copytree(in_parts.path, tmp_path / "copy")
    first, second = copy / "phase1/00001.parquet", copy / "phase1/00002.parquet"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert "phase1/00001.parquet" in refuses_to_train(copy, tmp_path)
    first.unlink()
    assert "phase1/00001.parquet" in refuses_to_train(copy, tmp_path)
    first.write_bytes(content)
    assert Dataset.load(path=copy).digest == in_parts.digest


def refusal(tmp_path, **fields):
    with pytest.raises((ValueError, OSError)) as refused:
        data_curation.main(Config(output_dir=tmp_path / "output", **fields))
    assert "\n" not in str(refused.value)
    assert list(tmp_path.glob("output*")) == []
    return str(refused.value)


def test_an_unknown_category_is_refused_with_those_of_the_blend(sources, tmp_path):
    message = refusal(tmp_path, sources=(sources[0].replace("wiki=", "poems="),))
    assert "'poems'" in message
    assert "academic" in message


@pytest.mark.parametrize(("texts", "reason"), [([prose(0)], "1 module"), ([prose(0, 1), prose(1, 1)], "needs")])
def test_a_corpus_too_small_for_a_sequence_is_refused(tmp_path, texts, reason):
    path = write_jsonl(tmp_path / "few.jsonl", texts)
    message = refusal(tmp_path, sources=(str(path),))
    assert "too small" in message
    assert reason in message


def test_a_corpus_that_a_filter_drops_entirely_is_refused_with_an_example(tmp_path):
    path = write_jsonl(tmp_path / "short.jsonl", ["one", "two"])
    message = refusal(tmp_path, sources=(str(path),))
    assert "leaves none" in message
    assert "short.jsonl#" in message


def test_a_dataset_can_be_moved(curated, tmp_path):
    moved = tmp_path / "moved"
    curated.path.rename(moved)
    try:
        assert Dataset.load(path=moved).digest == curated.digest
        assert rows_of(Dataset.load(path=moved), "phase1")
    finally:
        moved.rename(curated.path)


def test_tokens_are_stored_as_32_bit_integers(curated):
    for name in SEQUENCE_FILES:
        path = curated.path / (f"{name}/00000.parquet" if name in PHASES else f"{name}.parquet")
        assert pq.read_schema(path).field("tokens").type == pa.list_(pa.int32())


def test_a_dataset_without_a_long_context_phase_can_be_trained_on(sources, tmp_path):
    sizes = SMALL | {"long_context_sequences": 0}
    dataset = data_curation.main(Config(sources=sources, output_dir=tmp_path / "dataset", **sizes))
    assert [phase.num_sequences for phase in dataset.phases] == [48, 24, 8, 0]
    assert rows_of(dataset, "long_context") == []
    config = training.Config(
        dataset_path=dataset.path, output_dir=tmp_path / "training", batch_sequences=20, warmup_steps=0
    )
    trained = training.main(config)
    assert trained.num_steps == 3 + 2 + 1
    assert set(trained.metrics) == {f"validation_loss/{name}" for name in ("code", "math", "wiki")}
