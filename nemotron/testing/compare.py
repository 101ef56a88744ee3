"""Compare the numbers of a run with recorded ones: parsed, not rounded, in the order in which they came about.

In: the ladder of every step of a stage (`ladder.json`, a list of {rung, name, step, value}) and the stage's golden.
Out: the differences, first broken rung first, and the largest relative difference among the numbers that agree.
Used by the snapshot extension of this package, and by a run that compares itself; imports neither pytest nor syrupy.

Exact: keys, the order of the entries, lengths, integers, strings, booleans, null. Compared: floats, within the policy
that stands inside the golden and that MAX_RTOL and MAX_ATOL cap. Why these: trained in float64, a stage differs
between instruction sets, thread counts and torch versions by 1e-12 at most, and a hyper-parameter that is off by one
part in a million moves the loss by 3e-9 and more.

Refused before anything is compared: what is no strict JSON (NaN, infinity, a repeated key, anything after the end), a
looser policy, another stage's golden, an entry that stands twice, an empty ladder.

Left out: the report that names the likely cause (report.py).
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

SCHEMA_VERSION = 1
MAX_RTOL = 1e-9
MAX_ATOL = 1e-12

Json = Any
"""dict with string keys, list, str, int, float, bool or None."""

Label = tuple[str, str, int | None]
"""Rung, name and training step of an entry; no two of a ladder have the same."""

MAX_DEPTH = 20
"""Lists and dicts inside each other, more of which no ladder needs."""

NOTHING = "nothing"
"""What a difference shows for a value that one side does not have."""

_ABSENT = object()
_REPAIR = "restore it from version control, or record it again"
_ENTRY_KEYS = {"rung", "name", "step", "value"}
_GOLDEN_KEYS = {"schema_version", "stage", "policy", "ladder"}


class GoldenError(ValueError):
    """A golden or a run that cannot be compared at all; the sentence says what to do."""


@dataclass(frozen=True)
class Policy:
    """How far a float may be from the recorded one: |run - golden| <= max(atol, rtol * |golden|).

    Raises:
        GoldenError: if a bound is no number, negative, or above the cap of this module.
    """

    rtol: float = MAX_RTOL
    atol: float = MAX_ATOL

    def __post_init__(self) -> None:
        for name, cap in (("rtol", MAX_RTOL), ("atol", MAX_ATOL)):
            bound = getattr(self, name)
            if not isinstance(bound, float) or not 0 <= bound <= cap:
                raise GoldenError(
                    f"policy {name}={bound!r} must be a float between 0 and {cap}; a looser golden proves nothing, "
                    f"so find what moved instead"
                )

    def accepts(self, golden: float, run: float) -> bool:
        """Whether `run` reproduces `golden`; both are finite."""
        return abs(run - golden) <= max(self.atol, self.rtol * abs(golden))


@dataclass(frozen=True)
class Difference:
    """One place where a run is not its golden."""

    place: str
    """Step, rung, name, and where in the value: "training, curve, loss, step 41"."""
    golden: str
    """The recorded value as JSON, or "nothing"."""
    run: str
    """This run's value as JSON, or "nothing"."""
    reason: str
    """What is wrong, in a few words: "off by 3e-07, relative"."""
    step: str
    """The step whose ladder it is in: "training"; empty if the steps themselves are not the same."""
    label: Label
    """The entry that it is in: ("curve", "loss", 41)."""


@dataclass(frozen=True)
class Comparison:
    """The outcome: equal within the policy if there is no difference."""

    stage: str
    differences: tuple[Difference, ...]
    """In ladder order: the first one is nearest to the cause."""
    num_values: int
    """Values of the golden that were compared, floats and exact ones."""
    largest: float
    """Largest relative difference among the floats that agree within the policy."""
    largest_place: str
    """Where that is; empty if every float agrees to the last bit."""

    @property
    def equal(self) -> bool:
        """Whether the run reproduces the golden."""
        return not self.differences

    @property
    def closeness(self) -> str:
        """How closely the equal floats agree: the largest relative difference and its place, or "to the last bit"."""
        if not self.largest_place:
            return "to the last bit"
        return f"largest relative difference {self.largest:.0e}, {self.largest_place}"

    def lines(self) -> list[str]:
        """The outcome in a line: how closely the run reproduces its golden, or where it departs first."""
        if self.equal:
            return [f"{self.stage} reproduces its golden: {self.closeness}"]
        first = self.differences[0]
        values = f"golden {_short(first.golden)}, run {_short(first.run)} ({first.reason})"
        return [f"{self.stage} departs from its golden at {first.place}: {values}"]


def parse_json(text: str | bytes, name: str) -> Json:
    """Parse strict JSON; `name` says in errors whose text it is.

    Raises:
        GoldenError: if it is not UTF-8 or JSON, or holds NaN, an infinity, a number beyond floats, or a key twice.
    """

    def refuse_constant(constant: str) -> NoReturn:
        raise GoldenError(f"{name} holds {constant}, which is no JSON and equals nothing; find what computed it")

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise GoldenError(f"{name} holds {digits}, which is too large for a float; find what computed it")
        return number

    def unrepeated(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        for key, value in pairs:
            if key in mapping:
                raise GoldenError(f"{name} holds the key {json.dumps(key)} twice; {_REPAIR}")
            mapping[key] = value
        return mapping

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, parse_constant=refuse_constant, parse_float=finite, object_pairs_hook=unrepeated)
    except GoldenError:
        raise
    except (ValueError, RecursionError) as error:
        raise GoldenError(f"{name} is damaged ({error}); {_REPAIR}") from error


def read_ladder(directory: Path) -> list[dict[str, Json]]:
    """The ladder that a step wrote into its artifact's directory.

    Raises:
        GoldenError: if there is none, or it is no strict JSON list.
    """
    path = directory / "ladder.json"
    if not path.is_file():
        raise GoldenError(f"{path} does not exist; the step of that artifact must write it")
    ladder = parse_json(path.read_bytes(), str(path))
    if not isinstance(ladder, list):
        raise GoldenError(f"{path} holds a {type(ladder).__name__}, not a list of entries; mend the step that wrote it")
    return ladder


def run_document(stage: str, ladders: Mapping[str, Sequence[Mapping[str, Json]]]) -> dict[str, Json]:
    """The document of a run: its stage's name ("nano2/stage0_pretrain") and the ladder of each of its steps, in order.

    Raises:
        GoldenError: if a ladder holds what JSON cannot say exactly, or is empty, or an entry is malformed or repeated.
    """
    document = {"stage": stage, "ladder": {step: list(ladder) for step, ladder in ladders.items()}}
    _check_exact(document, "the run")
    _check_ladder(document, "the run")
    return document


def encode_golden(document: Mapping[str, Json], policy: Policy) -> str:
    """The golden of a run's document, as text: ASCII, one line an entry, so that version control shows what moved.

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
    """Record a run's document as the golden at `path`, whole or not at all, with the policy of the one it replaces.

    Raises:
        GoldenError: as for `run_document`, and if the golden that it replaces is unusable.
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
        GoldenError: if it is damaged, of another schema version, malformed, or its policy is looser than the caps.
    """
    golden = parse_json(text, "the golden")
    if not isinstance(golden, dict) or golden.keys() != _GOLDEN_KEYS:
        raise GoldenError(f"the golden must hold exactly {', '.join(sorted(_GOLDEN_KEYS))}; {_REPAIR}")
    version = golden["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise GoldenError(f"the golden has schema_version {version!r}, not {SCHEMA_VERSION}; record it again")
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
        GoldenError: if one of them cannot be compared, or they are of different stages.
    """
    golden, policy = parse_golden(golden_text)
    run = run_document(document["stage"], document["ladder"])
    if golden["stage"] != run["stage"]:
        raise GoldenError(
            f"the golden is of stage {golden['stage']!r}, the run of {run['stage']!r}; take the stage's own golden"
        )
    found = _Found(policy)
    if list(golden["ladder"]) != list(run["ladder"]):
        found.differ("steps", list(golden["ladder"]), list(run["ladder"]), "not the same steps in the same order")
    for step, golden_ladder in golden["ladder"].items():
        if step in run["ladder"]:
            _compare_ladders(step, golden_ladder, run["ladder"][step], found)
    return Comparison(run["stage"], tuple(found.differences), found.num_values, found.largest, found.largest_place)


class _Found:
    """What a comparison has found so far."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.differences: list[Difference] = []
        self.num_values = 0
        self.largest = 0.0
        self.largest_place = ""
        self.step = ""
        self.label: Label = ("steps", "", None)

    def differ(self, place: str, golden: Json, run: Json, reason: str) -> None:
        golden_text, run_text = (NOTHING if value is _ABSENT else _dumps(value) for value in (golden, run))
        self.differences.append(Difference(place, golden_text, run_text, reason, self.step, self.label))


def _compare_ladders(step: str, golden: list[dict[str, Json]], run: list[dict[str, Json]], found: _Found) -> None:
    """Add the differences of one step's ladder: by entry, in the golden's order, then what the run has beyond it."""
    golden_values = {label_of(entry): entry["value"] for entry in golden}
    run_values = {label_of(entry): entry["value"] for entry in run}
    for label, value in golden_values.items():
        found.step, found.label = step, label
        if label in run_values:
            _compare_values(_place(step, label), value, run_values[label], found)
        else:
            found.differ(_place(step, label), value, _ABSENT, "missing from the run")
    for label, value in run_values.items():
        if label not in golden_values:
            found.label = label
            found.differ(_place(step, label), _ABSENT, value, "not in the golden")
    if golden_values.keys() == run_values.keys() and list(golden_values) != list(run_values):
        moved = next(pair for pair in zip(golden_values, run_values, strict=True) if pair[0] != pair[1])
        found.label = moved[0]
        found.differ(_place(step, moved[0]), moved[0], moved[1], "entries in another order")


def _compare_values(place: str, golden: Json, run: Json, found: _Found) -> None:
    """Add the differences of one value, going into lists and dicts."""
    if type(golden) is not type(run):
        found.differ(place, golden, run, f"{type(run).__name__} for {type(golden).__name__}")
    elif isinstance(golden, dict):
        for key in [*golden, *(key for key in run if key not in golden)]:
            inner = f"{place}, {_dumps(key)}"
            if key not in run:
                found.differ(inner, golden[key], _ABSENT, "missing from the run")
            elif key not in golden:
                found.differ(inner, _ABSENT, run[key], "not in the golden")
            else:
                _compare_values(inner, golden[key], run[key], found)
    elif isinstance(golden, list):
        if len(golden) != len(run):
            found.differ(place, golden, run, f"{len(run)} values for {len(golden)}")
        for index, (golden_value, run_value) in enumerate(zip(golden, run, strict=False)):
            _compare_values(f"{place}, value {index}", golden_value, run_value, found)
    else:
        found.num_values += 1
        if not isinstance(golden, float):
            if golden != run:
                found.differ(place, golden, run, "not equal")
        else:
            relative = relative_difference(golden, run)
            if not found.policy.accepts(golden, run):
                found.differ(place, golden, run, f"off by {relative:.0e}, relative")
            elif relative > found.largest:
                found.largest, found.largest_place = relative, place


def relative_difference(golden: float, run: float) -> float:
    """|run - golden| / |golden|; below MAX_ATOL / MAX_RTOL in size, relative to that size, where atol takes over."""
    return abs(run - golden) / max(abs(golden), MAX_ATOL / MAX_RTOL)


def label_of(entry: Mapping[str, Json]) -> Label:
    """What tells an entry of a ladder from its others."""
    return (entry["rung"], entry["name"], entry["step"])


def _place(step: str, label: Label) -> str:
    rung, name, training_step = label
    return f"{step}, {rung}, {name}" + ("" if training_step is None else f", step {training_step}")


def _check_ladder(document: Mapping[str, Json], whose: str) -> None:
    """Refuse a document without a stage's name, steps or entries, and entries that are malformed or repeated."""
    stage, ladder = document["stage"], document["ladder"]
    if not isinstance(stage, str) or not stage:
        raise GoldenError(f"{whose} names its stage {stage!r}; it must be a name such as nano2/stage0_pretrain")
    if not isinstance(ladder, dict) or not ladder:
        raise GoldenError(f"{whose} holds no ladder; every step of a stage writes one")
    for step, entries in ladder.items():
        if not isinstance(entries, list) or not entries:
            raise GoldenError(f"{whose} holds no ladder entries for {step}; a step that records nothing proves nothing")
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
                    f"{whose}, {step}, entry {index} is not {{rung, name, step, value}} with a rung, a name and a step "
                    f"of 0 or more (or null): {_short(_dumps(entry))}"
                )
            if label_of(entry) in labels:
                raise GoldenError(f"{whose} holds {_place(step, label_of(entry))} twice; every entry stands once")
            labels.add(label_of(entry))


def _check_exact(value: object, place: str, depth: int = 0) -> None:
    """Refuse what JSON would change, drop or refuse: other keys, NaN, infinities, tuples, numpy's numbers."""
    if depth > MAX_DEPTH:
        raise GoldenError(f"{place}: more than {MAX_DEPTH} lists and dicts inside each other; flatten what is recorded")
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:
                raise GoldenError(f"{place}: the key {key!r} is no string; JSON would change it, so convert it")
            _check_exact(inner, f"{place}, {_dumps(key)}", depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_exact(inner, f"{place}, value {index}", depth + 1)
    elif type(value) is float:
        if not math.isfinite(value):
            raise GoldenError(f"{place} is {value}, which equals nothing; find what computed it")
    elif value is not None and type(value) not in (str, int, bool):
        raise GoldenError(
            f"{place} is of type {type(value).__name__}; a ladder holds str, int, float, bool, None, lists and dicts"
        )


def _dumps(value: Json) -> str:
    return json.dumps(value, allow_nan=False)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
