"""What an experiment found, in numbers: accuracies, pseudo labels against hidden ones, what to look at.

This is the only place where hidden labels are looked at, and nothing that is learned comes after it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ...measure.answers import share_interval
from ..parts import Part
from .stages import said
from .workshop import TEST_FILE, Workshop

EDGES = 10  # bins of confidence
SHOWN = 24  # most and least confident images
MANY = 2000  # of the surest images, from which those of each class are shown


def accuracy(shop: Workshop, classifier: Part) -> dict[str, Any]:
    """Of a classifier on the test images: value, 95 % interval (Wilson), n; value None where there are no labels."""
    truth = shop.subject.truth
    known = truth >= 0
    n = int(known.sum())
    if not n:
        return {"value": None, "interval": None, "n": 0}
    answers = np.load(classifier.path / TEST_FILE).argmax(1)
    value = float((answers[known] == truth[known]).mean())
    return {"value": value, "interval": list(share_interval(value, n)), "n": n}


def of_pseudo_labels(shop: Workshop, labels: Part) -> dict[str, Any]:
    """How often pseudo labels are right, which are mistaken for which, and whether their confidence tells."""
    subject = shop.subject
    found, sure = said(shop, labels)
    own, hidden = subject.labels >= 0, subject.hidden
    told = (found >= 0) & ~own
    known = told & (hidden >= 0)
    classes, confusion = len(subject.classes), None
    right = known & (found == hidden)
    if known.any():
        confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (hidden[known], found[known]), 1)
    edges = np.linspace(0, 1, EDGES + 1)
    order = np.flatnonzero(told)[np.argsort(-sure[told], kind="stable")]
    return {
        "labelled": int(own.sum()),
        "told": int(told.sum()),
        "left": int((~told & ~own).sum()),
        "accuracy": float(right.sum() / known.sum()) if known.any() else None,
        "confusion": None if confusion is None else confusion.tolist(),
        "confidence": {
            "edges": edges.tolist(),
            "count": np.histogram(sure[told], edges)[0].tolist(),
            "mean": [_mean(sure[told], sure[told], a, b) for a, b in pairwise(edges)],
            "right": np.histogram(sure[right], edges)[0].tolist() if known.any() else None,
            "known": np.histogram(sure[known], edges)[0].tolist() if known.any() else None,
        },
        "most": [subject.store.id(int(subject.train[i])) for i in order[:SHOWN]],
        "least": [subject.store.id(int(subject.train[i])) for i in order[::-1][:SHOWN]],
    }


def pictures(shop: Workshop, labels: Part, samples: np.ndarray | None) -> dict[str, Any]:
    """Images for the page: uint8 arrays, and what stands under them."""
    subject = shop.subject
    found, sure = said(shop, labels)
    told = np.flatnonzero((found >= 0) & (subject.labels < 0))
    order = told[np.argsort(-sure[told], kind="stable")]
    out: dict[str, Any] = {"samples": samples}
    rank = {int(place): int((found[order[:k]] == found[place]).sum()) for k, place in enumerate(order[:MANY])}
    turns = np.array(sorted(rank, key=lambda place: (rank[place], found[place])), np.int64)  # of each class in turn
    for name, places in (("most", turns[:SHOWN]), ("least", order[::-1][:SHOWN])):
        out[name] = subject.store.batch(subject.train[places]).numpy()
        out[f"{name}_titles"] = [f"{subject.classes[found[i]]} {sure[i]:.0%}" for i in places]
    return out


def _mean(values: np.ndarray, by: np.ndarray, low: float, high: float) -> float | None:
    inside = values[(by >= low) & ((by < high) | (high == 1))]
    return float(inside.mean()) if len(inside) else None
