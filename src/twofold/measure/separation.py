"""How well one number tells images of another kind from those a model knows: AUROC, FPR at 95 % TPR, AUPR.

A score is higher for what is stranger. `inside` are the scores of known kinds, `outside` those of others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .answers import Array, auroc

ACCEPTED = 0.95  # share of the known images that are let through where FPR is measured
BINS = 30  # of a histogram
SHOWN = (0.5, 99.5)  # percentiles at which its ends lie: one extreme image would leave nothing to see
SMALLEST = 1e-12  # and no lower, where bins are of equal ratio


def separation(inside: Array, outside: Array) -> dict[str, float]:
    """{"auroc", "low", "high", "fpr95", "aupr"} of scores (n,) and (m,).

    auroc: the chance that an image from outside scores higher than one from inside, a tie counting half; low, high: its
    95 % interval (`area_interval`). fpr95: share of the outside images that pass a threshold which lets 95 % of the
    inside ones pass (Liang et al. 2018). aupr: area under precision and recall for finding the outside ones (average
    precision), for which chance is their share of all images. Raises `UserError` for no images or NaN.
    """
    from sklearn.metrics import average_precision_score

    known, strange = _values("inside", inside), _values("outside", outside)
    both = np.concatenate([known, strange])
    kind = np.repeat([0, 1], [len(known), len(strange)])
    area = auroc(both, kind)
    low, high = area_interval(area, len(known), len(strange))
    threshold = np.sort(known)[math.ceil(ACCEPTED * len(known)) - 1]
    return {
        "auroc": area,
        "low": low,
        "high": high,
        "fpr95": float((strange <= threshold).mean()),
        "aupr": float(average_precision_score(kind, both)),
    }


def histogram(inside: Array, outside: Array, bins: int = BINS, logarithmic: bool = False) -> dict[str, Any]:
    """{"edges" (bins + 1), "inside", "outside" (bins)}: shares of either kind, plain lists; what lies beyond the ends
    is counted in the first and the last bin. logarithmic: bins of equal ratio, for scores above 0."""
    known, strange = _values("inside", inside), _values("outside", outside)
    low, high = np.percentile(np.concatenate([known, strange]), SHOWN)
    if logarithmic:
        low = max(low, SMALLEST)
        edges = np.geomspace(low, high if high > low else 10 * low, bins + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    count = lambda values: np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / len(values)  # noqa: E731
    return {"edges": edges.tolist(), "inside": count(known).tolist(), "outside": count(strange).tolist()}


def area_interval(area: float, n: int, m: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of an AUROC of n and m independent images (Newcombe 2006, method 5): holds at 0, at 1 and for few.

    As Wilson's interval of a share, its ends are those t with |area - t| = z sqrt(V(t)), V being the variance that
    Hanley and McNeil (1982) give, with the mean of n and m for both.
    """

    def surplus(t: float) -> float:
        """How far t is beyond what chance explains; negative inside the interval."""
        ratio = (1 - t) / (2 - t) + t / (1 + t)
        return abs(area - t) - z * math.sqrt(t * (1 - t) * (1 + ((n + m) / 2 - 1) * ratio) / (n * m))

    ends = []
    for outer in (0.0, 1.0):
        far, near = outer, area
        for _ in range(60):
            middle = (far + near) / 2
            far, near = (middle, near) if surplus(middle) > 0 else (far, middle)
        ends.append(near)
    return min(ends[0], area), max(ends[1], area)


def _values(name: str, scores: Array) -> np.ndarray:
    values = torch.as_tensor(scores).detach().cpu().double().numpy().reshape(-1)
    if not len(values):
        raise UserError(name, "no images", "at least one of either kind")
    if np.isnan(values).any():
        raise UserError(name, f"NaN for {int(np.isnan(values).sum())} of {len(values)} images")
    return values
