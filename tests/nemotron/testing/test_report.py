"""The report: the first broken rung first, what is around it, what is still equal, in 30 lines at most."""

import copy
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from nemotron.testing.compare import Policy, encode_golden, parse_golden
from nemotron.testing.report import MAX_LINES, WIDTH, Report, report_of, with_upstream


def entry(rung, name, value, step=0):
    return {"rung": rung, "name": name, "step": step, "value": value}


DOCUMENT = {
    "stage": "mine/stage1_second",
    "ladder": {
        "data_curation": [entry("config", "seed", 1), entry("inputs", "sha256", "ab"), entry("tokens", "train", 100)],
        "training": [
            entry("config", "learning_rate", 0.5),
            entry("batch order", "batch", "cd"),
            *[entry("curve", "loss", 4.0 - 0.25 * step, step) for step in range(10)],
            *[entry("final weights", f"layer {i}", [1.0, 2.0], 10) for i in range(3)],
        ],
    },
}
GOLDEN = encode_golden(DOCUMENT, Policy())


def changed(*changes):
    """The document with changes: (step, index in its ladder, value)."""
    document = copy.deepcopy(DOCUMENT)
    for step, index, value in changes:
        document["ladder"][step][index]["value"] = value
    return document


def test_a_run_like_its_golden_takes_one_line():
    report = report_of(GOLDEN, DOCUMENT)
    assert report.equal
    assert report.lines() == ["mine/stage1_second reproduces its golden: to the last bit"]


def test_the_first_broken_rung_stands_first_with_what_is_around_it():
    report = report_of(GOLDEN, changed(("training", 6, 3.0001), ("training", 12, [1.0, 2.5])))
    lines = report.lines()
    assert lines[0] == "mine/stage1_second departs from golden/mine/stage1_second.json"
    assert lines[1] == "first broken rung: training, curve, loss, step 4 (off by 3e-05, relative)"
    table = [line.split() for line in lines[3:8]]
    assert [row[0] for row in table] == ["2", "3", "4", "5", "6"]
    assert table[2][:4] == ["4", "3.0", "3.0001", "3e-05"]
    assert lines[5].endswith("<- first")
    assert table[1][3] == "0e+00"


def test_what_is_still_equal_and_what_is_broken_is_named():
    report = report_of(GOLDEN, changed(("training", 6, 3.0001), ("training", 12, [1.0, 2.5])))
    assert report.lines()[-2] == (
        "still equal before it: data_curation: config, data_curation: inputs, data_curation: tokens, train..."
    )
    assert report.lines()[-1] == "broken: training: curve 1/10, training: final weights 1/3"
    broken = {(rung.step, rung.rung): rung.num_broken for rung in report.rungs}
    assert broken["training", "curve"] == broken["training", "final weights"] == 1
    assert broken["training", "config"] == broken["data_curation", "tokens"] == 0


def test_config_fields_that_differ_are_shown_and_the_first_number_that_they_move():
    lines = report_of(GOLDEN, changed(("training", 0, 0.50005), ("training", 3, 3.7))).lines()
    assert lines[1] == "first broken rung: training, config, learning_rate, step 0 (off by 1e-04, relative)"
    assert lines[3] == "  training, config, learning_rate, step 0: golden 0.5, run 0.50005"
    assert lines[4].startswith("first number that moves: training, curve, loss, step 1")


def test_a_config_field_that_moves_nothing_says_so():
    assert "no number moves" in report_of(GOLDEN, changed(("training", 0, 0.25))).lines()


def test_the_lines_are_at_most_thirty_and_not_too_wide():
    everything = changed(
        *[("data_curation", i, "x" * 500) for i in range(3)], *[("training", i, "y" * 500) for i in range(15)]
    )
    everything["ladder"]["training"] += [entry("config", f"field {i}", 1, 0) for i in range(60)]
    lines = report_of(GOLDEN, everything).lines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= WIDTH


def test_a_later_stage_whose_input_already_differs_says_so_in_one_line():
    first = {"stage": "mine/stage0_first", "ladder": {"training": [entry("curve", "loss", 1.0)]}}
    other = {"stage": "mine/stage0_first", "ladder": {"training": [entry("curve", "loss", 2.0)]}}
    earlier = report_of(encode_golden(first, Policy()), other)
    departed = report_of(GOLDEN, changed(("data_curation", 1, "ba"), ("training", 3, 3.7)))
    sentence = "mine/stage1_second: not compared, its input already differs since mine/stage0_first departs"
    for found in ([earlier, departed], [departed, earlier]):
        reports = with_upstream(found)
        assert [report.stage for report in reports] == ["mine/stage0_first", "mine/stage1_second"]
        assert reports[1].lines() == [sentence]
        assert not reports[1].equal
    assert not with_upstream([departed])[0].upstream
    assert not with_upstream([replace(earlier, stage="another/stage0_first"), departed])[1].upstream
    assert not with_upstream([earlier, report_of(GOLDEN, changed(("training", 3, 3.7)))])[1].upstream


def test_what_could_not_be_compared_says_why_and_replaces_what_was_written(tmp_path):
    report_of(GOLDEN, changed(("training", 6, 3.0001))).write(tmp_path)
    Report("mine/stage1_second", error="it crashed\n  in line 3").write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.txt"]
    lines = ["mine/stage1_second was not compared: it crashed", "  in line 3"]
    assert (tmp_path / "report.txt").read_text().splitlines() == lines
    parsed = json.loads((tmp_path / "report.json").read_text())
    assert (parsed["equal"], parsed["lines"]) == (False, lines)


def test_a_stage_without_a_golden_says_how_to_record_one():
    report = report_of(None, DOCUMENT)
    assert not report.equal
    assert "record it with --snapshot-update" in report.lines()[0]


def test_the_files_say_what_the_lines_say(tmp_path):
    report = report_of(GOLDEN, changed(("training", 6, 3.0001)))
    report.write(tmp_path / "report")
    assert (tmp_path / "report" / "report.txt").read_text().splitlines() == report.lines()
    parsed = json.loads((tmp_path / "report" / "report.json").read_text())
    assert parsed["lines"] == report.lines()
    assert parsed["equal"] is False
    assert [(d["step"], d["rung"], d["golden"], d["run"]) for d in parsed["differences"]] == [
        ("training", "curve", "3.0", "3.0001")
    ]
    assert parse_golden((tmp_path / "report" / "run.json").read_bytes())[0] == report.run


def test_the_plot_shows_both_curves_and_goes_when_nothing_differs(tmp_path):
    report_of(GOLDEN, changed(("training", 6, 3.0001))).write(tmp_path)
    svg = ElementTree.parse(tmp_path / "curves.svg")
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 10
    again = tmp_path / "again"
    report_of(GOLDEN, changed(("training", 6, 3.0001))).write(again)
    assert (again / "curves.svg").read_bytes() == (tmp_path / "curves.svg").read_bytes()
    report_of(GOLDEN, DOCUMENT).write(tmp_path)
    assert not (tmp_path / "curves.svg").exists()


@pytest.mark.parametrize("missing", range(2, 12))
def test_a_series_that_lost_a_step_is_still_reported(missing, tmp_path):
    document = copy.deepcopy(DOCUMENT)
    lost = document["ladder"]["training"].pop(missing)
    report = report_of(GOLDEN, document)
    report.write(tmp_path)
    assert f"step {lost['step']} (missing from the run)" in report.lines()[1]
