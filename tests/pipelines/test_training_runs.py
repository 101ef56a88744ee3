"""The pretraining step on a small made-up dataset; the stage as a whole is run in test_stage.py."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.stage0_pretrain import training
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
from nemotron.recipes.nano2.stage0_pretrain.training import Config
from nemotron.recipes.training import device

LENGTH, LONG_LENGTH = 16, 64


SMALL = {
    "num_steps": 10,
    "warmup_steps": 2,
    "batch_sequences": 4,
    "micro_batch_sequences": 2,
    "long_context_steps": 2,
    "long_context_batch_sequences": 2,
    "long_context_micro_batch_sequences": 1,
    "checkpoint_every_steps": 5,
    "validate_every_steps": 6,
    "validation_sequences": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A Dataset of random tokens, with enough sequences for SMALL."""
    path = tmp_path_factory.mktemp("dataset")
    tokenizer = train_tokenizer(["some text to learn merges from, some more text"] * 5, vocab_size=300)
    save_tokenizer(tokenizer, path / "tokenizer")
    generator = torch.Generator().manual_seed(0)

    def write(name, rows, length):
        tokens = torch.randint(13, 200, (rows, length + 1), generator=generator).tolist()
        table = {"category": ["code"] * rows, "tokens": pa.array(tokens, pa.list_(pa.int32()))}
        pq.write_table(pa.table(table), path / f"{name}.parquet")
        return path / f"{name}.parquet"

    empty = path / "empty.parquet"
    pq.write_table(pa.table({"tokens": pa.array([], pa.list_(pa.int32()))}), empty)
    return Dataset(
        path=path,
        num_examples=44,
        num_documents=9,
        vocab_size=300,
        sequence_length=LENGTH,
        long_context_length=LONG_LENGTH,
        tokenizer_path=path / "tokenizer",
        phase1_path=write("phase1", 24, LENGTH),
        phase2_path=write("phase2", 12, LENGTH),
        phase3_path=write("phase3", 4, LENGTH),
        long_context_path=write("long_context", 4, LONG_LENGTH),
        validation_path=write("validation", 4, LENGTH),
        long_validation_path=empty,
        problems_path=empty,
        recall_path=empty,
        documents_path=empty,
        filters={},
        attribution=[],
        blend={},
        absent_categories=[],
        quality_groups={},
        scorers=[],
        unreadable=[],
        num_unreadable=0,
    ).save()


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    return training.main(
        Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path_factory.mktemp("run") / "training")
    )


def curve_of(checkpoint):
    return pq.read_table(checkpoint.curve_path).to_pylist()


def test_every_phase_takes_its_steps_in_order(trained):
    phases = [row["phase"] for row in curve_of(trained)]
    assert phases == ["phase1"] * 6 + ["phase2"] * 3 + ["phase3"] + ["long_context"] * 2
    assert trained.num_steps == 12


def test_one_batch_of_four_equals_four_micro_batches_of_one(dataset, trained, tmp_path):
    config = Config(
        **(SMALL | {"micro_batch_sequences": 1}), dataset_path=dataset.path, output_dir=tmp_path / "training"
    )
    accumulated = curve_of(training.main(config))
    for ours, theirs in zip(curve_of(trained), accumulated, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-12)


def test_bfloat16_follows_the_float32_loss(dataset, tmp_path):
    sizes = SMALL | {"num_steps": 10, "learning_rate": 0.02, "dataset_path": dataset.path}
    full = curve_of(training.main(Config(**sizes, dtype="float32", output_dir=tmp_path / "float32")))
    half = curve_of(training.main(Config(**sizes, dtype="bfloat16", output_dir=tmp_path / "bfloat16")))
    for ours, theirs in zip(full, half, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.03)


def test_training_writes_nothing_to_stdout(dataset, tmp_path, capfd):
    training.main(Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "12/12" in captured.err


def test_plot_bytes_do_not_change_from_run_to_run(dataset, trained, tmp_path):
    again = training.main(Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training"))
    assert again.plot_path.read_bytes() == trained.plot_path.read_bytes()
    assert again.digest == trained.digest


def test_ladder_follows_the_order_of_events(trained):
    rungs = [entry["rung"] for entry in json.loads((trained.path / "ladder.json").read_text())]
    assert list(dict.fromkeys(rungs)) == [
        "config", "inputs", "batch order", "parameters", "initial weights", "learning_rate", "loss", "grad_norm",
        "weights after step 1", "curve", "final weights", "validation",
    ]  # fmt: skip


class Stopped(Exception):
    pass


def stop_training_at(monkeypatch, step):
    real = training.refuse_non_finite

    def stop(current, loss, grad_norm):
        if current == step:
            raise Stopped
        real(current, loss, grad_norm)

    monkeypatch.setattr(training, "refuse_non_finite", stop)


def test_a_stopped_run_resumes_to_the_same_bits(dataset, trained, tmp_path, monkeypatch):
    config = Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training")
    with monkeypatch.context() as patch:
        stop_training_at(patch, 8)
        with pytest.raises(Stopped):
            training.main(config)
    resumed = training.main(replace(config, resume=True))
    assert resumed.digest == trained.digest


def test_resuming_before_the_first_state_begins_at_step_0(dataset, trained, tmp_path, capfd):
    config = Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training", resume=True)
    assert training.main(config).digest == trained.digest
    assert "nothing to resume" in capfd.readouterr().err


def test_an_unfinished_run_is_not_started_over_by_accident(dataset, tmp_path, monkeypatch):
    config = Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training")
    with monkeypatch.context() as patch:
        stop_training_at(patch, 8)
        with pytest.raises(Stopped):
            training.main(config)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-00000005; add --resume"):
        training.main(config)
    with pytest.raises(ValueError, match=r"was trained with learning_rate=.* not 0\.5; resume with the same value"):
        training.main(replace(config, resume=True, learning_rate=0.5))
    assert training.main(replace(config, resume=True)).num_steps == 12


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_change(dataset, tmp_path):
    config = Config(**(SMALL | {"learning_rate": 1e300}), dataset_path=dataset.path, output_dir=tmp_path / "training")
    with pytest.raises(ValueError, match=r"step \d+: the loss is .* begin anew with a lower --learning-rate"):
        training.main(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"micro_batch_sequences": 3},
            r"micro_batch_sequences=3 does not divide batch_sequences=4; pick a divisor of 4",
        ),
        ({"num_steps": 11}, r"phase3: 2 steps of 4 sequences need 8 sequences, and .* holds 4; curate"),
        ({"device": "toaster"}, r"device=toaster is not supported; use cpu, cuda or cuda:<number>"),
        ({"cut_long_context_to": 48}, r"cut_long_context_to=48 does not divide long_context_length=64; pick a divisor"),
        ({"scale": "full"}, r"scale=full needs 163 GiB for weights, gradients and moments, and cpu has 8 GiB"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(dataset, tmp_path, monkeypatch, changes, sentence):
    real = device.device_memory_bytes
    monkeypatch.setattr(device, "device_memory_bytes", lambda device: min(real(device), 8 * 2**30))
    config = Config(
        **({"device": "cpu"} | SMALL | changes), dataset_path=dataset.path, output_dir=tmp_path / "training"
    )
    with pytest.raises(ValueError, match=sentence):
        training.main(config)
    assert not (tmp_path / "training").exists()
