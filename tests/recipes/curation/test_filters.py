import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.filters import MAX_EXAMPLES, MAX_VALUE_CHARACTERS, Filter, apply_filter
from nemotron.recipes.sources.dataframes import daft


def at_least(bound, name="size"):
    return Filter(name, f"at least {bound}", daft.col("size"), daft.col("value") >= daft.lit(bound))


def frame(sizes):
    ids = [f"{number:04d}" for number in range(len(sizes))]
    return daft.from_pydict({"id": ids[::-1], "size": sizes[::-1]})


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=25)
def test_what_is_kept_and_what_is_dropped_add_up_to_what_was_seen(sizes, bound):
    reports = {}
    expected = [f"{number:04d}" for number, size in enumerate(sizes) if size >= bound]
    if not expected:
        with pytest.raises(ValueError, match="leaves none"):
            apply_filter(frame(sizes), at_least(bound), reports)
        return
    kept = apply_filter(frame(sizes), at_least(bound), reports)
    assert sorted(kept.to_pydict()["id"]) == expected
    report = reports["size"]
    assert (report.num_seen, report.num_dropped) == (len(sizes), len(sizes) - len(expected))
    dropped = [(f"{number:04d}", str(size)) for number, size in enumerate(sizes) if size < bound]
    assert [(example.id, example.value) for example in report.examples] == dropped[:MAX_EXAMPLES]


def test_the_columns_are_those_that_came_in():
    assert apply_filter(frame([1, 2]), at_least(2), {}).column_names == ["id", "size"]


def test_one_filter_sees_what_the_one_before_kept():
    reports = {}
    documents = apply_filter(frame([1, 2, 3, 4]), at_least(2, "first"), reports)
    apply_filter(documents, at_least(4, "second"), reports)
    assert list(reports) == ["first", "second"]
    assert (reports["second"].num_seen, reports["second"].num_dropped) == (3, 2)


def test_a_decision_of_null_drops_the_document():
    documents = daft.from_pydict({"id": ["a", "b"], "size": [1, None]})
    assert apply_filter(documents, at_least(1), {}).to_pydict()["id"] == ["a"]


def test_a_filter_that_drops_everything_says_so_in_one_sentence_with_an_example():
    with pytest.raises(ValueError, match=r"^the filter 'size' \(at least 9\) .* 0000 for instance with '1'") as error:
        apply_filter(frame([1, 2]), at_least(9), {})
    assert "\n" not in str(error.value)


def test_floats_are_shown_with_four_digits_and_long_texts_cut():
    documents = daft.from_pydict({"id": ["a", "b"], "number": [1 / 3, 1.0], "text": ["x" * 999, "y"]})
    reports = {}
    rule = Filter("number", "1", daft.col("number"), daft.col("value") == daft.lit(1.0))
    apply_filter(documents, rule, reports)
    rule = Filter("text", "y", daft.col("text"), daft.col("value") == daft.lit("y"))
    apply_filter(documents, rule, reports)
    assert reports["number"].examples[0].value == "0.3333"
    assert reports["text"].examples[0].value == "x" * MAX_VALUE_CHARACTERS


def test_each_filter_writes_one_line_to_stderr_and_nothing_to_stdout(capsys):
    reports = {}
    apply_filter(frame([1] * 68 + [2] * 1432), at_least(2, "exact duplicates"), reports)
    assert (reports["exact duplicates"].num_seen, reports["exact duplicates"].num_dropped) == (1500, 68)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert " ".join(captured.err.split()) == "exact duplicates 1,500 -> 1,432 (68 dropped)"
    assert captured.err.count("\n") == 1
