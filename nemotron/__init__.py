"""The tooling that recipes share: validated artifacts, scales, pipes and lineage. It does not import torch."""

__version__ = "0.1.0"

from nemotron.artifact import Artifact
from nemotron.lineage import LineageTracker, set_lineage_tracker
from nemotron.pipe import print_complete
from nemotron.scale import SCALES, Scale, apply_scale
from nemotron.stage import StageConfig, whole_stage

__all__ = [
    "SCALES",
    "Artifact",
    "LineageTracker",
    "Scale",
    "StageConfig",
    "__version__",
    "apply_scale",
    "print_complete",
    "set_lineage_tracker",
    "whole_stage",
]
