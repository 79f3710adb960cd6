"""The result of `twofold probe` as plain data: what was chosen, how it tests, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..data import spread
from ..measure.answers import share_interval
from ..recognize.choose import Cell, best
from ..recognize.finding import answers
from ..settings.probe import ProbeSettings, Recipe
from .probed import Probing

LABELS_SEEN = (
    "The denoiser is class-conditional: in training it saw the labels of all its images. The curve over labels "
    "shows what its features hold; for what few labels alone would give, train with network.classes=0."
)
TEST_SEEN = "Some test images are among those the denoiser was trained on; use the split the run was trained with."
FEW_STEPS = 500
SHORT = (
    "The published recipe took {steps:,} optimiser steps on these images, too few to learn much (it was made for "
    "50,000 images); raise head.epochs, lower head.batch_size, or use the default head."
)
SCREENED = (
    "All {all} places were compared on {few:,} training images, which is what the map shows; the best {final} were "
    "then fitted on all of them, and the choice is among those."
)
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
    winner = max(chosen.values(), key=lambda cell: cell.rank)
    results: dict[str, Any] = {name: {**cell_row(cell), **probing.tested(cell)} for name, cell in chosen.items()}
    raw = probing.raw_pixels()
    if raw is not None:
        results["raw pixels"] = raw
    settings = probing.settings
    found: dict[str, Any] = {
        "images": {name: len(part.rows) for name, part in probing.parts.items()},
        "classes": list(probing.store.classes),
        "cells": [cell_row(cell) for cell in cells],
        "results": results,
        "winner": next(name for name, cell in chosen.items() if cell is winner),
        "labels_per_class": efficiency(probing, [*probing.finalists, *joins], winner, results),
        "contrastive": probing.contrasts() if settings.contrastive else [],
        "over_training": list(over_training),
        "zero_shot": zero_shot(probing, winner) if settings.zero_shot else None,
    }
    layers = list(probing.denoiser.layers)
    chosen_place, n = chosen["one layer"].places[0], len(probing.parts["validation"].rows)
    found["finding"] = [asdict(one) for one in answers(found["cells"], chosen_place, layers, n, over_training)]
    found["warnings"] = warnings(seen or {}, bool(settings.labels_per_class))
    steps = recipe_steps(settings, len(probing.parts["train"].rows))
    if steps is not None and steps < FEW_STEPS:
        found["warnings"].append(SHORT.format(steps=steps))
    if len(probing.finalists) < len(cells):
        facts = {"final": len(probing.finalists), "all": len(cells), "few": settings.screen}
        found["warnings"].append(SCREENED.format(**facts))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        probing.save(folder / "probe.safetensors", winner, model, at, bool((seen or {}).get("own")))
    return found


def recipe_steps(settings: ProbeSettings, images: int) -> int | None:
    """Optimiser steps of the published recipe on so many images; None for other heads."""
    head = settings.head
    return head.epochs * -(-images // head.batch_size) if isinstance(head, Recipe) else None


def efficiency(
    probing: Probing, cells: Sequence[Cell], winner: Cell, results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The label-efficiency curve, ending in what all labels give."""
    if not probing.settings.labels_per_class:
        return []
    rows = probing.label_efficiency(cells)
    whole = next(row for row in results.values() if row.get("places") == [list(place) for place in winner.places])
    last = {
        "k": round(len(probing.parts["train"].rows) / len(probing.store.classes)),
        "all": True,
        "places": whole["places"],
        "validation": winner.validation,
        "accuracy": whole["averaged"],
        "interval": whole["averaged_interval"],
    }
    if "raw pixels" in results and "raw" in rows[0]:
        last |= {"raw": results["raw pixels"]["accuracy"], "raw_interval": results["raw pixels"]["interval"]}
    return [*rows, last]


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
    chosen = spread(len(part.rows), probing.settings.zero_shot)
    images, labels = probing.store.batch(part.rows[chosen]), part.labels[torch.from_numpy(chosen)]
    say = lambda done, total: probing.place.say("zero-shot classification", done, total)  # noqa: E731
    known = torch.tensor(probing.zero_shot_classes)  # the data's class of every label of the model
    named = known[probing.zero_shot.scores(images, say).argmax(1).cpu()]
    by_probe = winner.head.logits(probing.reader(winner).read(images)).argmax(1)
    right = float((named == labels).double().mean())
    return {
        "images": len(images),
        "accuracy": right,
        "interval": share_interval(right, len(images)),
        "probe": float((by_probe == labels).double().mean()),
        "agreement": float((named == by_probe).double().mean()),
    }


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
