"""The result of `twofold probe` as plain data: what was chosen, how it tests, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..measure.answers import share_interval
from ..recognize.choose import Cell, best
from ..recognize.finding import answers
from ..recognize.zero_shot import ZeroShotClassifier
from .probed import Probing

LABELS_SEEN = (
    "The denoiser is class-conditional: in training it saw the labels of all its images. The curve over labels "
    "shows what its features hold; for what few labels alone would give, train with network.classes=0."
)
TEST_SEEN = "Some test images are among those the denoiser was trained on; use the split the run was trained with."
SCREENED = "{final} of {all} places were fitted on all training images; the others were compared on {few:,} of them."
UNKNOWN_DATA = "What the denoiser was trained on is not known, so test images may have been among it."


def result(
    probing: Probing,
    folder: Path | None,
    model: str,
    at: str,
    over_training: Sequence[Mapping[str, Any]] = (),
    seen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is said about a model on labelled images; the best head is saved as folder/probe.safetensors.

    model, at: how the saved probe names its denoiser. over_training: `summary` of several snapshots. seen: whether the
    denoiser was trained with labels, and with test images.
    """
    cells = probing.search()
    chosen = {"one layer": best(probing.finalists)}
    joins = probing.join(probing.finalists)
    if joins:
        chosen["joined"] = best(joins)
    final = {cell.places for cell in probing.finalists}
    winner = max(chosen.values(), key=lambda cell: cell.rank)
    results: dict[str, Any] = {name: {**cell_row(cell), **probing.tested(cell)} for name, cell in chosen.items()}
    raw = probing.raw_pixels()
    if raw is not None:
        results["raw pixels"] = raw
    settings = probing.settings
    found: dict[str, Any] = {
        "images": {name: len(part.rows) for name, part in probing.parts.items()},
        "classes": list(probing.store.classes),
        "cells": [{**cell_row(cell), "screened": cell.places not in final} for cell in cells],
        "results": results,
        "winner": next(name for name, cell in chosen.items() if cell is winner),
        "labels_per_class": probing.label_efficiency([*probing.finalists, *joins]) if settings.labels_per_class else [],
        "contrastive": probing.contrasts() if settings.contrastive else [],
        "over_training": list(over_training),
        "zero_shot": zero_shot(probing, winner) if settings.zero_shot else None,
    }
    layers = list(probing.denoiser.layers)
    found["finding"] = [asdict(answer) for answer in answers(found["cells"], layers, over_training)]
    found["warnings"] = warnings(seen or {}, bool(settings.labels_per_class))
    if len(final) < len(cells):
        found["warnings"].append(SCREENED.format(final=len(final), all=len(cells), few=settings.screen))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        probing.save(folder / "probe.safetensors", winner, model, at)
    return found


def summary(probing: Probing) -> dict[str, Any]:
    """One snapshot's best single place on the validation part, and its contrastive metrics there."""
    probing.search()
    top = best(probing.finalists)
    layer, sigma = top.places[0]
    row: dict[str, Any] = {"accuracy": top.validation, "layer": layer, "sigma": sigma}
    if probing.settings.contrastive:
        row["contrastive"] = probing.contrasts()
    return row


def zero_shot(probing: Probing, winner: Cell) -> dict[str, Any]:
    """The denoiser's own verdict on test images, by its error for each class, and how often the probe agrees."""
    part = probing.parts["test"]
    rows, labels = spread(part.rows, part.labels, probing.settings.zero_shot)
    images = probing.store.batch(rows)
    classifier = ZeroShotClassifier(probing.denoiser, micro_batch=probing.settings.micro_batch)
    say = lambda done, total: probing.place.say("zero-shot classification", done, total)  # noqa: E731
    named = classifier.scores(images, say).argmax(1).cpu()
    by_probe = winner.head.logits(probing.reader(winner).read(images)).argmax(1)
    right = float((named == labels).double().mean())
    return {
        "images": len(rows),
        "accuracy": right,
        "interval": share_interval(right, len(rows)),
        "probe": float((by_probe == labels).double().mean()),
        "agreement": float((named == by_probe).double().mean()),
    }


def spread(rows: Any, labels: Tensor, most: int) -> tuple[Any, Tensor]:
    """At most so many, evenly spread over the part."""
    if len(rows) <= most:
        return rows, labels
    chosen = np.linspace(0, len(rows) - 1, most).astype(np.int64)
    return rows[chosen], labels[chosen]


def cell_row(cell: Cell) -> dict[str, Any]:
    """A cell as plain data."""
    return {
        "places": [list(place) for place in cell.places],
        "l2": None if math.isnan(cell.l2) else cell.l2,
        "validation": cell.validation,
        "loss": cell.loss if math.isfinite(cell.loss) else None,
    }


def warnings(seen: Mapping[str, Any], few_labels: bool) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = [LABELS_SEEN] if few_labels and seen.get("labels") else []
    if seen.get("test_images") is None:
        return [*found, UNKNOWN_DATA]
    return [*found, TEST_SEEN] if seen["test_images"] else found
