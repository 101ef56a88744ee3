"""Run the three steps of a stage at tiny scale and hold on to everything they hand over.

In: the package of a stage, and the checkpoint of the stage before it if it takes one. Out: a `StageRun`, the artifacts,
the ladders and what was written to stdout.
Used by `stage_fixture` (plugin.py); a run from the command line compares itself by `reproduction`.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from nemotron.testing.compare import GoldenError, Json, compare, read_ladder, run_document

STEPS = {"data_curation": None, "training": "dataset_path", "evaluation": "checkpoint_path"}
"""The three steps of every stage, each of which writes its artifact into a directory of that name; and the field of its
Config that takes the path of the artifact before."""


class StageError(RuntimeError):
    """A stage that could not be run, or whose run nothing could be compared with; the sentence names the step."""


@dataclass(frozen=True)
class StageRun:
    """One finished run of a stage."""

    name: str
    """Recipe and stage: nano2/stage0_pretrain."""
    directory: Path
    """Holds one directory a step."""
    dataset: Any
    checkpoint: Any
    results: Any
    stdout: str
    """What the steps wrote to stdout; they must be silent."""
    document: dict[str, Json]
    """What is compared with the golden."""


def stage_document(name: str, directory: Path) -> dict[str, Json]:
    """The ladders of a stage's three steps as one document, read from `directory`."""
    return run_document(name, {step: read_ladder(directory / step) for step in STEPS})


def run_stage(package: str, directory: Path, base_checkpoint_path: Path | None = None) -> StageRun:
    """Run a stage's three steps at tiny scale in this process, each on the artifact of the one before.

    Args:
        package: of the stage, "nemotron.recipes.nano2.stage0_pretrain". Each of its step modules has `Config`, which
            takes scale, output_dir and the path of its input, and `main`, which returns the step's artifact.
        directory: gets one directory a step.
        base_checkpoint_path: of the checkpoint of the stage before, for the Config of data_curation.

    Raises:
        StageError: if a module is missing, a step crashes, or a ladder cannot be compared; from the error raised.
    """
    name = stage_name(package)
    artifacts: list[Any] = []
    with captured_stdout() as stdout:
        for step, field in STEPS.items():
            given = {field: artifacts[-1].path} if field else {}
            if field is None and base_checkpoint_path is not None:
                given = {"base_checkpoint_path": base_checkpoint_path}
            try:
                module = importlib.import_module(f"{package}.{step}")
                artifacts.append(module.main(module.Config(scale="tiny", output_dir=directory / step, **given)))
            except Exception as error:
                said = " ".join(str(error).split())
                raise StageError(f"it crashed in its step {step}: {type(error).__name__}: {said}") from error
    dataset, checkpoint, results = artifacts
    try:
        document = stage_document(name, directory)
    except GoldenError as error:
        raise StageError(str(error)) from error
    return StageRun(name, directory, dataset, checkpoint, results, "".join(stdout), document)


def stage_name(package: str) -> str:
    """Recipe and stage of a package: nano2/stage0_pretrain of nemotron.recipes.nano2.stage0_pretrain."""
    return "/".join(package.split(".")[-2:])


def reproduction(stage: str, directory: Path) -> str:
    """One line: whether a finished tiny run reproduces the golden that this package ships, and how closely.

    Args:
        stage: recipe and stage, "nano2/stage0_pretrain".
        directory: of the run; holds one directory a step.
    """
    shipped = resources.files("nemotron.golden").joinpath(f"{stage}.json")
    if not shipped.is_file():
        return f"nothing is recorded for {stage}"
    try:
        comparison = compare(shipped.read_bytes(), stage_document(stage, directory))
    except GoldenError as error:
        return f"reproduces golden/{stage}.json: cannot be compared, {error}"
    if comparison.equal:
        verdict = f"yes ({comparison.closeness})"
    else:
        first = comparison.differences[0]
        verdict = f"no, it departs at {first.place}: golden {first.golden[:30]}, run {first.run[:30]} ({first.reason})"
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
