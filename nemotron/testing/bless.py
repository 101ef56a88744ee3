"""Replace a stage's golden after an intended change of its numbers, and record the reason.

In: a stage whose run differs from its golden, a clean working tree, a reason. Out: the numbers of the run in
golden/<recipe>/<stage>.json, and one line in golden/CHANGES.md: the reason, the headline numbers before and after.
Commit both.
Run: nox -s bless -- stage0 --reason "..."      (python -m nemotron.testing.bless in the root of the repository)
     nox -s bless -- nano2/stage0_pretrain --reason "..."       if several recipes have a stage0

      python -m nemotron.testing.bless --table main    a table of the goldens that differ from those of commit main;
                                                       exit code 1 if golden/CHANGES.md lacks a line for a change

Refuses, and writes nothing: in CI; if something is not committed; without a reason; if a test of the stage fails for
another reason than its golden; if a second run in a new process is not bit-identical to the first. All differences are
shown first; the goldens are written after every check has passed. A run within the tolerance changes no byte.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nemotron.command_line import checked_arguments, program_name
from nemotron.testing.compare import Json, compare, parse_golden, shorten_values, write_golden
from nemotron.testing.plugin import GOLDEN_DIRECTORY
from nemotron.testing.session import run_pytest, selection

CHANGES = "CHANGES.md"
"""Name of the file in GOLDEN_DIRECTORY that records each change."""
HEADLINE_RUNG = "headline"
"""Rung of the ladder entries whose values before and after are shown in the line of CHANGES.md."""
CI_VARIABLES = ("CI", "GITHUB_ACTIONS")


class BlessError(ValueError):
    """The bless was refused; the message says why."""


def check_preconditions(root: Path, reason: str) -> None:
    """Raise BlessError in CI, without a reason, outside a git repository, or if something is not committed."""
    for variable in CI_VARIABLES:
        if os.environ.get(variable, "").lower() not in ("", "0", "false"):
            raise BlessError(f"{variable} is set, and CI must not replace a golden; bless on your own machine")
    if not reason.strip() or "\n" in reason:
        raise BlessError(f'reason={reason!r} must be one line of text: --reason "warm-up of 10 steps, as in table 3"')
    status = git(root, "status", "--porcelain", "--untracked-files=all")
    if status.returncode:
        message = status.stderr.decode(errors="replace").strip()
        raise BlessError(f"{root} is not a git repository ({message}); bless records the commit, so run it in one")
    if status.stdout.strip():
        changed = ", ".join(line[3:] for line in status.stdout.decode(errors="replace").splitlines()[:5])
        raise BlessError(f"the working tree has changes that are not committed ({changed}); commit or stash them first")


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in `root`; a failing command raises nothing, the caller checks the return code.

    Raises:
        BlessError: if git is not installed.
    """
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise BlessError("git is not installed, and bless records the commit; install git") from error


def headline(document: dict[str, Json]) -> dict[str, Json]:
    """Name -> value of the entries in the headline rung of a stage's ladders."""
    return {
        entry["name"]: entry["value"]
        for ladder in document["ladder"].values()
        for entry in ladder
        if entry["rung"] == HEADLINE_RUNG
    }


def change_line(stage: str, commit: str, reason: str, before: dict[str, Json], after: dict[str, Json]) -> str:
    """The line for CHANGES.md: stage, commit of the run, reason, headline numbers before and after."""
    numbers = []
    for name, value in after.items():
        shown = [f"{side:.6g}" if isinstance(side, float) else str(side) for side in (before.get(name, "-"), value)]
        numbers.append(f"{name} {shown[0]} → {shown[1]}")
    return f"- `{stage}` at `{commit}`: {reason.strip()}" + (f" ({', '.join(numbers)})" if numbers else "") + "\n"


def bless(root: Path, stage: str, reason: str, show: Callable[[str], object]) -> None:
    """Replace the goldens of the stages that `stage` selects ("stage0", "nano2/stage0_pretrain").

    Args:
        root: root of the repository.
        stage: as for `selection`.
        reason: why the numbers changed.
        show: prints a line; all differences are shown before any golden is written.

    Raises:
        BlessError: if a check fails; nothing was written.
    """
    check_preconditions(root, reason)
    selected = selection(stage)
    first = run_pytest(root, selected)
    if first.exit_code not in (0, 1):
        raise BlessError(f"pytest -k {stage!r} did not run; its output ends with:\n{first.tail}")
    for report in first.reports.values():
        for line in report["lines"]:
            show(line)
        if report["error"]:
            raise BlessError(f"{report['stage']} cannot be recorded: {report['error'].splitlines()[0]}")
    if first.failed:
        raise BlessError(f"tests fail for another reason than a golden; fix them first: {', '.join(first.failed[:5])}")
    if not first.runs:
        raise BlessError(f"no test selected by -k {stage!r} compares a golden; name a stage, such as stage0")
    second = run_pytest(root, (*selected, "--only-golden"))
    for name, run in first.runs.items():
        if second.runs.get(name) != run:
            raise BlessError(f"two runs of {name} differ, so a golden cannot hold; find what is not deterministic")
    commit = git(root, "rev-parse", "--short=10", "HEAD").stdout.decode().strip()
    for name, report in first.reports.items():
        if not report["equal"]:
            show(record_golden(root / GOLDEN_DIRECTORY, name, first.runs[name], commit, reason))


def record_golden(goldens: Path, stage: str, run: bytes, commit: str, reason: str) -> str:
    """Write a stage's golden and its line in CHANGES.md; return that line."""
    path = goldens / f"{stage}.json"
    document, _ = parse_golden(run)
    before = headline(parse_golden(path.read_bytes())[0]) if path.exists() else {}
    line = change_line(stage, commit, reason, before, headline(document))
    write_golden(path, document)
    with open(goldens / CHANGES, "a", encoding="utf-8", newline="\n") as file:
        file.write(line)
    return line.rstrip()


def changes_table(root: Path, commit: str) -> tuple[list[str], list[str]]:
    """Compare the goldens of `commit` with those of the working tree.

    Returns:
        A Markdown table of the goldens that differ, with headline numbers before and after; and the names of goldens
        that changed without a new line in golden/CHANGES.md.

    Raises:
        BlessError: if the repository has no such commit.
    """
    if git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").returncode:
        raise BlessError(f"{commit!r} is not a commit of {root}; name the commit to compare with")
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
            for first in comparison.differences[:1]:
                golden, run = shorten_values(first.golden, first.run, 40)
                rows.append(("first", golden, f"{run} ({first.place})"))
            if not any(line.startswith(f"- `{after['stage']}` ") for line in new_reasons):
                unexplained.append(name)
        lines += [f"| {name} | {what} | {before} | {after} |" for what, before, after in rows]
    return lines if len(lines) > 2 else ["No golden differs."], unexplained


def num_entries(document: dict[str, Json]) -> int:
    """Number of entries in all ladders."""
    return sum(map(len, document["ladder"].values()))


def main() -> int:
    """Bless from the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=program_name(), description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False
    )
    parser.add_argument("stage", nargs="?", default="", help="as for pytest -k: stage0, or nano2/stage0_pretrain")
    parser.add_argument("--table", metavar="COMMIT", help="only print a table of the goldens that changed since COMMIT")
    parser.add_argument("--reason", default="", help="why the numbers changed, in one line")
    arguments = parser.parse_args(checked_arguments())
    try:
        if arguments.table:
            lines, unexplained = changes_table(Path.cwd(), arguments.table)
            print("\n".join(lines))
            for name in unexplained:
                print(
                    f"{name} changed without a new line in CHANGES.md; change it with python -m nemotron.testing.bless",
                    file=sys.stderr,
                )
            return 1 if unexplained else 0
        if not arguments.stage:
            raise BlessError("no stage given; name it as for pytest -k, such as stage0")
        bless(Path.cwd(), arguments.stage, arguments.reason, lambda line: print(line, file=sys.stderr, flush=True))
    except ValueError as error:
        print(f"not blessed: {error}" if not arguments.table else error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
