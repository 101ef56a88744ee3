"""Report the result of a comparison, first broken rung first: as at most 30 lines, as JSON and as a plot.

In: a golden and the document of a run, or the reason why they were not compared. Out: a `Report`; `write` writes
report.txt, report.json, run.json (the run in the format of a golden) and, if a series of floats differs, curves.svg.
The terminal, GitHub's step summary and the JSON all show the same `lines`.

A ladder is in the order of the computation: every rung before the first broken one is equal, so the cause lies between
the last equal rung and the first broken one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron.terminal import printable
from nemotron.testing.compare import (
    NOTHING,
    Comparison,
    Difference,
    Json,
    Label,
    Policy,
    compare,
    encode_golden,
    label_of,
    parse_golden,
    relative_difference,
    run_document,
    shorten_values,
)

MAX_LINES = 30
CONFIG_RUNG = "config"
INPUTS_RUNG = "inputs"
NUM_NEIGHBORS = 2
"""Training steps shown before and after the first one that differs."""
FILES = ("report.txt", "report.json", "run.json", "curves.svg")
"""The files of `Report.write`."""
COMPARES_GOLDEN = "compares_golden"
"""Property in the output of --junitxml of a test that compared a run with a golden; its value is the stage's name."""
WIDTH = 120
"""Most characters in a line."""
VALUE_WIDTH = 30
"""Most characters of a value in a line; a float has at most 24."""
MAX_CONFIG_LINES = 8
"""Most config values shown, of those that differ."""


@dataclass(frozen=True)
class Rung:
    """One rung of one step's ladder, and how many of its entries differ."""

    step: str
    rung: str
    num_entries: int
    """Entries of golden and run together, each counted once."""
    num_broken: int


@dataclass(frozen=True)
class Report:
    """The result of one stage's comparison."""

    stage: str
    golden: Mapping[str, Json] | None = None
    """None if the stage has no golden."""
    run: Mapping[str, Json] | None = None
    """None if no run could be compared; `error` says why."""
    comparison: Comparison | None = None
    error: str = ""
    """Why nothing was compared: a sentence, followed by lines of the traceback if there is one; else empty."""
    upstream: str = ""
    """An earlier stage that differs from its golden, if this one differs first in its inputs; else empty."""

    @property
    def equal(self) -> bool:
        """Whether the run reproduces the golden."""
        return self.comparison is not None and self.comparison.equal

    @property
    def rungs(self) -> list[Rung]:
        """Every rung of golden and run, in ladder order."""
        if self.golden is None or self.run is None or self.comparison is None:
            return []
        broken = {(d.step, d.label) for d in self.comparison.differences}
        entries: dict[tuple[str, str], set[Label]] = {}
        for side in (self.golden, self.run):
            for step, ladder in side["ladder"].items():
                for entry in ladder:
                    entries.setdefault((step, entry["rung"]), set()).add(label_of(entry))
        steps = list(dict.fromkeys([*self.golden["ladder"], *self.run["ladder"]]))
        order = sorted(entries, key=lambda key: steps.index(key[0]))  # stable: rungs stay as they came
        return [
            Rung(step, rung, len(entries[step, rung]), sum((step, label) in broken for label in entries[step, rung]))
            for step, rung in order
        ]

    def lines(self) -> list[str]:
        """The report for a reader, in at most MAX_LINES lines."""
        return [printable(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        if self.error:
            return f"{self.stage} was not compared: {self.error}".splitlines()[:MAX_LINES]
        if self.comparison is None:
            return [f"{self.stage} has no golden yet; record one with --snapshot-update and commit it"]
        if self.equal:
            return self.comparison.lines()
        if self.upstream:
            return [f"{self.stage} differs first in its inputs, from {self.upstream}, which differs; mend that first"]
        differences = self.comparison.differences
        first = differences[0]
        result = next((d for d in differences if d.label[0] != CONFIG_RUNG), None)
        lines = [f"{self.stage} differs from golden/{self.stage}.json", _place_line("first broken rung: ", first)]
        if first.label[0] == CONFIG_RUNG:
            config = [_value_line(d) for d in differences if d.label[0] == CONFIG_RUNG]
            lines += ["config values that differ:", *config[:MAX_CONFIG_LINES]]
            lines += [f"  and {len(config) - MAX_CONFIG_LINES} more"] if len(config) > MAX_CONFIG_LINES else []
            lines += [_place_line("first result that differs: ", result) if result else "no result differs"]
        if result:
            lines += self._context_lines(result)
        return [*lines, *self._rung_lines()]

    def summary(self) -> list[str]:
        """The first lines of the report: which golden differs, where first, and the two values there."""
        first = self.comparison.differences[:1] if self.comparison else ()
        return [*self.lines()[:2], *map(_value_line, first)]

    def _context_lines(self, difference: Difference) -> list[str]:
        """Golden and run at the steps around a difference in a series of floats; otherwise only its two values."""
        rung, name, at = difference.label
        golden, run = self.series(difference.step, rung, name)
        if at is None or at not in golden or at not in run or len(golden) < 2:
            return [_value_line(difference)]
        steps = sorted({*golden, *run})
        where = steps.index(at)
        shown = steps[max(0, where - NUM_NEIGHBORS) : where + NUM_NEIGHBORS + 1]
        heading = _shorten_middle(f"golden {name}", 26)
        lines = [f"  {'step':>6} {heading:>26} {'run':>26}  relative difference"]
        for step in shown:
            sides = [f"{side[step]!r}" if step in side else NOTHING for side in (golden, run)]
            relative = f"{relative_difference(golden[step], run[step]):.0e}" if step in golden and step in run else ""
            lines.append(f"  {step:>6} {sides[0]:>26} {sides[1]:>26}  {relative}{'  <- first' if step == at else ''}")
        return lines

    def series(self, step: str, rung: str, name: str) -> tuple[dict[int, float], dict[int, float]]:
        """Training step -> float value of one name, for golden and run; other values are left out."""
        found = []
        for side in (self.golden, self.run):
            ladder = side["ladder"].get(step, []) if side else []
            entries = (entry for entry in ladder if (entry["rung"], entry["name"]) == (rung, name))
            found.append(
                {e["step"]: e["value"] for e in entries if isinstance(e["value"], float) and e["step"] is not None}
            )
        return found[0], found[1]

    def _rung_lines(self) -> list[str]:
        """The equal rungs before the first broken one, and all broken rungs with their number of broken entries."""
        rungs = self.rungs
        first = next((index for index, rung in enumerate(rungs) if rung.num_broken), len(rungs))
        equal = [(rung.step, rung.rung) for rung in rungs[:first]]
        broken = [(rung.step, f"{rung.rung} {rung.num_broken}/{rung.num_entries}") for rung in rungs if rung.num_broken]
        return [_list_line("still equal before it: ", equal), _list_line("broken rungs: ", broken)]

    def as_json(self) -> dict[str, Json]:
        """The data behind `lines`, for programs."""
        comparison = self.comparison
        return {
            "stage": self.stage,
            "equal": self.equal,
            "error": self.error,
            "upstream": self.upstream,
            "num_values": comparison.num_values if comparison else 0,
            "largest": comparison.largest if comparison else 0.0,
            "largest_place": comparison.largest_place if comparison else "",
            "rungs": [
                {"step": r.step, "rung": r.rung, "num_entries": r.num_entries, "num_broken": r.num_broken}
                for r in self.rungs
            ],
            "differences": [
                {
                    "place": d.place,
                    "step": d.step,
                    "rung": d.label[0],
                    "golden": d.golden,
                    "run": d.run,
                    "reason": d.reason,
                }
                for d in (comparison.differences if comparison else ())
            ],
            "lines": self.lines(),
        }

    def write(self, directory: Path) -> None:
        """Write FILES into `directory` and delete those of an earlier run."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (directory / name).unlink(missing_ok=True)
        texts = {
            "report.txt": "".join(f"{line}\n" for line in self.lines()),
            "report.json": json.dumps(self.as_json(), indent=1) + "\n",
        }
        if self.run is not None:
            texts["run.json"] = encode_golden(self.run, Policy())
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8", newline="\n")
        broken = self.comparison.differences if self.comparison else ()
        for difference in broken:
            golden, run = self.series(difference.step, *difference.label[:2])
            if difference.label[2] is not None and len(golden) > 1 and run:
                plot_series(difference, golden, run, directory / "curves.svg")
                break


def report_of(golden_text: str | bytes | None, run: Mapping[str, Json]) -> Report:
    """Compare a run with its golden; `golden_text` is None if there is no golden.

    Raises:
        GoldenError: if golden or run cannot be compared.
    """
    run = run_document(run["stage"], run["ladder"])
    if golden_text is None:
        return Report(run["stage"], run=run)
    return Report(run["stage"], parse_golden(golden_text)[0], run, compare(golden_text, run))


def with_upstream(found: Iterable[Report]) -> list[Report]:
    """The reports in running order, with `upstream` set on those whose first difference is in their inputs.

    `upstream` is the earliest stage of the same recipe that differs; it stays empty if no earlier stage does. Stages
    run in the order of their names: stage0_pretrain, stage1_sft, stage2_rlvr.
    """
    reports = sorted(found, key=lambda report: report.stage)
    first_different: dict[str, str] = {}
    for index, report in enumerate(reports):
        recipe = report.stage.split("/")[0]
        differences = report.comparison.differences if report.comparison else ()
        if differences and differences[0].label[0] == INPUTS_RUNG:
            reports[index] = replace(report, upstream=first_different.get(recipe, ""))
        if not report.equal:
            first_different.setdefault(recipe, report.stage)
    return reports


def plot_series(difference: Difference, golden: dict[int, float], run: dict[int, float], path: Path) -> None:
    """Plot golden and run with the first difference marked; below, their relative difference."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for side, label, style in (
        (golden, "golden", {"color": "0.6", "linewidth": 4}),
        (run, "run", {"color": "tab:red"}),
    ):
        above.plot(list(side), list(side.values()), label=label, **style)
    both = [step for step in golden if step in run]
    floor = 1e-17  # less than one bit: equal values are drawn there
    relative = [max(floor, relative_difference(golden[step], run[step])) for step in both]
    below.semilogy(both, relative, color="tab:red", marker=".", linewidth=1)
    below.axhline(Policy().rtol, color="0.6", linestyle="--")
    below.text(
        0.995, Policy().rtol, "policy ", transform=below.get_yaxis_transform(), ha="right", va="bottom", color="0.4"
    )
    for axes in (above, below):
        axes.axvline(difference.label[2], color="tab:blue", linewidth=1, label="first difference")
    above.set_title(difference.place, fontsize=10)
    above.set_ylabel(difference.label[1].replace("_", " "))
    above.legend(frameon=False)
    below.set_ylabel("relative difference")
    below.set_xlabel("training step")
    with matplotlib.rc_context({"svg.hashsalt": "nemotron"}), open(path, "wb") as file:  # the same bytes on Windows
        figure.savefig(file, format="svg", metadata={"Date": None})


def _place_line(prefix: str, difference: Difference) -> str:
    """The place and the reason of a difference; a long place is shortened, the reason is not."""
    reason = f" ({difference.reason})"
    return f"{prefix}{_shorten_middle(difference.place, WIDTH - len(prefix) - len(reason))}{reason}"


def _value_line(difference: Difference) -> str:
    """The place and both values of a difference; a long place is shortened, so that both values stay visible."""
    golden, run = shorten_values(difference.golden, difference.run, VALUE_WIDTH)
    values = f": golden {golden}, run {run}"
    return f"  {_shorten_middle(difference.place, WIDTH - 2 - len(values))}{values}"


def _list_line(prefix: str, items: list[tuple[str, str]]) -> str:
    """As many whole items (step, text) as fit in a line, after the name of their step, and the number of the others."""
    if not items:
        return f"{prefix}{NOTHING}"
    texts = [
        text if index and items[index - 1][0] == step else f"{step}: {text}" for index, (step, text) in enumerate(items)
    ]
    for num_shown in range(len(texts), 0, -1):
        more = f" and {len(texts) - num_shown} more" if num_shown < len(texts) else ""
        line = f"{prefix}{', '.join(texts[:num_shown])}{more}"
        if len(line) <= WIDTH:
            return line
    return _shorten_middle(line, WIDTH)


def _shorten_middle(text: str, limit: int) -> str:
    """At most `limit` characters of a text: its beginning and its end, with "..." between them."""
    if len(text) <= limit:
        return text
    end = (limit - 3) // 2
    return f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"
