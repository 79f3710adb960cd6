"""From features and labels to answers: the learners of `twofold.recognize`, applied to what lies on disk.

A logistic regression sees the labelled images' features alone, and answers about the others chunk by chunk, so its
memory is that of the labelled ones. Learners that look at all images at once (graphs, mixtures) hold all features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...recognize.learned import Learned, Learner
from ...recognize.learners import LEARNERS
from ...settings.fewlabel import LearnerSettings, Network
from ..features import Features

OTHERS = 4096  # unlabelled images that a regression is calibrated with


@dataclass(frozen=True)
class Answers:
    """logits (N, K) and (M, K) float32 of the training and the test images, divided by the temperature already."""

    train: np.ndarray
    test: np.ndarray
    learned: Learned


def learner_of(settings: LearnerSettings) -> Learner:
    """The learner of these settings, which are its fields."""
    assert not isinstance(settings, Network)
    return LEARNERS[settings.kind](**settings.model_dump(exclude={"kind"}))


def learn(
    settings: LearnerSettings,
    features: Features,
    labels: np.ndarray,
    classes: int,
    temperature: float | str,
) -> Answers:
    """Answers of a learner about the training images, which come first among the features, and the test images behind.

    labels (N,): of the training images, -1 = none. temperature: a number, or "auto": found by leaving labelled images
    out of the learning.
    """
    learner, n = learner_of(settings), len(labels)
    y = torch.from_numpy(labels)
    if settings.kind == "logistic" and settings.space == "rows":
        rows = _some(labels)
        x, y = features.take(rows), y[rows]
    else:
        x = _first(features, n)
    learned = tempered(learner, x, y, classes, temperature)
    if len(x) == n:  # a graph answers about its own images better than about new ones
        train = (learned.scores / learned.temperature).float().numpy()
        rest = logits_of(learned, features, n)
        return Answers(train, rest, learned)
    every = logits_of(learned, features, 0)
    return Answers(every[:n], every[n:], learned)


def tempered(
    learner: Learner, x: Tensor, y: Tensor, classes: int, temperature: float | str, weight: Tensor | None = None
) -> Learned:
    """What a learner learned, calibrated where that is asked for."""
    if temperature == "auto" and weight is None:
        from ...recognize.calibrate import calibrated

        return calibrated(learner, x, y, classes)
    learned = learner(x, y, classes, weight)
    return Learned(learned.scores, learned.head, 1.0 if temperature == "auto" else float(temperature))


def _some(labels: np.ndarray) -> np.ndarray:
    """Rows of the labelled images, and of some others that calibration looks at."""
    return np.sort(np.concatenate([np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)[:OTHERS]]))


def _first(features: Features, n: int) -> Tensor:
    """The features of the first n images."""
    parts: list[Tensor] = []
    for block in features.blocks():
        parts.append(block[: n - sum(map(len, parts))])
        if sum(map(len, parts)) >= n:
            break
    return torch.cat(parts)


def logits_of(learned: Learned, features: Features, start: int = 0) -> np.ndarray:
    """(N - start, K) float32 of the images from `start` on."""
    found, at = np.zeros((len(features) - start, learned.scores.shape[1]), np.float32), 0
    for block in features.blocks():  # written in place: what is kept between large blocks would leave holes in memory
        rest = block[max(0, start - at) :]
        at += len(block)
        if len(rest):
            found[at - len(rest) - start : at - start] = learned.logits(rest).float().cpu().numpy()
    return found


@dataclass(frozen=True)
class Told:
    """Images that a final classifier learns from. features (N, D); labels (N,); weight (N,)."""

    features: Tensor
    labels: Tensor
    weight: Tensor


def together(parts: list[Told]) -> Told:
    """Several groups of images as one."""
    if not parts:
        raise UserError("final", "nothing is left to learn from", "raise final.generated or final.pseudo")
    return Told(*(torch.cat([getattr(part, name) for part in parts]) for name in ("features", "labels", "weight")))


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) float32 probabilities."""
    return torch.from_numpy(logits).float().softmax(1).numpy()
