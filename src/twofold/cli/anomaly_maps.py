"""Pictures of anomaly maps: the image, and beside it where it differs from good parts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..files import atomic_bytes

WIDE = 256  # pixels of the longer side that small images are enlarged to
FULL = 6.0  # standard deviations of good parts at which the overlay is strongest,
MOST = 0.7  # and how strong that is: what is beneath stays visible

ORANGE = np.array([217.0, 102.0, 10.0])
BAR = 12  # pixels wide


def write_map(folder: Path, name: str, image: Any, map: np.ndarray) -> str:
    """Writes the picture of one image's map and returns its path.

    image: uint8 (C, H, W). map: (H, W) in standard deviations of good parts; below 1 nothing is shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.map.png"
    pixels = np.asarray(image).transpose(1, 2, 0)
    grey = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float64)
    share = MOST * np.clip((map - 1) / (FULL - 1), 0, 1)[..., None]
    marked = (1 - share) * grey.mean(2, keepdims=True) + share * ORANGE
    both = np.concatenate([grey, np.full((len(grey), max(1, grey.shape[1] // 16), 3), 255.0), marked], axis=1)
    picture = Image.fromarray(np.rint(both).astype(np.uint8))
    times = max(1, WIDE // max(pixels.shape[:2]))
    picture = with_scale(picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST))
    file = io.BytesIO()
    picture.save(file, "PNG")
    atomic_bytes(path, file.getvalue())
    return str(path)


def with_scale(picture: Image.Image) -> Image.Image:
    """The picture with a bar at its right: from 1 standard deviation of good parts (not marked) to `FULL`."""
    canvas = Image.new("RGB", (picture.width + 6 * BAR, picture.height), "white")
    canvas.paste(picture)
    share = MOST * np.linspace(1, 0, picture.height)[:, None, None]
    ramp = np.broadcast_to((1 - share) * 128 + share * ORANGE, (picture.height, BAR, 3))
    canvas.paste(Image.fromarray(np.rint(ramp).astype(np.uint8)), (picture.width + BAR, 0))
    draw = ImageDraw.Draw(canvas)
    left = picture.width + 2 * BAR + 4
    draw.text((left, 2), f"{FULL:g} sd", fill="black")
    draw.text((left, picture.height - 14), "1 sd", fill="black")
    return canvas
