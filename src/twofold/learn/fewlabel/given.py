"""What scikit-learn's users have, X and y, as images and labels."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d, validate_data

from ...errors import UserError

CHANNELS = (1, 3)
NO_LABEL = ("", "-1")  # among texts


class WrongInput(UserError, ValueError):
    """A mistake in X or y: scikit-learn expects a `ValueError`."""


class Pixels:
    """Images uint8 (N, C, H, W) out of X, and how others are made the same way.

    form: "flat", "grey" (N, H, W), "last" (N, H, W, C) or "first" (N, C, H, W). low, high: the values of black and
    white; None where pixels are taken as they are.
    """

    def __init__(self, estimator: Any, x: Any, multiple: int) -> None:
        """multiple: of what the sides of flat images are made. Raises `WrongInput`, or scikit-learn's `ValueError`."""
        array = self._checked(estimator, x, reset=True)
        self.form = _form(array)
        self.inner: tuple[int, ...] = array.shape[1:]
        self.low = self.high = None
        if self.form == "flat" or array.dtype != np.uint8:
            self.low, self.high = float(array.min()), float(array.max())
        self.side = multiple * math.ceil(math.ceil(math.sqrt(array.shape[1])) / multiple)
        self.images = self._shaped(array)

    def without_images(self) -> Pixels:
        """The same, to be kept."""
        kept = copy.copy(self)
        kept.images = self.images[:0]
        return kept

    def as_images(self, estimator: Any, x: Any) -> np.ndarray:
        """uint8 (N, C, H, W) of others. Raises `ValueError` for images of another form or size."""
        array = self._checked(estimator, x, reset=False)
        if array.shape[1:] != self.inner:
            what = f"holds images {array.shape[1:]}, but the estimator was fitted on {self.inner}"
            raise WrongInput("X", what, "give images of the same form and size")
        return self._shaped(array)

    def in_form(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) in the form that X had; flat ones as (N, H, W)."""
        if self.form == "first":
            return images
        return images[:, 0] if self.form in ("flat", "grey") else images.transpose(0, 2, 3, 1)

    def _checked(self, estimator: Any, x: Any, reset: bool) -> np.ndarray:
        """X as an array of numbers, of at least two axes; checked and noted as scikit-learn does."""
        if hasattr(x, "detach"):
            x = x.detach().cpu().numpy()
        if getattr(x, "ndim", 2) == 2 or np.ndim(x) == 2:
            return validate_data(estimator, x, reset=reset, ensure_min_samples=2 if reset else 1)
        array = check_array(x, allow_nd=True, ensure_2d=False, ensure_min_samples=2 if reset else 1)
        if array.ndim < 2:
            return validate_data(estimator, x, reset=reset)  # which says what is wrong
        if reset:
            estimator.n_features_in_ = int(np.prod(array.shape[1:]))
        return array

    def _shaped(self, array: np.ndarray) -> np.ndarray:
        if self.low is not None and self.high is not None:
            share = (array.astype(np.float64) - self.low) / ((self.high - self.low) or 1.0)
            array = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
        if self.form == "flat":
            padded = np.zeros((len(array), self.side**2), np.uint8)
            padded[:, : array.shape[1]] = array
            return padded.reshape(-1, 1, self.side, self.side)
        if self.form == "grey":
            return np.ascontiguousarray(array[:, None])
        return np.ascontiguousarray(array if self.form == "first" else array.transpose(0, 3, 1, 2))


def _form(array: np.ndarray) -> str:
    if array.ndim == 4 and array.shape[3] in CHANNELS:
        return "last"
    if array.ndim == 4 and array.shape[1] in CHANNELS:
        return "first"
    if array.ndim in (2, 3):
        return "flat" if array.ndim == 2 else "grey"
    hint = "give (N, C, H, W) or (N, H, W, C) of 1 or 3 channels, (N, H, W), or (N, D)"
    raise WrongInput("X", f"is of shape {array.shape}", hint)


def known_labels(y: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(classes, labels int64 (n,), -1 = none) of y, in which -1 (among texts "", "-1" or None) means none.

    Raises `WrongInput`, or scikit-learn's `ValueError`.
    """
    if y is None:
        what = "This classifier requires y to be passed, but the target y is None"
        raise WrongInput("y", what, "give -1 where there is no label")
    y = column_or_1d(y, warn=True)
    if len(y) != n:
        raise WrongInput("y", f"has {len(y)} labels, but X has {n} images", "give one for each, -1 = none")
    known = ~_without(y)
    values = np.array(y[known].tolist()) if y.dtype.kind == "O" else y[known]
    if not len(values):
        raise WrongInput("y", "no image has a label", "label at least one image of every class")
    check_classification_targets(values)
    classes, index = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise WrongInput("y", "holds labels of only one class", "at least 2 classes are needed")
    labels = np.full(n, -1, np.int64)
    labels[known] = index
    return classes, labels


def _without(y: np.ndarray) -> np.ndarray:
    """Where nothing is said: bool (n,)."""
    if y.dtype.kind in "US":
        return np.isin(y, np.array(NO_LABEL, y.dtype.type))
    if y.dtype.kind == "O":
        return np.array([one is None or one in NO_LABEL or bool(one == -1) for one in y], bool)
    return y == -1
