"""Labels from the nearest labelled images: a classifier that fits nothing.

    score(x, c) = sum over the k nearest i of class c of exp(similarity(x, i) / temperature), divided by their sum

similarity is the cosine (Wu et al. 2018, section 3.4, with k = 200 and temperature 0.07 on ImageNet) or minus the
squared Euclidean distance. Without a temperature every neighbour has one vote.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError, nearest
from ..measure import neighbours
from .heads import Features, as_float, labelled

METRICS = ("cosine", "euclidean")


class KNN:
    """features (N, D) and labels (N,) of known images; those labelled -1 are left out. classes: K.

    k: neighbours that vote. temperature: how fast votes fade with distance, None = not at all.
    Raises `UserError` for values or sizes that are not right, and where fewer than k images are labelled.
    """

    def __init__(
        self,
        features: Features,
        labels: Features,
        classes: int,
        k: int = 20,
        temperature: float | None = 0.07,
        metric: Literal["cosine", "euclidean"] = "cosine",
    ) -> None:
        if metric not in METRICS:
            raise UserError(f"metric={metric}", "no such metric", nearest(metric, METRICS))
        if temperature is not None and not 0 < temperature < float("inf"):
            raise UserError(f"temperature={temperature}", "not above 0", "0.07 is usual, None counts votes")
        features = as_float(features)
        rows, labels = labelled(labels, len(features), classes)
        if not 1 <= k <= len(rows):
            raise UserError(f"k={k}", f"{len(rows)} images are labelled", f"1 to {len(rows)}")
        self.classes, self.k, self.temperature, self.metric = classes, k, temperature, metric
        self.labels = labels
        self.features = self._placed(features[rows.to(features.device)])

    def scores(self, x: Features) -> Tensor:
        """(M, D) -> (M, K) float64 on the CPU: each class's share of the votes; rows sum to 1.

        Exact neighbours, in memory bounded by `measure.neighbours.BUDGET` beside the features. Which of several
        equally distant images is the k-th is not defined. Raises `UserError` for another D, NaN or infinity.
        """
        distance, index = neighbours.nearest(self._placed(as_float(x)), self.features, self.k)
        if self.temperature is None:
            votes = torch.full_like(distance, 1 / self.k)
        else:  # on the unit sphere |x - y|^2 = 2 - 2 cos
            similarity = -distance.square() / (2 if self.metric == "cosine" else 1)
            votes = torch.softmax(similarity / self.temperature, 1)
        return votes.new_zeros(len(votes), self.classes).scatter_add_(1, self.labels[index], votes)

    def _placed(self, features: Tensor) -> Tensor:
        """Where distances are what the metric says. A vector of zeros has no direction and stays 0."""
        return torch.nn.functional.normalize(features, dim=1, eps=1e-30) if self.metric == "cosine" else features
