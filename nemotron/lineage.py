"""The origin of artifacts, and its report to an experiment tracker.

In: artifacts. Out: the record of how one was made, the tree of everything that it was made from, calls to a tracker.
Lineage is local first: metadata.json names the inputs with their digests. An optional tracker mirrors it to a server;
no result depends on the tracker.

Run: python -c "from nemotron.lineage import lineage_tree; print(lineage_tree('<directory of an artifact>'))"
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import nemotron
from nemotron.directory import read_metadata
from nemotron.process import process
from nemotron.terminal import print_line, printable

if TYPE_CHECKING:
    from nemotron.artifact import Artifact

DISTRIBUTION = "nemotron-recipes"
"""The name to install; the distribution `nemotron` on PyPI is another project."""

MAX_TREE_DEPTH = 100  # our choice: artifacts of which each was made from the next


@runtime_checkable
class LineageTracker(Protocol):
    """The interface to an experiment tracker: three methods, called by `Artifact` and `working_directory`."""

    def log_artifact(self, artifact: "Artifact") -> None:
        """Record a finished artifact in its final place; `artifact.inputs` holds the digests of its inputs."""

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """Record that a step reads an artifact, which was loaded from disk or is to be fetched by its name.

        Returns:
            The artifact's local directory.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics of the optimizer step `step`, or of a whole artifact if `step` is None."""


def set_lineage_tracker(tracker: LineageTracker | None) -> None:
    """Log every artifact that this process saves or loads from now on to `tracker`; None stops logging.

    Raises:
        ValueError: if the tracker lacks one of the three methods.
    """
    if tracker is not None and not isinstance(tracker, LineageTracker):
        raise ValueError(
            f"{type(tracker).__name__} is not a lineage tracker; add log_artifact, use_artifact and log_metrics"
        )
    process.tracker = tracker
    process.logged_digests.clear()


def fetch_by_name(name: str, artifact_type: str) -> Path:
    """Local directory of the artifact that the tracker has under this name.

    Raises:
        ValueError: if no tracker is set.
    """
    if process.tracker is None:
        raise ValueError(f"name={name!r} needs a lineage tracker; call set_lineage_tracker first, or load by path")
    return Path(process.tracker.use_artifact(name, artifact_type))


def log_saved(artifact: "Artifact") -> None:
    """Log a finished artifact and its metrics to the tracker, if there is one."""
    if process.tracker is None:
        return
    process.logged_digests.add(artifact.digest)
    try:
        process.tracker.log_artifact(artifact)
        if artifact.metrics:
            process.tracker.log_metrics(artifact.metrics)
    except Exception as error:  # the artifact is on disk, and a server that is down must not end the run
        _warn(artifact, error)


def log_loaded(artifact: "Artifact") -> None:
    """Log an artifact that a step reads to the tracker, if there is one and this process did not write the artifact."""
    if process.tracker is None or artifact.digest in process.logged_digests:
        return
    try:
        process.tracker.use_artifact(artifact, artifact.type_name())
    except Exception as error:  # as above
        _warn(artifact, error)


def _warn(artifact: "Artifact", error: Exception) -> None:
    print_line(f"warning: the lineage tracker did not log {artifact.path}: {error!r}")


def lineage_tree(artifact: "Artifact | str | Path") -> str:
    """The tree of an artifact (or its directory) and everything it was made from: one line each, inputs indented.

    Raises:
        ValueError: if the directory, or the existing directory of an input, holds no artifact.
    """
    path = Path(artifact) if isinstance(artifact, str | Path) else artifact.path
    return "\n".join(printable(line) for line in _tree_lines(path.resolve(), "", ()))


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
        metadata = read_metadata(path)
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


def _tree_lines(path: Path, indent: str, above: tuple[Path, ...]) -> list[str]:
    metadata = read_metadata(path)
    step = metadata.producer.get("step", "an unknown step")
    lines = [f"{metadata.type} {metadata.digest[:12]}  {path}  by {step}, {metadata.created_at.isoformat()}"]
    for number, (field, reference) in enumerate(metadata.inputs.items(), start=1):
        branch, deeper = ("└─ ", "   ") if number == len(metadata.inputs) else ("├─ ", "│  ")
        place = (path / reference.path).resolve()
        if place in (path, *above) or len(above) == MAX_TREE_DEPTH:
            raise ValueError(
                f"{path}: {field} names {place}, and so on without end; copy the artifact again, or run the step again"
            )
        label = f"{indent}{branch}{field}: "
        if not place.exists():
            lines.append(f"{label}{reference.type} {reference.digest[:12]}  {place}  (missing)")
            continue
        first, *rest = _tree_lines(place, indent + deeper, (path, *above))
        changed = read_metadata(place).digest != reference.digest
        lines.append(label + first + (f"  (changed; was {reference.digest[:12]})" if changed else ""))
        lines += rest
    return lines


def producer_record(module: str, config: Any) -> dict[str, Any]:
    """How an artifact was made: step module, resolved config, seed, versions of the code and the libraries.

    Args:
        module: name of the module that defines the artifact's class: the step, unless `config` says otherwise.
        config: the step's Config, a mapping, or None. For a Config, the module that defines its class is the step,
            because several steps may write artifacts of one class.
    """
    if is_dataclass(config) and not isinstance(config, type):
        module, values = type(config).__module__, asdict(config)
        for hidden in (item.name for item in fields(config) if item.metadata.get("hidden")):
            del values[hidden]
    else:
        values = dict(config or {})
    file = getattr(sys.modules.get(module), "__file__", None)
    return {
        "step": step_name(module, file),
        # Paths as they were given; infinity, which JSON lacks, as text.
        "config": json.loads(json.dumps(values, default=str), parse_constant=str),
        "seed": values.get("seed"),
        "code_version": code_version(file),
        "libraries": library_versions(),
    }


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
