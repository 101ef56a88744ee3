"""Record a stage's golden anew, with the reason, after a change of numbers that was meant.

In: a stage whose run departs from its golden, a clean working tree, a reason. Out: golden/<recipe>/<stage>.json as the
run has it, and one line in golden/CHANGES.md with the reason and the headline numbers before and after. Commit both.
Run: nox -s bless -- stage0 --reason "..."      (python -m nemotron.testing.bless in the root of the repository)

      python -m nemotron.testing.bless --table main    what goldens say now and said in that commit, as a table

Refused, with nothing written: in CI, on a working tree with changes that are not committed, without a reason, if a test
of the stage fails for anything but its golden, and if a second run, in a process of its own, is not the first to the
last bit. A run inside the policy changes no byte.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from nemotron.testing.compare import Json, compare, encode_golden, parse_golden
from nemotron.testing.plugin import GOLDEN_DIRECTORY
from nemotron.testing.session import run_pytest

CHANGES = "CHANGES.md"
"""Below GOLDEN_DIRECTORY."""
HEADLINE_RUNG = "headline"
"""Entries of the ladder whose values stand in the line of CHANGES.md, before and after."""
CI_VARIABLES = ("CI", "GITHUB_ACTIONS")


class Refused(ValueError):
    """Nothing was blessed; the sentence says why."""


def refuse_here(root: Path, reason: str) -> None:
    """Raise Refused in CI, without a reason, outside of version control, and if something is not committed."""
    for variable in CI_VARIABLES:
        if os.environ.get(variable, "").lower() not in ("", "0", "false"):
            raise Refused(f"{variable} is set, and CI must not bless what it is there to check; bless where you work")
    if not reason.strip() or "\n" in reason:
        raise Refused('a bless needs its reason, in one line: --reason "warm-up of 10 steps, as in table 3"')
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if status.returncode:
        raise Refused(f"{root} is not under version control ({status.stderr.strip()}); a bless must be traceable")
    if status.stdout.strip():
        changed = ", ".join(line[3:] for line in status.stdout.splitlines()[:5])
        raise Refused(f"what the golden would record is not committed ({changed}); commit or stash it first")


def headline(document: dict[str, Json]) -> dict[str, Json]:
    """Name -> value of the entries that a stage's ladder marks as its headline."""
    return {
        entry["name"]: entry["value"]
        for ladder in document["ladder"].values()
        for entry in ladder
        if entry["rung"] == HEADLINE_RUNG
    }


def change_line(stage: str, commit: str, reason: str, before: dict[str, Json], after: dict[str, Json]) -> str:
    """The line of CHANGES.md: stage, commit whose run was recorded, reason, headline numbers before and after."""
    numbers = []
    for name, value in after.items():
        shown = [f"{side:.6g}" if isinstance(side, float) else str(side) for side in (before.get(name, "-"), value)]
        numbers.append(f"{name} {shown[0]} → {shown[1]}")
    return f"- `{stage}` at `{commit}`: {reason.strip()}" + (f" ({', '.join(numbers)})" if numbers else "") + "\n"


def bless(root: Path, stage: str, reason: str) -> list[str]:
    """Bless the stages that `stage` selects ("stage0"); return what was found and done, as lines.

    Raises:
        Refused: if it must not be done; nothing was written.
        GoldenError: if a golden or a run cannot be compared.
    """
    refuse_here(root, reason)
    first = run_pytest(root, ("-k", stage))
    if first.exit_code not in (0, 1):
        raise Refused(f"pytest -k {stage} did not run; its last words:\n{first.output[-1500:]}")
    if first.failed:
        raise Refused(f"tests fail that compare no golden; mend them first: {', '.join(first.failed[:5])}")
    if not first.runs:
        raise Refused(f"no test that -k {stage} selects compares a golden; name a stage, as in stage0")
    second = run_pytest(root, ("-k", stage, "--only-golden"))
    for name, run in first.runs.items():
        if second.runs.get(name) != run:
            raise Refused(f"{name} gave two different runs, so no golden can hold; find what is not deterministic")
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    lines: list[str] = []
    for name, report in first.reports.items():
        lines += report["lines"]
        if not report["equal"]:
            lines.append(record(root / GOLDEN_DIRECTORY, name, first.runs[name], commit, reason))
    return lines


def record(goldens: Path, stage: str, run: bytes, commit: str, reason: str) -> str:
    """Write a stage's golden, with the policy of the one before, and the line of CHANGES.md; return that line."""
    path = goldens / f"{stage}.json"
    document, policy = parse_golden(run)
    before: dict[str, Json] = {}
    if path.exists():
        recorded, policy = parse_golden(path.read_bytes())
        before = headline(recorded)
    line = change_line(stage, commit, reason, before, headline(document))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(encode_golden(document, policy), encoding="ascii", newline="\n")
    os.replace(partial, path)
    with open(goldens / CHANGES, "a", encoding="utf-8") as file:
        file.write(line)
    return line.rstrip()


def changes_table(root: Path, commit: str) -> list[str]:
    """A table, in Markdown, of the goldens that differ from those in `commit`: headline numbers, before and after.

    Raises:
        Refused: if there is no such commit.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)

    if git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").returncode:
        raise Refused(f"{commit!r} is no commit of {root}; name the one to compare with")
    lines = ["| golden | what | before | after |", "|---|---|---|---|"]
    for path in sorted((root / GOLDEN_DIRECTORY).rglob("*.json")):
        name = path.relative_to(root).as_posix()
        old, new = git("show", f"{commit}:{name}"), path.read_bytes()
        if old.returncode == 0 and old.stdout == new:
            continue
        after, _ = parse_golden(new)
        if old.returncode:
            rows = [("new", "", f"{sum(map(len, after['ladder'].values()))} entries")]
        else:
            before = headline(parse_golden(old.stdout)[0])
            rows = [(what, f"{before.get(what, '')}", f"{value}") for what, value in headline(after).items()]
            comparison = compare(old.stdout, after)
            rows.append(("entries that differ", "", f"{len({(d.step, d.label) for d in comparison.differences})}"))
            rows += [("first", f"{d.golden[:40]}", f"{d.run[:40]} ({d.place})") for d in comparison.differences[:1]]
        lines += [f"| {name} | {what} | {before} | {after} |" for what, before, after in rows]
    return lines if len(lines) > 2 else ["No golden differs."]


def main() -> int:
    """Bless from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stage", nargs="?", default="", help="as in pytest -k: stage0")
    parser.add_argument(
        "--table", metavar="COMMIT", help="bless nothing; print what differs from the goldens of a commit"
    )
    parser.add_argument("--reason", default="", help="why the numbers are meant to change, in one line")
    arguments = parser.parse_args()
    try:
        if arguments.table:
            print("\n".join(changes_table(Path.cwd(), arguments.table)))
            return 0
        if not arguments.stage:
            raise Refused("name the stage, as in pytest -k: stage0")
        print("\n".join(bless(Path.cwd(), arguments.stage, arguments.reason)), file=sys.stderr)
    except ValueError as error:
        print(f"not blessed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
