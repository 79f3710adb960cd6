"""One geometric transform for an image and for what belongs to it: mask, points, a paired image.

    as stored -> upright (EXIF orientation) -> scaled -> cropped or padded to the size asked for

A `Placing` is worked out once, from the image, and carried out on each of them. A point (x, y) is where it is seen:
0 is the middle of the first pixel, so scaling by s takes x to s (x + 1/2) - 1/2. Points that end up outside keep
their coordinates, for a network may be asked for them all the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from ..settings.data import DataSettings

Method = Image.Transpose
# EXIF orientation: what Pillow does to show it upright, and the same for points: mirror x, mirror y, then swap them
ORIENTATIONS: dict[int, tuple[Image.Transpose | None, bool, bool, bool]] = {
    1: (None, False, False, False),
    2: (Method.FLIP_LEFT_RIGHT, True, False, False),
    3: (Method.ROTATE_180, True, True, False),
    4: (Method.FLIP_TOP_BOTTOM, False, True, False),
    5: (Method.TRANSPOSE, False, False, True),
    6: (Method.ROTATE_270, False, True, True),
    7: (Method.TRANSVERSE, True, True, True),
    8: (Method.ROTATE_90, True, False, True),
}
VOID = 255  # in a mask: no class


class BadImage(Exception):
    """An image that cannot be read; the message is the reason, without the file's name."""


class Placing(NamedTuple):
    """How an image came to its place. Sizes are (width, height).

    orientation: EXIF's. stored: its size in the file. scaled: its size after scaling, upright. offset: where its first
    pixel then lies, negative where it is cropped. size: what comes out.
    """

    orientation: int
    stored: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def as_stored(cls, size: tuple[int, int]) -> Placing:
        """That of an image that stays as it is."""
        return cls(1, size, size, (0, 0), size)

    @classmethod
    def of(cls, orientation: int, stored: tuple[int, ...], settings: DataSettings) -> Placing:
        """The placing that `size` and `fit` ask for."""
        stored = (stored[0], stored[1])
        upright = stored[::-1] if ORIENTATIONS[orientation][3] else stored
        size = upright if settings.size is None else settings.size[::-1]
        if upright == size or settings.fit == "stretch":
            return cls(orientation, stored, size, (0, 0), size)
        ratios = [new / old for new, old in zip(size, upright, strict=True)]
        scale = max(ratios) if settings.fit == "crop" else min(ratios)
        scaled = (max(1, round(upright[0] * scale)), max(1, round(upright[1] * scale)))
        offset = (int((size[0] - scaled[0]) / 2), int((size[1] - scaled[1]) / 2))
        return cls(orientation, stored, scaled, offset, size)

    def check(self, stored: tuple[int, int]) -> None:
        """Raises `BadImage` if something of this size cannot show the same: its shape differs by more than a pixel."""
        (w, h), (w0, h0) = stored, self.stored
        if abs(w * h0 - h * w0) > max(w, h, w0, h0):
            raise BadImage(f"it is {h}x{w} and the image {h0}x{w0} (height x width), which are different shapes")


def place(image: Image.Image, placing: Placing, resampling: Image.Resampling, background: str | int) -> Image.Image:
    """An image of any resolution that shows what the placing's image shows, put where that one is."""
    method = ORIENTATIONS[placing.orientation][0]
    if method is not None:
        image = image.transpose(method)
    if image.size != placing.scaled:
        image = image.resize(placing.scaled, resampling)
    if placing.scaled == placing.size:
        return image
    (left, top), (width, height) = placing.offset, placing.size
    if placing.scaled[0] >= width and placing.scaled[1] >= height:
        return image.crop((-left, -top, width - left, height - top))
    canvas = Image.new(image.mode, placing.size, background)
    canvas.paste(image, placing.offset)
    return canvas


def place_mask(mask: np.ndarray, placing: Placing) -> np.ndarray:
    """Class indices uint8 (h, w) -> (H, W), by the nearest pixel; what padding adds is void."""
    return np.asarray(place(Image.fromarray(mask), placing, Image.Resampling.NEAREST, VOID))


def place_points(points: np.ndarray, placing: Placing) -> np.ndarray:
    """(P, 2) x and y in pixels of the image as stored -> float32 in pixels of the placed one; NaN stays NaN."""
    _, mirror_x, mirror_y, swap = ORIENTATIONS[placing.orientation]
    width, height = placing.stored
    out = np.array(points, np.float64).reshape(-1, 2)
    if mirror_x:
        out[:, 0] = width - 1 - out[:, 0]
    if mirror_y:
        out[:, 1] = height - 1 - out[:, 1]
    upright = np.array([width, height], np.float64)
    if swap:
        out, upright = out[:, ::-1], upright[::-1]
    return ((out + 0.5) * (np.array(placing.scaled) / upright) - 0.5 + placing.offset).astype(np.float32)
