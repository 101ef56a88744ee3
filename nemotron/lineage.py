"""Where an artifact comes from, and who else is told.

Lineage is local first: every artifact's metadata.json names its inputs with their digests, and `lineage_tree` prints them.
A tracker, if one is set, mirrors that to a server; no result depends on it.

Run: python -c "from nemotron.lineage import lineage_tree; print(lineage_tree('<artifact directory>'))"
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from nemotron.artifact import Artifact


@runtime_checkable
class LineageTracker(Protocol):
    """What an experiment tracker has to offer; three calls, made by `Artifact` and `working_directory`."""

    def log_artifact(self, artifact: "Artifact") -> None:
        """A finished artifact lies in its final place; `artifact.inputs` holds the digests of what it was made from."""

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """A step reads an artifact: one that was loaded from disk, or the name of one that the tracker is to fetch.

        Returns:
            The artifact's local directory.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of the run; `step` is the optimizer step they belong to, None for those of a whole artifact."""


_active: LineageTracker | None = None
_logged_digests: set[str] = set()  # of this process: reading back what was just written is no use of an input


def set_lineage_tracker(tracker: LineageTracker | None) -> None:
    """Mirror every artifact that this process saves or loads from now on to `tracker`; None ends that.

    Raises:
        ValueError: if the tracker lacks one of the three methods.
    """
    global _active  # noqa: PLW0603  one tracker a process, set once at its start
    if tracker is not None and not isinstance(tracker, LineageTracker):
        raise ValueError(
            f"{type(tracker).__name__} is no lineage tracker; it needs log_artifact, use_artifact and log_metrics"
        )
    _active = tracker
    _logged_digests.clear()


def fetch_by_name(name: str, artifact_type: str) -> Path:
    """Directory of the artifact that the active tracker knows under `name`."""
    if _active is None:
        raise ValueError(
            f"name={name!r} needs a lineage tracker, and none is set; call set_lineage_tracker first or load by path"
        )
    return Path(_active.use_artifact(name, artifact_type))


def tell_saved(artifact: "Artifact") -> None:
    """Tell the tracker, if there is one, of a finished artifact and its metrics."""
    if _active is not None:
        _logged_digests.add(artifact.digest)
        try:
            _active.log_artifact(artifact)
            if artifact.metrics:
                _active.log_metrics(artifact.metrics)
        except Exception as error:  # the artifact is safe on disk; a server that is down must not fail the step
            _warn(artifact, error)


def tell_loaded(artifact: "Artifact", artifact_type: str) -> None:
    """Tell the tracker, if there is one, that a step reads an artifact which this process did not write."""
    if _active is not None and artifact.digest not in _logged_digests:
        try:
            _active.use_artifact(artifact, artifact_type)
        except Exception as error:  # as above
            _warn(artifact, error)


def _warn(artifact: "Artifact", error: Exception) -> None:
    print(f"warning: the lineage tracker was not told of {artifact.path}: {error!r}", file=sys.stderr)


def lineage_tree(artifact: "Artifact | str | Path") -> str:
    """The artifact and everything it was made from, one line each, inputs indented below what they went into.

    Raises:
        ValueError: if the directory, or an input that is present, is no artifact.
    """
    from nemotron.artifact import read_metadata

    def lines(directory: Path, indent: str, label: str) -> list[str]:
        metadata = read_metadata(directory)
        made_by = metadata.producer.get("step", "unknown step")
        found = [f"{label}{metadata.type} {metadata.digest[:12]}  {directory}  ({made_by}, {metadata.created_at})"]
        inputs = list(metadata.inputs.items())
        for position, (field, reference) in enumerate(inputs):
            last = position == len(inputs) - 1
            branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
            place = (directory / reference.path).resolve()
            if place.exists():
                below = lines(place, indent + deeper, f"{indent}{branch}{field}: ")
                if read_metadata(place).digest != reference.digest:
                    below[0] += f"  CHANGED since: it was {reference.digest[:12]}"
                found += below
            else:
                found.append(f"{indent}{branch}{field}: {reference.type} {reference.digest[:12]}  {place}  (absent)")
        return found

    return "\n".join(lines(Path(getattr(artifact, "path", artifact)).resolve(), "", ""))
