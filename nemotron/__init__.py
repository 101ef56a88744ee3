"""The tooling that recipes share: validated artifacts, scales, pipes and lineage. It does not import torch."""

from nemotron.artifact import Artifact
from nemotron.lineage import LineageTracker, set_lineage_tracker
from nemotron.pipe import print_complete
from nemotron.scale import SCALES, Scale, apply_scale

__all__ = ["SCALES", "Artifact", "LineageTracker", "Scale", "apply_scale", "print_complete", "set_lineage_tracker"]
