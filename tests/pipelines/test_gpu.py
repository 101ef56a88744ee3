"""The script for one GPU, run on the processor: every part measures something, and the table has a line for each."""

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

STAGES = ("stage0_pretrain", "stage1_sft", "stage2_rlvr", "stage3_dpo", "stage4_rlhf", "stage5_compress")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


@pytest.fixture
def config(gpu, tmp_path):
    """As `--try-out` sets it, with a place for the table."""
    return replace(gpu.Config(output=tmp_path / "gpu" / "table.md"), **gpu.TRY_OUT)


def test_without_a_gpu_it_says_so_in_one_sentence_and_succeeds(tmp_path):
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path, check=True
    )
    assert re.fullmatch(r"There is no GPU here, so nothing was measured; --try-out runs every part .*\.\n", run.stdout)
    assert not run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # transformers says that kernels are missing
def test_every_measurement_has_a_line(gpu, config):
    rows = [*gpu.training(config), *gpu.long_context(config), *gpu.decoding(config)]
    parts = ["training", "memory"] * 2 + ["long context"] * 2 + ["decoding"] * len(config.prompts)
    assert [row.part for row in rows] == parts
    for row in rows:
        if row.part in ("training", "decoding"):
            assert re.search(r"[\d,]+ tokens per second", row.ours)
    assert "ours is" in rows[0].beside
    assert "ours is" in rows[-1].beside
    assert re.fullmatch(r"\d+\.\d\d GiB", rows[1].ours)
    for row in (rows[1], rows[3]):
        (percent,) = re.fullmatch(r"plan: \d+\.\d\d GiB \(([+-]\d+)%\)", row.beside).groups()
        assert abs(int(percent)) <= 2  # 6 and 10 less if a step has one micro batch, before there are gradients


def test_a_step_that_the_plan_says_does_not_fit_is_left_out(gpu, config, monkeypatch):
    monkeypatch.setattr(gpu, "device_memory_bytes", lambda device: 1000)
    rows = gpu.training(config)
    assert [row.part for row in rows] == ["training"] * 2
    assert all("left out: the plan says" in row.ours for row in rows)


def test_models_with_other_losses_are_not_compared(gpu, config, monkeypatch):
    monkeypatch.setattr(gpu, "their_loss", lambda model, tokens: gpu.our_loss(model_of(gpu, config), tokens) + 1e-3)
    with pytest.raises(SystemExit, match="the losses differ, so the times are not comparable"):
        gpu.training(config)


def model_of(gpu, config):
    return gpu.training_model(gpu.MODELS["tiny"], config)


def test_the_goldens_are_compared_and_a_killed_training_is_resumed(gpu, config, stage0, tmp_path):
    """The stage has run already, so each of its steps is current; the training is run twice, killed once."""
    shutil.copytree(stage0.directory, tmp_path / "stage0_pretrain", dirs_exist_ok=True)
    (row,) = gpu.goldens(config, tmp_path)
    assert (row.part, row.ours.split(" (")[0]) == ("goldens", "equal: yes")
    (row,) = gpu.kill_and_resume(config, tmp_path)
    assert row.what == "stage 0's training at tiny, killed after a state"
    assert row.ours == "largest relative difference of the loss 0e+00"


def test_parts_after_the_time_are_left_out_and_the_table_names_the_card(gpu, config, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "name_of", lambda device: "one NVIDIA card")
    gpu.main(replace(config, minutes=-1.0))
    table = config.output.read_text()
    assert table.startswith("Measured on one NVIDIA card, torch ")
    parts = re.findall(r"^\| ([a-z, ]+) \| left out: -1 minutes were over \|", table, re.M)
    assert parts == ["training", "long context", "decoding", "goldens", "kill, resume"]
    assert capsys.readouterr().out == table + "\n"


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_of_a_stage_is_put_on_the_device(gpu, stage):
    config = import_module(f"nemotron.recipes.nano2.{stage}.__main__").Config(scale="tiny")
    assert devices_of(config) == {"cpu"}
    assert devices_of(gpu.on_device(config, "cuda")) == {"cuda"}


def devices_of(config):
    """The devices of a Config and of those inside it."""
    nested = [devices_of(value) for value in vars(config).values() if is_dataclass(value)]
    return set().union({config.device} if hasattr(config, "device") else set(), *nested)


def fails(error):
    """A part that raises an error."""

    def measure(gpu):
        raise error

    return measure


@pytest.mark.parametrize(
    ("part", "measure", "line"),
    [
        ("training", fails(ValueError("it needs 30 GiB\nof 24")), "| training | failed: it needs 30 GiB of 24 |  |  |"),
        ("long_context", fails(RuntimeError()), "| long context | failed: RuntimeError |  |  |"),
        ("goldens", lambda gpu: [gpu.Row("goldens", "stage0", "equal: no, it differs")], "| equal: no, it differs |"),
        ("goldens", lambda gpu: [gpu.Row("goldens", "stage0", "equal: ")], "| stage0 | equal:  |"),
        ("goldens", lambda gpu: [gpu.Row("goldens", "stage0", "equal: yes (exactly)")], None),
    ],
)
def test_a_part_that_fails_or_a_golden_that_differs_is_in_the_table_and_the_exit_code(
    gpu, config, monkeypatch, part, measure, line
):
    for name in ("training", "long_context", "decoding", "goldens", "kill_and_resume"):
        monkeypatch.setattr(gpu, name, lambda *args: [])
    monkeypatch.setattr(gpu, part, lambda *args: measure(gpu))
    if line is None:
        gpu.main(config)
    else:
        with pytest.raises(SystemExit) as ended:
            gpu.main(config)
        assert ended.value.code == 1
        assert line in config.output.read_text()


def test_live_bytes_count_what_is_there_at_the_same_time(gpu):
    with gpu.peak_bytes("cpu") as peak:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(500).sum()
        assert kept.shape == (1000,)
        assert 4 * 1500 <= peak() <= 4 * 1600
