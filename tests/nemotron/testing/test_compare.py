"""The comparison rejects every corrupted run and golden, and accepts differences within the policy."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.strict import MAX_DEPTH
from nemotron.testing.compare import (
    MAX_ATOL,
    MAX_RTOL,
    GoldenError,
    Policy,
    compare,
    encode_golden,
    parse_golden,
    parse_json,
    read_ladder,
    relative_difference,
    run_document,
    shorten_values,
    write_golden,
)

STAGE = "nano2/stage0_pretrain"
LOSSES = [6.2538171, 5.7512345, -0.125, 3.51234e-3, 2.2514141]


def document():
    """A small run with exact values of every type, a curve, and nested values."""
    curation = [
        {"rung": "versions", "name": "sympy", "step": None, "value": "1.14.0"},
        {"rung": "config", "name": "compile", "step": 0, "value": False},
        {"rung": "config", "name": "cut_long_context_to", "step": 0, "value": None},
        {"rung": "counts", "name": "num_documents", "step": 0, "value": 1377},
        {"rung": "counts", "name": "dropped", "step": 0, "value": {"licence": 1, "language": 12}},
        {"rung": "ids", "name": "sha256 of document ids", "step": 0, "value": "9f86d081884c7d65"},
    ]
    training = [
        {"rung": "initial weights", "name": "embeddings", "step": 0, "value": [1.5, -0.25, 0.0]},
        *({"rung": "curve", "name": "loss", "step": step, "value": loss} for step, loss in enumerate(LOSSES)),
    ]
    evaluation = [{"rung": "counts", "name": "correct", "step": 0, "value": 17}]
    return {"stage": STAGE, "ladder": {"data_curation": curation, "training": training, "evaluation": evaluation}}


GOLDEN = encode_golden(document(), Policy())


def changed(*path, to):
    """The document with another value at `path`."""
    poisoned = document()
    place = poisoned
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return poisoned


def training_ladder(change):
    """The document with `change` applied to the ladder of the training step."""
    poisoned = document()
    change(poisoned["ladder"]["training"])
    return poisoned


def losses(*values):
    """The document with another loss curve."""
    poisoned = document()
    ladder = poisoned["ladder"]["training"]
    poisoned["ladder"]["training"] = ladder[:1] + [
        {"rung": "curve", "name": "loss", "step": step, "value": value} for step, value in enumerate(values)
    ]
    return poisoned


LOSS = ("ladder", "training", 3, "value")  # -0.125
NORMS = ("ladder", "training", 0, "value")

POISONED_RUNS = {
    "NaN": changed(*LOSS, to=math.nan),
    "infinity": changed(*LOSS, to=math.inf),
    "minus infinity": changed(*LOSS, to=-math.inf),
    "NaN inside a list": changed(*NORMS, to=[1.5, math.nan, 0.0]),
    "vanished value": changed(*LOSS, to=None),
    "vanished metric": training_ladder(lambda ladder: ladder.pop(0)),
    "vanished step in the middle": training_ladder(lambda ladder: ladder.pop(3)),
    "missing last step": training_ladder(lambda ladder: ladder.pop()),
    "extra metric": training_ladder(lambda ladder: ladder.append({**ladder[0], "name": "norm"})),
    "extra step": losses(*LOSSES, LOSSES[-1]),
    "duplicated entry": training_ladder(lambda ladder: ladder.append(ladder[-1])),
    "steps shifted by one": training_ladder(lambda ladder: [e.update(step=e["step"] + 1) for e in ladder[1:]]),
    "values shifted by one step": losses(*LOSSES[1:], LOSSES[-1]),
    "first step repeated": losses(LOSSES[0], *LOSSES[:-1]),
    "two steps swapped": training_ladder(lambda ladder: ladder.insert(1, ladder.pop(2))),
    "curve reversed": losses(*reversed(LOSSES)),
    "one outlier": losses(*LOSSES[:-1], 2.26),
    "uniform bias of 1e-8": losses(*(loss * (1 + 1e-8) for loss in LOSSES)),
    "bias just beyond the policy": losses(*(loss * (1 + 1.1e-9) for loss in LOSSES)),
    "constant added": losses(*(loss + 1e-11 for loss in LOSSES)),
    "sign flip": losses(*LOSSES[:2], 0.125, *LOSSES[3:]),
    "all zero": losses(0.0, 0.0, 0.0, 0.0, 0.0),
    "rounded to four digits": losses(*(round(loss, 4) for loss in LOSSES)),
    "zero becomes small": changed(*NORMS, to=[1.5, -0.25, 1.1e-12]),
    "integer for float": changed(*NORMS, to=[1.5, -0.25, 0]),
    "float for integer": changed("ladder", "evaluation", 0, "value", to=17.0),
    "true for one": changed("ladder", "data_curation", 4, "value", to={"licence": True, "language": 12}),
    "zero for false": changed("ladder", "data_curation", 1, "value", to=0),
    "false for null": changed("ladder", "data_curation", 2, "value", to=False),
    "string for float": changed(*LOSS, to="-0.125"),
    "string for integer": changed("ladder", "evaluation", 0, "value", to="17"),
    "list for float": changed(*LOSS, to=[-0.125]),
    "count off by one": changed("ladder", "evaluation", 0, "value", to=18),
    "other version": changed("ladder", "data_curation", 0, "value", to="1.14.1"),
    "one character of a digest": changed("ladder", "data_curation", 5, "value", to="9f86d081884c7d66"),
    "string in another case": changed("ladder", "data_curation", 5, "value", to="9F86D081884C7D65"),
    "string with a trailing space": changed("ladder", "data_curation", 5, "value", to="9f86d081884c7d65 "),
    "look-alike letter in a value": changed("ladder", "data_curation", 0, "value", to="1.14.О"),
    "look-alike letter in a name": changed("ladder", "training", 1, "name", to="lоss"),
    "look-alike letter in a key": changed("ladder", "data_curation", 4, "value", to={"licеnce": 1, "language": 12}),
    "other Unicode normal form": changed("ladder", "training", 1, "name", to="lo\u0301ss"),
    "shorter list": changed(*NORMS, to=[1.5, -0.25]),
    "longer list": changed(*NORMS, to=[1.5, -0.25, 0.0, 0.0]),
    "empty list": changed(*NORMS, to=[]),
    "list in another order": changed(*NORMS, to=[-0.25, 1.5, 0.0]),
    "key missing inside a value": changed("ladder", "data_curation", 4, "value", to={"licence": 1}),
    "key added inside a value": changed(
        "ladder", "data_curation", 4, "value", to={"licence": 1, "language": 12, "length": 0}
    ),
    "integer key": changed("ladder", "data_curation", 4, "value", to={1: 1, "language": 12}),
    "tuple": changed(*NORMS, to=(1.5, -0.25, 0.0)),
    "numpy float": changed(*LOSS, to=np.float64(-0.125)),
    "numpy integer": changed("ladder", "evaluation", 0, "value", to=np.int64(17)),
    "other rung": changed("ladder", "training", 1, "rung", to="losses"),
    "step as a float": changed("ladder", "training", 1, "step", to=0.0),
    "step as a string": changed("ladder", "training", 1, "step", to="0"),
    "negative step": changed("ladder", "training", 1, "step", to=-1),
    "step null for 0": changed("ladder", "training", 1, "step", to=None),
    "empty name": changed("ladder", "training", 1, "name", to=""),
    "empty rung": changed("ladder", "training", 1, "rung", to=""),
    "entry without a value": changed("ladder", "training", 1, to={"rung": "curve", "name": "loss", "step": 0}),
    "entry with another key": changed(
        "ladder", "training", 1, to={**document()["ladder"]["training"][1], "seconds": 1.0}
    ),
    "entry that is a list": changed("ladder", "training", 1, to=["curve", "loss", 0, 6.25]),
    "no entries": changed("ladder", "training", to=[]),
    "no steps": changed("ladder", to={}),
    "step of the stage missing": changed(
        "ladder", to={k: v for k, v in document()["ladder"].items() if k != "training"}
    ),
    "step of the stage added": changed(
        "ladder", to={**document()["ladder"], "export": document()["ladder"]["evaluation"]}
    ),
    "steps of the stage reordered": changed("ladder", to=dict(reversed(document()["ladder"].items()))),
    "other stage": changed("stage", to="nano2/stage1_sft"),
    "no stage": changed("stage", to=""),
    "nested too deep": changed(*LOSS, to=json.loads("[" * 40 + "]" * 40)),
}


@pytest.mark.parametrize("name", POISONED_RUNS)
def test_poisoned_run_is_not_accepted(name):
    try:
        accepted = compare(GOLDEN, POISONED_RUNS[name]).equal
    except GoldenError:
        accepted = False
    assert not accepted


def policy(rtol, atol):
    """The golden's text with another policy."""
    old = f'"policy": {{"rtol": {MAX_RTOL}, "atol": {MAX_ATOL}}}'
    assert old in GOLDEN
    return GOLDEN.replace(old, f'"policy": {{"rtol": {rtol}, "atol": {atol}}}')


POISONED_GOLDENS = {
    "empty": "",
    "only white space": "\n \n",
    "truncated": GOLDEN[: len(GOLDEN) // 2],
    "last bracket missing": GOLDEN.rstrip()[:-1],
    "trailing text": GOLDEN + "{}",
    "merge conflict": GOLDEN.replace(' "stage"', '<<<<<<< HEAD\n "stage"'),
    "byte order mark": b"\xef\xbb\xbf" + GOLDEN.encode(),
    "not UTF-8": GOLDEN.encode().replace(b"sympy", b"symp\xff"),
    "UTF-16": GOLDEN.encode("utf-16"),
    "a list": "[]",
    "null": "null",
    "NaN": GOLDEN.replace("-0.125", "NaN"),
    "Infinity": GOLDEN.replace("-0.125", "Infinity"),
    "-Infinity": GOLDEN.replace("-0.125", "-Infinity"),
    "number that overflows": GOLDEN.replace("-0.125", "1e999"),
    "number with thousands of digits": GOLDEN.replace("1377", "1" * 10_000),
    "key twice": GOLDEN.replace(' "stage"', f' "stage": "{STAGE}",\n "stage"'),
    "policy twice": GOLDEN.replace(' "policy"', ' "policy": {"rtol": 1e-9, "atol": 1e-12},\n "policy"'),
    "no policy": GOLDEN.replace(' "policy": {"rtol": 1e-09, "atol": 1e-12},\n', ""),
    "policy null": GOLDEN.replace('{"rtol": 1e-09, "atol": 1e-12}', "null"),
    "policy that is a list": GOLDEN.replace('{"rtol": 1e-09, "atol": 1e-12}', '["rtol", "atol"]'),
    "empty policy": GOLDEN.replace('{"rtol": 1e-09, "atol": 1e-12}', "{}"),
    "policy without atol": GOLDEN.replace(', "atol": 1e-12', ""),
    "policy with another field": GOLDEN.replace('"rtol": 1e-09', '"rtol": 1e-09, "rtol_loss": 1e-2'),
    "looser rtol": policy(1.0001e-9, MAX_ATOL),
    "looser atol": policy(MAX_RTOL, 1e-6),
    "negative rtol": policy(-1e-12, MAX_ATOL),
    "infinite rtol": policy("Infinity", MAX_ATOL),
    "NaN rtol": policy("NaN", MAX_ATOL),
    "rtol as a string": policy('"1e-9"', MAX_ATOL),
    "rtol true": policy("true", MAX_ATOL),
    "atol null": policy(MAX_RTOL, "null"),
    "other schema version": GOLDEN.replace('"schema_version": 1', '"schema_version": 2'),
    "earlier schema version": GOLDEN.replace('"schema_version": 1', '"schema_version": 0'),
    "schema version true": GOLDEN.replace('"schema_version": 1', '"schema_version": true'),
    "schema version as a float": GOLDEN.replace('"schema_version": 1', '"schema_version": 1.0'),
    "unknown field": GOLDEN.replace(' "stage"', ' "seconds": 14.0,\n "stage"'),
    "no ladder": GOLDEN[: GOLDEN.index(' "ladder"')] + ' "ladder": {}\n}',
    "ladder that is an empty list": GOLDEN[: GOLDEN.index(' "ladder"')] + ' "ladder": []\n}',
    "ladder that is a list": GOLDEN[: GOLDEN.index(' "ladder"')] + ' "ladder": [1]\n}',
    "entries that are a dict": GOLDEN[: GOLDEN.index(' "ladder"')] + ' "ladder": {"training": {"a": 1}}\n}',
    "step without entries": GOLDEN[: GOLDEN.index(' "ladder"')] + ' "ladder": {"training": []}\n}',
    "entry twice": GOLDEN.replace('"step": 1, "value": 5.7512345', '"step": 0, "value": 5.7512345'),
    "other stage": GOLDEN.replace(STAGE, "nano2/stage1_sft"),
    "stage that is a number": GOLDEN.replace(f'"{STAGE}"', "0"),
    "nested too deep": GOLDEN.replace("-0.125", "[" * 40 + "]" * 40),
    "nested beyond the stack": "[" * 100_000,
}


@pytest.mark.parametrize("name", POISONED_GOLDENS)
def test_poisoned_golden_is_refused(name):
    with pytest.raises(GoldenError) as error:
        compare(POISONED_GOLDENS[name], document())
    assert "\n" not in str(error.value)


def test_run_equals_the_golden_written_from_it():
    comparison = compare(GOLDEN, document())
    assert comparison.equal
    assert comparison.largest == 0
    assert comparison.num_values == 6 + 1 + 3 + len(LOSSES) + 1
    assert comparison.lines() == [f"{STAGE} reproduces its golden: to the last bit"]


def test_parsed_golden_encodes_to_the_same_bytes():
    assert encode_golden(*parse_golden(GOLDEN)) == GOLDEN


def test_golden_has_one_line_per_entry():
    lines = [line for line in GOLDEN.splitlines() if '"rung"' in line]
    assert len(lines) == sum(map(len, document()["ladder"].values()))


def test_golden_is_ascii():
    assert encode_golden(changed("ladder", "training", 1, "name", to="lоss"), Policy()).isascii()


def test_first_difference_is_in_the_first_broken_rung():
    run = changed("ladder", "data_curation", 3, "value", to=1376)
    run["ladder"]["training"][3]["value"] = -0.126
    run["ladder"]["evaluation"][0]["value"] = 3
    comparison = compare(GOLDEN, run)
    assert [difference.place for difference in comparison.differences] == [
        "data_curation, counts, num_documents, step 0",
        "training, curve, loss, step 2",
        "evaluation, counts, correct, step 0",
    ]
    assert comparison.lines()[0].startswith(f"{STAGE} differs from its golden at data_curation, counts, num_documents,")


def test_difference_shows_both_values_and_the_relative_difference():
    assert compare(GOLDEN, changed(*LOSS, to=-0.25)).lines() == [
        f"{STAGE} differs from its golden at training, curve, loss, step 2: golden -0.125, run -0.25 "
        "(relative difference 1e+00)"
    ]


def test_missing_entry_is_the_only_difference():
    comparison = compare(GOLDEN, POISONED_RUNS["vanished step in the middle"])
    assert [(d.place, d.reason) for d in comparison.differences] == [
        ("training, curve, loss, step 2", "missing from the run")
    ]


def test_message_escapes_look_alike_letters():
    comparison = compare(GOLDEN, POISONED_RUNS["look-alike letter in a value"])
    assert '"1.14.\\u041e"' in comparison.lines()[0]


@pytest.mark.parametrize(("small", "large"), [(0, 4), (4, 0)])
def test_equal_run_names_the_place_of_its_largest_difference(small, large):
    run = document()
    run["ladder"]["training"][1 + small]["value"] *= 1 + 4e-15
    run["ladder"]["training"][1 + large]["value"] *= 1 + 2e-13
    comparison = compare(GOLDEN, run)
    assert comparison.equal
    assert comparison.largest_place == f"training, curve, loss, step {large}"
    assert comparison.largest == pytest.approx(2e-13, rel=0.01)
    assert comparison.lines() == [
        f"{STAGE} reproduces its golden: largest relative difference 2e-13, training, curve, loss, step {large}"
    ]


def test_largest_difference_counts_only_floats_within_the_policy():
    comparison = compare(GOLDEN, changed(*LOSS, to=-0.126))
    assert comparison.largest == 0


def test_tighter_policy_is_applied():
    run = changed(*LOSS, to=-0.125 * (1 + 5e-10))
    assert compare(GOLDEN, run).equal
    assert not compare(policy(1e-10, MAX_ATOL), run).equal
    assert not compare(policy(0.0, 0.0), changed(*LOSS, to=math.nextafter(-0.125, 0))).equal


def test_small_number_is_compared_by_its_absolute_difference():
    golden = encode_golden(changed(*LOSS, to=1e-10), Policy())
    assert compare(golden, changed(*LOSS, to=1e-10 + 0.9e-12)).equal
    assert not compare(golden, changed(*LOSS, to=1e-10 + 1.1e-12)).equal


def test_minus_zero_equals_zero():
    assert compare(GOLDEN, changed(*NORMS, to=[1.5, -0.25, -0.0])).equal


def test_largest_floats_are_compared():
    golden = encode_golden(changed(*LOSS, to=1.7e308), Policy())
    assert compare(golden, changed(*LOSS, to=1.7e308 * (1 - 1e-10))).equal
    assert not compare(golden, changed(*LOSS, to=-1.7e308)).equal


def test_order_of_dict_keys_does_not_matter():
    assert compare(GOLDEN, changed("ladder", "data_curation", 4, "value", to={"language": 12, "licence": 1})).equal


def test_comparison_does_not_change_the_run():
    run = document()
    compare(GOLDEN, run)
    assert run == document()


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=5)
KEYS = st.text(max_size=3)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=6)
LADDERS = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.none() | st.integers(0, 3), VALUES),
        min_size=1,
        max_size=5,
        unique_by=lambda entry: entry[:3],
    ),
    min_size=1,
    max_size=3,
)


@given(LADDERS)
def test_every_run_equals_its_own_golden(ladders):
    run = run_document(
        STAGE,
        {k: [dict(zip(("rung", "name", "step", "value"), e, strict=True)) for e in v] for k, v in ladders.items()},
    )
    golden = encode_golden(run, Policy())
    assert compare(golden, run).equal
    assert parse_golden(golden)[0] == run


NUM_LOSSES = len(LOSSES)
GOLDEN_FLOATS = st.floats(-1e6, 1e6).filter(lambda number: number == 0 or abs(number) > 1e-6)


@given(
    st.lists(GOLDEN_FLOATS, min_size=NUM_LOSSES, max_size=NUM_LOSSES),
    st.integers(0, NUM_LOSSES - 1),
    st.floats(-0.999, 0.999),
)
def test_every_change_within_the_policy_is_accepted(values, index, share):
    golden = encode_golden(losses(*values), Policy())
    bound = max(MAX_ATOL, MAX_RTOL * abs(values[index]))
    moved = list(values)
    moved[index] += share * bound
    assert compare(golden, losses(*moved)).equal


@given(
    st.lists(GOLDEN_FLOATS, min_size=NUM_LOSSES, max_size=NUM_LOSSES),
    st.integers(0, NUM_LOSSES - 1),
    st.floats(1.001, 1e12),
    st.sampled_from([-1, 1]),
)
def test_every_change_beyond_the_policy_is_found_at_its_place(values, index, share, sign):
    golden = encode_golden(losses(*values), Policy())
    moved = list(values)
    moved[index] += sign * share * max(MAX_ATOL, MAX_RTOL * abs(values[index]))
    comparison = compare(golden, losses(*moved))
    assert [difference.place for difference in comparison.differences] == [f"training, curve, loss, step {index}"]


@given(st.sampled_from(range(len(document()["ladder"]["data_curation"]))), SCALARS)
def test_every_other_exact_value_differs(index, value):
    entry = document()["ladder"]["data_curation"][index]
    same = type(value) is type(entry["value"]) and value == entry["value"]
    assert compare(GOLDEN, changed("ladder", "data_curation", index, "value", to=value)).equal == same


@given(st.integers(0, len(GOLDEN) - 1), st.characters(codec="ascii"))
def test_every_changed_character_of_a_golden_is_noticed(index, character):
    """The golden is refused or differs, unless the change is white space or within the policy."""
    damaged = GOLDEN[:index] + character + GOLDEN[index + 1 :]
    try:
        document_read, policy_read = parse_golden(damaged)
    except GoldenError:
        return
    assert policy_read.rtol <= MAX_RTOL
    assert policy_read.atol <= MAX_ATOL
    if document_read["stage"] == STAGE:
        floats_alike = not compare(damaged, document()).differences
        assert floats_alike == (document_read == document())


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_arbitrary_bytes_are_refused_with_one_sentence(text):
    with pytest.raises(GoldenError) as error:
        parse_golden(text)
    assert "\n" not in str(error.value)


@given(FINITE, FINITE)
def test_relative_difference_agrees_with_the_policy(golden, run):
    relative = relative_difference(golden, run)
    if not math.isclose(relative, MAX_RTOL, rel_tol=1e-6):
        assert Policy().accepts(golden, run) == (relative <= MAX_RTOL)


def test_repeated_key_is_refused_at_any_depth():
    with pytest.raises(GoldenError, match='the run holds the key "a" twice'):
        parse_json('{"x": [{"a": 1, "b": 2, "a": 1}]}', "the run")


def test_ladder_of_a_step_is_read_from_its_directory(tmp_path):
    ladder = document()["ladder"]["training"]
    (tmp_path / "ladder.json").write_text(json.dumps(ladder))
    assert read_ladder(tmp_path) == ladder


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist; the step that writes this artifact must write it"),
        ("{}", "holds a dict, not a list of entries"),
        ("[NaN]", "holds NaN"),
        ("[", "is not valid JSON"),
    ],
)
def test_unreadable_ladder_is_named(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "ladder.json").write_text(text)
    with pytest.raises(GoldenError, match=sentence) as error:
        read_ladder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_run_document_copies_the_ladders():
    ladders = document()["ladder"]
    run = run_document(STAGE, ladders)
    before = copy.deepcopy(run)
    ladders["training"].clear()
    assert run == before


def test_comparison_imports_neither_pytest_nor_syrupy_nor_torch():
    program = (
        "import sys, runpy; runpy.run_path(sys.argv[1]); "
        "print(sorted({'pytest', '_pytest', 'syrupy', 'torch', 'numpy'} & set(sys.modules)))"
    )
    path = Path(sys.modules[compare.__module__].__file__ or "")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_number_too_large_for_a_float_is_refused():
    with pytest.raises(GoldenError, match="the run holds 1e999, which is too large for a float"):
        parse_json("[1e999]", "the run")


@pytest.mark.parametrize("stage", ["", 0, 1, None])
def test_run_without_a_stage_name_is_refused(stage):
    with pytest.raises(GoldenError, match=rf"the run has stage={stage!r}; it must be a name"):
        run_document(stage, document()["ladder"])


@pytest.mark.parametrize("value", [math.nan, {1: 2.25}, (2.25,)])
def test_golden_is_not_encoded_from_values_that_json_would_change(value):
    with pytest.raises(GoldenError):
        encode_golden(changed(*LOSS, to=value), Policy())


def test_nested_lists_are_limited_in_depth():
    # The value of an entry is at the fourth level: ladder, step, entry, value.
    def nested(depth):
        return json.loads("[" * depth + "]" * depth)

    assert encode_golden(changed(*LOSS, to=nested(MAX_DEPTH - 3)), Policy())
    with pytest.raises(GoldenError, match="has more than 20 nested lists and dicts"):
        encode_golden(changed(*LOSS, to=nested(MAX_DEPTH - 2)), Policy())


@pytest.mark.parametrize(
    "entry",
    [
        {"rung": "", "name": "loss", "step": 0, "value": 1.0},
        {"rung": 7, "name": "loss", "step": 0, "value": 1.0},
        {"rung": "curve", "name": "", "step": 0, "value": 1.0},
        {"rung": "curve", "name": None, "step": 0, "value": 1.0},
        {"rung": "curve", "name": 7, "step": 0, "value": 1.0},
        {"rung": "curve", "name": "loss", "step": -1, "value": 1.0},
        {"rung": "curve", "name": "loss", "step": True, "value": 1.0},
        {"rung": "curve", "name": "loss", "step": 0.0, "value": 1.0},
        {"rung": "curve", "name": "loss", "step": 0},
        {"rung": "curve", "name": "loss", "step": 0, "value": 1.0, "seconds": 1.0},
        ["curve", "loss", 0, 1.0],
    ],
)
def test_malformed_entry_is_named_by_its_place(entry):
    good = {"rung": "curve", "name": "loss", "step": None, "value": 0.5}
    with pytest.raises(GoldenError, match=r"the run, training, entry 1 must be \{rung, name, step, value"):
        run_document(STAGE, {"training": [good, entry]})


@pytest.mark.parametrize("key", [1, None, True, ("a",)])
def test_key_that_is_not_a_string_is_named(key):
    with pytest.raises(GoldenError, match="which is not a string; convert it to one"):
        run_document(STAGE, {"training": [{"rung": "a", "name": "b", "step": 0, "value": {key: 1.0}}]})


def test_zero_tolerance_accepts_identical_bits():
    assert compare(policy(0.0, 0.0), document()).equal


@pytest.mark.parametrize("swapped", ["run", "golden"])
def test_reordered_entries_differ_only_in_their_order(swapped):
    sides = {"golden": document(), "run": document()} | {swapped: POISONED_RUNS["two steps swapped"]}
    comparison = compare(encode_golden(sides["golden"], Policy()), sides["run"])
    first = {"golden": 0, "run": 0} | {swapped: 1}
    assert [(d.place, d.reason) for d in comparison.differences] == [
        (f"training, curve, loss, step {first['golden']}", "entries in a different order")
    ]
    assert comparison.differences[0].golden == f'["curve", "loss", {first["golden"]}]'
    assert comparison.differences[0].run == f'["curve", "loss", {first["run"]}]'


@pytest.mark.parametrize(("length", "shown"), [(58, f'"{"x" * 58}"'), (59, f'"{"x" * 56}...')])
def test_value_of_more_than_sixty_characters_is_cut(length, shown):
    lines = compare(GOLDEN, changed("ladder", "data_curation", 0, "value", to="x" * length)).lines()
    assert f"run {shown} (not equal)" in lines[0]


@pytest.mark.parametrize(
    ("golden", "run", "shown"),
    [
        ("123456789", "12345678", ("123456789", "12345678")),
        ("1234567890", "1234567", ("1234567890", "1234567")),
        ("a" * 10, "a" * 11, ("a" * 10, "...aaa")),
        ("a" * 6 + "b" * 6, "a" * 6 + "c" * 6, ("aaaaaab...", "aaaaaac...")),
        ("a" * 7 + "b" * 6, "a" * 7 + "c" * 6, ("...aabb...", "...aacc...")),
        ("a" * 20 + "b", "a" * 20 + "c" * 5, ("...aab", "...aaccccc")),
        ("a" * 20 + "b", "a" * 20 + "c" * 6, ("...aab", "...aacc...")),
    ],
)
def test_shortened_values(golden, run, shown):
    assert shorten_values(golden, run, 10) == shown


@given(st.text("ab", max_size=60), st.text("ab", max_size=60), st.integers(12, 40))
def test_shortened_values_fit_and_still_differ(golden, run, limit):
    shown = shorten_values(golden, run, limit)
    assert max(map(len, shown)) <= limit
    assert (shown[0] == shown[1]) == (golden == run)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6), st.data())
def test_the_two_numbers_of_a_difference_are_shown_whole(golden, data):
    index = data.draw(st.integers(0, len(golden) - 1))
    other = data.draw(st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: value != golden[index]))
    run = [*golden[:index], other, *golden[index + 1 :], 7.5]
    shown = shorten_values(json.dumps(golden), json.dumps(run), 30)
    assert max(map(len, shown)) <= 30
    assert repr(golden[index]) in shown[0]
    assert repr(other) in shown[1]


def test_written_golden_keeps_the_policy_of_the_existing_one(tmp_path):
    path = tmp_path / "mine" / "first.json"
    write_golden(path, document())
    assert path.read_text() == GOLDEN
    path.write_text(encode_golden(document(), Policy(rtol=1e-11)))
    write_golden(path, changed(*LOSS, to=0.5))
    assert path.read_text() == encode_golden(changed(*LOSS, to=0.5), Policy(rtol=1e-11))
    assert [file.name for file in path.parent.iterdir()] == ["first.json"]


def test_invalid_run_leaves_the_golden_unchanged(tmp_path):
    path = tmp_path / "first.json"
    write_golden(path, document())
    with pytest.raises(GoldenError):
        write_golden(path, changed(*LOSS, to=float("nan")))
    assert path.read_text() == GOLDEN


def test_difference_names_its_step_and_entry():
    (difference,) = compare(GOLDEN, changed(*LOSS, to=0.5)).differences
    assert (difference.step, difference.label) == ("training", ("curve", "loss", 2))
    moved = training_ladder(lambda ladder: ladder.insert(1, ladder.pop(2)))
    (difference,) = compare(GOLDEN, moved).differences
    assert (difference.step, difference.label) == ("training", ("curve", "loss", 0))
    fewer = training_ladder(lambda ladder: ladder.pop(2))
    assert [d.label for d in compare(GOLDEN, fewer).differences] == [("curve", "loss", 1)]
    more = training_ladder(lambda ladder: ladder.append({**ladder[2], "step": 9}))
    assert [d.label for d in compare(GOLDEN, more).differences] == [("curve", "loss", 9)]
    steps = document()
    steps["ladder"]["another"] = steps["ladder"].pop("training")
    assert compare(GOLDEN, steps).differences[0].step == ""
