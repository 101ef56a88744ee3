"""Record a stage's golden anew, with the reason, after a change of numbers that was meant.

In: a stage whose run departs from its golden, a clean working tree, a reason. Out: golden/<recipe>/<stage>.json as the
run has it, and one line in golden/CHANGES.md with the reason and the headline numbers before and after. Commit both.
Run: nox -s bless -- stage0 --reason "..."      (python -m nemotron.testing.bless in the root of the repository)
     nox -s bless -- nano2/stage0_pretrain --reason "..."       if several recipes have a stage0

      python -m nemotron.testing.bless --table main    what goldens say now and said in that commit, as a table; exit
                                                       code 1 if one changed without a new line in golden/CHANGES.md

Refused, with nothing written: in CI, on a working tree with changes that are not committed, without a reason, if a test
of the stage fails for anything but its golden, and if a second run, in a process of its own, is not the first to the
last bit. What differs is shown before it is recorded, and recorded when all of it may be. A run inside the policy
changes no byte.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nemotron.testing.compare import Json, compare, parse_golden, write_golden
from nemotron.testing.plugin import GOLDEN_DIRECTORY
from nemotron.testing.session import run_pytest, selection

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
    status = git(root, "status", "--porcelain", "--untracked-files=all")
    if status.returncode:
        said = status.stderr.decode(errors="replace").strip()
        raise Refused(f"{root} is not under version control ({said}); a bless must be traceable")
    if status.stdout.strip():
        changed = ", ".join(line[3:] for line in status.stdout.decode(errors="replace").splitlines()[:5])
        raise Refused(f"what the golden would record is not committed ({changed}); commit or stash it first")


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in `root`, whatever it returns.

    Raises:
        Refused: if there is no git.
    """
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise Refused("git is not installed, and a bless must be traceable; install it") from error


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


def bless(root: Path, stage: str, reason: str, say: Callable[[str], object]) -> None:
    """Bless the stages that `stage` selects ("stage0", "nano2/stage0_pretrain").

    Args:
        root: of the repository.
        stage: what `selection` takes.
        reason: why the numbers are meant to change.
        say: shows a line; everything that differs is shown before any of it is recorded.

    Raises:
        Refused: if it must not be done; nothing was written.
    """
    refuse_here(root, reason)
    selected = selection(stage)
    first = run_pytest(root, selected)
    if first.exit_code not in (0, 1):
        raise Refused(f"pytest -k {stage!r} did not run; its last words:\n{first.end}")
    for report in first.reports.values():
        for line in report["lines"]:
            say(line)
        if report["error"]:
            raise Refused(f"{report['stage']} cannot be recorded: {report['error'].splitlines()[0]}")
    if first.failed:
        raise Refused(f"tests fail that compare no golden; mend them first: {', '.join(first.failed[:5])}")
    if not first.runs:
        raise Refused(f"no test that -k {stage!r} selects compares a golden; name a stage, as in stage0")
    second = run_pytest(root, (*selected, "--only-golden"))
    for name, run in first.runs.items():
        if second.runs.get(name) != run:
            raise Refused(f"{name} gave two different runs, so no golden can hold; find what is not deterministic")
    commit = git(root, "rev-parse", "--short=10", "HEAD").stdout.decode().strip()
    for name, report in first.reports.items():
        if not report["equal"]:
            say(record(root / GOLDEN_DIRECTORY, name, first.runs[name], commit, reason))


def record(goldens: Path, stage: str, run: bytes, commit: str, reason: str) -> str:
    """Write a stage's golden and the line of CHANGES.md; return that line."""
    path = goldens / f"{stage}.json"
    document, _ = parse_golden(run)
    before = headline(parse_golden(path.read_bytes())[0]) if path.exists() else {}
    line = change_line(stage, commit, reason, before, headline(document))
    write_golden(path, document)
    with open(goldens / CHANGES, "a", encoding="utf-8") as file:
        file.write(line)
    return line.rstrip()


def changes_table(root: Path, commit: str) -> tuple[list[str], list[str]]:
    """What `commit` and the working tree hold of the goldens.

    Returns:
        A table, in Markdown, of the goldens that differ, with headline numbers before and after; and those that were
        changed although golden/CHANGES.md has no new line that gives the reason.

    Raises:
        Refused: if there is no such commit.
    """
    if git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").returncode:
        raise Refused(f"{commit!r} is no commit of {root}; name the one to compare with")
    changes = root / GOLDEN_DIRECTORY / CHANGES
    reasons = changes.read_text(encoding="utf-8").splitlines() if changes.exists() else []
    old_reasons = git(root, "show", f"{commit}:./{GOLDEN_DIRECTORY}/{CHANGES}").stdout.decode().splitlines()
    new_reasons = [line for line in reasons if line not in old_reasons]

    recorded = git(root, "ls-tree", "-r", "--name-only", "-z", commit, GOLDEN_DIRECTORY).stdout.decode().split("\0")
    present = {path.relative_to(root).as_posix() for path in (root / GOLDEN_DIRECTORY).rglob("*.json")}
    lines, unexplained = ["| golden | what | before | after |", "|---|---|---|---|"], []
    for name in sorted(present | {name for name in recorded if name.endswith(".json")}):
        old = git(root, "show", f"{commit}:./{name}").stdout if name in recorded else b""
        new = (root / name).read_bytes() if name in present else b""
        if old == new:
            continue
        if not new:
            rows = [("deleted", f"{num_entries(parse_golden(old)[0])} entries", "")]
        elif not old:
            rows = [("new", "", f"{num_entries(parse_golden(new)[0])} entries")]
        else:
            before, after = parse_golden(old)[0], parse_golden(new)[0]
            numbers = headline(before)
            rows = [(what, f"{numbers.get(what, '')}", f"{value}") for what, value in headline(after).items()]
            comparison = compare(old, after)
            rows.append(("entries that differ", "", f"{len({(d.step, d.label) for d in comparison.differences})}"))
            rows += [("first", f"{d.golden[:40]}", f"{d.run[:40]} ({d.place})") for d in comparison.differences[:1]]
            if not any(line.startswith(f"- `{after['stage']}` ") for line in new_reasons):
                unexplained.append(name)
        lines += [f"| {name} | {what} | {before} | {after} |" for what, before, after in rows]
    return lines if len(lines) > 2 else ["No golden differs."], unexplained


def num_entries(document: dict[str, Json]) -> int:
    """Entries of all ladders."""
    return sum(map(len, document["ladder"].values()))


def main() -> int:
    """Bless from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stage", nargs="?", default="", help="as in pytest -k: stage0, or nano2/stage0_pretrain")
    parser.add_argument(
        "--table", metavar="COMMIT", help="bless nothing; print what differs from the goldens of a commit"
    )
    parser.add_argument("--reason", default="", help="why the numbers are meant to change, in one line")
    arguments = parser.parse_args()
    try:
        if arguments.table:
            lines, unexplained = changes_table(Path.cwd(), arguments.table)
            print("\n".join(lines))
            for name in unexplained:
                print(f"{name} changed without a new line in CHANGES.md; record it with nox -s bless", file=sys.stderr)
            return 1 if unexplained else 0
        if not arguments.stage:
            raise Refused("name the stage, as in pytest -k: stage0")
        bless(Path.cwd(), arguments.stage, arguments.reason, lambda line: print(line, file=sys.stderr, flush=True))
    except ValueError as error:
        print(f"not blessed: {error}" if not arguments.table else error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
