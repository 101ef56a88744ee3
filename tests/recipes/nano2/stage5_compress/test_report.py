"""What a person reads of stage 5: the table and the plots."""

import re
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.nano2.stage5_compress import report
from nemotron.recipes.nano2.stage5_compress.report import NAMES, SOURCES
from nemotron.recipes.nemotron_h.pruning import Importance
from nemotron.recipes.sources.exercises.families import FAMILIES

PARTS = ("weights", "keys and values")
PER_FAMILY = ("exact_match", "standard_error", "nats")
METRICS = {
    **{f"loss/{source}/{model}": 1.25 for source in ("sft", "pretraining") for model in NAMES},
    **{f"kl/{source}/{model}": 0.0625 for source in SOURCES for model in NAMES if model != "teacher"},
    **{f"memory_bytes/{part}/{model}": 1000.0 for part in PARTS for model in NAMES},
    **{f"num_parameters/{model}": 3000.0 for model in NAMES},
    "num_parameters/teacher": 4000.0,
    "recovered": 0.9375, "recovered_kl": 0.875, "better_than_scratch": 0.25, "better_than_scratch_kl": 0.5,
    **{f"{name}/{family}/{model}": 0.5 for name in PER_FAMILY for family in [*FAMILIES, "all"] for model in NAMES},
    **{f"{name}/{family}{one}": 0.125 for name in ("difference", "difference_error") for family in [*FAMILIES, "all"]
       for one in ("", "/pruned", "/scratch", "/distilled")},
    **{f"chance/{family}": 0.125 for family in [*FAMILIES, "all"]},
    **{f"{measure}/{model}": 0.75 for measure in report.EARLIER for model in NAMES},
    **{f"{error}/{model}": 0.0625 for error in report.ERRORS.values() for model in NAMES},
    **{f"obeyed/{model}/{mode}": 0.625 for model in NAMES for mode in ("think", "no_think")},
}  # fmt: skip
DISTILLED = SimpleNamespace(num_steps=56)
IMPORTANCE = Importance(
    layers=((2, 0.5),),
    layer_errors=torch.tensor([4.0, 2.0, 0.5, 1.0]),
    hidden=torch.arange(1.0, 9.0),
    mlp={1: torch.rand(6, dtype=torch.float64), 3: torch.rand(6, dtype=torch.float64)},
    mamba={0: torch.rand(4, 3, dtype=torch.float64), 2: torch.rand(4, 3, dtype=torch.float64)},
)
ROWS = [
    {"total_bytes": size, "fits": size < 3000, "pruned_kl": None, "distilled_kl": None, "chosen": False}
    for size in (4000, 3500, 2900, 2800, 2000)
]
ROWS[2] |= {"pruned_kl": 3.0, "distilled_kl": 2.5, "chosen": True}
ROWS[3] |= {"pruned_kl": 3.5, "distilled_kl": 2.75}


@pytest.fixture
def distilled(tmp_path):
    """A Checkpoint of three steps, with the validation before each of the last two."""
    curve = [{"step": step, "phase": f"length_{step // 2}", "tokens": 100} for step in range(3)]
    validation = [
        {"step": step, "category": source, "loss": 2.0 - step / 4}
        for step in (2, 3)
        for source in ("sft", "pretraining", "kl")
    ]
    pq.write_table(pa.Table.from_pylist(curve), tmp_path / "curve.parquet")
    pq.write_table(pa.Table.from_pylist(validation), tmp_path / "validation.parquet")
    return SimpleNamespace(curve_path=tmp_path / "curve.parquet", validation_curve_path=tmp_path / "validation.parquet")


def texts_of(path):
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_the_table_has_sizes_losses_recovery_and_the_exam():
    table = report.results_table(DISTILLED, METRICS, NAMES)
    assert "3,000 parameters, 25.0% fewer than the teacher; 56 steps of distillation." in table
    assert "| bytes at the target context | 2,000 | 2,000 | 2,000 | 2,000 | 2,000 |" in table
    assert "| loss, conversations | 1.2500 | 1.2500 | 1.2500 | 1.2500 | 1.2500 |" in table
    assert "| KL from the teacher, text | 0.0000 | 0.0625 | 0.0625 | 0.0625 | 0.0625 |" in table
    assert "Distillation recovered 93.8% of the loss on conversations that pruning added, and 87.5% of the" in table
    assert "the gap to the teacher is 25.0% smaller, and the divergence 50.0%." in table
    assert table.count("| math |") == 2
    for measure, label in report.EARLIER.items():
        cell = "0.750 ± 0.062" if measure in ("success/all", "rubric") else "0.750"
        assert f"| {label} |{f' {cell} |' * 5}\n" in table


def test_the_table_goes_without_a_control():
    names = {name: label for name, label in NAMES.items() if name != "scratch"}
    metrics = {name: value for name, value in METRICS.items() if "scratch" not in name}
    table = report.results_table(DISTILLED, metrics, names)
    assert "from scratch" not in table
    assert "| parameters | 4,000 | 3,000 | 3,000 | 3,000 |" in table


def test_importance_is_shown_by_layer_and_kind(tmp_path):
    report.plot_importance(IMPORTANCE, "M-M-", tmp_path / "importance.svg")
    texts = texts_of(tmp_path / "importance.svg")
    for text in ("Mamba-2", "MLP", "1.", "layer 1", "layer 3", "neuron of an MLP, best first"):
        assert text in texts


def test_the_frontier_shows_budget_teacher_and_the_chosen_candidate(tmp_path):
    report.plot_candidates(ROWS, 3000, 4500, tmp_path / "candidates.svg")
    texts = texts_of(tmp_path / "candidates.svg")
    for text in ("budget", "teacher", "chosen", "3 of the grid: fits", "2 of the grid: does not fit"):
        assert text in texts
    assert "memory of generation, KiB" in texts


def test_recovery_is_shown_for_each_source_beside_teacher_and_control(distilled, tmp_path):
    report.plot_recovery(distilled, METRICS, tmp_path / "recovery.svg")
    texts = texts_of(tmp_path / "recovery.svg")
    for text in ("loss, conversations", "loss, text", "KL from the teacher", "teacher", "from scratch", "distilled"):
        assert text in texts


def test_a_plot_has_the_same_bytes_again(distilled, tmp_path):
    for name in ("a", "b"):
        report.plot_importance(IMPORTANCE, "M-M-", tmp_path / f"importance-{name}.svg")
        report.plot_candidates(ROWS, 3000, 4500, tmp_path / f"candidates-{name}.svg")
        report.plot_recovery(distilled, METRICS, tmp_path / f"recovery-{name}.svg")
    for plot in ("importance", "candidates", "recovery"):
        assert (tmp_path / f"{plot}-a.svg").read_bytes() == (tmp_path / f"{plot}-b.svg").read_bytes()
