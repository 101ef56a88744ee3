"""A whole stage: its steps in order, each run only if its artifact is not current.

In: the Config of a stage, and the calls of its steps. Out: their artifacts, made now or earlier.

    with whole_stage(config, STEPS) as run:
        dataset = run(data_curation.main, config.data)
        checkpoint = run(training.main, replace(config.train, dataset_path=dataset.path))

An artifact is current if all that its result depends on is what it was made with: the fields of the Config that are
recorded, the digests of its inputs, the user's files, the source files of the step (nemotron/code.py), the versions of
the libraries; and if none of its own files has changed. `find_current` decides it, and says in words what differs.
Remote sources (hf://, s3://) are not fetched to compare them: --force reads them again.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from nemotron.artifact import Artifact
from nemotron.code import modules_of
from nemotron.config import ScaledConfig, recorded_values, switch
from nemotron.directory import (
    RUNNING,
    check_not_written,
    check_replaceable,
    final_place,
    locked,
    read_metadata,
    repair_swap,
    working_name,
)
from nemotron.lineage import config_record, library_versions, sources_record, step_of
from nemotron.pipe import print_page
from nemotron.process import process
from nemotron.published import read_reference
from nemotron.strict import one_sentence, short
from nemotron.terminal import print_line
from nemotron.view import shown

AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)
AnyStepConfig = TypeVar("AnyStepConfig")

LIBRARIES_THAT_SHOW = ("filelock", "psutil", "rich", "tyro")  # no result depends on their version


@dataclass
class StageConfig(ScaledConfig):
    """What every orchestrator, of a stage or of a recipe, takes."""

    plan: bool = switch(of_whole_run=True)
    """Print which steps would run, and why, and run none."""
    force: bool = switch(of_whole_run=True)
    """Run every step, also those whose artifact is current."""
    devices: PositiveInt = field(default=1, metadata={"recorded": False, "of_whole_run": True})
    """With --plan: how many devices share a training."""

    def check(self) -> None:
        if self.devices > 1 and not self.plan:
            raise ValueError(
                f"devices={self.devices} has an effect with --plan only; to train on several devices, start the "
                f"training step with torchrun"
            )


def chosen_stages(given: str, stages: Sequence[str]) -> list[str]:
    """The stages that --stages names: one, or a range with both ends, of which either may be left out.

    Args:
        given: as typed; a stage is its folder, the first part of it, or its number: stage1_sft, stage1 or 1.
        stages: all stages of the recipe in order, as "nano2/stage1_sft".
    Raises:
        ValueError: if it names no stage of the recipe, or the end of the range comes before its beginning.
    """

    def place(part: str, default: int) -> int:
        for number, stage in enumerate(stages):
            folder = stage.rpartition("/")[2]
            if part in (folder, start := folder.partition("_")[0], start.removeprefix("stage")):
                return number
        if part:
            folders = ", ".join(stage.rpartition("/")[2] for stage in stages)
            raise ValueError(f"stages={given}: there is no stage {part}; use one of {folders}, or a range first:last")
        return default

    first, colon, last = given.partition(":")
    begin = place(first, 0)
    end = place(last if colon else first, len(stages) - 1)
    if end < begin:
        raise ValueError(f"stages={given} ends before it begins; write it as {last}:{first}")
    return list(stages[begin : end + 1])


class StepRunner:
    """Calls the steps of a stage, except those whose artifact is current."""

    def __init__(self, config: Any, num_steps: int) -> None:
        self.stage = Path(os.path.abspath(config.output_dir)).name
        self.force, self.plan = getattr(config, "force", False), getattr(config, "plan", False)
        self.num_steps, self.num_seen = num_steps, 0
        self.page = [self.stage]

    def __call__(self, main: Callable[[AnyStepConfig], AnyArtifact], config: AnyStepConfig) -> AnyArtifact:
        """What `main(config)` returns: made now, or loaded if it is current. A plan returns one with a path only."""
        artifact_class = get_type_hints(main).get("return", Artifact)
        final = final_place(config.output_dir)  # type: ignore[attr-defined]
        self.num_seen += 1
        artifact, reason = find_current(artifact_class, config)
        if artifact is None or self.force:
            goes_on = getattr(config, "resume", False) and working_name(final).is_dir()
            artifact, reason = None, "goes on with its unfinished run" if goes_on else reason or "--force"
        if self.plan:
            self.page.append(f"  {final.name:<16}{'is current' if artifact else f'runs: {reason}'}")
        else:
            place = f"{self.stage} {self.num_seen}/{self.num_steps} {final.name}"
            with shown() as view:
                view.begin(self.stage, place)
                outcome = "is current, and not run again" if artifact else f"runs: {reason}{view.words()}"
                print_line(f"{place} {outcome}")
                made = main(config) if artifact is None else artifact
                view.end(was_run=artifact is None)
            return made
        if artifact is not None:
            return artifact
        process.planned.add(final)
        return artifact_class.model_construct(path=final)


def find_current(artifact_class: type[AnyArtifact], config: Any) -> tuple[AnyArtifact | None, str]:
    """The artifact in the output directory of a step if it is current, or None and why the step has to run.

    Args:
        artifact_class: what the step writes.
        config: of the step, with its inputs.
    """
    final = final_place(config.output_dir)
    repair_swap(final)  # if killed between its two renames, a finished artifact has another name
    if not final.exists():
        return None, "not made yet"
    try:
        metadata = read_metadata(final, artifact_class.type_name())
        reason = changed_input(config, metadata.inputs) or changed_record(config, metadata.producer)
        return (None, reason) if reason else (artifact_class.load(final), "")
    except ValueError as error:
        return None, f"what is there cannot be used: {one_sentence(error)}"


def changed_input(config: Any, inputs: Mapping[str, Any]) -> str:
    """How the artifacts that a Config names differ from those that the step read; empty if they do not."""
    for item in fields(config):
        path = getattr(config, item.name)
        if not item.metadata.get("input") or path is None:
            continue
        place = final_place(path)
        if place in process.planned:
            return f"depends on {place.parent.name}/{place.name}, which runs"
        try:
            digest = read_reference(place).digest
        except ValueError as error:
            return f"{item.name}: {one_sentence(error)}"
        if digest not in {reference.digest for reference in inputs.values()}:
            return f"{item.name}: {place.parent.name}/{place.name} has another digest now, {digest[:12]}"
    return ""


def changed_record(config: Any, producer: Mapping[str, Any]) -> str:
    """How config, sources, code or libraries differ from those that are recorded; empty if they do not."""
    modules = modules_of(step_of(config))
    recorded = producer.get("code")
    if not isinstance(recorded, dict) or not modules:
        return "it is not recorded which code made it"
    now, before = config_record(config), producer.get("config")
    before = before if isinstance(before, dict) else {}
    for name in recorded_values(config):
        if name not in before:
            return f"config {name} is new"
        if now[name] != before[name]:
            return f"config {name} changed from {short(before[name])} to {short(now[name])}"
    if producer.get("step") != step_of(config):
        return f"it was made by {short(producer.get('step'))}"
    if (sources := sources_record(config)) != producer.get("sources"):
        return f"sources changed{named_change(sources, producer.get('sources'))}"
    if changed := [name for name in sorted({*modules, *recorded}) if modules.get(name) != recorded.get(name)]:
        return f"code changed: {', '.join(changed[:3])}{f' and {len(changed) - 3} more' if changed[3:] else ''}"
    libraries = producer.get("libraries")
    for name, version in library_versions().items():
        was = libraries.get(name) if isinstance(libraries, dict) else None
        if name not in LIBRARIES_THAT_SHOW and was != version:
            return f"{name} changed from {short(was)} to {short(version)}"
    return ""


def named_change(now: Mapping[str, Any], before: Any) -> str:
    """The first of the user's files that is new, gone or another one, as far as it is recorded."""

    def listed(record: Any) -> dict[str, Any]:
        entries = record.values() if isinstance(record, dict) else ()
        return {file: sha256 for one in entries for file, sha256 in dict(one).get("files", {}).items()}

    files, old = listed(now), listed(before)
    for file in sorted({*files, *old}):
        if files.get(file) != old.get(file):
            return f": {file} is {'new' if file not in old else 'gone' if file not in files else 'another file now'}"
    return ""


@contextmanager
def whole_stage(config: Any, steps: Sequence[ModuleType]) -> Iterator[StepRunner]:
    """Run the steps of a stage, alone in its directory; first check that every step can write its artifact.

    Inside, no other process can run the stage or one of its steps in this directory. A recipe that has opened the stage
    already may open it again in the same process. A plan locks and writes nothing; it prints a page at its end.

    Args:
        config: of the stage: output_dir, and the Config of each step as a field; force and plan if it has them.
        steps: the modules, each with Config and main.
    Yields:
        What calls the steps: run(training.main, config).
    Raises:
        ValueError: if another process writes there, or a step's output directory holds anything but its artifact.
    """
    stage = Path(os.path.abspath(config.output_dir)).resolve()
    runner = StepRunner(config, len(steps))
    if stage in process.stages:
        yield runner
        return
    step_configs = [value for step in steps for value in vars(config).values() if isinstance(value, step.Config)]
    places = [final_place(step_config.output_dir) for step_config in step_configs]
    for step, final in zip(steps, places, strict=True):
        check_replaceable(final, get_type_hints(step.main).get("return", Artifact).type_name())
    if runner.plan:
        yield runner
        if runner.num_seen:  # not if a recipe opens all of its stages
            print_page("\n".join(runner.page))
        return
    for final in places:
        check_not_written(final)
    running = stage / RUNNING
    made = [folder for folder in (stage, *stage.parents) if not folder.exists()]
    running.mkdir(parents=True, exist_ok=True)
    with locked(running, written=stage), shown() as view:
        process.stages.add(stage)
        view.open(runner.stage, len(steps))
        try:
            for step_config in step_configs:
                if is_dataclass(step_config):
                    modules_of(step_of(step_config))  # read now: what is edited later is not what runs
                    sources_record(step_config)
            yield runner
        finally:
            process.stages.remove(stage)
            if not process.stages:
                process.sources.clear()
            running.rmdir()
            for folder in made:  # a stage that was refused leaves nothing
                if not any(folder.iterdir()):
                    folder.rmdir()
