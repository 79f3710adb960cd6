"""How right a classifier is, or the head of a joint model: accuracy, calibration, against noise, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.evaluate import EvaluateSettings
from .show import Progress
from .yardstick import bounded, check_judge, held_out_of, part_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..data import Store

WORST = 5  # classes or attributes that are named as the least known
FEW = 50  # labelled images: a temperature that is fitted on fewer is told to be uncertain


def judge(model: Any, store: Store, settings: EvaluateSettings, quiet: bool) -> dict[str, Any]:
    """Accuracy and calibration of a classifier on the held-out part (or `split`, where one is named), and its accuracy
    against noise where it knows any. Raises `UserError` for data that do not say whether it is right.
    """
    from ..measure.encoders import image_logits
    from ..recognize.noise_curve import accuracy_against_noise, levels_of

    check_judge(model, store, f"data={store.settings.source}")
    split, rows = rows_of(store, settings)
    truth = truth_of(model, store, rows)
    levels = levels_of(model, settings.noise_levels)
    images = store.batch(rows)
    logits = image_logits(model, images)
    found = right(logits, truth, list(model.class_names))
    found["metrics"] |= (calibrated := calibration(model, store, logits, truth, split)).pop("metrics")
    with Progress("accuracy against noise", quiet) as progress:
        curve = accuracy_against_noise(model, images, truth, levels, settings.noise_draws, progress=progress)
    known = labelled(truth)
    return (
        ({"noise": curve} if curve else {})
        | found
        | calibrated
        | {
            "images": {split: known},
            "held_out": {"split": split, "images": len(rows), "labelled": known},
            "asked_at": getattr(model, "sigma", 0.0),
            "data": {"name": store.name, "hash": store.content_hash},
        }
    )


def rows_of(store: Store, settings: EvaluateSettings) -> tuple[str, np.ndarray]:
    """The part that answers are measured on, and its rows: the held-out one, or `split`, where one is named."""
    if settings.split == "all":
        return held_out_of(store, 1)
    return settings.split, store.indices(settings.split)


def labelled(truth: Tensor) -> int:
    """Of how many images something is known."""
    return int((truth >= 0).sum() if truth.ndim == 1 else (truth >= 0).any(1).sum())


def truth_of(model: Any, store: Store, rows: np.ndarray) -> Tensor:
    """What is known of these rows: labels (n,) int64, or (n, K) in 0 and 1 where the model answers yes-or-no questions;
    -1 = unknown. Raises `UserError` for data of other classes, and where nothing is known at all.
    """
    import torch

    where, names = f"data={store.settings.source}", list(model.class_names)
    label = torch.from_numpy(store.labels[rows].astype("int64"))
    several = bool(getattr(model, "multi_label", False))
    if several and store.attributes is not None and list(store.attribute_names) == names:
        label = torch.from_numpy(store.attributes[rows].astype("int64"))
    elif not bool((label >= 0).any()):
        kind, hint = ("attributes", "columns of yes or no") if several else ("labels", "one sub-folder per class")
        raise UserError(where, f"has no {kind}", f"accuracy needs {hint}")
    elif list(store.classes) != names:
        what = f"its classes are {some(store.classes)}, the classifier knows {some(names)}"
        raise UserError(where, what, "give data of the same classes")
    elif several:
        one_hot = torch.nn.functional.one_hot(label.clamp(min=0), len(names))
        label = torch.where((label >= 0)[:, None], one_hot, -1)
    if not bool((label >= 0).any()):
        raise UserError(where, "has no attribute that is known", "accuracy needs columns of yes or no")
    return label


def right(logits: Tensor, truth: Tensor, names: list[str]) -> dict[str, Any]:
    """{"metrics": accuracy and what else there is without probabilities, "kind", "per_class"}."""
    from ..measure import accuracy, share_interval
    from ..measure.per_class import attribute_table, class_table, mean_interval, over_attributes, share_right

    if truth.ndim == 2:
        table = attribute_table(logits.sigmoid(), truth, names)
        metrics: dict[str, Any] = {name: {"samples": value} for name, value in over_attributes(table).items()}
        metrics["accuracy"]["interval"] = list(mean_interval(logits, truth))
        known = share_right(logits, truth)
        whole = float((known[known.isfinite()] == 1).double().mean())
        metrics["exact"] = {"samples": whole, "interval": list(share_interval(whole, labelled(truth)))}
        return {"metrics": metrics, "kind": "attributes", "per_class": table}
    share = accuracy(logits, truth)
    interval = list(share_interval(share, int((truth >= 0).sum())))
    metrics = {"accuracy": {"samples": share, "interval": interval}}
    return {"metrics": metrics, "kind": "classes", "per_class": class_table(logits, truth, names)}


def calibration(model: Any, store: Store, logits: Tensor, truth: Tensor, split: str) -> dict[str, Any]:
    """{"metrics", "reliability", "notes"}: how far confidence is from being right, as it is and after a temperature
    that was fitted on the validation part, where that is another part and holds labels."""
    from ..measure.answers import brier_score, calibration_error, log_loss, reliability
    from ..measure.encoders import image_logits
    from ..recognize.heads import TEMPERATURES, temperature

    asked, answer = questions(logits, truth)
    p = asked.softmax(1)
    metrics = {
        "calibration_error": calibration_error(p, answer),
        "brier": brier_score(p, answer),
        "log_loss": log_loss(asked, answer),
    }
    notes = []
    rows = bounded(part_of(store, "validation"), store)
    if split == "validation" or not len(rows):
        notes.append("no temperature: there is no validation part besides the one that is measured")
    else:
        try:
            known = truth_of(model, store, rows)
        except UserError:
            known = None
        fitted = None if known is None else temperature(*questions(image_logits(model, store.batch(rows)), known))
        if fitted is None or fitted <= TEMPERATURES[0]:
            why = "is unlabelled" if fitted is None else "holds no mistake to fit one to"
            notes.append(f"no temperature: the validation part {why}")
        else:
            metrics |= {"temperature": fitted, "log_loss_scaled": log_loss(asked / fitted, answer)}
            metrics["calibration_error_scaled"] = calibration_error((asked / fitted).softmax(1), answer)
            if known is not None and labelled(known) < FEW:
                notes.append(f"the temperature was fitted on {labelled(known)} labelled images: too few to rely on it")
    rows_told = {name: {"samples": value} for name, value in metrics.items()}
    return {"metrics": rows_told, "reliability": reliability(p, answer), "notes": notes}


def questions(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels with one right class each: attributes become questions of two classes, no and yes."""
    from ..measure.per_class import as_questions

    return as_questions(logits, truth) if truth.ndim == 2 else (logits, truth)


def print_answers(found: Mapping[str, Any], heading: str = "classifier") -> None:
    """The answers' metrics, one a line, accuracy against noise, and which classes are known least."""
    width = max(28, *(len(name) + 1 for name in found["metrics"]))
    print(f"{'':{width}}{heading:>12}")
    for name, row in found["metrics"].items():
        low_high = row.get("interval")
        interval = f"   [{low_high[0]:.4f}, {low_high[1]:.4f}] (95 %)" if low_high else ""
        print(f"{name:{width}}{number(row['samples']):>12}{interval}")
    for row in found.get("noise", ()):
        name, interval = f"accuracy at sigma {row['sigma']:g}", f"[{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{name:28}{row['accuracy']:12.4f}   {interval} (95 %)")
    worst = sorted(found.get("per_class", {}).items(), key=lambda one: one[1]["accuracy"])[:WORST]
    if len(worst) > 1:
        print("least known: " + ", ".join(f"{name} {row['accuracy']:.4f}" for name, row in worst))
    for note in found.get("notes", ()):
        print(note)
    part = found["held_out"]
    if part["split"] == "validation":
        print("held out: the validation part, for want of a test part")
    level = found.get("asked_at", 0)
    what = f"with noise of sigma {level:g}, at which it was trained" if level else "clean"
    print(f"on {asked_images(part)}, {what}")


def asked_images(part: Mapping[str, Any]) -> str:
    """Which images answers were compared with: "136 images of the test part", or those of them that are labelled."""
    known = part.get("labelled", part["images"])
    if known == part["images"]:
        return f"{known:,} images of the {part['split']} part"
    return f"{known:,} labelled images of the {part['split']} part, which holds {part['images']:,}"


def number(value: float) -> str:
    """Four places, or four digits where these would show nothing."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
