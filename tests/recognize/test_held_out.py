"""Figures of masks and points about a store: those of all answers at once, whatever the parts they were asked in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from twofold.measure.landmarks import by_attribute, image_errors, landmark_intervals, landmark_scores
from twofold.measure.segmentation import confusions, segmentation_intervals, segmentation_scores
from twofold.recognize.held_out import mask_figures, point_figures
from twofold.recognize.landmarker import NetworkLandmarker
from twofold.recognize.segmenter import NetworkSegmenter

COUNT, SHAPE = 14, (1, 6, 8)


def store(groups: np.ndarray | None = None) -> Any:
    """Images with masks of three classes, of which one is void, and with four points, of which one image has none."""
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (COUNT, *SHAPE), np.uint8))
    masks = random.choice(np.array([0, 1, 2, 255], np.uint8), (COUNT, *SHAPE[1:]))
    masks[2] = 255
    points = random.uniform(0, 5, (COUNT, 4, 2)).astype(np.float32)
    points[3] = np.nan
    attributes = random.integers(-1, 2, (COUNT, 2)).astype(np.int8)
    return SimpleNamespace(
        masks=masks,
        points=points,
        groups=groups,
        all_attributes=attributes,
        attribute_names=["a", "b"],
        batch=lambda rows: images[torch.from_numpy(rows)],
    )


ROWS = np.array([0, 2, 3, 5, 6, 7, 9, 11, 12])


@pytest.mark.parametrize("groups", [None, np.arange(COUNT) // 3, np.full(COUNT, 4), np.full(COUNT, -1)])
def test_parts_are_the_whole(groups: np.ndarray | None) -> None:
    torch.manual_seed(0)
    given, known = store(groups), None if groups is None or groups[0] == 4 else groups[ROWS]  # of one group: images
    segmenter = NetworkSegmenter(nn.Conv2d(1, 3, 1), ["a", "b", "c"], SHAPE)
    each = confusions(segmenter.masks(given.batch(ROWS)), torch.from_numpy(given.masks[ROWS]), 3)
    landmarker = NetworkLandmarker(nn.Conv2d(1, 4, 3, padding=1), list("abcd"), SHAPE, None, 1.0)
    with torch.no_grad():
        found = landmarker.points(given.batch(ROWS))[0].numpy()
    errors = image_errors(found, given.points[ROWS], 3.0)
    for size in (1, 4, 100):
        parts = [ROWS[start : start + size] for start in range(0, len(ROWS), size)]
        masks = mask_figures(segmenter, given, iter(parts))
        assert np.array_equal(masks.confusion, each.sum(0).numpy()) and masks.images == 8
        assert masks.scores == segmentation_scores(each.sum(0))
        assert masks.intervals == segmentation_intervals(each, known)
        points = point_figures(landmarker, given, iter(parts), 3.0, 0.5)
        np.testing.assert_allclose(points.errors, errors)
        scores = landmark_scores(errors, 0.5)
        assert points.images == 8 and points.scores == pytest.approx({n: scores[n] for n in points.scores})
        assert set(points.scores) == set(points.intervals) == {"nme", "failure_rate", "auc"}
        for name, interval in landmark_intervals(errors, 0.5, known).items():
            assert points.intervals[name] == pytest.approx(interval)
        assert points.intervals["nme"][0] < points.scores["nme"] < points.intervals["nme"][1]
        assert points.subsets is not None
        for name, row in by_attribute(errors, given.all_attributes[ROWS], ["a", "b"], 0.5).items():
            assert points.subsets[name] == pytest.approx(row)


def test_nothing_known_gives_no_figures() -> None:
    given, none = store(), np.zeros(0, np.int64)
    segmenter = NetworkSegmenter(nn.Conv2d(1, 3, 1), ["a", "b", "c"], SHAPE)
    landmarker = NetworkLandmarker(nn.Conv2d(1, 4, 1), list("abcd"), SHAPE, None, 1.0)
    for parts in ([], [none], [np.array([2])]):
        masks = mask_figures(segmenter, given, parts)
        assert (masks.scores, masks.intervals, masks.images, masks.confusion.sum()) == ({}, {}, 0, 0)
    for parts in ([], [np.array([3])]):
        points = point_figures(landmarker, given, parts, "box")
        assert (points.scores, points.intervals, points.images) == ({}, {}, 0)
        assert np.isnan(points.errors).all() and len(points.errors) == len(parts)
