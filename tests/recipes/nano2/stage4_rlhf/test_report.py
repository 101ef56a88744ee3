"""What a person reads of stage 4: tables, plots and the page of replies."""

import re
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.nano2.stage4_rlhf import report
from nemotron.recipes.nano2.stage4_rlhf.report import NAMES, PANELS
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.sources.rubric import WEIGHTS
from nemotron.recipes.training.preference import reliability

SWEEP = [
    {
        "a": a,
        "chat": 0.25 + a / 4,
        "chat_error": 0.0625,
        "reasoning": 0.75 - a / 4,
        "reasoning_error": 0.03125,
        "nats": a,
    }
    for a in (0.0, 0.25, 0.5, 1.0)
]
MEASURES = ("rubric", "rubric_error", "score", "reply_tokens", "reasoning", "reasoning_error")
PER_FAMILY = ("exact_match", "standard_error", "nats")
METRICS = {
    "a": 0.25,
    **{f"{name}/{model}": 0.5 for name in MEASURES for model in NAMES},
    **{f"part/{part}/{model}": 0.25 for part in WEIGHTS for model in NAMES},
    **{f"{name}/policy": 0.125 for name in ("win_rate", "win_rate_error", "wins", "ties", "losses")},
    **{f"{name}/merged": 0.625 for name in ("win_rate", "win_rate_error", "wins", "ties", "losses")},
    **{f"{name}/{family}/{model}": 0.5 for name in PER_FAMILY for family in [*FAMILIES, "all"] for model in NAMES},
    **{f"{name}/{family}{one}": 0.125 for name in ("difference", "difference_error") for family in [*FAMILIES, "all"]
       for one in ("", "/policy")},
    **{f"chance/{family}": 0.125 for family in [*FAMILIES, "all"]},
    **{f"obeyed/{model}/{mode}": 0.625 for model in NAMES for mode in ("think", "no_think")},
}  # fmt: skip
RELIABILITY = {"accuracy/all": 0.75, "accuracy/clean": 0.875, "accuracy/strength 1": 0.5, "calibration_error": 0.0625,
               "accuracy_error/clean": 0.03125}  # fmt: skip
BINS = reliability(torch.tensor([0.1, -0.2, 0.3, 2.0, -3.0, 4.0], dtype=torch.float64), num_bins=5)
CHECKPOINT = SimpleNamespace(num_parameters=1234, num_steps=56)
CONSTANT = Chance("It is 9.", 0.4375)


@pytest.fixture
def checkpoint(tmp_path):
    """A Checkpoint of three steps with tables as training writes them."""
    names = [name for panel in PANELS.values() for name in panel]
    curve = [{"step": step, **dict.fromkeys(names, 0.5)} for step in range(3)]
    rewards = [
        {"step": step, "verifier": family, "part": part, "replies": 4, "mean": 0.5}
        for step in range(3)
        for family in ("conversation", "preference")
        for part in ("all", "form", *WEIGHTS)
    ]
    for name, rows in (("curve", curve), ("rewards", rewards)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    return SimpleNamespace(curve_path=tmp_path / "curve.parquet", tables_path=tmp_path)


def test_the_table_has_all_three_models_beside_each_other():
    table = report.results_table(CHECKPOINT, METRICS, CONSTANT)
    assert "1,234 parameters, 56 steps, merged with a = 0.25." in table
    assert "| held-out conversations | stage before | policy | merged |" in table
    assert "| rubric | 50.0% ± 50.0% | 50.0% ± 50.0% | 50.0% ± 50.0% |" in table
    assert all(f"| part, {part} | 25.0% | 25.0% | 25.0% |" in table for part in WEIGHTS)
    assert "| reward model's score | 0.50 | 0.50 | 0.50 |" in table
    assert "The policy model wins 12.5% against the stage before, loses 12.5% and ties 12.5%: win rate 12.5%" in table
    assert "The merged model wins 62.5%" in table
    assert "The best constant reply earns 43.8% of the rubric (`'It is 9.'`)." in table
    assert "policy less stage before, points | merged less policy, points | chance level |" in table
    assert all(table.count(f"| {family} | ") == 2 for family in FAMILIES)  # exact match, and nats


def test_the_merge_is_compared_with_the_better_parent_in_each_ability():
    shares = {"rubric/base": 0.25, "rubric/policy": 0.5, "rubric/merged": 0.4375,
              "reasoning/base": 0.75, "reasoning/policy": 0.25, "reasoning/merged": 0.8125}  # fmt: skip
    table = report.results_table(CHECKPOINT, {**METRICS, **shares}, CONSTANT)
    assert "The merged model less the better of its parents: chat -6.2 points, reasoning +6.2 points." in table


def test_a_part_that_nobody_judged_is_left_out():
    metrics = {name: value for name, value in METRICS.items() if not name.startswith("part/correct")}
    assert "part, correct" not in report.results_table(CHECKPOINT, metrics, CONSTANT)


def test_the_reliability_has_a_row_for_each_bin():
    table = report.reliability_table(BINS, RELIABILITY)
    assert "| all pairs | 75.0% |" in table
    assert "| label is not noise | 87.5% ± 3.1% |" in table
    assert "| strength 1, not noise | 50.0% |" in table
    assert "| 50% to 60% | 3 | 55.0% | 66.7% |" in table
    assert "| 60% to 70% | 0 | - | - |" in table
    assert "Expected calibration error 6.2%." in table


def test_the_sweep_marks_the_parents_and_the_chosen_weight():
    table = report.sweep_table(SWEEP, 0.5, 0.03)
    assert "| 0, before | 25.0% ± 6.2% | 75.0% ± 3.1% | 0.000 |" in table
    assert "| **0.5, chosen** | 37.5% ± 6.2% | 62.5% ± 3.1% | 0.500 |" in table
    assert "| 1, after | 50.0%" in table
    assert "at most 3.0% below the better parent" in table
    assert "at most 0.0% below" in report.sweep_table(SWEEP, 0.5, -0.03)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """Bytes of the frontier and of the sweep, drawn once."""
    path = tmp_path_factory.mktemp("baseline")
    report.plot_frontier(SWEEP, METRICS, path / "frontier.svg")
    report.plot_sweep(SWEEP, 0.5, path / "sweep.svg")
    return {name: (path / f"{name}.svg").read_bytes() for name in ("frontier", "sweep")}


def changed(values, name):
    return {**values, name: 0.375}


def test_the_plots_have_the_same_bytes_for_the_same_numbers(checkpoint, tmp_path):
    for name in ("first", "second"):
        report.plot_reliability(BINS, RELIABILITY, tmp_path / f"reliability-{name}.svg")
        report.plot_sweep(SWEEP, 0.5, tmp_path / f"sweep-{name}.svg")
        report.plot_frontier(SWEEP, METRICS, tmp_path / f"frontier-{name}.svg")
        report.plot_training(checkpoint, tmp_path / f"training-{name}.svg")
    for plot in ("reliability", "sweep", "frontier", "training"):
        first, second = ((tmp_path / f"{plot}-{name}.svg").read_bytes() for name in ("first", "second"))
        assert first == second


@pytest.mark.parametrize("name", ["rubric/merged", "reasoning/base", "rubric_error/policy"])
def test_the_frontier_shows(name, baseline, tmp_path):
    report.plot_frontier(SWEEP, changed(METRICS, name), tmp_path / "other.svg")
    assert (tmp_path / "other.svg").read_bytes() != baseline["frontier"]


@pytest.mark.parametrize("name", ["chat", "chat_error", "reasoning", "reasoning_error"])
def test_the_sweep_shows(name, baseline, tmp_path):
    report.plot_sweep([SWEEP[0], changed(SWEEP[1], name), *SWEEP[2:]], 0.5, tmp_path / "other.svg")
    assert (tmp_path / "other.svg").read_bytes() != baseline["sweep"]


def test_the_plot_of_training_shows_every_number_of_its_panels(checkpoint, tmp_path):
    """Each has a line of its own: a value that no other has is drawn at another height."""
    report.plot_training(checkpoint, tmp_path / "one.svg")
    rows = pq.read_table(checkpoint.curve_path).to_pylist()
    names = [name for panel in PANELS.values() for name in panel]
    changed_rows = [{**row, **{name: 0.5 + row["step"] / 7 for name in names}} for row in rows]
    pq.write_table(pa.Table.from_pylist(changed_rows), checkpoint.curve_path)
    report.plot_training(checkpoint, tmp_path / "other.svg")
    lines = [
        re.findall(r'<path d="([^"]*)" clip-path', (tmp_path / file).read_text()) for file in ("one.svg", "other.svg")
    ]
    different = sum(one != other for one, other in zip(*lines, strict=True))
    assert different >= len(names)


def test_the_plot_of_training_names_its_lines_and_axes(checkpoint, tmp_path):
    """Comments beside the outlines of the letters."""
    report.plot_training(checkpoint, tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text()
    for label in (*WEIGHTS, "rubric", *PANELS):
        assert f"<!-- {label} -->" in text


def test_an_empty_bin_is_not_drawn(tmp_path):
    report.plot_reliability(BINS, RELIABILITY, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_text().count("<!-- 0 -->") == 0


def test_the_page_shows_each_reply_with_its_rubric():
    page = report.replies_page([("What is 4 + 5?", {"base": ("9\n", 0.85), "policy": ("```\nIt is 9.", 1.0)})])
    parts = (
        "What is 4 + 5?",
        "stage before, rubric 0.85:",
        "\n9\n```",
        "policy, rubric 1.00:",
        "\n````\n```\nIt is 9.",
    )
    assert [page.index(part) for part in parts] == sorted(page.index(part) for part in parts)
