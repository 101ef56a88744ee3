"""Kill a run at random moments, start the same command again, and compare its digests with those of a whole run.

In: a command that takes --output-dir. Out: a line for each kill, and exit code 1 if a digest differs, a step that was
complete is run again, or the command fails. Every kill has its own run, from the beginning to the end; `--chain` kills
one run again and again instead, which takes little longer than the run.

Run: python tests/pipelines/kills.py --kills 20
     python tests/pipelines/kills.py --kills 5 --chain -- python -m nemotron.recipes.nano2 --scale tiny --stages 0:1
"""

import argparse
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = (sys.executable, "-m", "nemotron.recipes.nano2", "--scale", "tiny")
CURRENT = re.compile(r"^(.+) \d+/\d+ (\S+) is current", re.MULTILINE)
DECIDED = re.compile(rb" is current, | runs: ")


@dataclass
class Killed:
    """What a killed process had done."""

    complete: set[str]
    """Directories of complete artifacts, below the output directory."""
    seconds: float
    """From the start of the process."""


@dataclass
class Trial:
    """A command whose runs are killed."""

    command: Sequence[str]
    directory: Path
    cwd: Path | None = None
    log: str = field(default="", init=False)
    """stderr of the last run."""

    def start(self) -> subprocess.Popen[bytes]:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.directory.with_suffix(".log").open("wb") as log:
            return subprocess.Popen(
                [*self.command, "--output-dir", str(self.directory)],
                cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def artifacts(self) -> dict[str, str]:
        """Directory below the output directory -> digest, of every artifact there."""
        found = {}
        for file in sorted(self.directory.rglob("metadata.json")):
            place = file.parent.relative_to(self.directory).as_posix()
            if ".incomplete" not in place:
                found[place] = json.loads(file.read_text(encoding="utf-8"))["digest"]
        return found

    def kill(self, *, after_seconds: float = 0.0, once: str = "") -> Killed | None:
        """Start the command and kill it: so long after its first decision, or once a path exists; None if it ended."""
        process = self.start()
        began = time.perf_counter()
        log = self.directory.with_suffix(".log")
        while process.poll() is None and not DECIDED.search(log.read_bytes()):
            time.sleep(0.002)
        decided = time.perf_counter()
        while process.poll() is None:
            is_there = any(self.directory.glob(once)) if once else time.perf_counter() - decided >= after_seconds
            if is_there:
                break
            time.sleep(0.001)
        if process.poll() is not None:
            self.finished(process)
            return None
        process.send_signal(signal.SIGKILL)
        process.wait()
        return Killed(set(self.artifacts()), time.perf_counter() - began)

    def again(self, killed: Killed) -> dict[str, str]:
        """Run the command to its end; the digests.

        Raises:
            AssertionError: if it fails, or runs a step again that was complete when it was killed.
        """
        self.finished(self.start())
        current = {f"{stage}/{step}" for stage, step in CURRENT.findall(self.log)}
        current |= {step for _, step in CURRENT.findall(self.log)}  # of a single stage
        twice = sorted(killed.complete - current)
        assert not twice, f"done twice: {', '.join(twice)}\n{self.log}"
        return self.artifacts()

    def finished(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.log = self.directory.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        assert code == 0, f"exit code {code}: {self.log[-2000:]}"


def whole_run(trial: Trial) -> tuple[dict[str, str], float]:
    """The digests of a run that nobody kills, and the seconds that its steps take."""
    process = trial.start()
    log = trial.directory.with_suffix(".log")
    while process.poll() is None and not DECIDED.search(log.read_bytes()):
        time.sleep(0.01)
    began = time.perf_counter()
    trial.finished(process)
    return trial.artifacts(), time.perf_counter() - began


def main(arguments: Sequence[str]) -> int:
    """Do the kills; return how many ended badly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chain", action="store_true", help="kill one run again and again")
    parser.add_argument("command", nargs="*", default=COMMAND, help="after --; without --output-dir")
    given = parser.parse_args(arguments)
    draw = random.Random(given.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Trial(given.command, Path(folder, "whole"))
        expected, seconds = whole_run(whole)
        print(f"{shlex.join(given.command)}: {len(expected)} artifacts in {seconds:.0f} s", flush=True)
        killed = None
        for number in range(given.kills):
            trial = Trial(given.command, Path(folder, "chain" if given.chain else f"kill{number}"))
            moment = draw.random() * seconds * (2 / given.kills if given.chain else 1)
            before, killed = killed, trial.kill(after_seconds=moment)
            complete = killed.complete if killed else set(trial.artifacts())
            outcome = f"killed after {moment:.1f} s, {len(complete)} steps complete" if killed else "it had ended"
            print(f"{number}: {outcome}", flush=True)
            lost = sorted(before.complete - complete) if given.chain and before else []
            different: list[str] = []
            failure = f"lost: {', '.join(lost)}" if lost else ""
            if not given.chain or not killed or number == given.kills - 1:
                try:
                    found = trial.again(killed) if killed else trial.artifacts()
                    different = sorted(
                        place for place in {*expected, *found} if expected.get(place) != found.get(place)
                    )
                except AssertionError as error:
                    failure = str(error)
                failure = f"different: {', '.join(different)}" if different else failure
                print(f"   {failure or 'the same digests'}", flush=True)
            bad += bool(failure)
            if given.chain and not killed:
                break
    print(f"{bad} of {given.kills} kills ended badly", flush=True)
    return bad


if __name__ == "__main__":
    raise SystemExit(bool(main(sys.argv[1:])))
