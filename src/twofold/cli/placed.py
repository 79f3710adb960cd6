"""How right a segmenter or a landmarker is on held-out images: `evaluate` for these models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.evaluate import EvaluateSettings
from .answered import asked_images, number, rows_of
from .show import Progress
from .yardstick import by

if TYPE_CHECKING:
    import numpy as np

    from ..data import Store

BATCH = 2**22  # pixels of the images, or numbers of their maps, that are asked about together
CURVE = 50  # steps of the curve of cumulated errors


def judge_places(model: Any, store: Store, path: Path, settings: EvaluateSettings, quiet: bool) -> dict[str, Any]:
    """The figures of a segmenter's masks or a landmarker's points on the held-out part (or `split`, where it is named).

    Raises `UserError` for data whose images, classes or points are not the model's, or that have no masks or points.
    """
    from ..recognize.segmenter import NetworkSegmenter

    where = f"data={store.settings.source}"
    if tuple(model.shape) != tuple(store.shape):
        what = f"the model is for images of {by(model.shape)}, those of {store.name} are {by(store.shape)}"
        raise UserError(where, what, "set data.size and data.channels")
    masks = isinstance(model, NetworkSegmenter)
    check_truth(model, store, masks, where)
    if not masks:
        normaliser, threshold = measured_by(path, model, settings)
    split, rows = rows_of(store, settings)
    found = (
        right_masks(model, store, rows, quiet)
        if masks
        else right_points(model, store, rows, normaliser, threshold, quiet)
    )
    return found | {
        "images": {split: found["images"]},
        "held_out": {"split": split, "images": len(rows), "labelled": found["images"]},
        "data": {"name": store.name, "hash": store.content_hash},
        "notes": [],
    }


def check_truth(model: Any, store: Store, masks: bool, where: str) -> None:
    """Raises `UserError` unless the data have masks of the model's classes, or as many points as it finds."""
    known = list(model.class_names)
    if masks:
        if store.masks is None:
            raise UserError(where, "has no masks", "name their column: data.mask_column")
        if store.mask_classes and list(store.mask_classes) != known:
            what = f"the classes of its masks are {some(store.mask_classes)}, the model knows {some(known)}"
            raise UserError(where, what, "give data of the same classes")
    elif store.points is None:
        raise UserError(where, "has no key points", "name their column: data.points_column")
    elif store.points.shape[1] != len(known):
        what = f"has {store.points.shape[1]} points in each image, the model finds {len(known)}"
        raise UserError(where, what, "give data of the same points")


def right_masks(model: Any, store: Store, rows: np.ndarray, quiet: bool) -> dict[str, Any]:
    """mIoU, mAcc and aAcc with their intervals, and the figures of every class."""
    from ..measure.segmentation import class_accuracy, class_iou
    from ..recognize.held_out import mask_figures

    found = mask_figures(model, store, parts(model, store, rows, quiet))
    if not found.images:
        raise UserError(f"data={store.settings.source}", "no pixel of these masks has a class", "mIoU needs some")
    whole = found.confusion
    iou, accuracy, share = class_iou(whole), class_accuracy(whole), whole.sum(1) / whole.sum()
    table = {
        name: {"iou": plain(iou[k]), "accuracy": plain(accuracy[k]), "share": plain(share[k])}
        for k, name in enumerate(model.class_names)
    }
    metrics = rows_told(found.scores, found.intervals)
    return {"kind": "masks", "metrics": metrics, "per_class": table, "images": found.images}


def right_points(
    model: Any, store: Store, rows: np.ndarray, normaliser: Any, threshold: float, quiet: bool
) -> dict[str, Any]:
    """NME, failure rate and AUC with their intervals, the curve of cumulated errors, and the same of each attribute."""
    import numpy as np

    from ..recognize.held_out import point_figures

    told = point_figures(model, store, parts(model, store, rows, quiet), normaliser, threshold)
    if not told.images:
        what = "no image has both visible points and a normaliser that is not 0"
        raise UserError(f"data={store.settings.source}", what, f"normaliser={normaliser} was asked for")
    at = threshold * np.arange(CURVE + 1) / CURVE
    known = told.errors[~np.isnan(told.errors)]
    found = {
        "kind": "points",
        "metrics": rows_told(told.scores, told.intervals),
        "normaliser": list(normaliser) if isinstance(normaliser, tuple) else normaliser,
        "threshold": threshold,
        "curve": [{"error": float(e), "share": float((known <= e).mean())} for e in at],
        "images": told.images,
    }
    return found if told.subsets is None else found | {"subsets": told.subsets}


def measured_by(path: Path, model: Any, settings: EvaluateSettings) -> tuple[Any, float]:
    """(normaliser, threshold): those asked for, else those that the run was trained with, else the usual ones.

    Raises `UserError` for a normaliser that these points do not have.
    """
    from ..measure.landmarks import THRESHOLD, check_normaliser, usual_normaliser
    from ..run import Run

    trained = Run.open(path).settings().objective if (path / "settings.yaml").is_file() else None
    normaliser = settings.normaliser or getattr(trained, "normaliser", None) or usual_normaliser(len(model.class_names))
    check_normaliser(normaliser, len(model.class_names))
    return normaliser, settings.threshold or getattr(trained, "threshold", None) or THRESHOLD


def parts(model: Any, store: Store, rows: np.ndarray, quiet: bool) -> Iterator[np.ndarray]:
    """The rows, in parts small enough to be asked about together."""
    _, height, width = store.shape
    size = max(1, BATCH // (len(model.class_names) * height * width))
    with Progress("asking about held-out images", quiet) as progress:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield part
            progress(start + len(part), len(rows))


def rows_told(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {name: {"samples": value, "interval": list(intervals[name])} for name, value in scores.items()}


def plain(value: Any) -> float | None:
    """For JSON, which has no NaN."""
    return None if value != value else float(value)


def print_places(found: Mapping[str, Any]) -> None:
    """The metrics, one a line; below, each class, or each attribute."""
    width = max(28, *(len(name) + 1 for name in found["metrics"]))
    print(f"{'':{width}}{'masks' if found['kind'] == 'masks' else 'points':>12}")
    for name, row in found["metrics"].items():
        low, high = row["interval"]
        print(f"{name:{width}}{number(row['samples']):>12}   [{low:.4f}, {high:.4f}] (95 %)")
    for name, row in found.get("per_class", {}).items():
        iou = "nowhere" if row["iou"] is None else number(row["iou"])
        print(f"{'IoU of ' + name:{width}}{iou:>12}   ({100 * row['share']:.1f} % of the pixels)")
    for name, row in found.get("subsets", {}).items():
        if "nme" in row:
            print(f"{'nme of ' + name:{width}}{number(row['nme']):>12}   ({row['images']:,.0f} images)")
    if found["kind"] == "points":
        told = NORMALISERS.get(str(found["normaliser"]), _told)(found["normaliser"])
        print(f"errors are divided by {told}; failed: above {found['threshold']:g}")
    for note in found.get("notes", ()):
        print(note)
    if found["held_out"]["split"] == "validation":
        print("held out: the validation part, for want of a test part")
    print(f"on {asked_images(found['held_out'])}")


def _told(normaliser: Any) -> str:
    if isinstance(normaliser, list):
        return f"the distance of points {normaliser[0]} and {normaliser[1]}"
    return f"{normaliser:g} pixels of the images as the model takes them"


NORMALISERS: dict[str, Callable[[Any], str]] = {
    "inter_ocular": lambda _: "the distance of the outer eye corners",
    "box": lambda _: "the size of the points' bounding box (the root of its area)",
}
