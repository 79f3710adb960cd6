"""Answers against labels: accuracy, calibration, and what a classifier makes of images that have no labels.

Probabilities are (N, K), rows sum to 1; labels are (N,) int64 with -1 = unlabelled, which is left out everywhere.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

Array = Tensor | np.ndarray


def accuracy(scores: Array, labels: Array) -> float:
    """Share of labelled images whose highest score is their label's. scores: logits or probabilities (N, K).

    Raises `UserError` for shapes that do not match, NaN, labels that do not exist, or no labelled image.
    """
    return top_k(scores, labels, 1)


def top_k(scores: Array, labels: Array, k: int) -> float:
    """Share of labelled images whose label is among the k highest scores.

    Equal scores rank by class index, so that constant scores earn nothing. Raises `UserError` as `accuracy` does, and
    where k is not in 1..K.
    """
    scores, labels = _labelled(scores, labels)
    if not 1 <= k <= scores.shape[1]:
        raise UserError(f"k={k}", f"there are {scores.shape[1]} classes", f"1 to {scores.shape[1]}")
    ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return (ranked == labels[:, None]).any(1).double().mean().item()


def calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3), in [0, 1]: how far confidence is from being right.

    The mean over images of |accuracy - confidence| of their bin; bins of equal width, each with its upper edge.
    Raises `UserError` as `accuracy` does, and where rows are not probabilities.
    """
    if bins < 1:
        raise UserError(f"bins={bins}", "no bins", "15 is usual")
    probabilities, labels = _labelled(_probabilities(probabilities), labels)
    confidence, right, place = _binned(probabilities, labels, bins)
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return (sums.abs().sum() / len(right)).item()


def reliability(probabilities: Array, labels: Array, bins: int = 15) -> list[dict[str, float]]:
    """The bins of `calibration_error` that hold an answer: {"low", "high", "answers", "confidence", "accuracy",
    "accuracy_low", "accuracy_high"}, in order of confidence.

    low, high: the bin's edges. confidence, accuracy: means of the answers in it; accuracy_low and accuracy_high are the
    accuracy's 95 % interval (`share_interval`). Raises `UserError` as `calibration_error` does.
    """
    if bins < 1:
        raise UserError(f"bins={bins}", "no bins", "15 is usual")
    probabilities, labels = _labelled(_probabilities(probabilities), labels)
    confidence, right, place = _binned(probabilities, labels, bins)
    rows = []
    for number in place.unique().tolist():
        mine = place == number
        share, count = right[mine].mean().item(), int(mine.sum())
        low, high = share_interval(share, count)
        edges = {"low": number / bins, "high": (number + 1) / bins, "answers": count}
        means = {"confidence": confidence[mine].mean().item(), "accuracy": share}
        rows.append(edges | means | {"accuracy_low": low, "accuracy_high": high})
    return rows


def brier_score(probabilities: Array, labels: Array) -> float:
    """Mean over images of the squared distance between probabilities and the truth (Brier 1950): 0 is best.

    Over all classes, so at most 2; of two classes half of that, as is usual for yes or no. Raises `UserError` as
    `calibration_error` does.
    """
    probabilities, labels = _labelled(_probabilities(probabilities), labels)
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    distance = (probabilities - truth).square().sum(1).mean().item()
    return distance / 2 if probabilities.shape[1] == 2 else distance


def log_loss(logits: Array, labels: Array) -> float:
    """Mean negative log-likelihood of the labels in nats, of logits, so that a sure mistake stays finite.

    Raises `UserError` as `accuracy` does.
    """
    return torch.nn.functional.cross_entropy(*_labelled(logits, labels)).item()


def acceptance(probabilities: Array, threshold: float = 0.9) -> float:
    """Share of images whose highest probability is at least the threshold: the classifier takes them for something.

    Says nothing about which class, nor whether all classes occur. Raises `UserError` where rows are not probabilities.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold}", "not a probability", "0 to 1")
    return (_probabilities(probabilities).amax(1) >= threshold).double().mean().item()


def class_shares(labels: Array, classes: int) -> np.ndarray:
    """(classes,) float64: the share of each label among the labelled images; sums to 1.

    Raises `UserError` where no image is labelled or a label is not below `classes`.
    """
    known = torch.as_tensor(labels).flatten()
    known = known[known != -1]
    _check_labels(known, classes)
    return (torch.bincount(known.long(), minlength=classes).double() / len(known)).numpy()


def auroc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve: the chance that a positive image scores above a negative one; a tie counts half.

    scores: (N,). positive: (N,) bool or 0 and 1. 0.5 is chance, 1 perfect. Raises `UserError` for shapes that do not
    match, NaN, and where all images are of one kind.
    """
    values = torch.as_tensor(scores).detach().cpu().double().numpy()
    kind = torch.as_tensor(positive).detach().cpu().numpy()
    if values.ndim != 1 or kind.shape != values.shape or not np.isin(kind, (0, 1)).all():
        raise UserError("auroc", f"scores {values.shape} and labels {kind.shape}", "one score and one 0 or 1 per image")
    if np.isnan(values).any():
        raise UserError("scores", f"NaN for {int(np.isnan(values).sum())} of {len(values)} images")
    positives = int(kind.sum())
    negatives = len(kind) - positives
    if not positives or not negatives:
        raise UserError("auroc", f"{positives} positive and {negatives} negative images", "both kinds are needed")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # from 1; equal scores share the middle of their ranks
    above = rank[place][kind.astype(bool)].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def share_interval(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share that was counted on n independent images (Wilson 1927): holds at 0, at 1 and for small n."""
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"not a counted share: {share} of {n}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _binned(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) each: confidence, 1 where it is right, and which of the bins (its upper edge belongs to it)."""
    confidence, predicted = probabilities.max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1].contiguous())
    return confidence, (predicted == labels).double(), place


def _scores(scores: Array) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.ndim != 2 or scores.numel() == 0:
        raise UserError("scores", f"of shape {tuple(scores.shape)}", "expected (images, classes), not empty")
    if torch.isnan(scores).any():
        raise UserError("scores", f"NaN for {int(scores.isnan().any(1).sum())} of {len(scores)} images")
    return scores


def _probabilities(probabilities: Array) -> Tensor:
    values = _scores(probabilities)
    if (values < 0).any() or ((values.sum(1) - 1).abs() > 1e-2).any():  # half precision rounds to about 1e-3
        raise UserError("probabilities", "rows do not sum to 1", "logits need a softmax first")
    return values


def _labelled(scores: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """The rows with a label: (n, K) float64, (n,) int64, on the CPU."""
    scores, labels = _scores(scores), torch.as_tensor(labels).detach().cpu()
    if labels.shape != scores.shape[:1] or labels.is_floating_point():
        raise UserError("labels", f"{labels.dtype} of shape {tuple(labels.shape)}", f"expected {len(scores)} integers")
    known = labels != -1
    _check_labels(labels[known], scores.shape[1])
    return scores[known], labels[known].long()


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) == 0:
        raise UserError("labels", "no image is labelled", "-1 means unlabelled")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise UserError("labels", f"label {bad} of {classes} classes", f"0 to {classes - 1}, or -1 for unlabelled")
