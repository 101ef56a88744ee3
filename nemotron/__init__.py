"""The tooling that recipes share: validated artifacts, scales, pipes and lineage. It does not import torch."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

from nemotron.artifact import Artifact
from nemotron.lineage import LineageTracker, set_lineage_tracker
from nemotron.pipe import print_complete
from nemotron.scale import SCALES, Scale, apply_scale
from nemotron.stage import StageConfig, whole_stage

if TYPE_CHECKING:
    from nemotron.trackers import MlflowTracker, WandbTracker

__all__ = [
    "SCALES",
    "Artifact",
    "LineageTracker",
    "MlflowTracker",
    "Scale",
    "StageConfig",
    "WandbTracker",
    "__version__",
    "apply_scale",
    "print_complete",
    "set_lineage_tracker",
    "whole_stage",
]


def __getattr__(name: str) -> object:
    """The two trackers, imported when they are used."""
    if name in ("WandbTracker", "MlflowTracker"):
        from nemotron import trackers

        return getattr(trackers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
