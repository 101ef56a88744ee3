"""Compare the numbers of a run with the recorded ones, unrounded and in the order in which they were computed.

In: the golden of a stage (golden/<recipe>/<stage>.json), and the `ladder.json` of each of its steps, a list of
{rung, name, step, value} in which step is the optimizer step, 0 or null.
Out: the differences, first broken rung first, and the largest relative difference of the numbers that agree.
Used by the snapshot extension of this package and by runs that compare themselves; imports neither pytest nor syrupy.

Keys, the order of the entries, lengths, integers, strings, booleans and null must be equal. Floats must agree within
the golden's policy: tolerances of at most MAX_RTOL and MAX_ATOL. Why these limits: trained in float64, a stage differs
between instruction sets, thread counts and torch versions by at most 1e-12, and a hyper-parameter that is off by one
part in a million changes the loss by at least 3e-9.

Refused before the comparison: text that is not strict JSON (NaN, infinity, a repeated key, anything after the end), a
looser policy, the golden of another stage, a repeated entry, an empty ladder.

Left out: the report that shows the likely cause (report.py).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron import strict

SCHEMA_VERSION = 1
MAX_RTOL = 1e-9
MAX_ATOL = 1e-12

Json = Any
"""dict with string keys, list, str, int, float, bool or None."""

Label = tuple[str, str, int | None]
"""Rung, name and training step of an entry; unique in its ladder."""

"""Levels of nested lists and dicts; no ladder needs more."""

NOTHING = "nothing"
"""Shown for a value that only the other side has."""

MAX_VALUE_CHARACTERS = 60
"""Longest value in a message."""

_ABSENT = object()
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
_REPAIR = "restore it from version control, or record it again"
_ENTRY_KEYS = {"rung", "name", "step", "value"}
_GOLDEN_KEYS = {"schema_version", "stage", "policy", "ladder"}


class GoldenError(ValueError):
    """A golden or a run that cannot be compared; the message says what to do."""


@dataclass(frozen=True)
class Policy:
    """The tolerance for floats: |run - golden| <= max(atol, rtol * |golden|).

    Raises:
        GoldenError: if a bound is not a float, is negative, or is above MAX_RTOL or MAX_ATOL.
    """

    rtol: float = MAX_RTOL
    atol: float = MAX_ATOL

    def __post_init__(self) -> None:
        for name, cap in (("rtol", MAX_RTOL), ("atol", MAX_ATOL)):
            bound = getattr(self, name)
            if not isinstance(bound, float) or not 0 <= bound <= cap:
                raise GoldenError(
                    f"policy {name}={bound!r} must be a float from 0 to {cap}; do not loosen the golden, find the "
                    f"cause of the difference"
                )

    def accepts(self, golden: float, run: float) -> bool:
        """Whether `run` reproduces `golden`; both are finite."""
        return abs(run - golden) <= max(self.atol, self.rtol * abs(golden))


@dataclass(frozen=True)
class Difference:
    """One place where a run differs from its golden."""

    place: str
    """Step of the stage, rung, name, optimizer step and position in the value: "training, curve, loss, step 41"."""
    golden: str
    """The recorded value as JSON, or "nothing"."""
    run: str
    """This run's value as JSON, or "nothing"."""
    reason: str
    """The kind of difference: "relative difference 3e-07"."""
    step: str
    """The step of the stage that wrote the ladder: "training"; empty for a difference in the list of steps."""
    label: Label
    """The entry: ("curve", "loss", 41)."""


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    stage: str
    differences: tuple[Difference, ...]
    """In ladder order: the first one is closest to the cause. Empty if run and golden are equal within the policy."""
    num_values: int
    """Number of values that were compared, floats and exact values."""
    largest: float
    """Largest relative difference of the floats that agree within the policy."""
    largest_place: str
    """Place of that difference; empty if every float agrees to the last bit."""

    @property
    def equal(self) -> bool:
        """Whether the run reproduces the golden."""
        return not self.differences

    @property
    def closeness(self) -> str:
        """The largest relative difference within the policy and its place, or "to the last bit"."""
        if not self.largest_place:
            return "to the last bit"
        return f"largest relative difference {self.largest:.0e}, {self.largest_place}"

    def lines(self) -> list[str]:
        """The result in one line: how closely the run reproduces its golden, or the first difference."""
        if self.equal:
            return [f"{self.stage} reproduces its golden: {self.closeness}"]
        first = self.differences[0]
        golden, run = shorten_values(first.golden, first.run, MAX_VALUE_CHARACTERS)
        values = f"golden {golden}, run {run} ({first.reason})"
        return [f"{self.stage} differs from its golden at {first.place}: {values}"]


def shorten_values(golden: str, run: str, limit: int) -> tuple[str, str]:
    """Cut the two values of a difference to `limit` characters each; the first character that differs stays visible.

    So do the numbers that differ, from their first character to their last, if they have at most `limit` - 6 of them.
    """
    pairs = enumerate(zip(golden, run, strict=False))
    first_difference = next((index for index, (a, b) in pairs if a != b), min(len(golden), len(run)))
    start = 0 if first_difference < limit - 3 else first_difference - limit // 4
    numbers = (found.span() for text in (golden, run) for found in _NUMBER.finditer(text))
    here = [span for span in numbers if span[0] <= first_difference <= span[1]]
    if here:
        first, last = min(span[0] for span in here), max(first_difference + 1, *(span[1] for span in here))
        shown = (0, limit - 3) if start == 0 else (start, start + limit - 6)
        if last - first <= limit - 6 and not shown[0] <= first <= last <= shown[1]:
            start = first
    return _window(golden, start, limit), _window(run, start, limit)


def _window(text: str, start: int, limit: int) -> str:
    """At most `limit` characters of a text from `start` on, with "..." where it was cut; a short text stays whole."""
    if len(text) <= limit:
        return text
    window = text if start == 0 else f"...{text[start:]}"
    return window if len(window) <= limit else f"{window[: limit - 3]}..."


def parse_json(text: str | bytes, name: str) -> Json:
    """Parse strict JSON; error messages use `name` to say where the text comes from.

    Raises:
        GoldenError: if it is not UTF-8 or JSON, or holds NaN, an infinity, a number beyond floats, or a key twice.
    """

    try:
        return strict.parse_json(text, name, advice=_REPAIR)
    except ValueError as error:
        raise GoldenError(str(error)) from None


def read_ladder(directory: Path) -> list[dict[str, Json]]:
    """Read the ladder that a step wrote into its artifact's directory.

    Raises:
        GoldenError: if the file does not exist or is not a strict JSON list.
    """
    path = directory / "ladder.json"
    if not path.is_file():
        raise GoldenError(f"{path} does not exist; the step that writes this artifact must write it")
    ladder = parse_json(path.read_bytes(), str(path))
    if not isinstance(ladder, list):
        raise GoldenError(f"{path} holds a {type(ladder).__name__}, not a list of entries; fix the step that wrote it")
    return ladder


def run_document(stage: str, ladders: Mapping[str, Sequence[Mapping[str, Json]]]) -> dict[str, Json]:
    """The document of a run: the name of its stage ("nano2/stage0_pretrain") and the ladders of its steps, in order.

    Raises:
        GoldenError: if a ladder is empty, an entry is malformed or repeated, or JSON cannot represent a value exactly.
    """
    document = {"stage": stage, "ladder": {step: list(ladder) for step, ladder in ladders.items()}}
    _check_exact(document, "the run")
    _check_ladder(document, "the run")
    return document


def encode_golden(document: Mapping[str, Json], policy: Policy) -> str:
    """The text of a golden with a run's numbers: ASCII, one line per entry, so that `git diff` shows what changed.

    Raises:
        GoldenError: as for `run_document`.
    """
    document = run_document(document["stage"], document["ladder"])
    steps = []
    for step, ladder in document["ladder"].items():
        lines = [_dumps({key: entry[key] for key in ("rung", "name", "step", "value")}) for entry in ladder]
        steps.append(f"  {_dumps(step)}: [\n   " + ",\n   ".join(lines) + "\n  ]")
    return (
        f'{{\n "schema_version": {SCHEMA_VERSION},\n "stage": {_dumps(document["stage"])},\n'
        f' "policy": {_dumps({"rtol": policy.rtol, "atol": policy.atol})},\n'
        ' "ladder": {\n' + ",\n".join(steps) + "\n }\n}\n"
    )


def write_golden(path: Path, document: Mapping[str, Json]) -> None:
    """Write a run's document as the golden at `path`, atomically; an existing golden's policy is kept.

    Raises:
        GoldenError: as for `run_document`, and if the existing golden is invalid.
    """
    policy = parse_golden(path.read_bytes())[1] if path.exists() else Policy()
    text = encode_golden(document, policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="ascii", newline="\n")
    os.replace(partial, path)


def parse_golden(text: str | bytes) -> tuple[dict[str, Json], Policy]:
    """The document and the policy of a golden.

    Raises:
        GoldenError: if it is damaged, malformed, has another schema version, or a policy looser than the limits.
    """
    golden = parse_json(text, "the golden")
    if not isinstance(golden, dict) or golden.keys() != _GOLDEN_KEYS:
        raise GoldenError(f"the golden must hold exactly {', '.join(sorted(_GOLDEN_KEYS))}; {_REPAIR}")
    version = golden["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise GoldenError(f"the golden has schema_version={version!r}, not {SCHEMA_VERSION}; record it again")
    policy = golden["policy"]
    if not isinstance(policy, dict) or policy.keys() != {"rtol", "atol"}:
        raise GoldenError(f"the golden's policy must hold exactly atol and rtol; {_REPAIR}")
    document = {"stage": golden["stage"], "ladder": golden["ladder"]}
    _check_exact(document, "the golden")
    _check_ladder(document, "the golden")
    return document, Policy(**policy)


def compare(golden_text: str | bytes, document: Mapping[str, Json]) -> Comparison:
    """Compare the document of a run with the text of a golden.

    Raises:
        GoldenError: if one of them cannot be compared, or they belong to different stages.
    """
    golden, policy = parse_golden(golden_text)
    run = run_document(document["stage"], document["ladder"])
    if golden["stage"] != run["stage"]:
        raise GoldenError(
            f"the golden belongs to stage {golden['stage']!r}, the run to {run['stage']!r}; use the run's own golden"
        )
    findings = _Findings(policy)
    if list(golden["ladder"]) != list(run["ladder"]):
        findings.add("steps", list(golden["ladder"]), list(run["ladder"]), "different steps or a different order")
    for step, golden_ladder in golden["ladder"].items():
        if step in run["ladder"]:
            _compare_ladders(step, golden_ladder, run["ladder"][step], findings)
    return Comparison(
        run["stage"], tuple(findings.differences), findings.num_values, findings.largest, findings.largest_place
    )


class _Findings:
    """The differences found so far."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.differences: list[Difference] = []
        self.num_values = 0
        self.largest = 0.0
        self.largest_place = ""
        self.step = ""
        self.label: Label = ("steps", "", None)

    def add(self, place: str, golden: Json, run: Json, reason: str) -> None:
        golden_text, run_text = (NOTHING if value is _ABSENT else _dumps(value) for value in (golden, run))
        self.differences.append(Difference(place, golden_text, run_text, reason, self.step, self.label))


def _compare_ladders(step: str, golden: list[dict[str, Json]], run: list[dict[str, Json]], findings: _Findings) -> None:
    """Add the differences of one step's ladder: entries of the golden in its order, then those only in the run."""
    golden_values = {label_of(entry): entry["value"] for entry in golden}
    run_values = {label_of(entry): entry["value"] for entry in run}
    for label, value in golden_values.items():
        findings.step, findings.label = step, label
        if label in run_values:
            _compare_values(_place(step, label), value, run_values[label], findings)
        else:
            findings.add(_place(step, label), value, _ABSENT, "missing from the run")
    for label, value in run_values.items():
        if label not in golden_values:
            findings.label = label
            findings.add(_place(step, label), _ABSENT, value, "not in the golden")
    if golden_values.keys() == run_values.keys() and list(golden_values) != list(run_values):
        moved = next(pair for pair in zip(golden_values, run_values, strict=True) if pair[0] != pair[1])
        findings.label = moved[0]
        findings.add(_place(step, moved[0]), moved[0], moved[1], "entries in a different order")


def _compare_values(place: str, golden: Json, run: Json, findings: _Findings) -> None:
    """Add the differences of one value; recurses into lists and dicts."""
    if type(golden) is not type(run):
        findings.add(place, golden, run, f"{type(run).__name__} instead of {type(golden).__name__}")
    elif isinstance(golden, dict):
        for key in [*golden, *(key for key in run if key not in golden)]:
            inner = f"{place}, {_dumps(key)}"
            if key not in run:
                findings.add(inner, golden[key], _ABSENT, "missing from the run")
            elif key not in golden:
                findings.add(inner, _ABSENT, run[key], "not in the golden")
            else:
                _compare_values(inner, golden[key], run[key], findings)
    elif isinstance(golden, list):
        if len(golden) != len(run):
            findings.add(place, golden, run, f"{len(run)} values instead of {len(golden)}")
        for index, (golden_value, run_value) in enumerate(zip(golden, run, strict=False)):
            _compare_values(f"{place}, value {index}", golden_value, run_value, findings)
    else:
        findings.num_values += 1
        if not isinstance(golden, float):
            if golden != run:
                findings.add(place, golden, run, "not equal")
        else:
            relative = relative_difference(golden, run)
            if not findings.policy.accepts(golden, run):
                findings.add(place, golden, run, f"relative difference {relative:.0e}")
            elif relative > findings.largest:
                findings.largest, findings.largest_place = relative, place


def relative_difference(golden: float, run: float) -> float:
    """|run - golden| / max(|golden|, MAX_ATOL / MAX_RTOL); below that size the policy's atol decides."""
    return abs(run - golden) / max(abs(golden), MAX_ATOL / MAX_RTOL)


def label_of(entry: Mapping[str, Json]) -> Label:
    """Rung, name and step, which identify an entry in its ladder."""
    return (entry["rung"], entry["name"], entry["step"])


def _place(step: str, label: Label) -> str:
    rung, name, training_step = label
    return f"{step}, {rung}, {name}" + ("" if training_step is None else f", step {training_step}")


def _check_ladder(document: Mapping[str, Json], whose: str) -> None:
    """Raise GoldenError if the stage's name, the steps or the entries are missing, malformed or repeated."""
    stage, ladder = document["stage"], document["ladder"]
    if not isinstance(stage, str) or not stage:
        raise GoldenError(f"{whose} has stage={stage!r}; it must be a name such as nano2/stage0_pretrain")
    if not isinstance(ladder, dict) or not ladder:
        raise GoldenError(f"{whose} has no ladder; every step of a stage must write one")
    for step, entries in ladder.items():
        if not isinstance(entries, list) or not entries:
            raise GoldenError(f"{whose} has no ladder entries for {step}; every step must record its numbers")
        labels = set()
        for index, entry in enumerate(entries):
            if (
                not isinstance(entry, dict)
                or entry.keys() != _ENTRY_KEYS
                or not (isinstance(entry["rung"], str) and entry["rung"])
                or not (isinstance(entry["name"], str) and entry["name"])
                or not (entry["step"] is None or (type(entry["step"]) is int and entry["step"] >= 0))
            ):
                raise GoldenError(
                    f"{whose}, {step}, entry {index} must be {{rung, name, step, value}} with a rung, a name and a "
                    f"step that is null or at least 0, not {_window(_dumps(entry), 0, MAX_VALUE_CHARACTERS)}"
                )
            if label_of(entry) in labels:
                raise GoldenError(f"{whose} holds {_place(step, label_of(entry))} twice; give each entry its own name")
            labels.add(label_of(entry))


def _check_exact(value: object, place: str) -> None:
    """Raise GoldenError for values that JSON changes or rejects."""
    try:
        strict.check_exact(value, place)
    except ValueError as error:
        raise GoldenError(str(error)) from None


def _dumps(value: Json) -> str:
    return json.dumps(value, allow_nan=False)
