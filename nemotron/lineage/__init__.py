"""The origin of artifacts, and its report to an experiment tracker.

In: artifacts. Out: the record of how one was made, the directory of an earlier one in its lineage, calls to a tracker.
Lineage is local first: metadata.json names the inputs with their digests. An optional tracker mirrors it to a server;
no result depends on the tracker.

Run: python -m nemotron.lineage <directory of an artifact>
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import nemotron
from nemotron.background import BackgroundTracker
from nemotron.code import digest_of, modules_of
from nemotron.directory import file_record
from nemotron.process import process
from nemotron.published import read_reference
from nemotron.terminal import printable

if TYPE_CHECKING:
    from nemotron.artifact import Artifact

DISTRIBUTION = "nemotron-recipes"
"""The name to install; the distribution `nemotron` on PyPI is another project."""


@runtime_checkable
class LineageTracker(Protocol):
    """The interface to an experiment tracker: four methods, all called in one thread that is not the run's.

    A tracker may also have a method `close`, which is called at the end of the run.
    """

    def log_artifact(self, artifact: "Artifact") -> None:
        """Record a finished artifact in its final place; `artifact.inputs` holds the digests of its inputs."""

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """Record that a step reads an artifact, which was loaded from disk or is to be fetched by its name.

        Returns:
            The artifact's local directory.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None, *, producer: str = "") -> None:
        """Record metrics after `step` optimizer steps, or of a whole artifact if `step` is None.

        Args:
            producer: module of the step that measured them, nemotron.recipes.nano2.stage0_pretrain.training.
        """

    def log_files(self, paths: Sequence[Path]) -> None:
        """Record files that belong to no artifact, such as the report of a whole recipe."""


def set_lineage_tracker(tracker: LineageTracker | None) -> None:
    """Log the curves and artifacts of this process from now on to `tracker`; None sends what is left, and stops.

    The tracker is called in a thread (nemotron/background.py), so it can neither stop nor slow the run.

    Raises:
        ValueError: if the tracker lacks one of the four methods.
    """
    if tracker is not None and not isinstance(tracker, LineageTracker):
        raise ValueError(
            f"{type(tracker).__name__} is not a lineage tracker; add log_artifact, use_artifact, log_metrics and "
            f"log_files"
        )
    if process.tracker is not None:
        process.tracker.close()
    process.tracker = None if tracker is None else BackgroundTracker(tracker)
    process.logged_digests.clear()


def fetch_by_name(name: str, artifact_type: str) -> Path:
    """Local directory of the artifact that the tracker has under this name.

    Raises:
        ValueError: if no tracker is set.
    """
    if process.tracker is None:
        raise ValueError(f"name={name!r} needs a lineage tracker; call set_lineage_tracker first, or load by path")
    return process.tracker.use_artifact(name, artifact_type)


def log_saved(artifact: "Artifact") -> None:
    """Log a finished artifact and its metrics to the tracker, if there is one."""
    if process.tracker is None:
        return
    process.logged_digests.add(artifact.digest)
    if artifact.metrics:
        process.tracker.log_metrics(artifact.metrics, producer=artifact.producer["step"])
    process.tracker.log_artifact(artifact)


def log_loaded(artifact: "Artifact") -> None:
    """Log an artifact that a step reads to the tracker, if there is one and this process did not write the artifact."""
    if process.tracker is not None and artifact.digest not in process.logged_digests:
        process.tracker.use_artifact(artifact, artifact.type_name())


def log_curve(config: Any, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Log numbers of a training run to the tracker, if there is one.

    Args:
        config: of the step that measured them.
        rows: optimizer steps done -> name -> number.
    """
    if process.tracker is not None:
        module = type(config).__module__
        producer = step_name(module, getattr(sys.modules.get(module), "__file__", None))
        process.tracker.log_curve(rows, producer=producer)


def log_files(*paths: Path) -> None:
    """Log files that belong to no artifact to the tracker, if there is one."""
    if process.tracker is not None:
        process.tracker.log_files(paths)


def origin_by_step(artifact: "Artifact | str | Path", step: str) -> Path:
    """The directory of the nearest artifact that `step` wrote, among those that an artifact was made from.

    Args:
        step: importable name of the step, as in the producer record.
    Raises:
        ValueError: if there is none, or the directories of some inputs are gone.
    """
    start = (Path(artifact) if isinstance(artifact, str | Path) else artifact.path).resolve()
    waiting, seen = [start], {start}
    for path in waiting:
        metadata = read_reference(path)
        if path != start and metadata.producer.get("step") == step:
            return path
        for reference in metadata.inputs.values():
            place = (path / reference.path).resolve()
            if place not in seen and place.exists():
                seen.add(place)
                waiting.append(place)
    raise ValueError(
        f"{start} was not made from anything that {step} wrote, or its directory is gone; run the recipe's stages in "
        f"order, and keep their directories"
    )


MAX_LISTED_SOURCES = 1000  # our choice: of more files than that, only their common digest is recorded


def producer_record(module: str, config: Any) -> dict[str, Any]:
    """How an artifact was made: step module, config, seed, code, the user's files, versions of the libraries.

    Args:
        module: name of the module that defines the artifact's class: the step, unless `config` says otherwise.
        config: the step's Config, a mapping, or None. For a Config, the module that defines its class is the step,
            because several steps may write artifacts of one class.
    """
    if is_dataclass(config) and not isinstance(config, type):
        module = type(config).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    step = step_name(module, file)
    modules = modules_of(step)
    values = config_record(config)
    return {
        "step": step,
        "config": values,
        "seed": values.get("seed"),
        "code_version": code_version(file),
        "code_digest": digest_of(modules),
        "code": modules,
        "sources": sources_record(config),
        "libraries": library_versions(),
    }


def config_record(config: Any) -> dict[str, Any]:
    """The fields of a Config as they are recorded: paths as they were given; infinity, which JSON lacks, as text."""
    if is_dataclass(config) and not isinstance(config, type):
        hidden = {item.name for item in fields(config) if item.metadata.get("hidden")}
        values = {name: value for name, value in asdict(config).items() if name not in hidden}
    else:
        values = dict(config or {})
    return json.loads(json.dumps(values, default=str), parse_constant=str)


def sources_record(config: Any) -> dict[str, dict[str, Any]]:
    """The user's files that a Config names: field -> number, common digest and, of up to 1,000, each file's sha256.

    Inside `whole_stage`, they are as they were when the stage began, before a step read them.
    """
    if not is_dataclass(config) or isinstance(config, type):
        return {}
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if list_files := item.metadata.get("files"):
            places = [Path(place) for place in list_files(value)]
        elif isinstance(value, Path) and item.name != "output_dir" and not item.metadata.get("input"):
            places = [value] if value.is_file() else sorted(place for place in value.rglob("*") if place.is_file())
        else:
            continue
        key = f"{type(config).__module__}: {item.name}={value!r}"
        if places and key not in process.sources:
            files = {str(place): file_record(place).sha256 for place in places}
            record = {"num_files": len(files), "digest": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
            process.sources[key] = record | ({"files": files} if len(files) <= MAX_LISTED_SOURCES else {})
        if key in process.sources:
            found[item.name] = process.sources[key]
            if not process.stages:  # a single step; whoever calls it again may have other files
                del process.sources[key]
    return found


def step_of(config: Any) -> str:
    """The importable name of the step that a Config belongs to."""
    module = type(config).__module__
    return step_name(module, getattr(sys.modules.get(module), "__file__", None))


def step_name(module: str, file: str | None) -> str:
    """The importable name of the step's module, also while it runs as `__main__`."""
    if module != "__main__":
        return module
    spec = sys.modules["__main__"].__spec__
    if spec is not None:  # python -m package.module
        return printable(spec.name)
    if file is None:  # a notebook
        return module
    script = Path(file).resolve().with_suffix("")  # python recipes/.../training.py
    recipes = importlib.util.find_spec("nemotron.recipes")
    for root in recipes.submodule_search_locations or () if recipes else ():
        if script.is_relative_to(Path(root).resolve()):
            return ".".join(("nemotron.recipes", *script.relative_to(Path(root).resolve()).parts))
    return printable(script.name)


@cache
def code_version(file: str | None) -> str:
    """The version of the package; for a step in a git clone also the commit, and -dirty with uncommitted changes."""
    version = nemotron.__version__
    if file is None:
        return version
    folder, name = os.path.split(os.path.abspath(file))

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=environment)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", name)  # fails for an environment inside the clone of another project
        return f"{version}+{git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')}"
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        return version


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the package declares."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from source, not installed
        requirements = []
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in requirements if "extra ==" not in requirement]
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: installed_version(name) for name in sorted(names)}}


def installed_version(name: str) -> str:
    """Version of a distribution, or "not installed"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
