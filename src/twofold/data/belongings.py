"""One item decoded: its pixels and all that belongs to them, under one transform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..settings.data import DataSettings
from .decode import decode_indices, decode_placed
from .items import Item
from .transform import VOID, BadImage, Placing, place_mask, place_points


class Decoded(NamedTuple):
    """pixels: uint8 (H, W) or (H, W, 3). mask: uint8 (H, W), 255 = void. points: float32 (P, 2). pair: as pixels.

    outside: how many points were outside the image and therefore count as not there.
    """

    pixels: np.ndarray
    mask: np.ndarray | None = None
    points: np.ndarray | None = None
    pair: np.ndarray | None = None
    outside: int = 0


def decode_item(item: Item, settings: DataSettings, facts: Mapping[str, Any]) -> Decoded:
    """Decodes an item. facts: of its source (those of masks, and `points_outside`, are heeded).

    Raises `BadImage` for whatever of it cannot be read, or does not show the image's field of view.
    """
    pixels, placing = decode_placed(item.encoded, settings)
    if item.mask is None and item.points is None and item.pair is None:
        return Decoded(pixels)
    mask = points = pair = None
    outside = 0
    if item.mask is not None:
        mask = place_mask(_mask(item, placing, facts), placing)
    if item.points is not None:
        rule = settings.points_outside or facts.get("points_outside", "error")
        points, outside = _inside(item.points, placing.stored, rule)
        points = place_points(points, placing)
    if item.pair is not None:
        try:  # as many channels as it has: `channels` is about the image
            pair, _ = decode_placed(item.pair, settings.model_copy(update={"channels": None}), placing)
        except BadImage as bad:
            raise BadImage(f"its pair: {bad}") from bad
    return Decoded(pixels, mask, points, pair, outside)


def _inside(points: np.ndarray, size: tuple[int, int], rule: str) -> tuple[np.ndarray, int]:
    """The points (P, 2) with those outside the image's pixels treated by the rule, and how many are left out.

    size: (width, height) of the image as stored. Raises `BadImage` where the rule is `error` and one is outside.
    """
    if rule == "keep":
        return points, 0
    with np.errstate(invalid="ignore"):
        outside = np.any((points < -0.5) | (points > np.array(size) - 0.5), axis=1)
    if not outside.any():
        return points, 0
    if rule == "error":
        i = int(outside.argmax())
        (x, y), (width, height) = points[i].tolist(), size
        what = f"its point {i} ({x:g}, {y:g}) is outside its {height}x{width} pixels (height x width)"
        raise BadImage(f"{what}; data.points_outside=missing leaves such points out, keep keeps them")
    return np.where(outside[:, None], np.float32(np.nan), points), int(outside.sum())


def _mask(item: Item, placing: Placing, facts: Mapping[str, Any]) -> np.ndarray:
    """The mask as stored, with every index a class or void."""
    try:
        mask = decode_indices(item.mask)
        placing.check((mask.shape[1], mask.shape[0]))
    except BadImage as bad:
        raise BadImage(f"its mask: {bad}") from bad
    if (void := facts.get("mask_void")) is not None:
        mask = np.where(mask == void, np.uint8(VOID), mask)
    if names := facts.get("mask_classes"):
        wrong = mask[(mask >= len(names)) & (mask != VOID)]
        if wrong.size:
            raise BadImage(f"its mask: there is no class {wrong[0]}; there are {len(names)}, and {VOID} is void")
    return mask
