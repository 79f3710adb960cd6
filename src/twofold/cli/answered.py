"""How right a classifier is: accuracy and calibration on held-out images, and against noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.evaluate import EvaluateSettings
from .show import Progress
from .yardstick import check_judge, held_out_of

if TYPE_CHECKING:
    from ..data import Store
    from ..recognize.classifier import NetworkClassifier
    from ..recognize.probe import ProbeClassifier


def judge(
    model: NetworkClassifier | ProbeClassifier, store: Store, settings: EvaluateSettings, quiet: bool
) -> dict[str, Any]:
    """Accuracy and calibration of a classifier on the held-out part (or `split`, where one is named), and its accuracy
    against noise where it knows any.
    """
    import torch

    from ..measure import accuracy, calibration_error, probabilities
    from ..recognize.noise_curve import accuracy_against_noise, levels_of

    where = f"data={store.settings.source}"
    check_judge(model, store, where)
    if settings.split == "all":
        split, rows = held_out_of(store, 1)
    else:
        split, rows = settings.split, store.indices(settings.split)
    label = torch.from_numpy(store.labels[rows].astype("int64"))
    if not bool((label >= 0).any()):
        raise UserError(where, "has no labels", "accuracy needs one sub-folder per class")
    if list(store.classes) != list(model.class_names):
        what = f"its classes are {some(store.classes)}, the classifier knows {some(model.class_names)}"
        raise UserError(where, what, "give data of the same classes")
    levels = levels_of(model, settings.noise_levels)
    classifier: Any = model  # a `Classifier`, whose classes mypy wants to be any sequence
    images = store.batch(rows)
    seen = probabilities(classifier, images)
    metrics = {"accuracy": accuracy(seen, label), "calibration_error": calibration_error(seen, label)}
    with Progress("accuracy against noise", quiet) as progress:
        draws = settings.noise_draws
        curve = accuracy_against_noise(classifier, images, label, levels, draws, progress=progress)
    return ({"noise": curve} if curve else {}) | {
        "metrics": {name: {"samples": value} for name, value in metrics.items()},
        "images": {split: int((label >= 0).sum())},
        "held_out": {"split": split, "images": len(rows)},
        "asked_at": getattr(model, "sigma", 0.0),
        "data": {"name": store.name, "hash": store.content_hash},
    }
