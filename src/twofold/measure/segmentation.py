"""Masks against masks: the confusion of their pixels, and mIoU, mAcc and aAcc of it (Long et al. 2015, section 5).

    n_tp = pixels of true class t that were given class p       rows are the truth, columns the answer

    IoU_k = n_kk / (sum_p n_kp + sum_t n_tk - n_kk)    mIoU = its mean over the classes that occur in either
    Acc_k = n_kk / sum_p n_kp                          mAcc = its mean over the classes that occur in the truth
    aAcc  = sum_k n_kk / sum_tp n_tp

Pixels whose truth is 255 (void) count nowhere. All figures are of the whole set, not means over images: a class that
is missing in one image is not missing in the set. A class that is nowhere, neither in the truth nor among the answers,
has no IoU (NaN) and is left out of the mean, as in torchmetrics' Jaccard index.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .bootstrap import DRAWS, middle, resampled

VOID = 255
PIXELS_AT_ONCE = 1 << 22  # whose int64 codes are held at a time


def confusions(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(B, K, K) int64 of masks (B, H, W): one confusion an image, on the masks' device.

    predicted: class indices. truth: class indices, 255 = void. Raises `UserError` for shapes that differ and for an
    index that is no class.
    """
    if predicted.shape != truth.shape or predicted.ndim != 3:
        what = f"masks of {tuple(predicted.shape)} against masks of {tuple(truth.shape)}"
        raise UserError("predicted", what, "both are (images, height, width), of one size")
    found = [torch.zeros((0, classes, classes), dtype=torch.int64, device=truth.device)]
    step = max(1, PIXELS_AT_ONCE // max(truth[:1].numel(), 1))
    for start in range(0, len(truth), step):
        found.append(_counted(predicted[start : start + step], truth[start : start + step], classes))
    return torch.cat(found)


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(K, K) int64 of all of these masks (B, H, W) together; see `confusions`."""
    return confusions(predicted, truth, classes).sum(0)


def _counted(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    known = truth != VOID
    image = torch.arange(len(truth), device=truth.device).view(-1, 1, 1).expand(truth.shape)[known]
    answer, true = predicted[known].long(), truth[known].long()
    for name, values in (("truth", true), ("predicted", answer)):
        wrong = values[(values < 0) | (values >= classes)]
        if len(wrong):
            what = f"a mask holds {int(wrong[0])}, and there are {classes} classes"
            raise UserError(name, what, f"classes are 0 to {classes - 1}, and {VOID} in the truth is void")
    codes = (image * classes + true) * classes + answer
    return torch.bincount(codes, minlength=len(truth) * classes**2).view(len(truth), classes, classes)


def areas(confusion: Tensor | np.ndarray) -> np.ndarray:
    """(..., 3, K) float64: pixels of each class that were named rightly, that are it, that were called it.

    confusion (..., K, K). All figures follow from these, which take K / 3 times less room.
    """
    n = np.asarray(confusion.cpu() if isinstance(confusion, Tensor) else confusion, np.float64)
    return np.stack([np.diagonal(n, axis1=-2, axis2=-1), n.sum(-1), n.sum(-2)], -2)


def class_iou(confusion: Tensor | np.ndarray) -> np.ndarray:
    """(..., K) float64: intersection over union of each class, NaN for one that is nowhere. confusion (..., K, K)."""
    return _iou(areas(confusion))


def class_accuracy(confusion: Tensor | np.ndarray) -> np.ndarray:
    """(..., K) float64: share of each class's pixels that were named rightly, NaN for one that the truth has not."""
    return _accuracy(areas(confusion))


def _iou(areas: np.ndarray) -> np.ndarray:
    right, true, called = np.moveaxis(areas, -2, 0)
    return _ratio(right, true + called - right)


def _accuracy(areas: np.ndarray) -> np.ndarray:
    return _ratio(areas[..., 0, :], areas[..., 1, :])


FIGURES = {  # of areas (..., 3, K): (...); NaN where no pixel is known
    "miou": lambda areas: _mean(_iou(areas)),
    "macc": lambda areas: _mean(_accuracy(areas)),
    "aacc": lambda areas: _ratio(areas[..., 0, :].sum(-1), areas[..., 1, :].sum(-1)),
}


def segmentation_scores(confusion: Tensor | np.ndarray) -> dict[str, float]:
    """{"miou", "macc", "aacc"} of one confusion (K, K), each in [0, 1]; {} where no pixel is known."""
    found = {name: float(figure(areas(confusion))) for name, figure in FIGURES.items()}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def segmentation_intervals(
    confusions: Tensor | np.ndarray, groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """{"miou", "macc", "aacc"}: 95 % intervals, of images drawn again. confusions (N, K, K): one an image.

    groups (N,): see `resampled`. A class that a draw has not is left out of that draw's means.
    """
    return area_intervals(areas(confusions), groups, draws, seed)


def area_intervals(
    areas: np.ndarray, groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The same of each image's areas (N, 3, K)."""
    drawn = resampled(areas, groups, draws, seed)
    return {name: middle(figure(drawn)) for name, figure in FIGURES.items()}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of what is not NaN; NaN for none."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
