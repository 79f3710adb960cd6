"""What a run trains: one module per objective, chosen by `objective.kind`."""

from __future__ import annotations

from typing import Any

from ...settings.train import ObjectiveSettings
from .autoencoder import AutoencoderObjective
from .base import Objective
from .denoising import DenoisingObjective
from .distill import DistillObjective
from .freematch import FreeMatchObjective
from .joint import JointObjective
from .kd import KDObjective
from .landmarks import LandmarksObjective
from .regression import RegressionObjective
from .segmentation import SegmentationObjective
from .supervised import SupervisedObjective

OBJECTIVES: dict[str, Any] = {
    "denoising": DenoisingObjective,
    "supervised": SupervisedObjective,
    "joint": JointObjective,
    "autoencoder": AutoencoderObjective,
    "freematch": FreeMatchObjective,
    "distill": DistillObjective,
    "kd": KDObjective,
    "segmentation": SegmentationObjective,
    "landmarks": LandmarksObjective,
    "regression": RegressionObjective,
}

__all__ = ["OBJECTIVES", "Objective", "objective"]


def objective(model: Any, settings: ObjectiveSettings, seed: int = 0) -> Objective:
    """The objective these settings ask for, around a freshly built or resumed model. seed: of the run's randomness."""
    return OBJECTIVES[settings.kind](model, settings, seed)
