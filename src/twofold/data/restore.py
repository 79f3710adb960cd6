"""Answers about an image that was fitted to a size, brought back to the image as it is stored.

The inverse of `transform.place`: x_stored = ((x - offset + 1/2) / scale - 1/2), then EXIF's orientation undone. Masks
and key points come out as `data.mask_column` and `data.points_column` take them: in the pixels of the file, which for
a photograph with an orientation is not the way viewers turn it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..settings.data import DataSettings
from .decode import as_channels, decode_placed
from .items import Item, Source
from .transform import ORIENTATIONS, VOID, BadImage, Placing

THREADS = 8  # that decode
UNDONE = {Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class Placed:
    """Images as a model takes them, uint8 (B, C, H, W), and how each came to its place. ids: names within the source.
    skipped: (id, reason) of the unreadable ones that were left out."""

    ids: list[str]
    images: Tensor
    placings: list[Placing]
    skipped: list[tuple[str, str]]


def placed(source: Source, settings: DataSettings, batch: int) -> Iterator[Placed]:
    """Batches of at most `batch` images, in the source's order; `settings.size` and `channels` must be set.

    Raises `UserError` naming the first unreadable image, unless `on_bad_image` is "skip".
    """
    if settings.size is None or settings.channels is None:
        raise ValueError("images of a stream need a size and a number of channels")
    channels = settings.channels

    def one(item: Item) -> tuple[np.ndarray, Placing] | BadImage:
        try:
            pixels, placing = decode_placed(item.encoded, settings)
        except BadImage as bad:
            return bad
        return as_channels(pixels, channels), placing

    items = iter(source.items())
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(items, batch)):
            found = list(zip(chunk, pool.map(one, chunk), strict=True))
            bad = [(item.id, str(got)) for item, got in found if isinstance(got, BadImage)]
            if bad and settings.on_bad_image == "error":
                raise UserError(f"{source.where}: {bad[0][0]}", bad[0][1], "mend it, or use on_bad_image=skip")
            good = [(item.id, *got) for item, got in found if not isinstance(got, BadImage)]
            pixels = [pixels for _, pixels, _ in good]
            stacked = np.stack(pixels) if pixels else np.empty((0, channels, *settings.size), np.uint8)
            yield Placed([id for id, *_ in good], torch.from_numpy(stacked), [p for *_, p in good], bad)


def restore_points(points: np.ndarray, placing: Placing) -> np.ndarray:
    """(P, 2) x and y in pixels of a placed image -> float64, in pixels of the stored one. Undoes `place_points`."""
    _, mirror_x, mirror_y, swap = ORIENTATIONS[placing.orientation]
    width, height = placing.stored
    upright = np.array([height, width] if swap else [width, height], np.float64)
    out = np.array(points, np.float64).reshape(-1, 2)
    out = (out - placing.offset + 0.5) * (upright / np.array(placing.scaled)) - 0.5
    if swap:
        out = out[:, ::-1].copy()
    if mirror_x:
        out[:, 0] = width - 1 - out[:, 0]
    if mirror_y:
        out[:, 1] = height - 1 - out[:, 1]
    return out


def restore_mask(probabilities: np.ndarray, placing: Placing) -> np.ndarray:
    """Class probabilities float32 (K, H, W) of a placed image -> the likeliest class of each pixel of the image as
    stored, uint8 (h, w); 255 where it was cropped away.

    Probabilities are scaled, bilinearly, and not classes, so that edges stay as smooth as they are. One class is held
    at a time.
    """
    width, height = placing.size
    columns, rows = (np.arange(size) + shift for size, shift in zip(placing.scaled, placing.offset, strict=True))
    seen = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    upright = placing.stored[::-1] if ORIENTATIONS[placing.orientation][3] else placing.stored
    best, mask = np.full(upright[::-1], -np.inf, np.float32), np.zeros(upright[::-1], np.uint8)
    for k, plane in enumerate(np.asarray(probabilities, np.float32)):
        scaled = _scaled(plane[rows][:, columns], upright, Image.Resampling.BILINEAR)
        mask = np.where(scaled > best, np.uint8(k), mask)
        best = np.maximum(best, scaled)
    mask = np.where(_scaled(seen.astype(np.uint8), upright, Image.Resampling.NEAREST) > 0, mask, np.uint8(VOID))
    method = ORIENTATIONS[placing.orientation][0]
    if method is None:
        return mask
    return np.asarray(Image.fromarray(mask).transpose(UNDONE.get(method, method)))


def _scaled(plane: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image if image.size == size else image.resize(size, resampling))
