"""Key points against key points: the normalised mean error of an image, and what follows from it for a set.

    NME_i   = mean over its visible points of |predicted - true| / d_i          d_i: the normaliser, see `sizes`
    NME     = mean_i NME_i
    FR@t    = share of the images with NME_i > t
    CED(e)  = share of the images with NME_i <= e
    AUC@t   = (1 / t) integral of CED from 0 to t = mean_i max(0, 1 - NME_i / t)

The area is that of the step function itself, without a grid. A true point that is NaN is not visible and counts
nowhere. An image without visible points, or whose normaliser is not known or 0, has no error (NaN): it is in no
figure, and `landmark_scores` says how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..settings.tasks import OUTER_EYE_CORNERS, Normaliser
from .bootstrap import DRAWS, middle, resampled

THRESHOLD = 0.1  # of FR and AUC, as WFLW's tables have it


def usual_normaliser(points: int) -> Normaliser:
    """What errors of so many points are divided by where nobody says."""
    return "inter_ocular" if points in OUTER_EYE_CORNERS else "box"


def check_normaliser(normaliser: Normaliser, points: int, where: str = "normaliser") -> None:
    """Raises `UserError` where so many points have no such normaliser."""
    if normaliser == "inter_ocular" and points not in OUTER_EYE_CORNERS:
        known = " or ".join(map(str, OUTER_EYE_CORNERS))
        what = f"which of these {points} points are the outer eye corners is not known (it is for {known})"
        raise UserError(f"{where}=inter_ocular", what, f"name the two: {where}=[36,45]")
    if isinstance(normaliser, tuple | list) and normaliser[0] == normaliser[1]:
        raise UserError(f"{where}={list(normaliser)}", "is the distance of a point to itself", "give two points")
    if isinstance(normaliser, tuple | list) and max(normaliser) >= points:
        what = f"there are {points} points, 0 to {points - 1}"
        raise UserError(f"{where}={list(normaliser)}", what, "give two of them")


def sizes(truth: Any, normaliser: Normaliser) -> np.ndarray:
    """(N,) float64: what the errors of each image are divided by; NaN where its points do not say. truth (N, P, 2).

    inter_ocular: the distance of the outer eye corners, WFLW's points 60 and 72 of 98, iBUG's 36 and 45 of 68. A pair:
    the distance of these two. box: the square root of width times height of the visible points' bounding box. A
    number: itself, in pixels. Raises `UserError` as `check_normaliser` does.
    """
    truth = _table(truth)
    check_normaliser(normaliser, truth.shape[1])
    if normaliser == "box":
        seen = ~np.isnan(truth).any(-1, keepdims=True)
        high, low = np.where(seen, truth, -np.inf).max(1), np.where(seen, truth, np.inf).min(1)
        side = np.where(seen.any(1), high - low, np.nan)
        return np.sqrt(side[:, 0] * side[:, 1])
    if isinstance(normaliser, int | float):
        return np.full(len(truth), float(normaliser))
    first, second = OUTER_EYE_CORNERS[truth.shape[1]] if normaliser == "inter_ocular" else normaliser
    return np.linalg.norm(truth[:, first] - truth[:, second], axis=-1)


def point_errors(predicted: Any, truth: Any) -> np.ndarray:
    """(N, P) float64: how far each point is off, in pixels; NaN where the true one is not visible.

    predicted, truth (N, P, 2). Raises `UserError` for shapes that differ, and for a predicted point that is none.
    """
    predicted, truth = _table(predicted), _table(truth)
    if predicted.shape != truth.shape or truth.ndim != 3 or truth.shape[-1] != 2:
        what = f"points of {predicted.shape} against points of {truth.shape}"
        raise UserError("predicted", what, "both are (images, points, 2)")
    off = np.linalg.norm(predicted - truth, axis=-1)
    wrong = np.argwhere(np.isnan(off) & ~np.isnan(truth).any(-1))
    if len(wrong):
        raise UserError("predicted", f"point {wrong[0][1]} of image {wrong[0][0]} is NaN", "predict every point")
    return off


def image_errors(predicted: Any, truth: Any, normaliser: Normaliser) -> np.ndarray:
    """(N,) float64: the NME of each image, 1 = one normaliser; NaN for one that has none (see the module's text)."""
    off, size = point_errors(predicted, truth), sizes(truth, normaliser)
    seen = ~np.isnan(off)
    count = seen.sum(1)
    size = np.where((size > 0) & (count > 0), size, np.nan)
    return np.where(seen, off, 0).sum(1) / np.maximum(count, 1) / size


def nme(errors: Any) -> float:
    """Mean of the images' errors (N,); NaN for none."""
    return _mean(_known(errors))


def failure_rate(errors: Any, threshold: float = THRESHOLD) -> float:
    """Share of the images whose error is above the threshold."""
    return _mean(_known(errors) > threshold)


def auc(errors: Any, threshold: float = THRESHOLD) -> float:
    """Area under the cumulative curve of errors up to the threshold, as a share of the area there is."""
    return _mean(np.maximum(0.0, 1 - _known(errors) / threshold))


def cumulative(errors: Any, threshold: float = THRESHOLD) -> tuple[np.ndarray, np.ndarray]:
    """(error, share of the images with at most that error): the corners of the CED curve, from 0 to the threshold.

    It is a step function: between two corners it stays at the earlier one's share.
    """
    known = np.sort(_known(errors))
    inside = np.unique(known[known <= threshold])
    at = np.unique(np.concatenate([[0.0], inside, [threshold]]))
    return at, np.searchsorted(known, at, side="right") / max(len(known), 1)


def additive(errors: Any, threshold: float = THRESHOLD) -> np.ndarray:
    """(N, 4) float64: of each image 1, its error, whether it failed, and its part of the AUC; zeros where there is no
    error. Their sums over images give `from_sums`."""
    errors = _table(errors)
    known = ~np.isnan(errors)
    error = np.where(known, errors, 0.0)
    area = np.maximum(0.0, 1 - error / threshold) * known
    return np.stack([known.astype(np.float64), error, (error > threshold).astype(np.float64), area], 1)


def from_sums(sums: Any) -> dict[str, np.ndarray]:
    """{"nme", "failure_rate", "auc"} (...) of sums (..., 4) of `additive`; NaN where they are of no image."""
    sums = _table(sums)
    count = sums[..., 0]
    names = ("nme", "failure_rate", "auc")
    nothing = np.full(count.shape, np.nan)
    return {
        name: np.divide(sums[..., i], count, out=nothing.copy(), where=count > 0) for i, name in enumerate(names, 1)
    }


def landmark_scores(errors: Any, threshold: float = THRESHOLD) -> dict[str, float]:
    """{"nme", "failure_rate", "auc", "images", "left_out"} of the images' errors (N,); the last two are counts.

    Without one image that has an error there are only the counts.
    """
    errors = _table(errors)
    known = int((~np.isnan(errors)).sum())
    counts = {"images": float(known), "left_out": float(len(errors) - known)}
    if not known:
        return counts
    found = {name: float(value) for name, value in from_sums(additive(errors, threshold).sum(0)).items()}
    return {**found, **counts}


def landmark_intervals(
    errors: Any, threshold: float = THRESHOLD, groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """{"nme", "failure_rate", "auc"}: 95 % intervals, of images (or groups (N,) of them) drawn again."""
    drawn = from_sums(resampled(additive(errors, threshold), groups, draws, seed))
    return {name: middle(values) for name, values in drawn.items()}


def by_attribute(
    errors: Any, attributes: Any, names: Sequence[str], threshold: float = THRESHOLD
) -> dict[str, dict[str, float]]:
    """{attribute: `landmark_scores` of the images that have it}, as WFLW's subsets are. attributes (N, A) in 0, 1, -1.

    An attribute that no image has is there with its counts alone.
    """
    errors, attributes = _table(errors), _table(attributes)
    if attributes.shape != (len(errors), len(names)):
        what = f"attributes of {attributes.shape} for {len(errors)} images and {len(names)} names"
        raise UserError("attributes", what, "give a row for each image and a column for each name")
    return {name: landmark_scores(errors[attributes[:, i] == 1], threshold) for i, name in enumerate(names)}


def _table(values: Any) -> np.ndarray:
    """float64, also of a tensor, wherever it is."""
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)


def _known(errors: Any) -> np.ndarray:
    errors = _table(errors)
    return errors[~np.isnan(errors)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
