"""How right a segmenter's masks or a landmarker's points are about images of a store, and how sure that is.

Images are asked about part by part; of each only what the figures follow from is kept. Intervals (95 %) are of images
drawn again, and of whole groups where the store knows whose images they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from ..data import Store
from ..measure.landmarks import THRESHOLD, by_attribute, image_errors, landmark_intervals, landmark_scores
from ..measure.segmentation import area_intervals, areas, confusions, segmentation_scores
from ..settings.tasks import Normaliser
from .landmarker import NetworkLandmarker
from .segmenter import NetworkSegmenter

Intervals = dict[str, tuple[float, float]]


class MaskFigures(NamedTuple):
    """scores, intervals: mIoU, mAcc and aAcc, none where no pixel is known. confusion: int64 (K, K) of all pixels.
    images: how many have a known pixel."""

    scores: dict[str, float]
    intervals: Intervals
    confusion: np.ndarray
    images: int


class PointFigures(NamedTuple):
    """scores, intervals: NME, failure rate and AUC, none where no image has an error. errors: (N,), NaN for none.
    subsets: `by_attribute`, where the store has attributes. images: how many have an error."""

    scores: dict[str, float]
    intervals: Intervals
    errors: np.ndarray
    subsets: dict[str, dict[str, float]] | None
    images: int


@torch.no_grad()
def mask_figures(model: NetworkSegmenter, store: Store, parts: Iterable[np.ndarray]) -> MaskFigures:
    """Its masks of the images at these rows, a part at a time. Void is not asked about."""
    assert store.masks is not None
    classes = len(model.class_names)
    whole, rows, each = torch.zeros((classes, classes), dtype=torch.int64), [NO_ROWS], [np.zeros((0, 3, classes))]
    for part in parts:
        truth = torch.from_numpy(np.ascontiguousarray(store.masks[part]))
        found = confusions(model.masks(store.batch(part)).cpu(), truth, classes)
        whole += found.sum(0)
        each.append(areas(found))
        rows.append(part)
    every, scores = np.concatenate(each), segmentation_scores(whole)
    intervals = area_intervals(every, _groups(store, np.concatenate(rows))) if scores else {}
    return MaskFigures(scores, intervals, whole.numpy(), int((every[:, 1].sum(1) > 0).sum()))


@torch.no_grad()
def point_figures(
    model: NetworkLandmarker,
    store: Store,
    parts: Iterable[np.ndarray],
    normaliser: Normaliser,
    threshold: float = THRESHOLD,
) -> PointFigures:
    """Its points of the images at these rows, a part at a time. Points that are not there are not asked about."""
    assert store.points is not None
    asked, found = [NO_ROWS], [np.zeros((0, *store.points.shape[1:]))]
    for part in parts:
        found.append(model.points(store.batch(part))[0].cpu().numpy())
        asked.append(part)
    rows = np.concatenate(asked)
    errors = image_errors(np.concatenate(found), store.points[rows], normaliser)
    scores = landmark_scores(errors, threshold)
    images = int(scores["images"])
    intervals = landmark_intervals(errors, threshold, _groups(store, rows)) if images else {}
    subsets = None
    if store.all_attributes is not None:
        subsets = by_attribute(errors, store.all_attributes[rows], store.attribute_names, threshold)
    return PointFigures({name: scores[name] for name in intervals}, intervals, errors, subsets, images)


NO_ROWS = np.zeros(0, np.int64)


def _groups(store: Store, rows: np.ndarray) -> np.ndarray | None:
    """Whose images they are, where that is known: those of one person are drawn again together. None too where all
    belong to one, of which draws would be always the same."""
    groups = None if store.groups is None else np.asarray(store.groups[rows])
    return None if groups is None or (len(np.unique(groups)) == 1 and groups[0] >= 0) else groups
