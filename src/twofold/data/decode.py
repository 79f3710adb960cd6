"""One image file, whatever its format, to uint8 pixels of the wanted size.

    file -> upright (EXIF) -> 8 bits -> on the background (alpha) -> grey or RGB -> fitted to size

Resampling is Pillow's bicubic, which widens its filter when it shrinks an image (antialiasing).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..settings.data import DataSettings

EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
RESAMPLING = "bicubic"

Encoded = bytes | Path | np.ndarray | None


class BadImage(Exception):
    """An image that cannot be read; the message is the reason, without the file's name."""


def decode(encoded: Encoded, settings: DataSettings) -> np.ndarray:
    """Pixels of one image: uint8 (H, W) if it is stored grey, (H, W, 3) otherwise.

    encoded: the bytes or the path of an image file, or uint8 pixels (H, W[, 3]). settings: `size`, `fit`, `channels`
    and `background` are applied; with `size` None the image keeps its own.

    Raises `BadImage` with the reason for anything that is not a whole, readable image.
    """
    try:
        with _open(encoded) as image:
            return _pixels(_fit(_plain(image, settings), settings))
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # for damaged files Pillow's plugins raise nearly anything
        raise BadImage(_reason(error)) from error


def as_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (channels, H, W); grey becomes RGB by repetition, and equal RGB becomes grey."""
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, (channels, *pixels.shape))
    return pixels[None, ..., 0] if channels == 1 else pixels.transpose(2, 0, 1)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether every pixel has R = G = B; pixels (H, W) or (H, W, 3)."""
    return pixels.ndim == 2 or bool(
        np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])
    )


def _open(encoded: Encoded) -> Image.Image:
    if encoded is None:
        raise BadImage("there is no image in this row")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    if not (len(encoded) if isinstance(encoded, bytes) else encoded.stat().st_size):
        raise BadImage("the file is empty")
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS)


def _plain(image: Image.Image, settings: DataSettings) -> Image.Image:
    """Upright, 8 bits, opaque: mode L or RGB."""
    format = image.format
    image.load()
    if "exif" in image.info:
        image = _upright(image)
    if image.mode == "F":
        raise BadImage("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image, format)
    if image.has_transparency_data:
        image = _opaque(image, settings.background)
    mode = "L" if image.mode in ("1", "L") or settings.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about the pixels: every viewer shows such a file as it is
        return image


def _eight_bits(image: Image.Image, format: str | None) -> Image.Image:
    """16-bit grey to 8 bits: 0..65535 / 257. Pillow reads some 16-bit files as 32-bit integers."""
    if image.mode == "I" and format not in ("PNG", "PPM"):
        raise BadImage("32-bit integer pixels have no agreed range; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.float64)
    eight = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # one 16-bit level is transparent
        eight.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return eight


def _opaque(image: Image.Image, background: str) -> Image.Image:
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    canvas = Image.new("RGBA", image.size, background)
    if image.mode == "La":
        image = image.convert("LA")
    canvas.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return canvas.convert(mode)


def _fit(image: Image.Image, settings: DataSettings) -> Image.Image:
    if settings.size is None or image.size == settings.size[::-1]:
        return image
    height, width = settings.size
    ratios = (width / image.width, height / image.height)
    if settings.fit == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    scale = max(ratios) if settings.fit == "crop" else min(ratios)
    scaled = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.size != scaled:
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = int((width - scaled[0]) / 2), int((height - scaled[1]) / 2)  # negative where it is cropped
    if settings.fit == "crop":
        return image.crop((-left, -top, width - left, height - top))
    canvas = Image.new(image.mode, (width, height), settings.background)
    canvas.paste(image, (left, top))
    return canvas


def _pixels(image: Image.Image) -> np.ndarray:
    shape = (image.height, image.width) if image.mode == "L" else (image.height, image.width, 3)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(shape)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image of a known format ({', '.join(EXTENSIONS)}), or is damaged at its beginning"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename}"
    if isinstance(error, Image.DecompressionBombError):
        return f"it unpacks to more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
