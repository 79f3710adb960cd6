"""Finished parts of a folder of generated images, and what they are put together to.

A chunk is one file: the SHA-256 of what follows, then the images (n, C, H, W) uint8 as .npy. It is renamed into place
when it is whole, and its digest tells when a disk or a copy has damaged it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..files import atomic_bytes, atomic_file

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels: what a PNG can hold
GAP = 2  # pixels between the images of a grid
TILE = 64  # an image of a grid is shown this large at least, enlarged by a whole factor


def write_chunk(path: Path, images: np.ndarray) -> None:
    """Puts a chunk in place, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    data = buffer.getvalue()
    atomic_bytes(path, hashlib.sha256(data).digest() + data)


def read_chunk(path: Path) -> np.ndarray | None:
    """The images of a chunk, or None where it is missing or damaged."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    digest, data = raw[:32], raw[32:]
    if hashlib.sha256(data).digest() != digest:
        return None
    return np.load(io.BytesIO(data), allow_pickle=False)


def write_png(path: Path, image: np.ndarray) -> None:
    """One image (C, H, W) uint8 of 1, 3 or 4 channels."""
    from PIL import Image

    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels, MODES[len(image)]).save(path, "PNG")


def write_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Images (N, C, H, W) in rows of `columns`, with white gaps; small ones enlarged, every pixel a square."""
    factor = max(1, TILE // min(images.shape[2:]))
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((c, rows * (h + GAP) + GAP, columns * (w + GAP) + GAP), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        canvas[:, top : top + h, left : left + w] = image
    atomic_file(path, lambda temporary: write_png(temporary, canvas))


def write_npz(
    path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, ...], labels: np.ndarray, classes: Sequence[str] = ()
) -> None:
    """images.npz as `np.savez` would write it, one chunk in memory at a time.

    arr_0: images uint8 (N, H, W, C), from chunks (n, C, H, W). arr_1: labels int64 (N,), -1 = none, or attributes int8
    (N, K) in 1, 0, -1 = free. classes: what they are called, if anything. shape: (C, H, W).
    """
    c, h, w = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), h, w, c)}

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for images in chunks:
                    file.write(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).data)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(
                    file, labels.astype(np.int64 if labels.ndim == 1 else np.int8), allow_pickle=False
                )
            if classes:
                with archive.open(zipfile.ZipInfo("classes.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.array(classes, np.str_), allow_pickle=False)

    atomic_file(path, write)
