"""Pictures of super-resolution: the low image, bicubic enlargement, what the model made of it, and the truth.

Pixels stay squares. Of larger images the middle is shown, the same part in all columns, and of all images as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..lowres import enlarged
from .grids import _draw, as_tiles

LARGEST = 128  # pixels of a side that are shown
BESIDE = 2  # images in a row of small pictures
SMALL = 64  # pixels
NAMES = ("low", "bicubic", "model", "true")


@dataclass(frozen=True)
class Compared:
    """low: uint8 (C, h, w). image: (C, factor * h, factor * w), and truth of the same shape, where it is known."""

    low: np.ndarray
    image: np.ndarray
    truth: np.ndarray | None
    factor: int


def comparison(shown: Sequence[Compared]) -> bytes:
    """A PNG of these images. Raises `ValueError` where there are none."""
    if not shown:
        raise ValueError("no images")
    side = [min([LARGEST, *(one.image.shape[axis] for one in shown)]) // shown[0].factor for axis in (1, 2)]
    sets = [_row(one, side) for one in shown]
    names = NAMES if any(one.truth is not None for one in shown) else NAMES[:3]
    beside = BESIDE if side[1] * shown[0].factor <= SMALL and len(sets) > 1 else 1
    rows = [sets[i : i + beside] for i in range(0, len(sets), beside)]
    cells = [[tile for tiles in row for tile in tiles[: len(names)]] for row in rows]
    return _draw(cells, top=list(names) * beside)


def _row(one: Compared, side: Sequence[int]) -> list[np.ndarray | None]:
    """The four tiles of an image, of `side` low pixels around its middle."""
    f = one.factor
    top, left = ((length - wanted) // 2 for length, wanted in zip(one.low.shape[1:], side, strict=True))
    bicubic = enlarged(torch.from_numpy(one.low[None]), f)[0].numpy()
    squares = one.low.repeat(f, axis=1).repeat(f, axis=2)
    part = (slice(None), slice(top * f, (top + side[0]) * f), slice(left * f, (left + side[1]) * f))
    pictures = [squares, bicubic, one.image] + ([] if one.truth is None else [one.truth])
    tiles = as_tiles(np.stack([picture[part] for picture in pictures]))
    return [*tiles, *[None] * (len(NAMES) - len(tiles))]
