"""The minimal tooling of the recipes: validated artifacts, scales, pipes, lineage. It imports no torch."""

from nemotron.artifact import Artifact
from nemotron.lineage import LineageTracker, set_lineage_tracker
from nemotron.pipe import print_complete
from nemotron.scale import SCALES, Scale, apply_scale

__all__ = ["SCALES", "Artifact", "LineageTracker", "Scale", "apply_scale", "print_complete", "set_lineage_tracker"]
