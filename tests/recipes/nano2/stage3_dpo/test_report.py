"""What a person reads of stage 3: the table, the plot of training, the page of conversations."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2.stage3_dpo import report
from nemotron.recipes.nano2.stage3_dpo.report import PANELS, conversations_page, plot_training, results_table
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.sources.exercises.tool_calling import TOOLS
from nemotron.recipes.sources.exercises.workplace import KINDS, Ran
from nemotron.recipes.training.tries import Try, Turn

MODELS = ("start", "policy")
METRICS = {
    **{f"success/{kind}/start": 0.25 for kind in [*KINDS, "all"]},
    **{f"success/{kind}/policy": 0.75 for kind in [*KINDS, "all"]},
    **{f"success_error/{kind}/{model}": 0.0625 for kind in [*KINDS, "all"] for model in MODELS},
    **{f"success_{name}/{kind}": 0.5 for name in ("difference", "difference_error") for kind in [*KINDS, "all"]},
    **{f"{name}/{model}": 0.375 for model in MODELS
       for name in ("valid_calls", "right_after_an_error", "ended", "broken", "calls_per_try")},
    "success/best_constant": 0.125,
    "preference_accuracy": 0.875,
    "preference_margin": 1.5,
    "held_out_pairs": 40.0,
    **{f"{name}/{family}/{model}": 0.5 for name in ("exact_match", "standard_error") for family in [*FAMILIES, "all"]
       for model in MODELS},
    **{f"{name}/{family}": 0.125 for name in ("difference", "difference_error", "chance")
       for family in [*FAMILIES, "all"]},
    **{f"nats/{family}/{model}": 1.25 for family in FAMILIES for model in MODELS},
    **{f"obeyed/{model}/{mode}": 0.625 for model in MODELS for mode in ("think", "no_think")},
}  # fmt: skip
CONSTANT = Chance("No.", 0.125)
CHECKPOINT = SimpleNamespace(num_parameters=1234, num_steps=56)
DATASET = SimpleNamespace(solved=0.4)


@pytest.fixture
def checkpoint(tmp_path):
    """A Checkpoint of two rounds with tables as training writes them."""

    def write(name, rows):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")

    names = ["preference_loss", *(name for panel in PANELS.values() for name in panel)]
    curve = [{"step": step, "phase": f"round {1 + step // 2}", **dict.fromkeys(names, 0.5)} for step in range(4)]
    write("curve", curve)
    write("tries", [{"step": 2, "task": task, "levels": "3 1", "right": 1} for task in ("a", "b")])
    write(
        "rollouts",
        [
            {"step": step, "task": f"sft/workplace/{task}", "level": level, "text": text}
            for step in (0, 2)
            for task in (1, 2)
            for level, text in ((3, "better"), (0, "worse"))
        ],
    )
    return SimpleNamespace(curve_path=tmp_path / "curve.parquet", tables_path=tmp_path)


# --- the table ---


def test_the_table_has_both_models_beside_each_other():
    table = results_table(CHECKPOINT, METRICS, CONSTANT)
    assert "1,234 parameters, 56 steps." in table
    assert "| held-out tasks that were done | stage 2 | policy | difference |" in table
    assert "| look_up | 25.0% ± 6.2% | 75.0% ± 6.2% | +50.0% ± 50.0% |" in table
    assert "| **all** | 25.0% ± 6.2% | 75.0% ± 6.2% | +50.0% ± 50.0% |" in table
    assert "| calls that did what they say | 37.5% | 37.5% |" in table
    assert "prefers the better try of 87.5% of 40 held-out pairs, by +1.50 nats on average" in table
    assert "A policy that always says the same gets 12.5% (`'No.'`)." in table
    assert all(f"| {family} |" in table for family in FAMILIES)
    assert "| nats per token of the right reply | stage 2 | policy |" in table
    assert all(f"| {family} | 1.25 | 1.25 |" in table for family in FAMILIES)


def test_without_a_held_out_pair_the_table_gives_no_preference():
    table = results_table(CHECKPOINT, METRICS | {"held_out_pairs": 0.0, "preference_accuracy": 0.0}, CONSTANT)
    assert "No held-out task has a better and a worse try of the model at the start, so no preference" in table
    assert "prefers" not in table


def test_a_kind_without_tasks_has_no_row():
    metrics = {name: value for name, value in METRICS.items() if "/correct" not in name}
    assert "| correct |" not in results_table(CHECKPOINT, metrics, CONSTANT)


# --- the plot ---


def test_the_plot_has_the_same_bytes_for_the_same_numbers(checkpoint, tmp_path):
    for name in ("first", "second"):
        plot_training(checkpoint, DATASET, METRICS, tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def drawn(checkpoint, monkeypatch, tmp_path):
    """The heights of all lines of the plot."""
    figures = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: figures.append(figure))
    plot_training(checkpoint, DATASET, METRICS, tmp_path / "none.svg")
    return [[float(y) for y in line.get_ydata()] for axes in figures[0].axes for line in axes.lines]


def test_the_plot_has_a_line_for_every_number_that_training_measured(checkpoint, monkeypatch, tmp_path):
    names = ["preference_loss", *(name for panel in PANELS.values() for name in panel)]
    heights = {name: [place + 0.25 * step for step in range(4)] for place, name in enumerate(names)}
    rows = pq.read_table(checkpoint.curve_path).to_pylist()
    rows = [{**row, **{name: heights[name][row["step"]] for name in names}} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), checkpoint.curve_path)
    lines = drawn(checkpoint, monkeypatch, tmp_path)
    assert [name for name in names if heights[name] not in lines] == []


def test_the_plot_has_the_success_of_each_round_and_what_to_compare_it_with(checkpoint, monkeypatch, tmp_path):
    lines = drawn(checkpoint, monkeypatch, tmp_path)
    assert [0.4, 2 / 4] in lines  # of the Dataset, then of the table of tries
    for name in ("success/all/start", "success/all/policy", "success/best_constant"):
        assert [METRICS[name]] * 2 in lines


def test_one_round_has_no_table_of_tries_and_is_plotted(checkpoint, tmp_path):
    (tmp_path / "tries.parquet").unlink()
    plot_training(checkpoint, DATASET, METRICS, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").stat().st_size > 0


# --- the page ---


def conversation(level):
    details = json.dumps({"kind": "look_up"})
    tools = (TOOLS["get_stock"],)
    exercise = Exercise(
        "a",
        "workplace",
        (
            {"role": "user", "content": "Set it."},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "x"}}]},
        ),
        tools,
        "",
        "",
        "",
        details,
    )
    ran = Ran({"name": "get_stock", "arguments": {}}, '{"error": "no"}', failed=True)
    one = Try(Prompt(exercise, False, (1,)), 0, [], {}, [Turn((1,), Continuation([65, 66]), (ran,))])
    one.right, one.is_broken = level == 3, level == 0
    return one


def test_the_page_begins_with_held_out_tasks_before_and_after(checkpoint):
    page = conversations_page(checkpoint, [{"start": conversation(0), "policy": conversation(3)}], bytes_text)
    head = page.partition("## Pairs")[0]
    parts = (
        "user: Set it.",
        'assistant: [{"name": "x"}]',
        "tools: get_stock",
        "stage 2, broken:",
        'AB\ntool: {"error": "no"}',
        "policy, right:",
    )
    assert [head.index(part) for part in parts] == sorted(head.index(part) for part in parts)


def bytes_text(tokens):
    return bytes(tokens).decode()


def test_the_page_has_the_pairs_of_the_first_and_the_last_round(checkpoint):
    page = conversations_page(checkpoint, [], bytes_text)
    assert [line for line in page.splitlines() if line.startswith("## Pairs")] == [
        "## Pairs of the round that begins with step 1",
        "## Pairs of the round that begins with step 3",
    ]
    assert page.count("### sft/workplace/1\n") == 2
    _, _, first = page.partition("### sft/workplace/1\n")
    parts = ("Chosen, right:", "better", "Rejected, broken:", "worse")
    assert [first.index(part) for part in parts] == sorted(first.index(part) for part in parts)


def test_a_text_cannot_end_its_block_in_the_page(checkpoint):
    rows = pq.read_table(checkpoint.tables_path / "rollouts.parquet").to_pylist()
    rows[0]["text"] = "```\n# Not a heading\x1b[31m"
    pq.write_table(pa.Table.from_pylist(rows), checkpoint.tables_path / "rollouts.parquet")
    page = conversations_page(checkpoint, [], bytes_text)
    assert "\n````\n```\n# Not a heading" in page
    assert "\x1b" not in page
