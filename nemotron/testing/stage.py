"""Run a stage at tiny scale, by its own orchestrator (`__main__`), and keep what it returns, records and prints.

In: the package of a stage and, if the stage takes one, the checkpoint of the previous stage. Out: a `StageRun` with the
artifacts, the ladders and what was written to stdout.
Used by `stage_fixture` (plugin.py); a run from the command line calls `report_reproduction` instead.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from nemotron.pipe import print_complete, print_page
from nemotron.testing.compare import (
    GoldenError,
    Json,
    compare,
    parse_golden,
    read_ladder,
    run_document,
    shorten_values,
)


class StageError(RuntimeError):
    """A stage that could not be run, or whose run could not be compared; the sentence names the step."""


@dataclass(frozen=True)
class StageRun:
    """One finished run of a stage."""

    name: str
    """Recipe and stage: nano2/stage0_pretrain."""
    directory: Path
    """Holds one directory per step."""
    artifacts: Mapping[str, Any]
    """What the stage's `main` returned: name -> artifact."""
    stdout: str
    """What the steps wrote to stdout; they must be silent."""
    document: dict[str, Json]
    """What is compared with the golden."""

    @property
    def dataset(self) -> Any:
        return self.artifacts["dataset"]

    @property
    def checkpoint(self) -> Any:
        return self.artifacts["checkpoint"]

    @property
    def results(self) -> Any:
        return self.artifacts["results"]


def stage_document(name: str, directory: Path, steps: Sequence[str]) -> dict[str, Json]:
    """The ladders of a stage's steps as one document, read from `directory`."""
    return run_document(name, {step: read_ladder(directory / step) for step in steps})


def run_stage(package: str, directory: Path, base_checkpoint_path: Path | None = None) -> StageRun:
    """Run a stage at tiny scale in this process.

    Args:
        package: of the stage, "nemotron.recipes.nano2.stage0_pretrain". Its `__main__` has `STEPS`, the modules of the
            steps in order; `Config`, which takes scale and output_dir; and `main`, which returns the artifacts by name.
        directory: gets one directory per step.
        base_checkpoint_path: directory of the previous stage's checkpoint, for a stage whose Config takes one.

    Raises:
        StageError: if the orchestrator is missing or incomplete, a step crashes, or a ladder cannot be compared; its
            `__cause__` is the original error.
    """
    name = stage_name(package)
    given = {} if base_checkpoint_path is None else {"base_checkpoint_path": base_checkpoint_path}
    modules: Sequence[ModuleType] = ()
    with captured_stdout() as stdout:
        try:
            stage = importlib.import_module(f"{package}.__main__")
            modules = stage.STEPS
            artifacts = stage.main(stage.Config(scale="tiny", output_dir=directory, **given))
        except Exception as error:
            said = " ".join(str(error).split())
            place = crashed_step(modules, error.__traceback__)
            raise StageError(f"it crashed in {place}: {type(error).__name__}: {said}") from error
    try:
        document = stage_document(name, directory, [step_name(module) for module in modules])
    except GoldenError as error:
        raise StageError(str(error)) from error
    return StageRun(name, directory, artifacts, "".join(stdout), document)


def crashed_step(modules: Sequence[ModuleType], trace: TracebackType | None) -> str:
    """The step in which an error was raised, as "its step training"; "its orchestrator" if it was outside of a step."""
    names = {module.__name__: step_name(module) for module in modules}
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module in names:
            return f"its step {names[module]}"
        trace = trace.tb_next
    return "its orchestrator"


def step_name(module: ModuleType) -> str:
    """ "training" of nemotron.recipes.nano2.stage0_pretrain.training."""
    return module.__name__.rpartition(".")[2]


def stage_name(package: str) -> str:
    """Recipe and stage of a package: nano2/stage0_pretrain of nemotron.recipes.nano2.stage0_pretrain."""
    return "/".join(package.split(".")[-2:])


def stage_program(
    stage: str, config: Any, main: Callable[[Any], Mapping[str, Any]], page: Callable[[Any], str]
) -> None:
    """What a stage with a plan does when it runs as a program: show the plan, or run and report.

    Args:
        stage: recipe and stage, "nano2/stage0_pretrain".
        config: of the stage, with plan, scale and output_dir.
        main: runs the stage; returns its artifacts by name.
        page: the plan as a page for the terminal.
    """
    if config.plan:
        print_page(page(config))
        return
    print_complete(main(config))
    report_reproduction(stage, config.scale, config.output_dir)


def report_reproduction(stage: str, scale: str, directory: Path) -> None:
    """At tiny scale, write one line to stderr: whether a run has the recorded numbers. Other scales have no golden.

    Args:
        stage: recipe and stage, "nano2/stage0_pretrain".
        directory: of the run; holds one directory per step.
    """
    if scale == "tiny":
        print(reproduction(stage, directory), file=sys.stderr, flush=True)


def reproduction(stage: str, directory: Path) -> str:
    """One line: whether a finished tiny run reproduces the golden that this package ships, and how closely.

    Args:
        stage: recipe and stage, "nano2/stage0_pretrain".
        directory: of the run; holds one directory per step.
    """
    shipped = resources.files("nemotron.golden").joinpath(f"{stage}.json")
    if not shipped.is_file():
        return f"nothing is recorded for {stage}"
    try:
        text = shipped.read_bytes()
        golden, _ = parse_golden(text)
        comparison = compare(text, stage_document(stage, directory, list(golden["ladder"])))
    except GoldenError as error:
        return f"reproduces golden/{stage}.json: cannot be compared, {error}"
    if comparison.equal:
        verdict = f"yes ({comparison.closeness})"
    else:
        first = comparison.differences[0]
        golden_value, run_value = shorten_values(first.golden, first.run, 30)
        verdict = f"no, it differs at {first.place}: golden {golden_value}, run {run_value} ({first.reason})"
    return f"reproduces golden/{stage}.json: {verdict}"


@contextlib.contextmanager
def captured_stdout() -> Iterator[list[str]]:
    """Collect what this process writes to stdout, through Python or through file descriptor 1, until the block ends."""
    written: list[str] = []
    sys.stdout.flush()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file, contextlib.redirect_stdout(io.StringIO()) as text:
        os.dup2(file.fileno(), 1)
        try:
            yield written
        finally:
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            written += [text.getvalue(), file.read().decode(errors="replace")]
