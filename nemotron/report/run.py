"""The artifacts of a run, read for the report: every file is checked against its record before it is used.

In: the directory of a run, <stage>/<step>/metadata.json, or of one stage, <step>/metadata.json. Out: its stages with
their steps, each step after those that it was made from. Nothing but the artifacts is read: no weights, no clock.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nemotron.directory import METADATA, PARTIAL_METADATA, Metadata, read_metadata
from nemotron.strict import one_sentence, parse_json
from nemotron.terminal import LINES, printable

MAX_FILE_BYTES = 64 << 20  # our choice: no table or page that a report shows is larger


@dataclass(frozen=True)
class Step:
    """One artifact of a run."""

    directory: Path
    metadata: Metadata

    @property
    def name(self) -> str:
        """The step that made it: "training"."""
        return self.module.rpartition(".")[2] or self.directory.name

    @property
    def module(self) -> str:
        """The importable name of its step: "nemotron.recipes.nano2.stage0_pretrain.training"; empty if unknown."""
        step = self.metadata.producer.get("step")
        return step if isinstance(step, str) else ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved Config of the step."""
        config = self.metadata.producer.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.metadata.metrics

    def has(self, name: str) -> bool:
        """Whether a file belongs to the artifact."""
        return name in self.metadata.files

    def content(self, name: str) -> bytes:
        """The content of one of its files.

        Raises:
            ValueError: if the file is missing, has changed, or is too large for a report.
        """
        record, place = self.metadata.files[name], self.directory / name
        if record.size > MAX_FILE_BYTES:
            raise ValueError(
                f"{place} has {record.size} bytes, more than a report shows; make the report of another run"
            )
        try:
            content = place.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{place} is missing; copy the artifact again, or run the step again") from None
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise ValueError(f"{place} has changed since it was saved; copy the artifact again, or run the step again")
        return content

    def text(self, name: str) -> str:
        """The text of one of its files; what a terminal or a browser would obey is escaped."""
        return printable(self.content(name).decode("utf-8", errors="replace"), keep=LINES)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of its Parquet files."""
        try:
            return pq.read_table(pa.BufferReader(self.content(name))).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(f"{self.directory / name}: {one_sentence(error)}; run the step again") from None

    @cached_property
    def ladder(self) -> list[dict[str, Any]]:
        """The entries of its ladder.json; none if it has none."""
        if not self.has("ladder.json"):
            return []
        entries = parse_json(
            self.content("ladder.json"), str(self.directory / "ladder.json"), advice="run the step again"
        )
        return [entry for entry in entries if isinstance(entry, dict) and {"rung", "name", "value"} <= entry.keys()]


@dataclass(frozen=True)
class Stage:
    """The steps of one stage that are done."""

    name: str
    """stage0_pretrain"""
    recipe: str
    """The package of the recipe, "nemotron.recipes.nano2"; empty if the steps were not run from one."""
    steps: list[Step]
    unfinished: list[str]
    """Names of directories in which a step was not finished."""

    def step(self, name: str) -> Step | None:
        """The step of this name, if it is done."""
        return next((step for step in self.steps if step.name == name), None)


def read_run(output_dir: Path) -> list[Stage]:
    """The stages of a run, in the order of their names.

    Raises:
        ValueError: if the directory holds no artifact, or the metadata of one is damaged.
    """
    if not output_dir.is_dir():
        raise ValueError(f"{output_dir} is not a directory; give the output directory of a recipe")
    folders = [output_dir, *sorted(path for path in output_dir.iterdir() if path.is_dir() and not path.is_symlink())]
    stages = []
    for folder in folders:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        steps = [Step(path, read_metadata(path)) for path in inside if (path / METADATA).exists()]
        unfinished = [path.name for path in inside if (path / PARTIAL_METADATA).exists()]
        if not steps and (folder == output_dir or not unfinished):
            continue
        package = next((step.module.rpartition(".")[0] for step in steps if "." in step.module), "")
        name = package.rpartition(".")[2] or folder.name if folder == output_dir else folder.name
        stages.append(Stage(name, package.rpartition(".")[0], after_their_inputs(steps), unfinished))
    if not any(stage.steps for stage in stages):
        raise ValueError(
            f"{output_dir} holds no finished step; give the output directory of a recipe, such as outputs/nano2/tiny"
        )
    return stages


def after_their_inputs(steps: Iterable[Step]) -> list[Step]:
    """The steps, each after those of them that it was made from; otherwise by name."""
    left = sorted(steps, key=lambda step: step.directory.name)
    ordered: list[Step] = []
    while left:
        waiting = {step.metadata.digest for step in left}
        ready = [step for step in left if not any(one.digest in waiting for one in step.metadata.inputs.values())]
        ordered += ready or left  # no order in a circle, which only a forged artifact can have
        left = [step for step in left if step not in ordered]
    return ordered
