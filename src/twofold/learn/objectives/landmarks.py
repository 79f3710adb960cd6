"""The landmarks objective: squared error between heat maps and a bump at each key point that is there.

    loss of an image = 1 / (P h w) * sum over its visible points of |map - bump|^2

mean over the joints and the cells, as published (SimpleBaseline, Xiao et al. 2018): a point that is not there has the
error 0 and counts in the mean all the same. What a bump is, and how points are read off again: see `heatmaps`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.warp import WARP_DRAWS, warp
from ...measure.landmarks import additive, check_normaliser, from_sums, image_errors, usual_normaliser
from ...recognize.heatmaps import encode
from ...recognize.landmarker import NetworkLandmarker, marked
from ...settings.tasks import Landmarks
from ..batches import U_AUGMENT, Batch
from .base import Objective

TRUE, FOUND = (40, 200, 80), (230, 60, 60)  # colours of points in a preview


class LandmarksObjective(Objective):
    """forward(batch) -> loss per image (B,). Its scores, over held-out images: NME, failure rate and AUC."""

    classifies = False
    needs_noise = False
    belongings = ("points",)
    tallies = 4

    def __init__(self, landmarker: NetworkLandmarker, settings: Landmarks, seed: int = 0) -> None:
        super().__init__()
        self.landmarker, self.settings = landmarker, settings
        self.network = landmarker.network
        self.uniforms = U_AUGMENT + WARP_DRAWS
        count = len(landmarker.point_names)
        self.normaliser = settings.normaliser or usual_normaliser(count)
        check_normaliser(self.normaliser, count, "objective.normaliser")

    @property
    def previews(self) -> bool:
        return True

    def forward(self, batch: Batch) -> Tensor:
        x0, points = self.landmarker.codec.encode(batch.images), batch.points
        if self.training:
            x0, _, points = warp(x0, batch.uniforms[:, U_AUGMENT:], self.settings.warp, points=points)
        assert points is not None
        heat = self.landmarker(x0)
        image, cells = (x0.shape[-2], x0.shape[-1]), (heat.shape[-2], heat.shape[-1])
        target, weight = encode(points, image, cells, self.settings.heat_sigma, self.settings.unbiased)
        return ((heat - target).square().flatten(2).mean(2) * weight).mean(1)

    def tally(self, batch: Batch) -> Tensor:
        assert batch.points is not None
        found = self.landmarker.points(batch.images)[0]
        errors = image_errors(found, batch.points, self.normaliser)
        return torch.from_numpy(additive(errors, self.settings.threshold).sum(0))

    def scores(self, total: Tensor) -> dict[str, float]:
        found = {name: float(value) for name, value in from_sums(total).items()}
        return found if total[0] > 0 else {}

    def pictures(self, batch: Batch) -> Tensor:
        """Each image with its true points in green and beside it with those that were found in red: 2N images."""
        assert batch.points is not None
        found = self.landmarker.points(batch.images)[0]
        both = [marked(batch.images, batch.points, TRUE), marked(batch.images, found, FOUND)]
        return torch.stack(both, 1).flatten(0, 1).cpu()
