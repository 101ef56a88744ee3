"""Documents and conversations go through the same rules; most tests run on both."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.rules import (
    MAX_EXAMPLES,
    MAX_VALUE_CHARACTERS,
    Rule,
    apply_to_dataframe,
    apply_to_files,
    apply_to_list,
    print_reasons,
    report_unreadable,
    to_dataframe,
)
from nemotron.recipes.sources import Document, Unreadable, documents


def document(id, text="", **fields):
    return Document(id, module=id, category="wiki", text=text, licence="MIT", origin="here", **fields)


def sized(sizes):
    """Documents whose texts are these numbers, in reverse order of their ids."""
    return [document(f"{number:04d}", str(size)) for number, size in enumerate(sizes)][::-1]


def at_least(bound, name="size"):
    return Rule(name, f"at least {bound}", lambda item: None if int(item.text) >= bound else item.text)


def apply_to_frame(items, rules, reports):
    """`apply_to_dataframe` with lists at both ends."""
    rows = apply_to_dataframe(to_dataframe(items), rules, reports).to_pylist()
    return sorted((Document(**row) for row in rows), key=items.index)


def apply_to_written_frame(items, rules, reports):
    """The same, with files between two passes."""
    with TemporaryDirectory() as directory:
        rows = apply_to_dataframe(to_dataframe(items), rules, reports, Path(directory)).to_pylist()
    return sorted((Document(**row) for row in rows), key=items.index)


def apply_to_two_files(items, rules, reports):
    """`apply_to_files`, in files of two documents."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "FILE_CHARACTERS", 2)
        paths = documents.write_document_files(Path(directory) / "raw", items)
        remaining = apply_to_files(paths, rules, reports, Path(directory) / "kept", lambda document: document)
        return list(documents.read_documents(remaining))


def test_files_keep_their_documents_apart_and_in_order_in_the_second_pass_too(tmp_path, monkeypatch):
    """Files of two directories may have the same name."""
    monkeypatch.setattr(documents, "FILE_CHARACTERS", 2)
    reports, paths = {}, []
    for name in ("a", "b"):
        items = [document(f"{name}{number}", str(number % 5)) for number in range(9)]
        paths += documents.write_document_files(tmp_path / name, items)
    for number, rule in enumerate((at_least(1, "first"), at_least(2, "second"))):
        paths = apply_to_files(paths, [rule], reports, tmp_path / str(number), lambda one: one)
    assert max(len(list(documents.read_documents([path]))) for path in paths) == 2
    kept = [one.id for one in documents.read_documents(paths)]
    assert kept == [f"{name}{number}" for name in ("a", "b") for number in range(9) if number % 5 > 1]
    assert (reports["second"].num_seen, reports["second"].num_dropped) == (14, 4)


each_way = pytest.mark.parametrize("apply", [apply_to_list, apply_to_frame, apply_to_written_frame, apply_to_two_files])


@each_way
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=30), bound=st.integers(0, 9))
@settings(max_examples=25)
def test_kept_and_dropped_items_add_up_to_seen_items(apply, sizes, bound):
    reports = {}
    expected = [f"{number:04d}" for number, size in enumerate(sizes) if size >= bound]
    if not expected:
        with pytest.raises(ValueError, match="leaves none"):
            apply(sized(sizes), [at_least(bound)], reports)
        return
    kept = apply(sized(sizes), [at_least(bound)], reports)
    assert [item.id for item in kept] == expected[::-1]
    report = reports["size"]
    assert (report.num_seen, report.num_dropped) == (len(sizes), len(sizes) - len(expected))
    dropped = [(f"{number:04d}", str(size)) for number, size in enumerate(sizes) if size < bound]
    assert [(example.id, example.value) for example in report.examples] == dropped[:MAX_EXAMPLES]


@each_way
def test_a_rule_sees_only_what_the_rules_before_it_kept(apply):
    reports, seen = {}, []

    def last_fault(item):
        seen.append(item.text)
        return None if item.text == "4" else item.text

    rules = [at_least(2, "first"), at_least(3, "second"), Rule("last", "4", last_fault)]
    kept = apply(sized([1, 2, 3, 4]), rules, reports)
    assert [item.text for item in kept] == ["4"]
    assert [(name, report.num_seen, report.num_dropped) for name, report in reports.items()] == [
        ("first", 4, 1),
        ("second", 3, 1),
        ("last", 2, 1),
    ]
    assert sorted(seen) == ["3", "4"]


@each_way
def test_a_second_call_adds_to_the_reports_of_the_first(apply):
    reports = {}
    apply(apply(sized([1, 2, 3]), [at_least(2, "first")], reports), [at_least(3, "second")], reports)
    assert [(name, report.num_seen) for name, report in reports.items()] == [("first", 3), ("second", 2)]


@each_way
def test_an_empty_fault_is_a_fault(apply):
    rule = Rule("empty", "none", lambda item: "" if item.text == "1" else None)
    assert [item.text for item in apply(sized([1, 2]), [rule], {})] == ["2"]


@each_way
def test_items_come_back_unchanged(apply):
    items = [
        document("a", "text", has_example=True, exported=False, bucket=7),
        document("b", "", has_example=None, exported=None, bucket=None),
    ]
    assert apply(items, [Rule("none", "anything", lambda item: None)], {}) == items


def test_optional_columns_may_be_missing_and_other_columns_are_kept():
    frame = to_dataframe(sized([1, 2])).exclude("bucket", "exported").with_column_renamed("has_example", "else")
    kept = apply_to_dataframe(frame, [at_least(2)], {})
    assert kept.column_names == frame.column_names


@each_way
def test_a_rule_that_drops_everything_is_an_error_with_an_example_and_a_remedy(apply):
    rules = [at_least(1, "fine"), at_least(9), at_least(1, "not reached")]
    reports = {}
    with pytest.raises(
        ValueError,
        match=r"^the filter 'size' leaves none of 2 items, for example 0000 \('1'\); "
        r"its threshold is 'at least 9'; use other or more sources$",
    ):
        apply(sized([1, 2, 0]), rules, reports)
    assert list(reports) == ["fine"]


def test_a_rule_can_name_its_own_remedy():
    rule = Rule("length", "10 tokens", lambda item: "11 tokens", remedy="raise --sequence-length")
    with pytest.raises(ValueError, match=r"; raise --sequence-length$"):
        apply_to_list(sized([1]), [rule], {})


@pytest.mark.parametrize("newlines", ["a\nb", "a\r\nb"])
def test_an_example_with_line_breaks_is_still_one_line(newlines):
    with pytest.raises(ValueError, match="leaves none") as error:
        apply_to_list(sized([1]), [Rule("lines", "none", lambda item: newlines)], {})
    assert "\n" not in str(error.value)


@each_way
def test_no_items_at_all_is_an_error(apply):
    with pytest.raises(ValueError, match="leaves none of 0 items; its threshold"):
        apply([], [at_least(1)], {})


def test_reasons_are_counted_with_the_first_item_of_each(capsys):
    reasons = [f"line {number} is not JSON" for number in range(3)] + ["it has no 'messages'"]
    print_reasons("unreadable", [(f"a#{number}", reason) for number, reason in enumerate(reasons)])
    assert capsys.readouterr().err.splitlines() == [
        "unreadable: 3, the first is a#0: line 0 is not JSON",
        "unreadable: 1, the first is a#3: it has no 'messages'",
    ]


def test_rare_reasons_are_counted_together(capsys):
    print_reasons("unreadable", [("common", "z"), *((letter, letter) for letter in "abcdefg"), ("again", "z")])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "unreadable: 2, the first is common: z"
    assert lines[-1] == "unreadable: 3 for 3 other reasons"
    assert len(lines) == MAX_EXAMPLES + 1


def test_unreadable_rows_are_printed_and_the_first_returned(capsys):
    first = report_unreadable([Unreadable(str(number), "no text") for number in range(9)])
    assert [(item.id, item.value) for item in first] == [(str(number), "no text") for number in range(MAX_EXAMPLES)]
    assert capsys.readouterr().err == "unreadable: 9, the first is 0: no text\n"


def test_a_rule_can_print_its_reasons(capsys):
    rule = Rule("size", "9", lambda item: f"{item.text} is small" if item.text == "1" else None, prints_reasons=True)
    apply_to_list(sized([1, 9, 1]), [rule], {})
    assert capsys.readouterr().err.splitlines()[1:] == ["size: 2, the first is 0002: 1 is small"]


def test_long_faults_are_cut():
    reports = {}
    apply_to_list(sized([1, 2]), [Rule("long", "2", lambda item: None if item.text == "2" else "x" * 999)], reports)
    assert reports["long"].examples[0].value == "x" * MAX_VALUE_CHARACTERS


@each_way
def test_each_rule_prints_one_line_to_stderr_and_nothing_to_stdout(apply, capsys):
    apply(sized([1] * 68 + [2] * 1432), [at_least(2, "exact duplicates"), at_least(0, "other")], {})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "exact duplicates                 1,500 ->     1,432 (68 dropped)",
        "other                            1,432 ->     1,432 (0 dropped)",
    ]


@each_way
def test_two_rules_with_one_name_are_refused_because_one_report_would_be_lost(apply):
    with pytest.raises(ValueError, match="two filters are named 'size', and one report would be lost; rename one"):
        apply(sized([3]), [at_least(1), at_least(2)], {})
    reports = {}
    apply(sized([3]), [at_least(1)], reports)
    with pytest.raises(ValueError, match="two filters are named 'size'"):
        apply(sized([3]), [at_least(1)], reports)


def test_a_fault_that_is_not_text_is_refused_so_that_a_predicate_is_not_taken_for_a_rule():
    with pytest.raises(TypeError, match="the filter 'size' says False of 0000; return what is wrong, or None"):
        apply_to_list(sized([3]), [Rule("size", "any", lambda item: False)], {})


@each_way
def test_a_rule_that_drops_others_in_equal_number_has_another_digest(apply):
    reports = []
    for sizes in ([0, 5, 5, 0], [0, 5, 5, 0], [5, 0, 5, 0]):
        found = {}
        items = sized(sizes) if len(reports) != 1 else sized(sizes)[::-1]  # the order of the items does not matter
        apply(items, [at_least(1)], found)
        reports.append(found["size"])
    assert {report.num_dropped for report in reports} == {2}
    assert reports[0].recorded() == reports[1].recorded() != reports[2].recorded()
    expected = hashlib.sha256(b"4:00004:0003").hexdigest()
    assert reports[0].recorded() == {"num_seen": 4, "num_dropped": 2, "dropped_sha256": expected}


def test_the_digest_counts_every_dropped_item_and_not_the_examples_alone():
    digests = set()
    for kept in range(20):
        found = {}
        apply_to_list(sized([5 * (number == kept) for number in range(20)]), [at_least(1)], found)
        digests.add(found["size"].dropped_sha256)
    assert len(digests) == 20
