"""The overview of new images made of given ones: the original, what was painted over, and the results beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .grids import _draw, as_tiles

VEIL = np.array([196.0, 84.0, 0.0])  # orange, over what is painted anew
SHARE = 0.65  # of the veil's colour


def overview(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    results: Sequence[Sequence[np.ndarray]],
    seeds: Sequence[int],
) -> bytes:
    """A PNG with a row per image, uint8 (C, H, W) all of one size: original, mask in orange over it, its results.

    masks: bool (H, W), one per image, or none at all. seeds: of the results, which stand above them. Raises
    `ValueError` where there is no image.
    """
    if not images:
        raise ValueError("no images")
    rows = []
    for k, image in enumerate(images):
        tile = as_tiles(image[None])[0]
        rows.append([tile, *([veiled(tile, masks[k])] if len(masks) else []), *as_tiles(np.stack(results[k]))])
    top = ["original", *(["mask"] if len(masks) else []), *(f"seed {seed}" for seed in seeds)]
    return _draw(rows, top=top)


def veiled(tile: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with orange over the masked part."""
    over = np.rint((1 - SHARE) * tile + SHARE * VEIL).astype(np.uint8)
    return np.where(mask[..., None], over, tile)
