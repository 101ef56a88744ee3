"""Pictures of a report: equal for equal numbers, small, and with text that is text."""

from xml.etree import ElementTree

import pytest

from nemotron.report.plots import MAX_POINTS, binned, curve_svg, graph_svg


def curve(num_steps: int, phase: str = "only") -> list[dict]:
    return [
        {"step": step, "phase": phase, "loss": 1 / (step + 1), "learning_rate": 0.00025} for step in range(num_steps)
    ]


def texts(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_equal_numbers_give_equal_pictures():
    first, second = (curve_svg(curve(40), [], ["loss", "learning_rate"]) for _ in range(2))
    assert first == second
    assert first != curve_svg(curve(41), [], ["loss", "learning_rate"])


def test_a_picture_loads_nothing_and_names_no_date():
    svg = curve_svg(curve(40), [{"step": 40, "category": "code", "loss": 1.0}], ["loss", "learning_rate"])
    assert svg.startswith("<svg")
    assert "date" not in svg.lower()
    assert "matplotlib.org" not in svg


def test_a_number_that_never_changes_has_no_panel():
    rows = [{**row, "faults": 0.0, "reward": row["step"]} for row in curve(3)]
    shown = texts(curve_svg(rows, [], ["loss", "learning_rate", "faults", "reward"]))
    assert {"learning rate", "reward"} <= set(shown)
    assert "faults" not in shown


@pytest.mark.parametrize("num_steps", [1, 2, MAX_POINTS + 1, 5000])
def test_a_long_curve_is_no_larger_than_a_short_one(num_steps):
    svg = curve_svg(curve(num_steps), [], ["loss", "learning_rate"])
    assert len(svg) < 40_000
    assert "learning rate" in texts(svg)


def test_the_last_bin_may_be_smaller():
    assert binned([1, 3, 5, 7, 9], 2) == [2, 6, 9]


def test_text_from_the_run_stays_text(hostile):
    rows = [*curve(2), *({**row, "phase": hostile} for row in curve(2))]
    svg = curve_svg(rows, [{"step": 1, "category": hostile, "loss": 1.0}], ["loss", "learning_rate"])
    assert not list(ElementTree.fromstring(svg).iter("script"))
    assert any("<script>" in text for text in texts(svg))
    graph = graph_svg([(hostile, [(hostile, hostile)])], [])
    assert sum("<script>" in text for text in texts(graph)) == 3


def test_arrows_go_from_box_to_box():
    graph = graph_svg([("a", [("one", ""), ("two", ""), ("three", "")]), ("b", [("four", "")])],
                      [(0, 0, 0, 1), (0, 0, 0, 2), (0, 1, 1, 0)])  # fmt: skip
    assert graph.count("marker-end") == 3
    assert texts(graph)[:3] == ["a", "one", ""]
