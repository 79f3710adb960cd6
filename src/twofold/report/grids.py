"""Grids of images as PNG bytes: samples, samples over training time, denoising, nearest neighbours.

Images are uint8 (N, C, H, W), NumPy or torch on the CPU, grey or RGB. Small images are enlarged by a whole number, each
pixel becoming a square, so nothing is blurred and nothing invented. Gaps are transparent and words mid-grey: the same
PNG stands on a light and on a dark page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

WIDTH = 720  # pixels a grid aims at; shown at half of that on a telephone
INK = (122, 122, 122, 255)  # contrast of about 4.3 to 1 on white and on near-black
TEXT = 24  # pixels; 11 on a telephone
LINE = 32

Cells = Sequence[Sequence[np.ndarray | None]]


def image_grid(images: Any, columns: int, labels: Sequence[str] | None = None, width: int = WIDTH) -> bytes:
    """A PNG of all images, `columns` a row, optionally with a label under each.

    width: what small images are enlarged towards; larger images keep their pixels. Raises `ValueError` unless images
    is uint8 (N, C, H, W), not empty, with as many labels.
    """
    tiles = as_tiles(images)
    if labels is not None and len(labels) != len(tiles):
        raise ValueError(f"{len(labels)} labels for {len(tiles)} images")
    columns = max(1, min(columns, len(tiles)))
    cells = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    below = None if labels is None else [list(labels[i : i + columns]) for i in range(0, len(tiles), columns)]
    return _draw(cells, below=below, width=width)


def time_grid(checkpoints: Sequence[tuple[int, Any]], columns: int = 10, width: int = WIDTH) -> bytes:
    """A PNG with a row per checkpoint, the same seeds below each other: [(images seen, images (N, C, H, W))]."""
    if not checkpoints:
        raise ValueError("no checkpoints")
    cells = [as_tiles(images)[:columns] for _, images in checkpoints]
    return _draw(cells, left=[short_count(n) for n, _ in checkpoints], width=width)


def trajectory_grid(images: Any, sigmas: Sequence[float], width: int = WIDTH) -> bytes:
    """A PNG of denoising, from noise on the left: images (steps, N, C, H, W), one column per step, sigma above it."""
    steps = [as_tiles(step) for step in images]
    if len(steps) != len(sigmas) or not steps:
        raise ValueError(f"{len(sigmas)} noise levels for {len(steps)} steps")
    cells = [list(row) for row in zip(*steps, strict=True)]
    return _draw(cells, top=[f"{sigma:.2g}" for sigma in sigmas], width=width)


def level_grid(
    rows: Cells, top: Sequence[str], below: Sequence[str], left: Sequence[str], names: tuple[str, str] = ("", "")
) -> bytes:
    """A PNG of rows of tiles (of `as_tiles`) with a column per level: words above, and below the first row.

    names: what stands at the left of the words above, and of those below.
    """
    return _draw(rows, left=left, top=top, below=[list(below), *([] for _ in rows[1:])], names=names)


def neighbour_grid(samples: Any, neighbours: Any, distances: Sequence[float], columns: int = 8) -> bytes:
    """A PNG of pairs: a generated image, below it its nearest training image, below that their distance.

    Raises `ValueError` unless all three are of one length.
    """
    ours, theirs = as_tiles(samples), as_tiles(neighbours)
    if not len(ours) == len(theirs) == len(distances):
        raise ValueError(f"{len(ours)} samples, {len(theirs)} neighbours, {len(distances)} distances")
    columns = max(1, min(columns, len(ours)))
    cells: list[list[np.ndarray | None]] = []
    below: list[list[str]] = []
    left: list[str] = []
    for i in range(0, len(ours), columns):
        part = slice(i, i + columns)
        cells += [ours[part], theirs[part]]
        below += [[], [f"{d:.3g}" for d in distances[part]]]
        left += ["generated", "nearest"]
    return _draw(cells, left=left, below=below)


def as_tiles(images: Any) -> list[Any]:
    """Each image as (H, W, 3) uint8. Raises `ValueError` unless images is uint8 (N, C, H, W) with 1 or 3 channels."""
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or len(array) == 0:
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), not {array.dtype} {array.shape}")
    if array.shape[1] == 1:
        array = np.repeat(array, 3, axis=1)
    return list(array.transpose(0, 2, 3, 1))


def short_count(n: int) -> str:
    """1234567 -> "1.2 M", 50000 -> "50 k", 640 -> "640"."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}" if n / size < 100 else f"{n // size} {unit}"
    return str(n)


def _draw(
    cells: Cells,
    left: Sequence[str] | None = None,
    top: Sequence[str] | None = None,
    below: Sequence[Sequence[str]] | None = None,
    width: int = WIDTH,
    names: tuple[str, str] = ("", ""),
) -> bytes:
    """Rows of tiles with words left of rows, above columns or below tiles (an empty list: no words below this row).

    names: of the words above and of those below, where there are words left of rows.
    """
    from PIL import Image, ImageDraw

    font = _font()
    across = max(len(row) for row in cells)
    tile = next(tile for row in cells for tile in row if tile is not None)
    margin = int(max(font.getlength(word) for word in (*left, *names))) + 12 if left else 0
    gap = 4
    scale = max(1, round((width - margin - gap * (across - 1)) / (across * tile.shape[1])))
    high, wide = tile.shape[0] * scale, tile.shape[1] * scale
    captions = below or [[]] * len(cells)
    step = [high + (LINE + 2 * gap if words else gap) for words in captions]
    start = LINE if top else 0
    size = (margin + across * (wide + gap) - gap, start + sum(step) - gap)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    middles = [margin + column * (wide + gap) + wide / 2 for column in range(across)]
    _write(pen, top or (), middles, LINE / 2 - 2, wide)
    pen.text((margin - 12, LINE / 2 - 2), names[0], INK, font, anchor="rm")
    y = start
    for row, tiles in enumerate(cells):
        if left:
            pen.text((margin - 12, y + high / 2), left[row], INK, font, anchor="rm")
        for column, one in enumerate(tiles):
            x = margin + column * (wide + gap)
            if one is not None:
                enlarged = one.repeat(scale, axis=0).repeat(scale, axis=1)
                canvas.paste(Image.fromarray(np.ascontiguousarray(enlarged)), (x, y))
        if captions[row]:
            _write(pen, captions[row], middles, y + high + LINE / 2, wide)
            pen.text((margin - 12, y + high + LINE / 2), names[1], INK, font, anchor="rm")
        y += step[row]
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()


def _write(pen: Any, words: Sequence[str], middles: Sequence[float], y: float, room: int) -> None:
    """Words at these places of one line, in letters of one size, each in `room` pixels: smaller letters where one of
    them needs it, then fewer."""
    for size in (TEXT, 20, 16):
        font = _font(size)
        if all(font.getlength(word) <= room for word in words):
            break
    for word, x in zip(words, middles, strict=False):
        if font.getlength(word) > room:
            while word and font.getlength(word + "…") > room:
                word = word[:-1]
            word = word.rstrip() + "…" if word else ""
        pen.text((x, y), word, INK, font, anchor="mm")


@cache
def _font(size: int = TEXT) -> Any:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
