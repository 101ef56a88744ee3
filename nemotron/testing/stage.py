"""Run the three steps of a stage at tiny scale and hold on to everything they hand over.

In: the step modules of a stage. Out: a `StageRun`, the artifacts, the ladders and what was written to stdout.
Used by the session fixtures in conftest.py.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemotron.testing.compare import Json, read_ladder, run_document

STEPS = ("data_curation", "training", "evaluation")
"""The three steps of every stage; each writes its artifact into a directory of that name."""


class Step(Protocol):
    """A step module: `Config` takes scale, seed, output_dir and the path of its input; `main` returns its artifact."""

    Config: Any

    def main(self, config: Any) -> Any:
        """Run the step."""


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

    @property
    def document(self) -> dict[str, Json]:
        """What is compared with the golden."""
        return stage_document(self.name, self.directory)


def stage_document(name: str, directory: Path) -> dict[str, Json]:
    """The ladders of a stage's three steps as one document, read from `directory`."""
    return run_document(name, {step: read_ladder(directory / step) for step in STEPS})


def run_stage(name: str, data_curation: Step, training: Step, evaluation: Step, directory: Path) -> StageRun:
    """Run the three steps in this process, each on the artifact of the one before."""
    outputs = {step: directory / step for step in STEPS}
    with captured_stdout() as stdout:
        dataset = data_curation.main(data_curation.Config(scale="tiny", output_dir=outputs["data_curation"]))
        checkpoint = training.main(
            training.Config(scale="tiny", output_dir=outputs["training"], dataset_path=dataset.path)
        )
        results = evaluation.main(
            evaluation.Config(scale="tiny", output_dir=outputs["evaluation"], checkpoint_path=checkpoint.path)
        )
    return StageRun(name, directory, dataset, checkpoint, results, "".join(stdout))


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
