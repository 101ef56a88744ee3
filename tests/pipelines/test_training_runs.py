"""The pretraining step on a small made-up dataset; test_stage.py runs the whole stage."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2.stage0_pretrain import training
from nemotron.recipes.nano2.stage0_pretrain.training import Config
from nemotron.recipes.nemotron_h import device
from nemotron.recipes.training.run import Run

LENGTH, LONG_LENGTH = 16, 64
SEQUENCES = {"phase1": 24, "phase2": 12, "phase3": 4, "long_context": 4}

SMALL = {
    "warmup_steps": 2,
    "batch_sequences": 4,
    "micro_batch_sequences": 2,
    "long_context_batch_sequences": 2,
    "long_context_micro_batch_sequences": 1,
    "checkpoint_every_steps": 5,
    "validate_every_steps": 6,
    "validation_sequences": 2,
}


@pytest.fixture(scope="module")
def dataset(random_tokens_dataset, tmp_path_factory):
    """A Dataset of random tokens; with SMALL it takes 6, 3, 1 and 2 steps."""
    return random_tokens_dataset(tmp_path_factory.mktemp("dataset"), SEQUENCES, LENGTH, LONG_LENGTH)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    return training.main(
        Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path_factory.mktemp("run") / "training")
    )


def curve_of(checkpoint):
    return pq.read_table(checkpoint.curve_path).to_pylist()


def test_every_phase_reads_its_sequences_in_order(trained):
    phases = [row["phase"] for row in curve_of(trained)]
    assert phases == ["phase1"] * 6 + ["phase2"] * 3 + ["phase3"] + ["long_context"] * 2
    assert trained.num_steps == 12


def test_the_curve_has_the_numbers_of_every_step(trained):
    rows = curve_of(trained)
    assert list(rows[0]) == ["step", "phase", "batch", "tokens", "learning_rate", "loss", "grad_norm"]
    assert [row["step"] for row in rows] == list(range(12))
    assert [row["tokens"] for row in rows] == [4 * LENGTH] * 10 + [2 * LONG_LENGTH] * 2


def assert_same_numbers(ours, theirs):
    for one, other in zip(curve_of(ours), curve_of(theirs), strict=True):
        assert one["batch"] == other["batch"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-12)


@pytest.mark.parametrize("micro_batch_sequences", [1, 3])
def test_micro_batches_do_not_change_the_numbers(dataset, trained, tmp_path, micro_batch_sequences):
    """Four sequences at once, in four pieces, and in pieces of three and one."""
    sizes = SMALL | {"micro_batch_sequences": micro_batch_sequences, "long_context_micro_batch_sequences": 2}
    config = Config(**sizes, dataset_path=dataset.path, output_dir=tmp_path / "training")
    assert_same_numbers(training.main(config), trained)


def test_the_last_step_of_a_phase_takes_the_sequences_that_are_left(dataset, tmp_path):
    sizes = SMALL | {"batch_sequences": 5, "micro_batch_sequences": 5, "long_context_batch_sequences": 3}
    whole = training.main(Config(**sizes, dataset_path=dataset.path, output_dir=tmp_path / "whole"))
    tokens = {name: [row["tokens"] for row in curve_of(whole) if row["phase"] == name] for name in SEQUENCES}
    assert tokens == {
        "phase1": [5 * LENGTH] * 4 + [4 * LENGTH],
        "phase2": [5 * LENGTH] * 2 + [2 * LENGTH],
        "phase3": [4 * LENGTH],
        "long_context": [3 * LONG_LENGTH, LONG_LENGTH],
    }
    losses = [row["loss"] for row in curve_of(whole)]
    assert losses[4] == pytest.approx(losses[3], rel=0.05)  # a mean over the four sequences
    pieces = sizes | {"micro_batch_sequences": 3}
    assert_same_numbers(
        training.main(Config(**pieces, dataset_path=dataset.path, output_dir=tmp_path / "pieces")), whole
    )


def test_a_cut_long_context_trains_on_the_same_tokens_with_less_context(dataset, trained, tmp_path):
    config = Config(**SMALL, cut_long_context=True, dataset_path=dataset.path, output_dir=tmp_path / "training")
    cut = curve_of(training.main(config))
    assert cut[:10] == curve_of(trained)[:10]
    for ours, theirs in zip(cut[10:], curve_of(trained)[10:], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] != theirs["loss"]


def test_bfloat16_follows_the_float32_loss(dataset, tmp_path):
    sizes = SMALL | {"learning_rate": 0.02, "dataset_path": dataset.path}
    full = curve_of(training.main(Config(**sizes, dtype="float32", output_dir=tmp_path / "float32")))
    half = curve_of(training.main(Config(**sizes, dtype="bfloat16", output_dir=tmp_path / "bfloat16")))
    for ours, theirs in zip(full, half, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.03)


def test_progress_and_sample_go_to_stderr_and_nothing_to_stdout(dataset, tmp_path, capfd):
    trained = training.main(Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "12/12" in captured.err
    sample = (trained.path / "sample.txt").read_text(encoding="utf-8")
    shown = repr(sample).replace("\\\\", "\\")  # control characters are escaped in the file already
    assert f"sample: {shown}" in captured.err
    assert sample


def test_plot_bytes_do_not_change_from_run_to_run(dataset, trained, tmp_path):
    again = training.main(Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training"))
    assert again.plot_path.read_bytes() == trained.plot_path.read_bytes()
    assert again.digest == trained.digest


def test_rungs_follow_the_order_of_events(trained):
    rungs = [entry["rung"] for entry in json.loads((trained.path / "ladder.json").read_text())]
    assert list(dict.fromkeys(rungs)) == [
        "config", "inputs", "batch order", "parameters", "initial weights", "learning_rate", "loss", "grad_norm",
        "weights after step 1", "curve", "final weights", "validation",
    ]  # fmt: skip


class Stopped(Exception):
    pass


def stop_training_at(monkeypatch, step):
    real = Run.check_finite

    def stop(run, **numbers):
        if run.step == step:
            raise Stopped
        real(run, **numbers)

    monkeypatch.setattr(Run, "check_finite", stop)


def test_a_stopped_run_resumes_to_the_same_bits(dataset, trained, tmp_path, monkeypatch):
    config = Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training")
    with monkeypatch.context() as patch:
        stop_training_at(patch, 8)
        with pytest.raises(Stopped):
            training.main(config)
    resumed = training.main(replace(config, resume=True))
    assert resumed.digest == trained.digest


def test_resuming_without_a_state_starts_at_step_0(dataset, trained, tmp_path, capfd):
    config = Config(**SMALL, dataset_path=dataset.path, output_dir=tmp_path / "training", resume=True)
    assert training.main(config).digest == trained.digest
    assert "nothing to resume" in capfd.readouterr().err


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_with_another_config(dataset, tmp_path, monkeypatch):
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


def test_a_loss_that_is_not_finite_ends_the_run(dataset, tmp_path):
    config = Config(**(SMALL | {"learning_rate": 1e300}), dataset_path=dataset.path, output_dir=tmp_path / "training")
    with pytest.raises(
        ValueError, match=r"step \d+: loss=\S+ and grad_norm=\S+; delete .* start over with a lower learning_rate"
    ):
        training.main(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"warmup_steps": 9}, r"warmup_steps=9 and the decay over the last 2 of 10 steps overlap; give at most 8"),
        ({"device": "toaster"}, r"device=toaster is not supported; use cpu, cuda or cuda:<number>"),
        (
            {"scale": "full"},
            r"training needs \d{3} GiB \(weights 41, .* moments 82, .*\), and cpu has 8.0 GiB; use",
        ),
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
