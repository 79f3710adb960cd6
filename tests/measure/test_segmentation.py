"""Confusion, mIoU, mAcc and aAcc: worked by hand, against torchmetrics and scikit-learn, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from twofold.errors import UserError
from twofold.measure import segmentation
from twofold.measure.bootstrap import middle, resampled
from twofold.measure.segmentation import (
    VOID,
    area_intervals,
    areas,
    class_accuracy,
    class_iou,
    confusion,
    confusions,
    segmentation_intervals,
    segmentation_scores,
)


def masks(seed: int, classes: int = 5, images: int = 6, void: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """(predicted, truth) uint8 (images, 9, 7): right in two pixels of three."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (images, 9, 7), generator=random, dtype=torch.uint8)
    other = torch.randint(0, classes, truth.shape, generator=random, dtype=torch.uint8)
    predicted = torch.where(torch.rand(truth.shape, generator=random) < 2 / 3, truth, other)
    truth[torch.rand(truth.shape, generator=random) < void] = VOID
    return predicted, truth


def test_by_hand() -> None:
    """Class 0: 2 right, 1 taken for 1. Class 1: 1 right. Class 2: never in the truth, answered once, for a void pixel
    and for one of class 0. Class 3 is nowhere."""
    truth = torch.tensor([[[0, 0, 0, 0], [1, VOID, VOID, VOID]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 0, 1, 2], [1, 2, 3, 0]]], dtype=torch.uint8)
    found = confusion(predicted, truth, 4)
    assert found.tolist() == [[2, 1, 1, 0], [0, 1, 0, 0], [0] * 4, [0] * 4] and found.dtype == torch.int64
    assert class_iou(found)[:3] == pytest.approx([2 / 4, 1 / 2, 0.0]) and np.isnan(class_iou(found)[3])
    assert class_accuracy(found)[:2] == pytest.approx([2 / 4, 1.0]) and np.isnan(class_accuracy(found)[2:]).all()
    expected = {"miou": (1 / 2 + 1 / 2 + 0) / 3, "macc": (1 / 2 + 1) / 2, "aacc": 3 / 5}
    assert segmentation_scores(found) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_against_torchmetrics_and_scikit_learn(seed: int) -> None:
    predicted, truth = masks(seed)
    scores, known = segmentation_scores(confusion(predicted, truth, 5)), truth != VOID
    given = predicted.long(), truth.long()
    assert scores["miou"] == pytest.approx(float(MulticlassJaccardIndex(5, ignore_index=VOID)(*given)), abs=1e-6)
    each = MulticlassAccuracy(5, average="macro", ignore_index=VOID)(*given)
    assert scores["macc"] == pytest.approx(float(each), abs=1e-6)
    micro = MulticlassAccuracy(5, average="micro", ignore_index=VOID)(*given)
    assert scores["aacc"] == pytest.approx(float(micro), abs=1e-6)
    flat = truth[known].numpy(), predicted[known].numpy()
    assert scores["miou"] == pytest.approx(jaccard_score(*flat, average="macro"), abs=1e-12)
    assert confusion(predicted, truth, 5).tolist() == confusion_matrix(*flat, labels=range(5)).tolist()


def test_against_the_mean_iou_of_torchmetrics() -> None:
    """Which is a mean over images: of one image it is the same."""
    predicted, truth = masks(7, void=0)
    for image, true in zip(predicted[:, None], truth[:, None], strict=True):
        theirs = MeanIoU(5, include_background=True, input_format="index")(image.long(), true.long())
        assert segmentation_scores(confusion(image, true, 5))["miou"] == pytest.approx(float(theirs), abs=1e-6)


def test_a_class_that_is_nowhere_is_left_out() -> None:
    predicted, truth = masks(3)
    plain = segmentation_scores(confusion(predicted, truth, 5))
    assert segmentation_scores(confusion(predicted, truth, 19)) == pytest.approx(plain)
    theirs = MulticlassJaccardIndex(19, ignore_index=VOID)(predicted.long(), truth.long())
    assert plain["miou"] == pytest.approx(float(theirs), abs=1e-6)


def test_nothing_known() -> None:
    nothing = torch.full((2, 4, 4), VOID, dtype=torch.uint8)
    found = confusion(torch.zeros_like(nothing), nothing, 3)
    assert found.sum() == 0 and segmentation_scores(found) == {}


@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(0, 5))
def test_properties(seed: int, classes: int, images: int) -> None:
    predicted, truth = masks(seed, classes, images)
    each = confusions(predicted, truth, classes)
    assert each.shape == (images, classes, classes) and each.sum() == (truth != VOID).sum()
    assert torch.equal(each.sum(0), confusion(predicted, truth, classes))
    perfect = segmentation_scores(confusion(torch.where(truth == VOID, 0, truth), truth, classes))
    assert all(value == 1 for value in perfect.values())
    if scores := segmentation_scores(each.sum(0)):
        assert all(0 <= value <= 1 for value in scores.values()) and scores["miou"] <= scores["macc"] + 1e-12


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, truth = masks(1)
    whole = confusions(predicted, truth, 5)
    monkeypatch.setattr(segmentation, "PIXELS_AT_ONCE", 70)
    assert torch.equal(confusions(predicted, truth, 5), whole)


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), "masks of .* against"),
        (torch.full((1, 4, 4), 3), torch.zeros(1, 4, 4), "predicted: a mask holds 3, and there are 3 classes"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 4), 18), "truth: a mask holds 18"),
        (torch.full((1, 4, 4), VOID), torch.zeros(1, 4, 4), "predicted: a mask holds 255"),
    ],
)
def test_masks_that_are_none(predicted: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        confusion(predicted.to(torch.uint8), truth.to(torch.uint8), 3)


def test_the_last_of_nineteen_classes_is_in_range() -> None:
    """CelebAMask-HQ's hat, with background as class 0."""
    hat = torch.full((1, 2, 2), 18, dtype=torch.uint8)
    assert confusion(hat, hat, 19)[18, 18] == 4


def test_intervals_hold_the_figure_and_shrink() -> None:
    predicted, truth = masks(5, images=40)
    each = confusions(predicted, truth, 5)
    scores, wide = segmentation_scores(each.sum(0)), segmentation_intervals(each[:10])
    narrow = segmentation_intervals(each)
    assert segmentation_intervals(each) == narrow
    for name, value in scores.items():
        low, high = narrow[name]
        assert low < value < high and high - low < wide[name][1] - wide[name][0]


def test_areas_say_all_that_the_figures_need() -> None:
    """Of each image (3, K) numbers and not (K, K): the same intervals, and areas of images add up."""
    each = confusions(*masks(7, images=12), 5)
    of_each = areas(each)
    assert of_each.shape == (12, 3, 5) and np.array_equal(of_each.sum(0), areas(each.sum(0)))
    right, true, called = of_each[3]
    table = each[3].numpy()
    assert np.array_equal(right, table.diagonal())
    assert np.array_equal(true, table.sum(1)) and np.array_equal(called, table.sum(0))
    groups = np.arange(12) // 3
    assert area_intervals(of_each, groups) == segmentation_intervals(each, groups)
    whole = resampled(each.numpy(), groups)
    for name, (low, high) in segmentation_intervals(each, groups).items():
        drawn = [segmentation_scores(one)[name] for one in whole]
        assert (low, high) == pytest.approx(middle(np.array(drawn)))


def test_drawn_sums_have_the_moments_of_a_bootstrap() -> None:
    """Of N values with variance v, the mean of a draw has the variance v / N."""
    values = np.random.default_rng(0).normal(3, 2, (200, 1))
    means = resampled(values, draws=4000)[:, 0] / 200
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)
    assert means.var() == pytest.approx(values.var() / 200, rel=0.1)
    low, high = middle(means)
    assert high - low == pytest.approx(2 * 1.96 * (values.var() / 200) ** 0.5, rel=0.1)


def test_groups_are_drawn_whole() -> None:
    """Ten copies of one image tell no more than one."""
    values = np.random.default_rng(0).normal(0, 1, 50)
    copies = np.repeat(values, 10)[:, None]
    groups = np.repeat(np.arange(50), 10)
    alone, together = resampled(copies)[:, 0].std(), resampled(copies, groups)[:, 0].std()
    assert together == pytest.approx(10**0.5 * alone, rel=0.15)
    negative = resampled(copies, np.full(500, -1))[:, 0].std()
    assert negative == pytest.approx(alone, rel=0.1)
    with pytest.raises(ValueError, match="no images"):
        resampled(np.zeros((0, 2)))
