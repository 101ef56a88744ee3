"""Say what a comparison found, first broken rung first: as at most 30 lines, as JSON and as a plot.

In: a golden and the document of a run, or the sentence that says why they were not compared. Out: a `Report`; `write`
puts report.txt, report.json, run.json (the golden that this run would be) and, where a series of floats broke,
curves.svg into a directory. The terminal, GitHub's step summary and the JSON all show the same `lines`.

What a ladder says by its order: all above the first broken rung is still equal, so the cause lies between the two.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron.testing.compare import (
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
)

MAX_LINES = 30
CONFIG_RUNG = "config"
INPUTS_RUNG = "inputs"
NUM_NEIGHBOURS = 2
"""Training steps shown before and after the first one that differs."""
FILES = ("report.txt", "report.json", "run.json", "curves.svg")
"""What `Report.write` leaves in a stage's directory."""
WIDTH = 100
"""Characters of a line, more of which no summary shows well."""


@dataclass(frozen=True)
class Rung:
    """One rung of one step's ladder, and how much of it broke."""

    step: str
    rung: str
    num_entries: int
    """Of golden and run together."""
    num_broken: int

    @property
    def name(self) -> str:
        """ "training: curve"."""
        return f"{self.step}: {self.rung}"


@dataclass(frozen=True)
class Report:
    """What one stage's comparison found."""

    stage: str
    golden: Mapping[str, Json] | None = None
    """None if nothing is recorded for the stage."""
    run: Mapping[str, Json] | None = None
    """None if there is none that could be compared; `error` says why."""
    comparison: Comparison | None = None
    error: str = ""
    """Why nothing was compared: a sentence, and below it lines of the traceback if there is one; else empty."""
    upstream: str = ""
    """An earlier stage of the recipe that is not as recorded, if this one departs at its inputs; else empty."""

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
        if self.error:
            return f"{self.stage} was not compared: {self.error}".splitlines()[:MAX_LINES]
        if self.comparison is None:
            return [
                f"{self.stage}: nothing is recorded for this stage yet; record it with --snapshot-update and commit it"
            ]
        if self.equal:
            return self.comparison.lines()
        if self.upstream:
            return [f"{self.stage}: not compared, its input already differs since {self.upstream} departs"]
        first = self.comparison.differences[0]
        moved = next((d for d in self.comparison.differences if d.label[0] != CONFIG_RUNG), None)
        lines = [f"{self.stage} departs from golden/{self.stage}.json"]
        lines += [f"first broken rung: {first.place} ({first.reason})"]
        if first.label[0] == CONFIG_RUNG:
            lines += ["config that differs:", *_few([_values(d) for d in self.comparison.differences if _in_config(d)])]
            lines += [f"first number that moves: {moved.place} ({moved.reason})"] if moved else ["no number moves"]
        if moved:
            lines += self._around(moved)
        equal, broken = self._prose_of_rungs()
        lines += [f"still equal before it: {equal or 'nothing'}", f"broken: {broken}"]
        return [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines]

    def _around(self, difference: Difference) -> list[str]:
        """Golden and run at the steps around a difference, if it is in a series of floats; else just the two values."""
        rung, name, at = difference.label
        golden, run = self.series(difference.step, rung, name)
        if at is None or len(golden) < 2:
            return [_values(difference)]
        steps = sorted({*golden, *run})
        where = steps.index(at)
        shown = steps[max(0, where - NUM_NEIGHBOURS) : where + NUM_NEIGHBOURS + 1]
        lines = [f"  {'step':>6} {'golden ' + name:>26} {'run':>26}  relative difference"]
        for step in shown:
            sides = [f"{side[step]!r}" if step in side else "nothing" for side in (golden, run)]
            off = f"{relative_difference(golden[step], run[step]):.0e}" if step in golden and step in run else ""
            lines.append(f"  {step:>6} {sides[0]:>26} {sides[1]:>26}  {off}{'  <- first' if step == at else ''}")
        return lines

    def series(self, step: str, rung: str, name: str) -> tuple[dict[int, float], dict[int, float]]:
        """Training step -> value of one name in golden and run; without values that are no floats."""
        found = []
        for side in (self.golden, self.run):
            ladder = side["ladder"].get(step, []) if side else []
            entries = (entry for entry in ladder if (entry["rung"], entry["name"]) == (rung, name))
            found.append(
                {e["step"]: e["value"] for e in entries if isinstance(e["value"], float) and e["step"] is not None}
            )
        return found[0], found[1]

    def _prose_of_rungs(self) -> tuple[str, str]:
        """Rungs that are whole above the first broken one, and all broken ones with their number of entries."""
        rungs = self.rungs
        first = next((index for index, rung in enumerate(rungs) if rung.num_broken), len(rungs))
        equal = [rung.name for rung in rungs[:first]]
        return _listed(equal, 6), _listed(
            [f"{r.name} {r.num_broken}/{r.num_entries}" for r in rungs if r.num_broken], 8
        )

    def as_json(self) -> dict[str, Json]:
        """Everything that `lines` draws on, for programs."""
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
        """Write FILES; what an earlier run left there is replaced."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (directory / name).unlink(missing_ok=True)
        (directory / "report.txt").write_text("".join(f"{line}\n" for line in self.lines()), encoding="utf-8")
        (directory / "report.json").write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        if self.run is not None:
            (directory / "run.json").write_text(encode_golden(self.run, Policy()), encoding="ascii")
        broken = self.comparison.differences if self.comparison else ()
        for difference in broken:
            golden, run = self.series(difference.step, *difference.label[:2])
            if difference.label[2] is not None and len(golden) > 1 and run:
                plot_series(difference, golden, run, directory / "curves.svg")
                break


def report_of(golden_text: str | bytes | None, run: Mapping[str, Json]) -> Report:
    """Compare a run with its golden (None: nothing is recorded) and say what was found.

    Raises:
        GoldenError: if golden or run cannot be compared.
    """
    run = run_document(run["stage"], run["ladder"])
    if golden_text is None:
        return Report(run["stage"], run=run)
    return Report(run["stage"], parse_golden(golden_text)[0], run, compare(golden_text, run))


def with_upstream(found: Iterable[Report]) -> list[Report]:
    """The reports in running order, each that departs at its inputs with the first stage before it that is not equal.

    Stages of a recipe run in the order of their names: stage0_pretrain, stage1_sft.
    """
    reports = sorted(found, key=lambda report: report.stage)
    departed: dict[str, str] = {}
    for index, report in enumerate(reports):
        recipe = report.stage.split("/")[0]
        differences = report.comparison.differences if report.comparison else ()
        if differences and differences[0].label[0] == INPUTS_RUNG:
            reports[index] = replace(report, upstream=departed.get(recipe, ""))
        if not report.equal:
            departed.setdefault(recipe, report.stage)
    return reports


def plot_series(difference: Difference, golden: dict[int, float], run: dict[int, float], path: Path) -> None:
    """Two curves over each other, the first difference marked; below, how far apart they are, relative."""
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
    floor = 1e-17  # below the last bit: where equal values are drawn
    apart = [max(floor, relative_difference(golden[step], run[step])) for step in both]
    below.semilogy(both, apart, color="tab:red", marker=".", linewidth=1)
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
    with matplotlib.rc_context({"svg.hashsalt": "nemotron"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _in_config(difference: Difference) -> bool:
    return difference.label[0] == CONFIG_RUNG


def _values(difference: Difference) -> str:
    return f"  {difference.place}: golden {difference.golden[:30]}, run {difference.run[:30]}"


def _few(items: list[str], limit: int = 8) -> list[str]:
    return items if len(items) <= limit else [*items[:limit], f"  and {len(items) - limit} more"]


def _listed(items: list[Any], limit: int) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
