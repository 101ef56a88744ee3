"""Train every stage of a finished tiny run again in several processes, and compare with what one process recorded.

In: the directory of a run of the recipe. Out: for each training step and number of processes, the worst relative
difference of each kind of number; exit code 1 if one is outside the policy of the goldens, or a step fails. With
`--resume-on 4 1`, each step is killed at its first state, goes on with 4 processes, is killed again, and ends with 1.

Run: python tests/pipelines/devices.py outputs/nano2/tiny --processes 2 4
     python tests/pipelines/devices.py outputs/nano2/tiny --steps stage0_pretrain.training --processes 2 --resume-on 4 1
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from nemotron.testing.compare import Policy, relative_difference

STEPS = {
    "stage0_pretrain.training": ("--dataset-path", "stage0_pretrain/data_curation"),
    "stage1_sft.training": ("--dataset-path", "stage1_sft/data_curation"),
    "stage2_rlvr.training": ("--dataset-path", "stage2_rlvr/data_curation"),
    "stage3_dpo.training": ("--dataset-path", "stage3_dpo/data_curation"),
    "stage4_rlhf.reward_model": ("--dataset-path", "stage4_rlhf/data_curation"),
    "stage4_rlhf.training": ("--rewardmodel-path", "stage4_rlhf/reward_model"),
    "stage5_compress.training": ("--checkpoint-path", "stage5_compress/search"),
    "stage5_compress.control": ("--checkpoint-path", "stage5_compress/training"),
}
"""Training step -> the flag of its input, and where a run of the recipe has that."""


def started(step: str, processes: int, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """torchrun with a step, or the step alone; it writes to `log`."""
    module = ["-m", f"nemotron.recipes.nano2.{step}", *arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def run(step: str, processes: int, arguments: Sequence[str], output: Path, *, is_killed: bool) -> int:
    """The exit code of a step; 0 if it is killed once it has written a state."""
    log = output.with_name(f"{output.name}.log")
    found = started(step, processes, arguments, log)
    before = states_of(output)
    while found.poll() is None:
        if is_killed and states_of(output) - before:
            children = psutil.Process(found.pid).children(recursive=True)
            found.kill()
            psutil.wait_procs(children, timeout=60)  # without torchrun they end by themselves
            found.wait()
            return 0
        time.sleep(0.05)
    if found.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error")]
        print(f"{step} on {processes}: exit code {found.returncode}: {' '.join(lines)}")
    return found.returncode


def states_of(output: Path) -> set[str]:
    directory = output.with_name(f"{output.name}.incomplete") / "training_state"
    return {path.name for path in directory.glob("step-*") if "." not in path.name}


def numbers_in(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from numbers_in(each)
    else:
        yield value


def difference(output: Path, expected: Path) -> tuple[dict[str, float], int]:
    """Kind of number -> worst relative difference of two ladders, and how many values are outside the policy."""
    ours, theirs = (json.loads((path / "ladder.json").read_text(encoding="utf-8")) for path in (output, expected))
    worst: dict[str, float] = {}
    wrong = 0
    for one, other in zip(ours, theirs, strict=True):
        kind = f"{one['rung']} {one['name']}" if one["rung"] == "curve" else one["rung"]
        for found, wanted in zip(numbers_in(one["value"]), numbers_in(other["value"]), strict=True):
            if isinstance(found, float) and isinstance(wanted, float):
                worst[kind] = max(worst.get(kind, 0.0), relative_difference(wanted, found))
                wrong += not Policy().accepts(wanted, found)
            else:
                wrong += found != wanted
    return worst, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run of the recipe at tiny")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--resume-on", type=int, nargs="*", default=[], help="numbers of processes that go on")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of the step, at the end")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        for step in given.steps:
            flag, place = STEPS[step]
            arguments = [flag, str(given.run.absolute() / place), *given.flags]
            expected = given.run / step.replace(".", "/")
            if given.flags:  # then the run has other numbers
                expected = Path(directory) / f"{step}.alone"
                run(step, 1, [*arguments, "--output-dir", str(expected)], expected, is_killed=False)
            for first in given.processes:
                order = [first, *given.resume_on]
                output = Path(directory) / f"{step}.{first}"
                codes = [
                    run(
                        step, number, [*arguments, "--output-dir", str(output), *(["--resume"] if index else [])],
                        output, is_killed=index < len(order) - 1,
                    )
                    for index, number in enumerate(order)
                ]  # fmt: skip
                if any(codes):
                    failed = True
                    continue
                worst, wrong = difference(output, expected)
                failed |= wrong > 0
                shown = ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items() if value) or "none"
                print(f"{step} on {' then '.join(map(str, order))}: {wrong} outside the policy; {shown}", flush=True)
                shutil.rmtree(output)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
