"""Test images with what the students say of them: masks laid over, points marked, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .grids import _draw, as_tiles, image_grid
from .teaching_words import EQUAL, SCRATCH, TAUGHT, in_order, title_of

COLUMNS, SHOWN = {"masks": 6, "points": 4}, {"masks": 12, "points": 8}  # images beside each other, and of them in all
BESIDE = {TAUGHT: "taught", SCRATCH: "scratch", EQUAL: "equal"}  # words at the left of a row have little room
MOST_SIDE, LEAST_SIDE = 240, 200  # pixels of a tile: larger images are reduced, points are drawn on enlarged ones
CARD = 144  # pixels that a single image aims at
TRUE, SAID = (57, 211, 240), (255, 140, 26)  # of points
DARK = (16, 16, 16)
MOST_NAMED = 40  # classes in the legend of masks


def pictures_of(shown: Mapping[str, Any]) -> dict[str, bytes]:
    """{"masks": PNG} or {"points": PNG} of what `learn.teaching` gives for the page; {} where there is none."""
    if not shown or not len(shown.get("images", ())) or shown.get("kind") not in COLUMNS:
        return {}
    kind = shown["kind"]
    return {kind: (mask_grid if kind == "masks" else point_grid)(shown)}


def mask_grid(shown: Mapping[str, Any]) -> bytes:
    """Bands of images; below each the truth, and below that each student's answer, as colours over the image."""
    count = SHOWN["masks"]
    images = np.asarray(shown["images"])[:count]
    rows = [("image", [_reduced(tile) for tile in as_tiles(images)])]
    layers = [("truth", shown["truth"]), *((_beside(name), masks) for name, masks in in_order(shown["answers"]))]
    for name, masks in layers:
        over = _overlaid(images, np.asarray(masks)[:count], len(shown["classes"]))
        rows.append((name, [_reduced(tile) for tile in as_tiles(over)]))
    return _banded(rows, COLUMNS["masks"])


def point_grid(shown: Mapping[str, Any]) -> bytes:
    """Bands of images, a row for each student: rings where the points are, dots where it says they are."""
    count = SHOWN["points"]
    tiles, truth = as_tiles(np.asarray(shown["images"])[:count]), np.asarray(shown["truth"], float)
    rows = []
    for name, points in in_order(shown["answers"]):
        both = zip(tiles, truth, np.asarray(points, float), strict=False)
        rows.append((_beside(name), [_marked(tile, true, said) for tile, true, said in both]))
    return _banded(rows or [("image", [_reduced(tile) for tile in tiles])], COLUMNS["points"])


def cards(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each image of a classification: {"png", "id", "truth", "answers": [(student, name, right or None)]}."""
    if not shown or shown.get("kind") != "labels":
        return []
    names = [str(name) for name in shown["classes"]]
    found = []
    for i, (image, label) in enumerate(zip(np.asarray(shown["images"]), shown["truth"], strict=True)):
        answers = []
        for student, said in in_order(shown["answers"]):
            one = int(np.asarray(said)[i])
            answers.append((_beside(student), names[one], one == int(label) if label >= 0 else None))
        [tile] = as_tiles(image[None])
        png = image_grid(_reduced(tile).transpose(2, 0, 1)[None], 1, width=CARD)
        true = names[int(label)] if label >= 0 else "not known"
        found.append({"png": png, "id": str(shown["ids"][i]), "truth": true, "answers": answers})
    return found


def legend(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, colour as #rrggbb) of each class that is seen in the masks shown, at most `MOST_NAMED`."""
    if not shown or shown.get("kind") != "masks":
        return []
    count, classes = SHOWN["masks"], [str(name) for name in shown["classes"]]
    seen = [np.unique(np.asarray(masks)[:count]) for masks in (shown["truth"], *shown["answers"].values())]
    there = [int(k) for k in np.unique(np.concatenate(seen)) if k < len(classes)]
    colours = _colours(len(classes))
    return [(classes[k], "#" + bytes(colours[k]).hex()) for k in there[:MOST_NAMED]]


def _beside(name: str) -> str:
    return BESIDE.get(name, title_of(name).lower())


def _colours(classes: int) -> np.ndarray:
    from ..recognize.segmenter import class_colours

    return class_colours(classes).numpy()


def _overlaid(images: np.ndarray, masks: np.ndarray, classes: int) -> np.ndarray:
    import torch

    from ..recognize.segmenter import overlaid

    over, under = (torch.from_numpy(np.ascontiguousarray(array)) for array in (masks, images))
    found: np.ndarray = overlaid(under, over, classes).numpy()
    return found


def _reduced(tile: np.ndarray) -> np.ndarray:
    """A tile (H, W, 3) that is larger than `MOST_SIDE`, a whole factor smaller; each pixel a mean of those it holds."""
    from PIL import Image

    factor = -(-max(tile.shape[:2]) // MOST_SIDE)
    return tile if factor <= 1 else np.asarray(Image.fromarray(np.ascontiguousarray(tile)).reduce(factor))


def _marked(tile: np.ndarray, truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The tile (H, W, 3), enlarged or reduced by a whole factor, with rings at `truth` and dots at `said` (P, 2).

    Points are in pixels, 0 is the middle of the first one; one that is NaN is not drawn. A line joins what belongs
    together.
    """
    from PIL import Image, ImageDraw

    small = _reduced(tile)
    scale = small.shape[1] / tile.shape[1] if small is not tile else max(1, round(LEAST_SIDE / tile.shape[1]))
    grown = small if small is not tile else tile.repeat(int(scale), 0).repeat(int(scale), 1)
    canvas = Image.fromarray(np.ascontiguousarray(grown))
    pen = ImageDraw.Draw(canvas)
    radius = max(2.0, min(grown.shape[:2]) / (9 * np.sqrt(max(len(truth), 1))))
    places = [(np.asarray(points, float) + 0.5) * scale - 0.5 for points in (truth, said)]
    for true, one in zip(*places, strict=True):
        if not np.isnan([true, one]).any():
            pen.line([*true, *one], fill=SAID, width=1)
    for true in places[0][~np.isnan(places[0]).any(1)]:
        pen.ellipse(_box(true, radius), outline=TRUE, width=max(1, round(radius / 3)))
    for one in places[1][~np.isnan(places[1]).any(1)]:
        pen.ellipse(_box(one, 0.6 * radius), fill=SAID, outline=DARK if radius > 4 else None)
    return np.asarray(canvas)


def _box(point: np.ndarray, radius: float) -> list[float]:
    x, y = (float(value) for value in point)
    return [x - radius, y - radius, x + radius, y + radius]


def _banded(rows: Sequence[tuple[str, list[Any]]], columns: int) -> bytes:
    """Rows of tiles, as many beside each other as there is room for, the rest in further bands below."""
    cells: list[list[Any]] = []
    left: list[str] = []
    below: list[list[str]] = []
    count = len(rows[0][1])
    for start in range(0, count, columns):
        for name, tiles in rows:
            cells.append(tiles[start : start + columns])
            left.append(name)
            below.append([])
        if start + columns < count:
            below[-1] = [""] * columns  # room between bands
    return _draw(cells, left=left, below=below)
