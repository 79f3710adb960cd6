"""What a student is worth: its answers about test images, as numbers with intervals, and a few of them to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import Store, spread
from ...measure.answers import share_interval
from ...measure.segmentation import class_iou
from ...recognize.held_out import mask_figures, point_figures
from ...recognize.landmarker import NetworkLandmarker
from ...recognize.segmenter import NetworkSegmenter
from ...settings.tasks import Landmarks

SHOWN = 12  # images that are shown with the answers about them
MAIN = {"classify": "accuracy", "segment": "miou", "landmarks": "nme"}  # the measure of a task
LESS = ("nme", "failure_rate")  # measures of which less is better


def judge(model: Any, store: Store, rows: np.ndarray, objective: Any, batch: int) -> dict[str, Any]:
    """What it says of the images at these rows: {"metrics": {name: {"value", "interval", "n"}}, "details": {...}}.

    objective: settings of its task. batch: images at a time. Images without labels, masks or points are left out.
    """
    if isinstance(model, NetworkSegmenter):
        return _segmenter(model, store, rows, batch)
    if isinstance(model, NetworkLandmarker):
        return _landmarker(model, store, rows, objective, batch)
    return _classifier(model, store, rows, batch)


def _classifier(model: Any, store: Store, rows: np.ndarray, batch: int) -> dict[str, Any]:
    truth = np.asarray(store.all_labels[rows], np.int64)
    rows, truth = rows[truth >= 0], truth[truth >= 0]
    order = [list(model.class_names).index(name) for name in store.classes]
    found = [answers(model, images).argmax(1).numpy() for images in _images(store, rows, batch)]
    said = np.array(order).argsort()[np.concatenate(found)] if found else np.zeros(0, np.int64)
    count = len(store.classes)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (truth, said), 1)
    value = float((said == truth).mean()) if len(truth) else None
    interval = list(share_interval(value, len(truth))) if value is not None else None
    return {
        "metrics": {"accuracy": {"value": value, "interval": interval, "n": len(truth)}},
        "details": {"confusion": confusion.tolist(), "classes": list(store.classes)},
    }


@torch.no_grad()
def answers(model: Any, images: Tensor) -> Tensor:
    """(B, K) logits of a classifier, on the CPU."""
    device = next(model.parameters()).device
    logits: Tensor = model.logits(model.codec.encode(images.to(device)), 0.0)
    return logits.float().cpu()


def _segmenter(model: NetworkSegmenter, store: Store, rows: np.ndarray, batch: int) -> dict[str, Any]:
    found = mask_figures(model, store, _parts(rows, batch))
    details: dict[str, Any] = {"classes": list(store.mask_classes)}
    if len(rows):
        details["iou"] = _plain(class_iou(found.confusion))
    return {"metrics": _joined(found.scores, found.intervals, len(rows)), "details": details}


def _landmarker(
    model: NetworkLandmarker, store: Store, rows: np.ndarray, objective: Landmarks, batch: int
) -> dict[str, Any]:
    assert objective.normaliser is not None
    if not len(rows):
        return {"metrics": {}, "details": {}}
    found = point_figures(model, store, _parts(rows, batch), objective.normaliser, objective.threshold)
    details: dict[str, Any] = {"normaliser": objective.normaliser, "threshold": objective.threshold}
    details["errors"] = _plain(found.errors)
    if found.subsets is not None:
        details["subsets"] = found.subsets
    return {"metrics": _joined(found.scores, found.intervals, found.images), "details": details}


def _joined(scores: dict[str, float], intervals: Any, n: int) -> dict[str, Any]:
    return {
        name: {"value": float(value), "interval": [float(x) for x in intervals[name]], "n": n}
        for name, value in scores.items()
        if name in intervals
    }


def _plain(values: Any) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, np.float64)]


def _parts(rows: np.ndarray, batch: int) -> list[np.ndarray]:
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def _images(store: Store, rows: np.ndarray, batch: int) -> Any:
    return (store.batch(part) for part in _parts(rows, batch))


def pictures(models: dict[str, Any], store: Store, rows: np.ndarray, batch: int) -> dict[str, Any]:
    """Some test images and what each student says of them, for the page: arrays by name.

    images uint8 (n, C, H, W); truth and answers (of each student): masks uint8 (n, H, W), points (n, P, 2), or labels.
    """
    chosen = rows[spread(len(rows), SHOWN)]
    images = store.batch(chosen)
    out: dict[str, Any] = {"images": images.numpy(), "answers": {}, "ids": [store.id(int(row)) for row in chosen]}
    some = next(iter(models.values()))
    if isinstance(some, NetworkSegmenter):
        assert store.masks is not None
        out |= {"kind": "masks", "truth": np.asarray(store.masks[chosen]), "classes": list(store.mask_classes)}
        out["answers"] = {name: model.masks(images).cpu().numpy() for name, model in models.items()}
    elif isinstance(some, NetworkLandmarker):
        assert store.points is not None
        out |= {"kind": "points", "truth": np.asarray(store.points[chosen])}
        out["answers"] = {name: model.points(images)[0].cpu().numpy() for name, model in models.items()}
    else:
        out |= {"kind": "labels", "truth": np.asarray(store.all_labels[chosen]), "classes": list(store.classes)}
        for name, model in models.items():
            said = answers(model, images).argmax(1)
            out["answers"][name] = np.array([store.classes.index(model.class_names[i]) for i in said])
    return out
