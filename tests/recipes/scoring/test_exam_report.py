"""What a person reads of an exam: the rows of the table, and the plot."""

import pytest

from nemotron.recipes.scoring.exam_report import exam_rows, plot_exam
from nemotron.recipes.sources.exercises.families import FAMILIES

NAMES = {"reinforced": "reinforced", "preferred": "with preferences"}
ALL = [*FAMILIES, "all"]
METRICS = {
    **{f"{name}/{family}/reinforced": 0.5 for name in ("exact_match", "standard_error") for family in ALL},
    **{f"{name}/{family}/preferred": 0.625 for name in ("exact_match", "standard_error") for family in ALL},
    **{f"{name}/{family}": 0.125 for name in ("difference", "chance") for family in ALL},
    **{f"difference_error/{family}": 0.0625 for family in ALL},
    **{f"obeyed/{model}/{mode}": 0.625 for model in NAMES for mode in ("think", "no_think")},
}
MERGED = {
    **METRICS,
    **{f"{name}/{family}/merged": 0.75 for name in ("exact_match", "standard_error") for family in ALL},
    **{f"{name}/{family}/preferred": 0.25 for name in ("difference", "difference_error") for family in ALL},
    **{f"obeyed/merged/{mode}": 0.875 for mode in ("think", "no_think")},
}


# --- the table ---


def test_the_table_has_the_models_beside_each_other_with_difference_and_chance_level():
    rows = exam_rows(METRICS, NAMES)
    assert rows[0] == "| exact match | reinforced | with preferences | difference, points | chance level |"
    assert "| math | 50.0% ± 50.0% | 62.5% ± 62.5% | +12.5 ± 6.2 | 12.5% |" in rows
    assert all(any(row.startswith(f"| {family} |") for row in rows) for family in FAMILIES)
    assert sum(row.startswith("| **all but long_context** |") for row in rows) == 1
    assert "| thinks or not, as asked | reinforced | with preferences |" in rows
    assert "| with /no_think | 62.5% | 62.5% |" in rows


def test_every_line_of_a_table_has_as_many_cells_as_its_heading():
    for metrics, names in ((METRICS, NAMES), (MERGED, {**NAMES, "merged": "merged"}), (METRICS, {"preferred": "one"})):
        table = [row.count("|") for row in exam_rows(metrics, names)]
        assert table[: table.index(0)] == [len(names) + max(1, len(names) - 1) * (len(names) > 1) + 3] * (len(ALL) + 2)
        assert table[table.index(0) + 1 : -2] == [len(names) + 2] * 4


def test_of_three_models_each_is_compared_with_the_one_before_it():
    rows = exam_rows(MERGED, {**NAMES, "merged": "merged"})
    assert (
        "| with preferences less reinforced, points | merged less with preferences, points | chance level |" in rows[0]
    )
    assert "| 75.0% ± 75.0% | +25.0 ± 25.0 | +12.5 ± 6.2 | 12.5% |" in rows[2]


def test_replies_that_could_not_be_judged_have_a_row_if_there_are_some():
    assert not [row for row in exam_rows(METRICS, NAMES) if "not judged" in row]
    some = METRICS | {"verifier_faults/exam/reinforced": 0.0, "verifier_faults/exam/preferred": 0.25}
    assert "| not judged, because the verifier failed | 0.0% | 25.0% |" in exam_rows(some, NAMES)


def test_a_family_without_an_exercise_has_no_row_and_no_bar(tmp_path):
    some = {name: value for name, value in METRICS.items() if name.split("/")[1] != "math"}
    plot_exam(some, NAMES, tmp_path / "exam.svg")
    assert "<!-- math -->" not in (tmp_path / "exam.svg").read_text()
    rows = exam_rows(some, NAMES)
    assert len(rows) == len(exam_rows(METRICS, NAMES)) - 1
    assert not [row for row in rows if row.startswith("| math |")]


# --- the plot ---


@pytest.mark.parametrize(("metrics", "names"), [(METRICS, NAMES), (MERGED, {**NAMES, "merged": "merged"})])
def test_the_plot_has_the_same_bytes_for_the_same_numbers(metrics, names, tmp_path):
    for name in ("one.svg", "other.svg"):
        plot_exam(metrics, names, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    assert all(f"<!-- {name} -->" in text for name in (*names.values(), "best constant reply"))


@pytest.mark.parametrize("name", ["exact_match/math/preferred", "standard_error/math/reinforced", "chance/math"])
def test_the_plot_shows(name, tmp_path):
    plot_exam(METRICS, NAMES, tmp_path / "one.svg")
    plot_exam({**METRICS, name: 0.25}, NAMES, tmp_path / "other.svg")
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "other.svg").read_bytes()
