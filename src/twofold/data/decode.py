"""One image file, whatever its format, to uint8 pixels of the wanted size.

    file -> 8 bits -> on the background (alpha) -> grey or RGB -> upright (EXIF) -> fitted to size

Resampling is Pillow's bicubic, which widens its filter when it shrinks an image (antialiasing). Usual JPEG files are
decoded by simplejpeg, with the same libjpeg-turbo and the same settings as Pillow, so to the same pixels; whatever
is unusual about one, or wrong with it, is left to Pillow.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ..settings.data import DataSettings
from .transform import ORIENTATIONS, BadImage, Placing, place

EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
RESAMPLING = "bicubic"
AT_ONCE = 1 << 16  # bytes of a file that are read before its length is asked for
COLOURS = {"Gray": "GRAY", "YCbCr": "RGB"}  # of JPEG files: what they are decoded to


class Cut(NamedTuple):
    """A part of an image file, in its pixels as stored: left, top, right, bottom; black beyond the image's sides."""

    file: Path
    box: tuple[int, int, int, int]


class Layers(NamedTuple):
    """A mask as several black-and-white files of one size: where one is white its class is, later ones over earlier.

    Where all are black there is class 0.
    """

    files: tuple[tuple[Path, int], ...]


Encoded = bytes | Path | np.ndarray | Cut | Layers | None


def decode(encoded: Encoded, settings: DataSettings) -> np.ndarray:
    """Pixels of one image: uint8 (H, W) if it is stored grey, (H, W, 3) otherwise.

    encoded: the bytes or the path of an image file, a part of one, or uint8 pixels (H, W[, 3]). settings: `size`,
    `fit`, `channels` and `background` are applied; with `size` None the image keeps its own.

    Raises `BadImage` with the reason for anything that is not a whole, readable image.
    """
    return decode_placed(encoded, settings)[0]


def decode_placed(
    encoded: Encoded, settings: DataSettings, placing: Placing | None = None
) -> tuple[np.ndarray, Placing]:
    """The same, and how the image was placed; with `placing` it is placed like another one, its own EXIF ignored."""
    try:
        content = _content(encoded)
        usual = _usual_jpeg(content) if isinstance(content, bytes) else None
        is_cut = isinstance(encoded, Cut)
        if usual is None:
            with _open(content) as image:
                plain, orientation = _plain(image, settings)
        elif not is_cut and settings.size is None and placing is None and (usual.ndim == 2 or settings.channels != 1):
            return usual, Placing.as_stored(usual.shape[1::-1])
        else:
            plain, orientation = _wanted_mode(Image.fromarray(usual), settings), 1
        plain = plain.crop(encoded.box) if isinstance(encoded, Cut) else plain
        if placing is None:
            placing = Placing.of(orientation, plain.size, settings)
        placing.check(plain.size)
        return _pixels(place(plain, placing, Image.Resampling.BICUBIC, settings.background)), placing
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # for damaged files Pillow's plugins raise nearly anything
        raise BadImage(_reason(error)) from error


def decode_indices(encoded: Encoded) -> np.ndarray:
    """A mask's class indices as they are stored: uint8 (H, W). A palette's colours are ignored.

    Raises `BadImage` for what is not one channel of indices up to 255.
    """
    if isinstance(encoded, Layers):
        return _composed(encoded)
    try:
        with _open(_content(encoded)) as image:
            if image.format == "JPEG":
                raise BadImage("a JPEG file does not keep class indices; save it as PNG")
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                raise BadImage(f"its pixels are {image.mode}; class indices need one channel (modes L, P or I)")
            indices = np.asarray(image)
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(_reason(error)) from error
    if indices.size and not (indices.min() >= 0 and indices.max() <= 255):
        raise BadImage(f"its class indices reach from {indices.min()} to {indices.max()}; 0 to 255 can be kept")
    return indices.astype(np.uint8)


def _composed(layers: Layers) -> np.ndarray:
    """uint8 (H, W) of several files."""
    out: np.ndarray | None = None
    for path, index in layers.files:
        try:
            with _open(_content(path)) as image:
                white = np.asarray(image.convert("L"))
        except Exception as error:
            raise BadImage(f"{path.name}: {_reason(error)}") from error
        out = np.zeros(white.shape, np.uint8) if out is None else out
        if white.shape != out.shape:
            raise BadImage(f"{path.name} is {_size(white)} and {layers.files[0][0].name} {_size(out)} (height x width)")
        if len(grey := white[(white != 0) & (white != 255)]):
            raise BadImage(f"{path.name} holds the value {grey[0]}; a part's mask is black (0) and white (255)")
        out[white == 255] = index
    if out is None:
        raise BadImage("there is no file of any part")
    return out


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"


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


def _content(encoded: Encoded) -> bytes | np.ndarray:
    """The file's bytes, or pixels."""
    if encoded is None:
        raise BadImage("there is no image in this row")
    if isinstance(encoded, np.ndarray):
        return encoded
    if isinstance(encoded, Layers):
        raise BadImage("these are parts of a mask")
    if not isinstance(encoded, bytes):
        encoded = _read(encoded.file if isinstance(encoded, Cut) else encoded)
    if not encoded:
        raise BadImage("the file is empty")
    return encoded


def _read(path: Path) -> bytes:
    """A file's bytes by as few calls of the system as there can be: a small image takes no longer to decode."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        content = os.read(file, AT_ONCE)
        if len(content) == AT_ONCE:
            with open(file, "rb", closefd=False) as rest:
                content += rest.read()
        return content
    finally:
        os.close(file)


def _usual_jpeg(content: bytes) -> np.ndarray | None:
    """Pixels of a whole grey or YCbCr JPEG without EXIF; None for anything else."""
    if content[:3] != b"\xff\xd8\xff" or b"Exif\0" in content:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            return None
        pixels = simplejpeg.decode_jpeg(content, COLOURS[colours], fastdct=False, fastupsample=False)
    except ValueError:  # damaged, in whatever way: Pillow shall say how, or read it all the same
        return None
    return pixels if pixels.shape[2] == 3 else pixels[..., 0]


def _open(content: bytes | np.ndarray) -> Image.Image:
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _plain(image: Image.Image, settings: DataSettings) -> tuple[Image.Image, int]:
    """8 bits, opaque: mode L or RGB; and the orientation that EXIF gives it."""
    format = image.format
    image.load()
    orientation = _orientation(image) if "exif" in image.info else 1
    if image.mode == "F":
        raise BadImage("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image, format)
    if image.has_transparency_data:
        image = _opaque(image, settings.background)
    return _wanted_mode(image, settings), orientation


def _wanted_mode(image: Image.Image, settings: DataSettings) -> Image.Image:
    mode = "L" if image.mode in ("1", "L") or settings.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # unreadable EXIF says nothing about the pixels: every viewer shows such a file as it is
        return 1
    return found if found in ORIENTATIONS else 1


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
