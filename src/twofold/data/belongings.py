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
    """pixels: uint8 (H, W) or (H, W, 3). mask: uint8 (H, W), 255 = void. points: float32 (P, 2). pair: as pixels."""

    pixels: np.ndarray
    mask: np.ndarray | None = None
    points: np.ndarray | None = None
    pair: np.ndarray | None = None


def decode_item(item: Item, settings: DataSettings, facts: Mapping[str, Any]) -> Decoded:
    """Decodes an item. facts: of its source (`mask_classes` and `mask_void` are heeded).

    Raises `BadImage` for whatever of it cannot be read, or does not show the image's field of view.
    """
    pixels, placing = decode_placed(item.encoded, settings)
    if item.mask is None and item.points is None and item.pair is None:
        return Decoded(pixels)
    mask = points = pair = None
    if item.mask is not None:
        mask = place_mask(_mask(item, placing, facts), placing)
    if item.points is not None:
        points = place_points(item.points, placing)
    if item.pair is not None:
        try:  # as many channels as it has: `channels` is about the image
            pair, _ = decode_placed(item.pair, settings.model_copy(update={"channels": None}), placing)
        except BadImage as bad:
            raise BadImage(f"its pair: {bad}") from bad
    return Decoded(pixels, mask, points, pair)


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
