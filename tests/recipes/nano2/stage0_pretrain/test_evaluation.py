import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from nemotron.recipes.curation.long_context import recall_rows
from nemotron.recipes.curation.packing import concatenate_documents, cut_once
from nemotron.recipes.curation.rows import planned_phase, read_column
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, encode_documents, save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.stage0_pretrain import evaluation, training
from nemotron.recipes.nano2.stage0_pretrain.data_curation import BlendShare, Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint
from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.recipes.sources.problems import arithmetic, lookup
from nemotron.recipes.sources.problems.problem import problem_text
from nemotron.recipes.training.run import Checkpoint

BASE_LENGTH = 128
LONG_LENGTH = 256
VALIDATION_TEXTS = {
    "code": ["for größe in range(3):\n    print(größe)\n" * 4, "x = 1\n" * 30],
    "math": ["What is 3 + 4?\n3 + 4 = 7\nAnswer: 7"],
}


def write(path, **columns):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def filled(artifact_class, path, **known):
    """An artifact with `known` fields. The others, which evaluation does not read, get an empty value of their type."""
    (path / "unread").write_text("")
    empty = {int: 1, float: 0.0, str: "", Path: path / "unread", dict: {}, list: []}
    for name, field in artifact_class.model_fields.items():
        if name not in known and name != "path" and field.is_required():
            kind = field.annotation
            kind = get_args(kind)[0] if isinstance(kind, UnionType) else get_origin(kind) or kind
            known[name] = empty[kind]
    artifact_class(path=path, **known).save()
    return artifact_class.load(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Checkpoint of an untrained model, and the Dataset that it points to, all made up."""
    root = tmp_path_factory.mktemp("artifacts")
    data, trained = root / "data", root / "training"
    data.mkdir()
    trained.mkdir()
    problems = arithmetic.generate_problems(5, 0, split="evaluation")
    problems += lookup.generate_problems(4, 0, split="evaluation")
    uniform = random.Random(0).random
    words = ["def", "return", "the", "sum", "of", "matrix", "code", "is", "größe", "("]
    texts = [" ".join(words[int(uniform() * len(words))] for _ in range(60)) for _ in range(40)]
    tokenizer = train_tokenizer(texts, 320)
    save_tokenizer(tokenizer, data / "tokenizer")
    stream = concatenate_documents(encode_documents(tokenizer, texts), END_OF_DOCUMENT).tolist()

    def rows(first, count, length):
        return [stream[first + i * length : first + (i + 1) * length + 1] for i in range(count)]

    phases = {
        "phase1": rows(0, 6, BASE_LENGTH),
        "phase2": rows(768, 3, BASE_LENGTH),
        "phase3": rows(1152, 1, BASE_LENGTH),
        "long_context": rows(1280, 2, LONG_LENGTH),
    }
    for name, sequences in phases.items():
        write(data / name / "00000.parquet", category=["code"] * len(sequences), tokens=sequences)
    validation = [
        (category, tokens)
        for category, held_out in VALIDATION_TEXTS.items()
        for tokens in cut_once(
            concatenate_documents(encode_documents(tokenizer, held_out), END_OF_DOCUMENT), BASE_LENGTH
        )
    ]
    recall = recall_rows(
        [("module", stream)],
        lambda text: tokenizer.encode(text).ids,
        seed=0,
        sequence_length=BASE_LENGTH,
        long_context_length=LONG_LENGTH,
        rows_per_distance=3,
    )
    dataset = filled(
        Dataset,
        data,
        vocab_size=tokenizer.get_vocab_size(),
        sequence_length=BASE_LENGTH,
        long_context_length=LONG_LENGTH,
        tokenizer_path=data / "tokenizer",
        validation_path=write(
            data / "validation.parquet",
            category=[category for category, _ in validation],
            tokens=[tokens.tolist() for _, tokens in validation],
        ),
        long_validation_path=write(data / "long.parquet", tokens=[stream[:257], stream[500:757]]),
        problems_path=write(
            data / "problems.parquet",
            id=[problem.id for problem in problems],
            question=[problem.question for problem in problems],
            choices=[list(problem.choices) for problem in problems],
            correct=[problem.correct for problem in problems],
        ),
        recall_path=write(
            data / "recall.parquet",
            tokens=[row.tokens for row in recall],
            answer_start=[row.answer_start for row in recall],
            distance=[row.distance for row in recall],
        ),
        phases=[planned_phase(name, len(sequences), len(sequences[0]) - 1) for name, sequences in phases.items()],
        blend={
            name: {"code": BlendShare(weight=1.0, num_sequences=len(sequences), epochs=0.25)}
            for name, sequences in phases.items()
        },
    )
    config = ModelConfig(
        vocab_size=dataset.vocab_size,
        hidden_size=16,
        hybrid_override_pattern="M*-",
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        ssm_state_size=8,
        chunk_size=32,
    )
    model = NemotronH(config, dtype=torch.float64)
    initialize(model, seed=0)
    save_checkpoint(model, data / "tokenizer", trained / "model")
    return filled(
        Checkpoint,
        trained,
        num_parameters=1234,
        num_steps=6,
        checkpoint_path=trained / "model",
        dataset_path=dataset.path,
    )


@pytest.fixture(scope="module")
def config(checkpoint):
    return evaluation.Config(checkpoint_path=checkpoint.path, output_dir=checkpoint.path.parent / "evaluation")


@pytest.fixture(scope="module")
def results(config):
    return evaluation.main(config)


def test_bits_per_byte_equal_a_loop_over_single_tokens(results, checkpoint):
    model = load_checkpoint(checkpoint.checkpoint_path)
    tokenizer = Tokenizer.from_file(str(checkpoint.checkpoint_path / "tokenizer.json"))
    dataset = Dataset.load(path=checkpoint.dataset_path)
    for category, texts in VALIDATION_TEXTS.items():
        nats = 0.0
        for row in pq.read_table(dataset.validation_path).to_pylist():
            if row["category"] == category:
                log_probabilities = model(torch.tensor([row["tokens"]]))[0].log_softmax(-1)
                for place, target in enumerate(row["tokens"][1:]):
                    if target != END_OF_DOCUMENT:
                        nats -= log_probabilities[place, target].item()
        first_token = tokenizer.decode(tokenizer.encode(texts[0]).ids[:1])  # not a target
        num_bytes = sum(len(text.encode()) for text in texts) - len(first_token.encode())
        assert results.metrics[f"num_bytes/{category}"] == num_bytes
        assert results.metrics[f"bits_per_byte/{category}"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-9)


def test_all_text_is_the_mean_of_the_categories_by_bytes(results):
    metrics = results.metrics
    for kind in ("bits_per_byte", "kneser_ney_bits_per_byte", "unigram_bits_per_byte"):
        bits = sum(metrics[f"{kind}/{category}"] * metrics[f"num_bytes/{category}"] for category in VALIDATION_TEXTS)
        assert metrics[f"{kind}/all"] == pytest.approx(bits / metrics["num_bytes/all"], rel=1e-12)


def test_long_losses_equal_a_loss_of_the_long_rows_by_position(results, checkpoint):
    model = load_checkpoint(checkpoint.checkpoint_path)
    rows = torch.tensor(
        pq.read_table(Dataset.load(path=checkpoint.dataset_path).long_validation_path)["tokens"].to_pylist()
    )
    losses = torch.nn.functional.cross_entropy(model(rows[:, :-1]).mT, rows[:, 1:], reduction="none")
    assert results.metrics["long_loss/within_base_length"] == pytest.approx(losses[:, :128].mean().item(), rel=1e-9)
    assert results.metrics["long_loss/beyond_base_length"] == pytest.approx(losses[:, 128:].mean().item(), rel=1e-9)


def test_baselines_read_every_training_sequence_in_training_order(checkpoint):
    dataset = Dataset.load(path=checkpoint.dataset_path)
    rows = evaluation.baseline_rows(dataset, max_tokens=10**6)
    written = [row for phase in dataset.phases for row in read_column(*phase.paths(dataset.path), "tokens")]
    assert [row.tolist() for row in rows] == written
    assert [len(row) - 1 for row in rows] == [128] * (6 + 3 + 1) + [256] * 2


def test_baselines_read_no_token_of_a_category_twice(checkpoint):
    dataset = Dataset.load(path=checkpoint.dataset_path)
    # 1,280 tokens in phases 1 to 3 and 512 in the last one are 1.6 epochs: 1,120 tokens each.
    epochs = {"phase1": 0.6, "phase2": 0.3, "phase3": 0.1, "long_context": 0.6}
    blend = {
        phase: {"code": shares["code"].model_copy(update={"epochs": epochs[phase]})}
        for phase, shares in dataset.blend.items()
    }
    rows = evaluation.baseline_rows(dataset.model_copy(update={"blend": blend}), max_tokens=10**6)
    assert sum(len(row) - 1 for row in rows) == 1120
    assert [len(row) - 1 for row in rows] == [128] * 8 + [96]


def test_baselines_read_no_more_than_max_baseline_tokens(checkpoint):
    rows = evaluation.baseline_rows(Dataset.load(path=checkpoint.dataset_path), max_tokens=300)
    assert [len(row) - 1 for row in rows] == [128, 128, 44]


def test_baselines_read_all_sequences_that_are_made_for_a_phase(checkpoint):
    dataset = Dataset.load(path=checkpoint.dataset_path)
    blend = {
        phase: {"code": shares["code"].model_copy(update={"epochs": None})} for phase, shares in dataset.blend.items()
    }
    rows = evaluation.baseline_rows(dataset.model_copy(update={"blend": blend}), max_tokens=10**6)
    assert len(rows) == 12


@pytest.mark.parametrize("family", [arithmetic, lookup])
def test_a_prompt_is_a_training_text_without_steps_up_to_its_answer(family):
    for problem in family.generate_problems(5, 1, split="train"):
        prompt = evaluation.question_prompt(problem.family, problem.question)
        assert problem_text(problem, with_steps=False) == f"{prompt} {problem.answer}"


def test_every_share_has_a_count_an_error_and_a_chance_level(results):
    metrics = results.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    shares = [name.removesuffix("/accuracy") for name in metrics if name.endswith("/accuracy")]
    assert {name.split("/")[0] for name in shares} == {"recall", "recall_digits", "multiple_choice"}
    for name in shares:
        assert {f"{name}/standard_error", f"{name}/chance_level", f"{name}/num_asked"} <= set(metrics)
    assert metrics["multiple_choice/arithmetic/num_asked"] == 5
    assert metrics["multiple_choice/lookup/num_asked"] == 4
    assert metrics["recall/240/num_asked"] == 3


def test_the_predictions_have_the_reported_accuracy(results):
    rows = pq.read_table(results.predictions_path).to_pylist()
    assert len(rows) == 9
    right = [row["picked"] == row["answer"] for row in rows]
    assert np.mean(right) == pytest.approx(results.metrics["multiple_choice/all/accuracy"])


def test_the_table_shows_every_category_distance_and_family(results):
    table = results.table_path.read_text(encoding="utf-8")
    for name in ("| code |", "| math |", "| all |", "| 64 |", "| 128 |", "| 240 |", "| arithmetic |", "| lookup |"):
        assert name in table
    assert f"{results.metrics['bits_per_byte/code']:.3f}" in table


def test_every_row_of_the_table_has_as_many_cells_as_its_header(results):
    blocks = results.table_path.read_text(encoding="utf-8").split("\n\n")
    tables = [[line for line in block.splitlines() if line.startswith("|")] for block in blocks]
    assert sum(map(bool, tables)) == 5
    for lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1


def test_the_ladder_holds_the_metrics_and_digests_of_what_was_read(results):
    ladder = json.loads((results.path / "ladder.json").read_text())
    metrics = {entry["name"]: entry["value"] for entry in ladder if entry["rung"] == "metrics"}
    assert metrics == results.metrics
    counts = [value for name, value in metrics.items() if "num_" in name]
    assert len(counts) > 10
    assert all(isinstance(value, int) for value in counts)
    inputs = {entry["name"]: entry["value"] for entry in ladder if entry["rung"] == "inputs"}
    assert {len(digest) for digest in inputs.values()} == {64}
    assert len(set(inputs.values())) == len(inputs) == 4
    rungs = [entry["rung"] for entry in ladder]
    assert sorted(rungs, key=["config", "inputs", "predictions", "metrics", "headline"].index) == rungs


def test_moved_artifacts_and_another_batch_give_the_same_results(results, config, tmp_path):
    root = shutil.copytree(config.checkpoint_path.parent, tmp_path / "moved")
    moved = evaluation.main(
        replace(config, checkpoint_path=root / "training", output_dir=root / "evaluation", batch_tokens=100)
    )
    assert list(moved.metrics) == list(results.metrics)
    for name, value in results.metrics.items():
        assert moved.metrics[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name


def test_the_same_run_gives_the_same_bytes(results, config):
    again = evaluation.main(replace(config, output_dir=config.output_dir.with_name("again")))
    assert again.digest == results.digest


def test_results_refer_to_the_checkpoint(results, checkpoint):
    assert results.checkpoint_path == checkpoint.path
    assert results.inputs["checkpoint_path"].digest == checkpoint.digest


def test_evaluation_is_silent_on_stdout_and_prints_the_table_to_stderr(config, capfd):
    evaluation.main(config)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Kneser-Ney" in err


@pytest.mark.parametrize("name", ["batch_tokens", "ngram_order", "max_baseline_tokens"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0: Input should be greater than 0"):
        evaluation.Config(**{name: 0})


def test_a_checkpoint_of_another_scale_is_refused(config, tmp_path):
    root = shutil.copytree(config.checkpoint_path.parent, tmp_path / "moved")
    Checkpoint.load(root / "training").save(training.Config(scale="small"))
    with pytest.raises(ValueError, match="was trained at small; use --scale small"):
        evaluation.main(replace(config, checkpoint_path=root / "training", output_dir=tmp_path / "evaluation"))
    assert not (tmp_path / "evaluation").exists()


def test_a_failed_evaluation_keeps_earlier_results(results, config, monkeypatch):
    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "plot_results", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluation.main(config)
    assert evaluation.Results.load(config.output_dir).digest == results.digest
    assert not list(config.output_dir.parent.glob("*.incomplete"))


def test_evaluation_computes_in_the_precision_of_the_weights(checkpoint, tmp_path, monkeypatch):
    """Also where training computed in bfloat16, and at a scale with other arithmetic."""
    loaded = []

    class Stop(Exception):
        pass

    def score(model, rows, **given):
        loaded.append(model.lm_head.weight.dtype)
        raise Stop

    monkeypatch.setattr(evaluation, "score_rows", score)
    with pytest.raises(Stop):
        evaluation.main(evaluation.Config(checkpoint_path=checkpoint.path, output_dir=tmp_path / "evaluation"))
    assert loaded == [torch.float64]
