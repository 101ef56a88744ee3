"""Kill every step at every change that it makes to the file system, run it again, and compare the digests.

In: the twelve steps of Nano 2 at tiny scale, cut to seconds. Out: a table on stdout with the number of kills, of
digests that differ from those of an undisturbed run, and of runs that are stuck; exit code 1 if there is one.
Run: nox -s faults    (python tests/pipelines/faults.py [--only "stage 0 training"] [--every-write 10] [--jobs 2])

strace lists the system calls of an undisturbed run that change a file or a directory of the step. For each of these
calls a new run is killed before the call (SIGKILL), and in two more runs the call fails, with ENOSPC and with EIO: such
a run must end with exit code 0, or with 2 and one sentence. Then the step runs again, training with --resume. It must
end with exit code 0, with the digest of the undisturbed run, and with nothing else beside its output. An artifact that
was in the place before, or the one that replaces it, must be readable after every fault. If the second run is refused
with the advice to drop --resume, that is done. Faults that leave the same directory share one second run.

A run is a process forked from one that has imported the steps, so Python and torch start once.
Left out: power failures, which lose what was not flushed; faults at calls that change nothing.
"""

import argparse
import hashlib
import importlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron.directory import check_files, read_metadata
from nemotron.pipe import print_complete, step_process

CHANGES = (
    *("openat", "creat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
    *("link", "linkat", "symlink", "symlinkat", "write", "pwrite64", "writev", "pwritev", "sendfile"),
    *("copy_file_range", "ftruncate", "fallocate", "chmod", "fchmod", "fchmodat", "utimensat"),
    *("fsync", "fdatasync", "flock"),
)
"""System calls that change files or directories, or hold the lock of one."""
WRITES = ("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range")
OPENED_TO_WRITE = ("O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC")
ERRORS = ("ENOSPC", "EIO")
MAX_SECONDS = 300
"""A run that takes longer is stuck; undisturbed, none takes 10 s on an idle machine."""
BLOCK_CALLS = 12


@dataclass(frozen=True)
class Call:
    """One system call of a run: the `number`-th of its name in its thread, counted from 1."""

    name: str
    number: int
    shown: str


@dataclass(frozen=True)
class Case:
    """A step, its config, and what is in its place before it starts."""

    name: str
    step: str
    """The module."""
    config: Any
    """Of the run; `output_dir` is replaced."""
    before: Path | None = None
    """A directory whose content is copied beside output_dir first: an earlier artifact, or an unfinished run."""
    has_artifact: bool = False
    """Whether `before` holds an artifact in output_dir."""

    first: int | None = None
    last: int | None = None
    """Which of the calls are tried, as a slice; the others are those of another case."""

    @property
    def resumes(self) -> bool:
        """Whether the first run has --resume; the second one always has it."""
        return "resuming" in self.name


@dataclass
class Tally:
    """What happened in the runs of one case with one kind of fault."""

    faults: int = 0
    """Runs with a fault."""
    survived: int = 0
    """Those that ended with exit code 0."""
    seen_before: int = 0
    """Those that left the same directory as an earlier one, whose second run is not repeated."""
    refused: int = 0
    """Second runs that were refused with a sentence, which was then followed."""
    other_digests: int = 0
    stuck: int = 0
    """Second runs that did not end with exit code 0."""
    no_sentence: int = 0
    lost: int = 0
    """Places where neither the earlier artifact nor the one that replaces it could be read."""
    seen: set[str] = field(default_factory=set, repr=False)
    """Digests of the directories that were left."""

    def add(self, other: "Tally") -> None:
        """Add the counts of other runs."""
        for name in ("faults", "survived", "seen_before", "refused", "other_digests", "stuck", "no_sentence", "lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def run_step(case: Case, place: Path, resume: bool, tracer: Sequence[str] = ()) -> int:
    """Run the step in a forked process, below `tracer` (the arguments of strace), and return its exit code.

    It is negative after a signal, as that of `subprocess`. Standard streams go to files in `place`.
    """
    config = replace(case.config, output_dir=place / "work" / "output")
    if resume and hasattr(config, "resume"):
        config = replace(config, resume=True)
    child = os.fork()
    if child == 0:
        _run_and_exit(importlib.import_module(case.step), config, place, bool(tracer))
    if tracer:
        os.waitpid(child, os.WUNTRACED)  # it has stopped itself, to wait for strace
        strace = subprocess.Popen(["strace", "-f", "-qq", "-p", str(child), *tracer], stderr=subprocess.PIPE)
        while not is_traced(child):
            if strace.poll() is not None:
                os.kill(child, signal.SIGKILL)
                message = strace.stderr.read().decode() if strace.stderr else ""
                raise OSError(f"strace cannot attach to a process here: {message.strip()}")
            time.sleep(0.001)
        os.kill(child, signal.SIGCONT)
    deadline = time.monotonic() + MAX_SECONDS
    while True:
        done, wait_status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGALRM
        time.sleep(0.002)
    if tracer:
        strace.wait()
        assert strace.stderr is not None
        strace.stderr.close()
    return os.waitstatus_to_exitcode(wait_status)


def is_traced(pid: int) -> bool:
    """Whether strace has attached to a process, or has already killed it."""
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def _run_and_exit(step: ModuleType, config: Any, place: Path, wait_for_tracer: bool) -> None:
    """Be the forked process: run the step as its command does, and end."""
    code = 1
    try:
        for number, name in ((0, os.devnull), (1, place / "stdout"), (2, place / "stderr")):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        if wait_for_tracer:
            os.kill(os.getpid(), signal.SIGSTOP)
        with step_process():
            print_complete({"artifact": step.main(config)})
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def changing_calls(log: str, directory: Path) -> list[Call]:
    """The calls in a log of strace that change something in `directory`, in their order."""
    counted: Counter[tuple[str, str]] = Counter()
    calls = []
    for line in log.splitlines():
        started = re.match(r"(\d+) +(\w+)\((.*)", line)
        if started is None or started[2] not in CHANGES:
            continue  # a signal, an exit, or the second half of a call that another thread interrupted
        thread, name, arguments = started.groups()
        counted[thread, name] += 1
        if str(directory) not in arguments:
            continue
        if name == "openat" and not any(flag in arguments for flag in OPENED_TO_WRITE):
            continue
        shown = f"{name}({arguments.replace(str(directory), '')[:100]}"
        calls.append(Call(name, counted[thread, name], shown))
    return calls


def chosen(calls: Sequence[Call], every_write: int) -> Iterator[Call]:
    """Every call, but of the writes that follow one another without another call between only some.

    The first and the last of them, and every `every_write`-th.
    """
    position = 0
    for index, call in enumerate(calls):
        position = position + 1 if call.name in WRITES else 0
        last = index + 1 == len(calls) or calls[index + 1].name not in WRITES
        if call.name not in WRITES or last or position % every_write == 1 % every_write:
            yield call


def prepare(case: Case, place: Path) -> None:
    """An empty place, with what the case wants to be there before."""
    shutil.rmtree(place, ignore_errors=True)
    if case.before is None:
        (place / "work").mkdir(parents=True)
    else:
        shutil.copytree(case.before, place / "work", symlinks=True)


def digest_in(place: Path) -> str:
    """The digest of the artifact in a place, after checking its files; ValueError if there is none."""
    output = place / "work" / "output"
    metadata = read_metadata(output)
    check_files(output, metadata)
    return metadata.digest


def is_one_sentence(place: Path) -> bool:
    """Whether a run ended with a sentence on stderr and nothing on stdout."""
    said = (place / "stderr").read_text(errors="replace")
    return (
        "Traceback" not in said
        and said.rstrip("\n").rpartition("\n")[2].startswith("error: ")
        and not (place / "stdout").read_bytes()
    )


def tree_digest(directory: Path) -> str:
    """One sha256 over the names, types, permissions and contents of everything in a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.relative_to(directory)} {path.lstat().st_mode} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def disturb(case: Case, call: Call, fault: str, place: Path, expected: str, tally: Tally) -> list[str]:
    """Run the case with one fault, then again without; count what happened, and return what is wrong.

    Args:
        fault: kill, or the name of an error number.
    """
    prepare(case, place)
    injected = "signal=SIGKILL" if fault == "kill" else f"error={fault}"
    told = f"{case.name}: {fault} at {call.shown}"
    wrong = []
    log = place / "log"
    tracer = ["-y", "-s", "0", "-o", str(log), "-e", f"trace={call.name}"]
    code = run_step(case, place, case.resumes, [*tracer, "-e", f"inject={call.name}:{injected}:when={call.number}"])
    tally.faults += 1
    said = (place / "stderr").read_text(errors="replace")[-2000:]
    if code == 0:
        tally.survived += 1
    elif code != (-signal.SIGKILL if fault == "kill" else 2) or (fault != "kill" and not is_one_sentence(place)):
        tally.no_sentence += 1
        wrong.append(f"{told}: exit code {code}: {said}")
    left = tree_digest(place / "work")
    if left in tally.seen:  # what follows depends on nothing else
        tally.seen_before += 1
        return wrong
    tally.seen.add(left)
    if case.has_artifact:
        try:
            digest_in(place)
        except (ValueError, OSError) as problem:
            tally.lost += 1
            wrong.append(f"{told}: {problem}")
    code = run_step(case, place, True)
    said = (place / "stderr").read_text(errors="replace")[-2000:]
    if code == 2 and is_one_sentence(place) and "drop --resume" in said:
        tally.refused += 1
        code = run_step(case, place, False)
    if code != 0:
        tally.stuck += 1
        return [*wrong, f"{told}: then exit code {code}: {said}"]
    names = sorted(path.name for path in (place / "work").iterdir())
    try:
        found = digest_in(place)
    except (ValueError, OSError) as problem:
        found = str(problem)
    if found != expected or names != ["output"]:
        tally.other_digests += 1
        wrong.append(f"{told}: then {found} instead of {expected}, in {names}")
    return wrong


def calls_of(case: Case, place: Path) -> tuple[str, list[Call]]:
    """The digest of an undisturbed run of a case, and its calls that change something."""
    prepare(case, place)
    log = place / "log"
    tracer = ["-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(CHANGES)}"]
    code = run_step(case, place, case.resumes, tracer)
    if code != 0:
        raise ValueError(f"{case.name} ends with exit code {code}: {(place / 'stderr').read_text()[-2000:]}")
    return digest_in(place), changing_calls(log.read_text(errors="replace"), place / "work")


def made(case: Case, directory: Path) -> Path:
    """Run a case undisturbed in a directory of its name; return its artifact."""
    place = directory / case.name
    prepare(case, place)
    start = time.monotonic()
    if (code := run_step(case, place, False)) != 0:
        raise ValueError(f"{case.name} ends with exit code {code}: {(place / 'stderr').read_text()[-2000:]}")
    print(f"{case.name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    return place / "work" / "output"


def shortened(directory: Path) -> list[Case]:
    """The twelve steps at tiny scale, cut to seconds, each on what the one before has made in `directory`."""
    from nemotron.recipes.nano2.stage0_pretrain import data_curation, evaluation, training
    from nemotron.recipes.nano2.stage1_sft import data_curation as sft_data_curation
    from nemotron.recipes.nano2.stage1_sft import evaluation as sft_evaluation
    from nemotron.recipes.nano2.stage1_sft import training as sft_training
    from nemotron.recipes.nano2.stage2_rlvr import data_curation as rlvr_data_curation
    from nemotron.recipes.nano2.stage2_rlvr import evaluation as rlvr_evaluation
    from nemotron.recipes.nano2.stage2_rlvr import training as rlvr_training
    from nemotron.recipes.nano2.stage3_dpo import data_curation as dpo_data_curation
    from nemotron.recipes.nano2.stage3_dpo import evaluation as dpo_evaluation
    from nemotron.recipes.nano2.stage3_dpo import training as dpo_training

    curation = Case(
        "stage 0 data_curation",
        data_curation.__name__,
        data_curation.Config(
            scale="tiny", raw_documents=20_000, num_sequences=12, batch_sequences=2, long_context_sequences=2,
            validation_sequences=8, long_validation_sequences=2, num_problems=8, recall_rows=1,
        ),
    )  # fmt: skip
    dataset = made(curation, directory)
    train = Case(
        "stage 0 training",
        training.__name__,
        training.Config(
            scale="tiny", dataset_path=dataset, batch_sequences=2, micro_batch_sequences=2, warmup_steps=1,
            checkpoint_every_steps=2, validate_every_steps=4, validation_sequences=1,
        ),
    )  # fmt: skip
    checkpoint = made(train, directory)
    evaluate = Case(
        "stage 0 evaluation", evaluation.__name__, evaluation.Config(scale="tiny", checkpoint_path=checkpoint)
    )
    made(evaluate, directory)
    sft_curation = Case(
        "stage 1 data_curation",
        sft_data_curation.__name__,
        sft_data_curation.Config(
            scale="tiny", base_checkpoint_path=checkpoint, raw_conversations=9_000, exercises_per_family=1
        ),
    )
    sft_dataset = made(sft_curation, directory)
    sft_train = Case(
        "stage 1 training",
        sft_training.__name__,
        sft_training.Config(
            scale="tiny", dataset_path=sft_dataset, batch_sequences=4, unpacked_batch_sequences=8, warmup_steps=1,
            checkpoint_every_steps=4, validate_every_steps=8, validation_sequences=1,
        ),
    )  # fmt: skip
    sft_checkpoint = made(sft_train, directory)
    sft_evaluate = Case(
        "stage 1 evaluation",
        sft_evaluation.__name__,
        sft_evaluation.Config(scale="tiny", checkpoint_path=sft_checkpoint, max_new_tokens=4),
    )
    made(sft_evaluate, directory)
    rlvr_curation = Case(
        "stage 2 data_curation",
        rlvr_data_curation.__name__,
        rlvr_data_curation.Config(
            scale="tiny", base_checkpoint_path=sft_checkpoint, raw_prompts=3_200, tries=3, max_new_tokens=12,
            exercises_per_family=1, held_out_instructions=4,
        ),
    )  # fmt: skip
    rlvr_dataset = made(rlvr_curation, directory)
    rlvr_train = Case(
        "stage 2 training",
        rlvr_training.__name__,
        rlvr_training.Config(
            scale="tiny", dataset_path=rlvr_dataset, prompts_per_step=2, replies_per_prompt=2, max_new_tokens=8,
            warmup_steps=1, checkpoint_every_steps=2,
        ),
    )  # fmt: skip
    rlvr_checkpoint = made(rlvr_train, directory)
    rlvr_evaluate = Case(
        "stage 2 evaluation",
        rlvr_evaluation.__name__,
        rlvr_evaluation.Config(scale="tiny", checkpoint_path=rlvr_checkpoint, max_new_tokens=4, replies_per_prompt=1),
    )
    made(rlvr_evaluate, directory)
    dpo_curation = Case(
        "stage 3 data_curation",
        dpo_data_curation.__name__,
        dpo_data_curation.Config(
            scale="tiny", base_checkpoint_path=rlvr_checkpoint, raw_tasks=3_200, tries=8, max_new_tokens=40,
            exercises_per_family=1, held_out_tasks=3,
        ),
    )  # fmt: skip
    dpo_dataset = made(dpo_curation, directory)
    dpo_train = Case(
        "stage 3 training",
        dpo_training.__name__,
        dpo_training.Config(
            scale="tiny", dataset_path=dpo_dataset, rounds=3, steps_per_round=1, tries=2, max_turns=1,
            max_new_tokens=8, warmup_steps=1,
        ),
    )  # fmt: skip
    dpo_checkpoint = made(dpo_train, directory)
    dpo_evaluate = Case(
        "stage 3 evaluation",
        dpo_evaluation.__name__,
        dpo_evaluation.Config(scale="tiny", checkpoint_path=dpo_checkpoint, max_new_tokens=4, max_turns=1, tries=2),
    )
    made(dpo_evaluate, directory)
    cases = [curation, train, evaluate, sft_curation, sft_train, sft_evaluate]
    return [*cases, rlvr_curation, rlvr_train, rlvr_evaluate, dpo_curation, dpo_train, dpo_evaluate]


def all_cases(directory: Path) -> list[Case]:
    """The twelve steps; those of stage 0 in the place of an earlier artifact; training that resumes."""
    cases = shortened(directory)
    curation, train, evaluate, _, sft_train, _, _, rlvr_train, _, _, dpo_train, _ = cases

    def killed(case: Case, name: str, call: str, number: int, resume: bool = False) -> Path:
        """What a case leaves behind that is killed before the given call."""
        place = directory / name
        prepare(case, place)
        code = run_step(
            case, place, resume, ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
        )
        if code != -signal.SIGKILL:
            raise ValueError(f"{name}: exit code {code} instead of -9: {(place / 'stderr').read_text()[-2000:]}")
        return place / "work"

    # Replacing an artifact that another seed made.
    for case, others in ((curation, {"seed": 7}), (train, {"seed": 7}), (evaluate, {"ngram_order": 3})):
        earlier = made(
            replace(case, name=f"{case.name}, other", config=replace(case.config, **others)), directory
        ).parent
        cases.append(replace(case, name=f"{case.name}, replacing", before=earlier, has_artifact=True, first=-30))
        if case is train:
            replacing = cases[-1]
    # Resuming: two states and the half of a third; the last of two states is damaged; killed between the two renames.
    for case in (train, sft_train, rlvr_train, dpo_train):
        unfinished = killed(case, f"{case.name}, killed in its third state", "rename", 3)
        cases.append(replace(case, name=f"{case.name}, resuming", before=unfinished))
    damaged = killed(train, "damaged", "rename", 3)
    last = max(damaged.glob("output.incomplete/training_state/step-*[0-9]"))
    with open(last / "model.safetensors", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([255 - (last / "model.safetensors").read_bytes()[-1]]))
    cases.append(replace(train, name="stage 0 training, resuming from a damaged state", before=damaged, last=50))
    swap = number_of_swap(replacing, directory / "swap")
    half = killed(replacing, "killed between the renames", "rename", swap)
    cases.append(replace(train, name="stage 0 training, resuming a swap", before=half, has_artifact=True))
    return cases


def number_of_swap(case: Case, place: Path) -> int:
    """Which of a run's renames gives the new artifact its name, when the old one has just lost it."""
    prepare(case, place)
    run_step(case, place, False, ["-y", "-s", "0", "-o", str(place / "log"), "-e", f"trace={','.join(CHANGES)}"])
    calls = changing_calls((place / "log").read_text(errors="replace"), place / "work")
    return [call.number for call in calls if call.name == "rename"][-1]


@dataclass(frozen=True)
class Block:
    """Calls of a case that are tried one after another."""

    case: Case
    fault: str
    expected: str
    """Digest of an undisturbed run."""
    calls: Sequence[Call]
    directory: Path
    deadline: float


def try_block(block: Block) -> tuple[str, str, Tally]:
    """Name of the case, fault, and what happened."""
    tally = Tally()
    place = block.directory / f"place-{os.getpid()}"
    for call in block.calls:
        if time.monotonic() > block.deadline:
            break
        for sentence in disturb(block.case, call, block.fault, place, block.expected, tally):
            print(f"FAULT {sentence}", file=sys.stderr, flush=True)
    if tally.faults:
        print(f"{block.case.name}, {block.fault}: {tally}", file=sys.stderr, flush=True)
    return block.case.name, block.fault, tally


def preload() -> None:
    """Import what the steps import while they run, so that no forked process has to."""
    import matplotlib.figure
    import rich.table  # noqa: F401
    import torch._dynamo  # noqa: F401

    figure = matplotlib.figure.Figure()
    figure.subplots().set_title("fonts")
    figure.savefig(io.BytesIO(), format="svg")


def main() -> int:
    """Try the faults; print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="a regular expression for the names of the cases")
    parser.add_argument("--every-write", type=int, default=1, help="of writes in a row, try every n-th")
    parser.add_argument("--faults", nargs="*", default=["kill", *ERRORS], help="kill, ENOSPC, EIO")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=86_400, help="stop after this time, and say what was left out")
    arguments = parser.parse_args()

    def fits(case: Case) -> bool:
        return re.search(arguments.only, case.name) is not None

    if shutil.which("strace") is None:
        print("error: strace is not installed; install it, for example with apt-get install strace", file=sys.stderr)
        return 2
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as directory:
        preload()
        root = Path(directory)
        cases = [(case, *calls_of(case, root / "place")) for case in all_cases(root) if fits(case)]
        blocks = [
            Block(case, fault, expected, calls[start : start + BLOCK_CALLS], root, deadline)
            for fault in arguments.faults
            for case, expected, all_calls in cases
            for calls in [list(chosen(all_calls, arguments.every_write))[case.first : case.last]]
            for start in range(0, len(calls), BLOCK_CALLS)
        ]
        tallies = {(case.name, fault): Tally() for fault in arguments.faults for case, _, _ in cases}
        with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
            for name, fault, tally in pool.imap_unordered(try_block, blocks):
                tallies[name, fault].add(tally)
    num_calls = {case.name: len(calls) for case, _, calls in cases}
    print("| case | fault | calls | tried | other digests | stuck | no sentence | artifact lost |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, fault), one in tallies.items():
        wrong = (one.other_digests, one.stuck, one.no_sentence, one.lost)
        print(f"| {name} | {fault} | {num_calls[name]} | {one.faults} | {' | '.join(map(str, wrong))} |")
        print(f"{name}, {fault}: {one}", file=sys.stderr)
    return 1 if any(one.other_digests + one.stuck + one.no_sentence + one.lost for one in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
