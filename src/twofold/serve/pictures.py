"""Pictures that come in, from whoever sends them, and pictures that go out.

What comes in is looked at before it is unpacked: only formats of the web, its number of pixels from its header, and
then decoded as training images are, to the model's size. Nothing of it is written anywhere.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings

import numpy as np
from PIL import Image

from ..data.decode import as_channels, decode
from ..data.transform import BadImage, Placing
from ..settings.data import DataSettings
from .refused import Refused

FORMATS = ("PNG", "JPEG", "WEBP")
SCANS = 100  # of a JPEG: usual ones have ten, and each takes as long as the whole picture
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # of EXIF: stored on its side
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def header(content: bytes, name: str, most: int) -> tuple[int, int]:
    """(width, height) as it is shown, by the header alone. Raises `Refused` for what is no picture of the web, or too
    large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit is above ours
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height, frames = image.width, image.height, getattr(image, "n_frames", 1)
                frames = 1 if image.format == "MPO" else frames  # a photograph, and what its camera keeps beside it
                turned = image.getexif().get(ORIENTATION, 1) in LYING
    except Image.DecompressionBombError:
        raise too_large(name, most) from None
    except Exception:  # damaged headers raise nearly anything
        what = "is no PNG, JPEG or WebP, or damaged" if content else "is empty"
        raise Refused(415, name, what, "save it as one of them") from None
    if frames > 1:
        raise Refused(415, name, f"has {frames} frames", "send a single picture")
    if width * height > most:
        raise too_large(name, most)
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > SCANS:
        raise Refused(422, name, f"is stored in more than {SCANS} scans", "save it again as a usual JPEG")
    return (height, width) if turned else (width, height)


def too_large(name: str, most: int) -> Refused:
    return Refused(413, name, f"has more than {most:,} pixels", "send a smaller picture")


def read(content: bytes, name: str, how: DataSettings, size: tuple[int, int], most: int) -> np.ndarray:
    """uint8 (C, H, W) as the model takes it. how: `size` and `channels` are set. size: what `header` found. Raises
    `Refused`."""
    for upright in (size, size[::-1]):  # before it is cropped a narrow picture is scaled to the width of the model's
        width, height = Placing.of(1, upright, how).scaled
        if width * height > most:
            raise Refused(422, name, f"is too narrow: {size[0]} x {size[1]} pixels", "send a part of it")
    try:
        pixels = decode(content, how)
    except BadImage as error:
        raise Refused(422, name, str(error), "send a whole picture") from None
    assert how.channels is not None
    return np.array(as_channels(pixels, how.channels))


def from_base64(text: str, name: str) -> bytes:
    """The bytes of a picture in JSON; a data URL is taken too. Raises `Refused`."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, name, "is not base64", "encode the bytes of the picture's file") from None


def png(image: np.ndarray) -> bytes:
    """A file of one image, uint8 (C, H, W)."""
    buffer = io.BytesIO()
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    # small pictures are most of what is asked for, and the least compression is four times as fast as the usual
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels, MODES[len(image)]).save(
        buffer, "PNG", compress_level=1
    )
    return buffer.getvalue()


def base64_png(image: np.ndarray) -> str:
    return base64.b64encode(png(image)).decode("ascii")


def side_by_side(images: list[np.ndarray]) -> np.ndarray:
    """(C, H, N W): one picture of several."""
    return np.concatenate(images, axis=2)
