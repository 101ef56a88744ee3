"""The sections of any recipe, on artifacts that are made by hand."""

import json
import re

from nemotron.report.blocks import Code, Folded, Page, Plot, Table, Text
from nemotron.report.run import read_run
from nemotron.report.sections import (
    curve_blocks,
    detail_blocks,
    duration,
    environment_section,
    field_blocks,
    lineage_section,
    overview,
    page_blocks,
    reproduction_section,
    table_of,
    times_section,
)

MODULE = "nemotron.recipes.nano2.stage0_pretrain"


def test_fields_are_facts_filters_and_tables(tmp_path, step):
    filters = {
        "length": {"threshold": "short", "num_seen": 8, "num_dropped": 2, "examples": [{"id": "x", "value": "9"}]}
    }
    ladder = [{"rung": "tokens", "name": "train/code", "step": 0, "value": {"num_tokens": 5}}]
    fields = {"num_rows": 1000, "rows_path": "rows", "none": None, "absent": ["a", "b"], "filters": filters,
              "groups": {"High": 3}}  # fmt: skip
    step(
        tmp_path / "s" / "data",
        f"{MODULE}.data",
        {"rows": b"", "ladder.json": json.dumps(ladder).encode()},
        fields=fields,
    )
    ((one,),) = (stage.steps for stage in read_run(tmp_path))
    facts, dropped, examples, groups, tokens = field_blocks(one, {"groups": "Groups"})
    assert facts.rows == [["rows", "1,000"], ["absent", "a, b"]]
    assert dropped.rows == [["length", "short", "8", "2", "25.0%"]]
    assert examples.blocks[0].rows == [["length", "x", "9"]]
    assert (groups.caption, groups.rows) == ("Groups", [["High", "3"]])
    assert tokens.rows == [["train/code", "5"]]


def test_nested_values_become_rows():
    assert table_of({"a": {"b": {"c": 0.5}}}) == (["name", "part", "c"], [["a", "b", "0.5"]])
    assert table_of([{"x": 1}, {"y": True}]) == (["x", "y"], [["1", "-"], ["-", "yes"]])


def curve_of(as_parquet):
    rows = [{"step": n, "phase": "p", "batch": "", "tokens": 1, "loss": 4.0 - n, "reward": 0.5 * n} for n in range(3)]
    return {"curve.parquet": as_parquet(rows)}


def test_the_same_curve_is_shown_once(tmp_path, step, as_parquet):
    fields = {"curve_path": "curve.parquet"}
    first = step(tmp_path / "s" / "a", f"{MODULE}.a", curve_of(as_parquet), fields=fields)
    step(tmp_path / "s" / "b", f"{MODULE}.b", curve_of(as_parquet), fields=fields, inputs=(first,))
    ((a, b),) = (stage.steps for stage in read_run(tmp_path))
    drawn: set[str] = set()
    (plot,) = curve_blocks(a, drawn)
    assert plot.table.rows == [["loss", "4", "3", "2"], ["reward", "0", "0.5", "1"]]
    assert plot.alt == "Curves of 3 steps: loss from 4 to 2; reward."
    assert not list(curve_blocks(b, drawn))


def test_results_are_open_and_long_pages_folded(tmp_path, step):
    files = {"results.md": b"# R", "a.md": b"a", "long.md": b"a\n\n" * 100, "b.txt": b"b", "model/c.md": b"c",
             "huge.md": b"x\n\n" * 9000}  # fmt: skip
    step(tmp_path / "s" / "a", f"{MODULE}.a", files)
    ((one,),) = (stage.steps for stage in read_run(tmp_path))
    results, a, sample, huge, long = page_blocks(one)
    assert (results, a) == (Page("# R"), Page("a"))
    assert sample == Folded("b, as the step wrote it", [Code("b")])
    assert huge.blocks[1] == Text("The rest is in a/huge.md.")
    assert len(huge.blocks[0].markdown) <= 12_000
    assert isinstance(long, Folded)


def test_config_is_without_places(tmp_path, step):
    config = {"scale": "tiny", "output_dir": "/home/me", "data_path": "/home/me", "nested": {"a": 1}}
    step(tmp_path / "s" / "a", f"{MODULE}.a", config=config, metrics={"m": 0.5})
    ((one,),) = (stage.steps for stage in read_run(tmp_path))
    metrics, values = detail_blocks(one)
    assert metrics.blocks[0].rows == [["m", "0.5"]]
    assert values.blocks[0].rows == [["scale", "tiny"]]


def test_what_is_missing_is_named(tmp_path, step):
    base = step(tmp_path / "elsewhere", f"{MODULE}.training")
    step(tmp_path / "run" / "stage1" / "data", f"{MODULE}.data", inputs=(base,))
    (tmp_path / "run" / "stage1" / "x").mkdir()
    (tmp_path / "run" / "stage1" / "x" / "metadata.json.partial").touch()
    stages = read_run(tmp_path / "run")
    texts = [block.text for block in overview(stages).blocks if isinstance(block, Text)]
    assert texts == ["Not finished in stage1: x.", "Not in this directory, or changed since: input 0 of stage1, data."]
    plot, table = lineage_section(stages).blocks
    assert re.fullmatch("dataset [0-9a-f]{12}, not here", table.rows[0][3])
    assert "-->" not in plot.mermaid


def test_lineage_has_an_arrow_for_each_input(hostile_run):
    plot, table = lineage_section(read_run(hostile_run)).blocks
    assert isinstance(plot, Plot)
    assert plot.svg.count("marker-end") == plot.mermaid.count("-->") == 2
    assert [row[3] for row in table.rows] == ["raw data", "data_curation", "training"]


def test_only_complete_tiny_stages_are_compared_with_their_golden(tmp_path, step):
    tiny = {"scale": "tiny"}
    step(tmp_path / "stage0_pretrain" / "data_curation", f"{MODULE}.data_curation", config=tiny)
    step(tmp_path / "stage1_sft" / "a", "nemotron.recipes.nano2.stage1_sft.a", config={"scale": "small"})
    step(tmp_path / "stage9_other" / "a", "nemotron.recipes.nano2.stage9_other.a", config=tiny)
    (table,) = reproduction_section(read_run(tmp_path)).blocks
    assert table.rows == [
        ["stage0_pretrain", "not compared: training, evaluation not finished"],
        ["stage1_sft", "recorded at tiny only"],
        ["stage9_other", "nothing is recorded"],
    ]


def test_a_run_with_other_numbers_says_where_it_differs(tmp_path, step):
    ladder = json.dumps([{"rung": "config", "name": "scale", "step": 0, "value": "tiny"}]).encode()
    for name in ("data_curation", "training", "evaluation"):
        step(tmp_path / "stage0_pretrain" / name, f"{MODULE}.{name}", {"ladder.json": ladder}, config={"scale": "tiny"})
    (table,) = reproduction_section(read_run(tmp_path)).blocks
    assert table.rows[0][1].startswith("no, it differs at data_curation, package versions, ")


def test_environment_shows_each_value_once(hostile_run):
    (table,) = environment_section(read_run(hostile_run)).blocks
    assert isinstance(table, Table)
    assert table.rows == [["scale", "small"], ["seed", "1"], ["code", "1.0"], ["python", "3"]]


def test_times_are_those_that_the_artifacts_record(hostile_run):
    table, _ = times_section(read_run(hostile_run)).blocks
    assert table.rows[0] == ["stage1_sft", "data_curation", "2026-01-02 03:04:05+00:00", "-", "-"]
    assert [duration(seconds) for seconds in (1.25, 61, 3700)] == ["1.2 s", "1 min 1 s", "1 h 1 min"]
