"""Pseudo labels: from a classifier's answers to a label file that any training run reads (`data.labels=FILE`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.subsets import write_labels
from ...recognize.assign import balanced
from ...settings.fewlabel import PseudoSettings
from .learning import softmax
from .subject import Subject

FILE = "pseudo.csv"


@dataclass(frozen=True)
class Pseudo:
    """labels int64 (N,), -1 = not sure enough; confidence float32 (N,) in 0..1. Labelled images have their own label
    and the confidence 1.
    """

    labels: np.ndarray
    confidence: np.ndarray


def pseudo_labels(logits: np.ndarray, own: np.ndarray, settings: PseudoSettings) -> Pseudo:
    """logits (N, K); own (N,): the labels that are known, -1 = none."""
    if settings.balanced:
        probabilities = balanced(torch.from_numpy(logits).double()).float().numpy()
    else:
        probabilities = softmax(logits)
    labels, confidence = probabilities.argmax(1), probabilities.max(1)
    known = own >= 0
    labels = np.where(confidence >= settings.least, labels, -1)
    if settings.surest < 1:
        labels = np.where(surest(labels, confidence, settings.surest, known), labels, -1)
    return Pseudo(np.where(known, own, labels), np.where(known, 1.0, confidence).astype(np.float32))


def surest(labels: np.ndarray, confidence: np.ndarray, share: float, known: np.ndarray) -> np.ndarray:
    """Whether an image is among the surest `share` of those of its class (N,) that nobody labelled."""
    kept = np.zeros(len(labels), bool)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero((labels == label) & ~known)
        order = rows[np.argsort(-confidence[rows], kind="stable")]
        kept[order[: math.ceil(share * len(order))]] = True
    return kept


def write(path: Path, subject: Subject, pseudo: Pseudo) -> None:
    """The label file of these pseudo labels: id, class, confidence."""
    some = pseudo.labels >= 0
    write_labels(path, subject.store, subject.train[some], pseudo.labels[some], pseudo.confidence[some])
