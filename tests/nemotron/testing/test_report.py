"""The report: the first broken rung, the values around it, the rungs that are still equal, in at most 30 lines."""

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
    """The document with other values; a change is (step, index in its ladder, value)."""
    document = copy.deepcopy(DOCUMENT)
    for step, index, value in changes:
        document["ladder"][step][index]["value"] = value
    return document


def test_equal_run_takes_one_line():
    report = report_of(GOLDEN, DOCUMENT)
    assert report.equal
    assert report.lines() == ["mine/stage1_second reproduces its golden: to the last bit"]


def test_report_begins_with_the_first_broken_rung_and_the_values_around_it():
    report = report_of(GOLDEN, changed(("training", 6, 3.0001), ("training", 12, [1.0, 2.5])))
    lines = report.lines()
    assert lines[0] == "mine/stage1_second differs from golden/mine/stage1_second.json"
    assert lines[1] == "first broken rung: training, curve, loss, step 4 (relative difference 3e-05)"
    table = [line.split() for line in lines[3:8]]
    assert [row[0] for row in table] == ["2", "3", "4", "5", "6"]
    assert table[2][:4] == ["4", "3.0", "3.0001", "3e-05"]
    assert lines[5].endswith("<- first")
    assert table[1][3] == "0e+00"


def test_report_lists_equal_and_broken_rungs():
    report = report_of(GOLDEN, changed(("training", 6, 3.0001), ("training", 12, [1.0, 2.5])))
    assert report.lines()[-2:] == [
        "still equal before it: data_curation: config, inputs, tokens, training: config, batch order",
        "broken rungs: training: curve 1/10, final weights 1/3",
    ]
    broken = {(rung.step, rung.rung): rung.num_broken for rung in report.rungs}
    assert broken["training", "curve"] == broken["training", "final weights"] == 1
    assert broken["training", "config"] == broken["data_curation", "tokens"] == 0


def test_report_shows_changed_config_and_the_first_result_that_differs():
    lines = report_of(GOLDEN, changed(("training", 0, 0.50005), ("training", 3, 3.7))).lines()
    assert lines[1] == "first broken rung: training, config, learning_rate, step 0 (relative difference 1e-04)"
    assert lines[3] == "  training, config, learning_rate, step 0: golden 0.5, run 0.50005"
    assert lines[4].startswith("first result that differs: training, curve, loss, step 1")


def test_report_says_if_changed_config_changes_no_result():
    assert "no result differs" in report_of(GOLDEN, changed(("training", 0, 0.25))).lines()


def test_report_has_at_most_thirty_lines_of_limited_width():
    everything = changed(
        *[("data_curation", i, "x" * 500) for i in range(3)], *[("training", i, "y" * 500) for i in range(15)]
    )
    everything["ladder"]["training"] += [entry("config", f"field {i}", 1, 0) for i in range(60)]
    lines = report_of(GOLDEN, everything).lines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= WIDTH
    assert "  and 54 more" in lines


@pytest.mark.parametrize(("number", "last"), [(8, "field 7, step 0: golden 1, run 2"), (9, "  and 1 more")])
def test_eight_changed_config_values_are_shown(number, last):
    golden = copy.deepcopy(DOCUMENT)
    golden["ladder"]["training"][1:1] = [entry("config", f"field {i}", 1, 0) for i in range(number)]
    run = copy.deepcopy(golden)
    for one in run["ladder"]["training"][1 : number + 1]:
        one["value"] = 2
    lines = report_of(encode_golden(golden, Policy()), run).lines()
    assert lines[lines.index("no result differs") - 1].endswith(last)


def renamed(rung, name, golden, run):
    """The report of a run whose only difference is one entry with this rung and name."""
    sides = []
    for value in (golden, run):
        document = copy.deepcopy(DOCUMENT)
        document["ladder"]["training"].insert(1, entry(rung, name, value))
        sides.append(document)
    return report_of(encode_golden(sides[0], Policy()), sides[1])


@pytest.mark.parametrize("rung", ["config", "curve", "a rung with a long name " * 10])
def test_long_place_is_shortened_and_both_values_stay_visible(rung):
    golden, run = -1.2345678901234567e101, -1.2345999901234567e101
    lines = renamed(rung, "a_name_" * 20, golden, run).lines()
    assert max(map(len, lines)) <= WIDTH
    (values,) = (line for line in lines if "golden -" in line)
    assert values.startswith("  training, ")
    assert values.endswith(f"_, step 0: golden {golden!r}, run {run!r}")
    assert lines[1].startswith("first broken rung: training, ")
    assert lines[1].endswith("_, step 0 (relative difference 3e-05)")


@pytest.mark.parametrize("rung", ["config", "curve", "a rung with a long name " * 10])
def test_the_summary_of_a_failed_test_shows_both_values(rung):
    report = renamed(rung, "a_name_" * 20, 0.1234567890123456, 0.1234987890123457)
    summary = report.summary()
    assert summary[:2] == report.lines()[:2]
    assert summary[2].endswith(": golden 0.1234567890123456, run 0.1234987890123457")
    assert max(map(len, summary)) <= WIDTH


def test_the_summary_of_a_series_shows_both_values():
    assert report_of(GOLDEN, changed(("training", 6, 3.0001))).summary() == [
        "mine/stage1_second differs from golden/mine/stage1_second.json",
        "first broken rung: training, curve, loss, step 4 (relative difference 3e-05)",
        "  training, curve, loss, step 4: golden 3.0, run 3.0001",
    ]


def test_long_values_are_cut_around_their_first_difference():
    lines = renamed("sample", "text", "the same words " * 20 + "and one", "the same words " * 20 + "and two").lines()
    assert '  training, sample, text, step 0: golden ...ds and one", run ...ds and two"' in lines


@pytest.mark.parametrize("name", ["loss", "a_name_" * 20])
def test_table_shows_both_values_of_a_series_with_a_long_name(name):
    golden = {
        "stage": "mine/first",
        "ladder": {"training": [entry("curve", name, 0.1 + step, step) for step in (0, 1)]},
    }
    run = copy.deepcopy(golden)
    run["ladder"]["training"][1]["value"] = -1.2345678901234567e-101
    lines = report_of(encode_golden(golden, Policy()), run).lines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[4].split()[:3] == ["1", "1.1", "-1.2345678901234567e-101"]


def test_value_of_another_type_in_a_series_is_shown():
    lines = report_of(GOLDEN, changed(("training", 6, None))).lines()
    assert "  training, curve, loss, step 4: golden 3.0, run null" in lines


def test_list_that_does_not_fit_is_cut_between_its_items():
    everything = changed(*[("data_curation", i, "x") for i in range(3)], *[("training", i, "y") for i in range(15)])
    line = report_of(GOLDEN, everything).lines()[-1]
    assert line.startswith("broken rungs: data_curation: config 1/1, inputs 1/1, tokens 1/1, training: config 1/1, ")
    assert line.endswith(", batch order 1/1 and 2 more")


def test_later_stage_whose_input_already_differs_takes_one_line():
    first = {"stage": "mine/stage0_first", "ladder": {"training": [entry("curve", "loss", 1.0)]}}
    other = {"stage": "mine/stage0_first", "ladder": {"training": [entry("curve", "loss", 2.0)]}}
    earlier = report_of(encode_golden(first, Policy()), other)
    later = report_of(GOLDEN, changed(("data_curation", 1, "ba"), ("training", 3, 3.7)))
    sentence = "mine/stage1_second differs first in its inputs, from mine/stage0_first, which differs; mend that first"
    for found in ([earlier, later], [later, earlier]):
        reports = with_upstream(found)
        assert [report.stage for report in reports] == ["mine/stage0_first", "mine/stage1_second"]
        assert reports[1].lines() == [sentence]
        assert not reports[1].equal
    assert not with_upstream([later])[0].upstream
    assert not with_upstream([replace(earlier, stage="another/stage0_first"), later])[1].upstream
    assert not with_upstream([earlier, report_of(GOLDEN, changed(("training", 3, 3.7)))])[1].upstream


def test_report_of_an_error_replaces_the_earlier_files(tmp_path):
    report_of(GOLDEN, changed(("training", 6, 3.0001))).write(tmp_path)
    Report("mine/stage1_second", error="it crashed\n  in line 3").write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.txt"]
    lines = ["mine/stage1_second was not compared: it crashed", "  in line 3"]
    assert (tmp_path / "report.txt").read_text().splitlines() == lines
    parsed = json.loads((tmp_path / "report.json").read_text())
    assert (parsed["equal"], parsed["lines"]) == (False, lines)


def test_stage_without_a_golden_says_how_to_record_one():
    report = report_of(None, DOCUMENT)
    assert not report.equal
    assert "record one with --snapshot-update" in report.lines()[0]


def test_written_files_agree_with_the_lines(tmp_path):
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


def test_plot_shows_both_curves_and_is_deleted_when_nothing_differs(tmp_path):
    report_of(GOLDEN, changed(("training", 6, 3.0001))).write(tmp_path)
    svg = ElementTree.parse(tmp_path / "curves.svg")
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 10
    again = tmp_path / "again"
    report_of(GOLDEN, changed(("training", 6, 3.0001))).write(again)
    assert (again / "curves.svg").read_bytes() == (tmp_path / "curves.svg").read_bytes()
    report_of(GOLDEN, DOCUMENT).write(tmp_path)
    assert not (tmp_path / "curves.svg").exists()


@pytest.mark.parametrize("missing", range(2, 12))
def test_missing_step_of_a_series_is_reported(missing, tmp_path):
    document = copy.deepcopy(DOCUMENT)
    lost = document["ladder"]["training"].pop(missing)
    report = report_of(GOLDEN, document)
    report.write(tmp_path)
    assert f"step {lost['step']} (missing from the run)" in report.lines()[1]
    assert report.lines()[2] == f"  training, curve, loss, step {lost['step']}: golden {lost['value']}, run nothing"
