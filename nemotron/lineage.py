"""Where an artifact comes from, and who else is told.

In: artifacts. Out: the record of what made one, the tree of everything that it was made from, and calls to a tracker.
Lineage is local first: metadata.json names the inputs with their digests. A tracker mirrors that to a server, if one is
set, and no result depends on it.

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
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nemotron.directory import read_metadata

if TYPE_CHECKING:
    from nemotron.artifact import Artifact


@runtime_checkable
class LineageTracker(Protocol):
    """What an experiment tracker offers: three calls, made by `Artifact` and `working_directory`."""

    def log_artifact(self, artifact: "Artifact") -> None:
        """An artifact is finished and in its final place; `artifact.inputs` holds the digests that it was made from."""

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """A step reads an artifact: one that was loaded from disk, or the name of one that the tracker is to fetch.

        Returns:
            The artifact's local directory.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of the run; `step` is the optimizer step that they belong to, None for those of a whole artifact."""


_trackers: list[LineageTracker] = []  # the active one, or none
_told_digests: set[str] = set()  # to read back what this process has just written is no use of an input


def set_lineage_tracker(tracker: LineageTracker | None) -> None:
    """Tell `tracker` of every artifact that this process saves or loads from now on; None ends that.

    Raises:
        ValueError: if the tracker lacks one of the three methods.
    """
    if tracker is not None and not isinstance(tracker, LineageTracker):
        raise ValueError(
            f"{type(tracker).__name__} is no lineage tracker; give it log_artifact, use_artifact and log_metrics"
        )
    _trackers[:] = [] if tracker is None else [tracker]
    _told_digests.clear()


def fetch_by_name(name: str, artifact_type: str) -> Path:
    """Local directory of the artifact that the tracker knows by this name.

    Raises:
        ValueError: if no tracker is set.
    """
    if not _trackers:
        raise ValueError(f"name={name!r} needs a lineage tracker; call set_lineage_tracker first, or load by path")
    return Path(_trackers[0].use_artifact(name, artifact_type))


def tell_saved(artifact: "Artifact") -> None:
    """Tell the tracker, if there is one, of a finished artifact and its metrics."""
    if not _trackers:
        return
    _told_digests.add(artifact.digest)
    try:
        _trackers[0].log_artifact(artifact)
        if artifact.metrics:
            _trackers[0].log_metrics(artifact.metrics)
    except Exception as error:  # the artifact is safe on disk, and a server that is down must not end the run
        _warn(artifact, error)


def tell_loaded(artifact: "Artifact") -> None:
    """Tell the tracker, if there is one, of an artifact that a step reads and that this process did not write."""
    if not _trackers or artifact.digest in _told_digests:
        return
    try:
        _trackers[0].use_artifact(artifact, artifact.type_name())
    except Exception as error:  # as above
        _warn(artifact, error)


def _warn(artifact: "Artifact", error: Exception) -> None:
    print(f"warning: the lineage tracker does not know of {artifact.path}: {error!r}", file=sys.stderr)


def lineage_tree(artifact: "Artifact | str | Path") -> str:
    """An artifact (or its directory) and all that it was made from: a line each, inputs below what they went into.

    Raises:
        ValueError: if the directory, or that of an input that is there, holds no artifact.
    """
    path = Path(artifact) if isinstance(artifact, str | Path) else artifact.path
    return "\n".join(_tree_lines(path.resolve(), ""))


def _tree_lines(path: Path, indent: str) -> list[str]:
    metadata = read_metadata(path)
    step = metadata.producer.get("step", "an unknown step")
    lines = [f"{metadata.type} {metadata.digest[:12]}  {path}  by {step}, {metadata.created_at.isoformat()}"]
    for number, (field, reference) in enumerate(metadata.inputs.items(), start=1):
        branch, deeper = ("└─ ", "   ") if number == len(metadata.inputs) else ("├─ ", "│  ")
        place = (path / reference.path).resolve()
        label = f"{indent}{branch}{field}: "
        if not place.exists():
            lines.append(f"{label}{reference.type} {reference.digest[:12]}  {place}  (not there)")
            continue
        first, *rest = _tree_lines(place, indent + deeper)
        changed = read_metadata(place).digest != reference.digest
        lines.append(label + first + (f"  (changed, was {reference.digest[:12]})" if changed else ""))
        lines += rest
    return lines


def producer_record(module: str, config: Any) -> dict[str, Any]:
    """What makes an artifact: step module, resolved config, seed, versions of the code and the libraries.

    Args:
        module: `__name__` of the module that defines the artifact's class: the step.
        config: the step's Config, a dataclass or a mapping; None for none.
    """
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config or {})
    file = getattr(sys.modules.get(module), "__file__", None)
    return {
        "step": step_name(module, file),
        # Paths as they were given; what JSON has no number for (infinity) as text.
        "config": json.loads(json.dumps(values, default=str), parse_constant=str),
        "seed": values.get("seed"),
        "code_version": code_version(file),
        "libraries": library_versions(),
    }


def step_name(module: str, file: str | None) -> str:
    """The name by which the step's module can be imported, also while it runs as `__main__`."""
    if module != "__main__":
        return module
    spec = sys.modules["__main__"].__spec__
    if spec is not None:  # python -m package.module
        return spec.name
    if file is None:  # a notebook
        return module
    script = Path(file).resolve().with_suffix("")  # python recipes/.../training.py
    recipes = importlib.util.find_spec("nemotron.recipes")
    for root in recipes.submodule_search_locations or () if recipes else ():
        if script.is_relative_to(Path(root).resolve()):
            return ".".join(("nemotron.recipes", *script.relative_to(Path(root).resolve()).parts))
    return script.name


@cache
def code_version(file: str | None) -> str:
    """The installed version; of a step in a git clone also the commit, with -dirty if it is not the whole truth."""
    version = installed_version("nemotron")
    if file is None:
        return version
    folder, name = os.path.split(os.path.abspath(file))

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", name)  # an environment may lie in a clone of something else
        return f"{version}+{git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')}"
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return version


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the package declares."""
    try:
        requirements = importlib.metadata.requires("nemotron") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
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
