"""The page of a few-label experiment: what each stage reached, the pseudo labels, the generated images, what was done.

One HTML file with everything in it, as the page of a run is (see `page`). Without labels of test images it says nothing
of accuracy, without labels of the training images nothing of whether pseudo labels are right: whatever is not known is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .confusions import confused_pairs, confusion_figure
from .fewlabel_figures import MOST_ROWS, class_grid, confidence_figure, in_order, stages_figure, title_of, titled_grid
from .fewlabel_template import BODY, CAPTIONS
from .frame import assembled, written
from .recognition import percent

ROUND = {"pseudo": "Pseudo labels that are right"}
WITH_PSEUDO = "a classifier of labelled, pseudo-labelled and generated images"
WITHOUT_GENERATED = "a classifier of labelled and pseudo-labelled images"


def write_page(folder: Path, result: Mapping[str, Any], images: Mapping[str, Any] | None = None) -> Path:
    """Writes report.html, and its pictures as figures/*.png, into the folder; returns the page's path. Atomic.

    result: what result.json holds, see `learn.fewlabel`. images: uint8 arrays, each of which may be missing: samples
    (K, n, C, H, W), generated images of each class; most and least (n, C, H, W), the surest pseudo-labelled images
    and the least sure ones, with titles `most_titles` and `least_titles`.
    """
    pictures = draw(result, images or {})
    return written(folder, render(result, pictures), pictures)


def draw(result: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures there are data for: {name: PNG}."""
    pseudo, classes = result.get("pseudo") or {}, list(result["classes"])
    pictures: dict[str, bytes | None] = {"stages": stages_figure(result.get("accuracy") or {})}
    if pseudo.get("confusion") is not None:
        pictures["confusion"] = confusion_figure(pseudo["confusion"], classes, "pseudo label")
    if pseudo.get("confidence"):
        pictures["confidence"] = confidence_figure(pseudo["confidence"])
    if _there(images.get("samples")):
        pictures["samples"] = class_grid(images["samples"], classes)
    for name in ("most", "least"):
        if _there(images.get(name)):
            pictures[name] = titled_grid(images[name], images.get(f"{name}_titles"))
    return {name: png for name, png in pictures.items() if png is not None}


def _there(images: Any) -> bool:
    return images is not None and np.asarray(images).size > 0


def render(result: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page as text."""
    pseudo, final = result.get("pseudo") or {}, (result.get("settings") or {}).get("final") or {}
    rounds = result.get("rounds") or ()
    sections = {
        "stages": ("After each stage", "stages" in pictures),
        "pseudo": ("Pseudo labels", bool(pseudo)),
        "samples": ("Generated images", "samples" in pictures),
    }
    return assembled(
        BODY,
        f"Few labels: {result['data']['name']}",
        summary(result),
        sections,
        pictures,
        _alt(result),
        _data(result["data"]),
        result,
        captions=CAPTIONS,
        stages=[_stage(name, row, final) for name, row in in_order(result.get("accuracy") or {})],
        rounds=[_round(row) for row in rounds] if len(rounds) > 1 else [],
        pseudo=_pseudo(pseudo),
        checked=(pseudo.get("confidence") or {}).get("right") is not None,
        pairs=confused_pairs(pseudo.get("confusion"), result["classes"]),
        more_classes=max(0, len(result["classes"]) - MOST_ROWS),
    )


def summary(result: Mapping[str, Any]) -> list[str]:
    """What the experiment came to, in a few sentences."""
    data, accuracy = result["data"], result.get("accuracy") or {}
    labelled = sum(data["labelled"].values())
    lines = [
        f"{labelled:,} of {data['train_images']:,} training images of {len(result['classes'])} classes were labelled."
    ]
    known = [(name, row) for name, row in in_order(accuracy) if row.get("value") is not None]
    if not known:
        return [*lines, "The test images have no labels, or there are none, so no accuracy is known."]
    last = next(((name, row) for name, row in known if name == "stage 3"), known[-1])
    first = next((row for name, row in known if name == "stage 1"), None)
    text = f"{title_of(last[0])[0]} names {percent(last[1]['value'])} of {last[1]['n']:,} test images rightly"
    if interval := last[1].get("interval"):
        text += f" ({percent(interval[0])} to {percent(interval[1])})"
    if first is not None and first is not last[1]:
        points = 100 * (last[1]["value"] - first["value"])
        text += f"; stage 1, from the labelled images alone, {percent(first['value'])}: {points:+.1f} points"
    lines.append(text + ".")
    plain = [row["value"] for name, row in known if name.startswith("self-training")]
    if last[0] == "stage 3" and plain and max(plain) >= last[1]["value"]:
        lines.append(f"Without generated images it is {percent(max(plain))}: here they did not make it better.")
    return lines


def _stage(name: str, row: Mapping[str, Any], final: Mapping[str, Any]) -> dict[str, str]:
    """final: settings of the last classifier, which say what else it learned from."""
    title, meaning = title_of(name)
    if name == "stage 3" and final.get("pseudo"):
        meaning = WITH_PSEUDO if final.get("generated", 1) else WITHOUT_GENERATED
    value, interval = row.get("value"), row.get("interval")
    return {
        "title": title,
        "meaning": meaning,
        "value": "not known" if value is None else percent(value),
        "interval": f"{percent(interval[0])} to {percent(interval[1])}" if interval and value is not None else "",
        "n": f"{row['n']:,}" if row.get("n") is not None else "",
    }


def _round(row: Any) -> dict[str, str]:
    """Whatever a round's entry holds: shares as percentages."""
    cells = row if isinstance(row, Mapping) else {"accuracy": row}
    return {ROUND.get(name, title_of(str(name))[0]): _cell(value) for name, value in cells.items()}


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("value")
    if value is None:
        return "not known"
    return percent(value) if isinstance(value, float) and 0 <= value <= 1 else str(value)


def _pseudo(found: Mapping[str, Any]) -> list[str]:
    """How many there are, and how many of them are right."""
    told = found.get("told", sum((found.get("confidence") or {}).get("count") or ()))
    if not told:
        return ["No image got a pseudo label."] if found else []
    text = f"{round(told):,} images without a label got a pseudo label"
    if found.get("left"):
        text += f"; {found['left']:,} were not sure enough for one"
    if found.get("accuracy") is not None:
        text += f". Of those whose label is known for comparison, {percent(found['accuracy'])} are right"
    return [text + "."]


def _data(data: Mapping[str, Any]) -> dict[str, str]:
    counts = list(data["labelled"].values())
    each = (
        f"{counts[0]:,} of each class" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,} of each class"
    )
    return {
        "source": str(data.get("source", "")),
        "training images": f"{data['train_images']:,}",
        "labelled": f"{sum(counts):,}, {each}",
        "test images": f"{data.get('test_images') or 0:,}",
        "hash": str(data.get("hash", ""))[:16],
    }


def _alt(result: Mapping[str, Any]) -> dict[str, str]:
    """What a reader who cannot see the pictures needs to know of them."""
    return {
        "stages": "Bars: accuracy after each stage, as in the table below",
        "confusion": "Heat map: true classes against pseudo labels",
        "confidence": "How many pseudo labels are how sure, and how many of them are right where that is known",
        "samples": f"Grid of generated images, a row for each of {min(MOST_ROWS, len(result['classes']))} classes",
        "most": "The images with the surest pseudo labels",
        "least": "The images with the least sure pseudo labels",
    }
