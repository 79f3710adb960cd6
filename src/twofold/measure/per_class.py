"""Answers class by class, and attribute by attribute: which of them are known well, which are only common.

Labels of classes are (N,) int64, labels of attributes (N, K) in 0 and 1; -1 = unknown, which is left out everywhere.
Metrics are scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .answers import Array, share_interval

Row = dict[str, Any]


def class_table(probabilities: Array, labels: Array, names: Sequence[str]) -> dict[str, Row]:
    """{class: {"images", "accuracy", "low", "high", "precision"}} of the classes that occur, in label order.

    accuracy: share of the class's images that are given its name (recall), with its 95 % interval; precision: share of
    the images given its name that are of it, None where there are none. probabilities, or logits: (N, K).
    """
    label = torch.as_tensor(labels).cpu()
    known = label >= 0
    seen, label = torch.as_tensor(probabilities).cpu()[known].argmax(1), label[known]
    rows = {}
    for k, name in enumerate(names):
        mine, said = label == k, seen == k
        if not (count := int(mine.sum())):
            continue
        both = int((mine & said).sum())
        low, high = share_interval(both / count, count)
        precision = both / int(said.sum()) if bool(said.any()) else None
        rows[name] = {"images": count, "accuracy": both / count, "low": low, "high": high, "precision": precision}
    return rows


def attribute_table(probabilities: Array, labels: Array, names: Sequence[str]) -> dict[str, Row]:
    """{attribute: {"images", "share", "accuracy", "low", "high", "always", "f1", "average_precision"}}.

    images: whose attribute is known; attributes known of no image are left out. share: of them that have it.
    accuracy: of the answer p > 0.5, with its 95 % interval; always: the accuracy of always giving the commoner answer.
    f1 and average_precision are None where no image has the attribute. Raises `UserError` for shapes that do not match.
    """
    from sklearn.metrics import average_precision_score, f1_score

    p, truth = _arrays(probabilities, labels, len(names))
    rows = {}
    for k, name in enumerate(names):
        known = truth[:, k] >= 0
        if not (count := int(known.sum())):
            continue
        values, yes = p[known, k], truth[known, k] == 1
        share, right = float(yes.mean()), float(((values > 0.5) == yes).mean())
        low, high = share_interval(right, count)
        row: Row = {"images": count, "share": share, "accuracy": right, "low": low, "high": high}
        row |= {"always": max(share, 1 - share), "f1": None, "average_precision": None}
        if yes.any():
            row["f1"] = float(f1_score(yes, values > 0.5, zero_division=0))
            row["average_precision"] = float(average_precision_score(yes, values))
        rows[name] = row
    if not rows:
        raise UserError("labels", "no attribute is known of any image", "-1 means unknown")
    return rows


def over_attributes(rows: dict[str, Row]) -> dict[str, float]:
    """Means over the attributes of `attribute_table`: {"accuracy", "always", "macro_f1", "average_precision"}; the last
    two over those that some image has, and not there where none has any."""
    found = {name: float(np.mean([row[name] for row in rows.values()])) for name in ("accuracy", "always")}
    for name, key in (("macro_f1", "f1"), ("average_precision", "average_precision")):
        values = [row[key] for row in rows.values() if row[key] is not None]
        if values:
            found[name] = float(np.mean(values))
    return found


def mean_interval(logits: Array, labels: Array) -> tuple[float, float]:
    """95 % interval of the mean over attributes of their accuracy, for logits and labels (N, K) with something known.

    Answers about one image go together, so images are what is counted: the variance is that of images' contributions to
    the mean, and the interval Wilson's for as many independent answers as have this variance. At least one for each
    image, as where all answers about an image are the same: so it holds where hardly any answer is wrong.
    """
    truth = torch.as_tensor(labels).cpu()
    known = truth >= 0
    known, n = known[known.any(1)], known.sum(0)
    asked = n > 0
    right = ((torch.as_tensor(logits).cpu() > 0) == (truth == 1))[(truth >= 0).any(1)].double()[:, asked]
    seen, n = known[:, asked].double(), n[asked].double()
    shares = (right * seen).sum(0) / n
    mean = float(shares.mean())
    off = ((right - shares) * seen / n).mean(1)
    variance, images = float(off.square().sum()), len(off)
    free = mean * (1 - mean) / variance if variance > 0 else 0.0
    return share_interval(mean, max(images, math.floor(free)))


def share_right(logits: Array, labels: Array) -> Tensor:
    """(N,) float64: the share of an image's known answers that are right, NaN where none is known.

    labels (N,): 1 or 0, whether the highest logit is the label's; labels (N, K): over attributes, where a logit above 0
    says yes.
    """
    scores, truth = torch.as_tensor(logits).cpu(), torch.as_tensor(labels).cpu()
    if truth.ndim == 1:
        scores, truth = scores.argmax(1, keepdim=True) == truth[:, None], truth[:, None]
    else:
        scores = (scores > 0) == (truth == 1)
    known = truth >= 0
    return (scores & known).double().sum(1) / known.double().sum(1)


def as_questions(logits: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Attributes (N, K) as that many questions of two classes, no and yes: logits (M, 2) float64 and labels (M,) of the
    M that are known. softmax((0, z)) is (1 - sigmoid(z), sigmoid(z)), at any temperature."""
    scores, truth = torch.as_tensor(logits).cpu().double(), torch.as_tensor(labels).cpu()
    if scores.shape != truth.shape or scores.ndim != 2:
        what = f"{tuple(truth.shape)} for logits {tuple(scores.shape)}"
        raise UserError("labels", what, "expected one answer per image and attribute")
    known = truth >= 0
    if not bool(known.any()):
        raise UserError("labels", "no attribute is known of any image", "-1 means unknown")
    yes = scores[known]
    return torch.stack([torch.zeros_like(yes), yes], 1), truth[known].long()


def _arrays(probabilities: Array, labels: Array, names: int) -> tuple[np.ndarray, np.ndarray]:
    p, truth = torch.as_tensor(probabilities).detach().cpu().double().numpy(), torch.as_tensor(labels).cpu().numpy()
    if p.ndim != 2 or p.shape != truth.shape or p.shape[1] != names:
        what = f"{truth.shape} for probabilities {p.shape} of {names} attributes"
        raise UserError("labels", what, "expected one answer per image and attribute")
    if np.isnan(p).any():
        raise UserError("probabilities", f"NaN for {int(np.isnan(p).any(1).sum())} of {len(p)} images")
    return p, truth
