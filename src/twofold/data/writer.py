"""Writes the arrays of a store, of which neither the length nor the number of channels is known at the start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..settings.data import DataSettings
from .decode import RESAMPLING, BadImage, as_channels, is_grey
from .items import SPLITS, Item, Source
from .sources import FORMAT

BLOCK = 1 << 22  # bytes copied at once when images are widened


class ArrayFile:
    """A .npy file that grows by appending and learns its length when it is closed.

    Appending, not a memory map: writing into the map of a file on a full disk kills the process.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...] = ()) -> None:
        self.path, self.dtype, self.row, self.rows = path, np.dtype(dtype), row, 0
        self.digest = hashlib.sha256()
        self._file: BinaryIO = open(path, "w+b")  # noqa: SIM115 (closed by close or abandon)
        self._header()

    def append(self, rows: np.ndarray) -> None:
        """rows: (k, *row)."""
        block = np.ascontiguousarray(rows, self.dtype)
        self._file.write(block.data)
        self.digest.update(block.data)
        self.rows += len(block)

    def close(self) -> None:
        """Writes the final length."""
        self._file.seek(0)
        self._header()
        self._file.close()

    def abandon(self) -> None:
        """Closes without a word: the file will be removed."""
        with contextlib.suppress(OSError):  # on a full disk even the last buffered bytes cannot be written
            self._file.close()

    def _header(self) -> None:
        # numpy pads headers so that the first axis can grow in place
        shape = (self.rows, *self.row)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class StoreWriter:
    """Takes decoded images in order and writes the arrays of a store into `folder`.

    With `channels` unset it writes one channel until the first coloured image, and then starts again with three.
    """

    def __init__(self, folder: Path, source: Source, settings: DataSettings) -> None:
        self._folder, self._source, self._settings = folder, source, settings
        self._images: ArrayFile | None = None
        self._first: tuple[str, tuple[int, int]] | None = None
        self._labels = ArrayFile(folder / "labels.npy", np.int64)
        self._splits = ArrayFile(folder / "splits.npy", np.int8)
        self._id_offsets = ArrayFile(folder / "id_offsets.npy", np.int64)
        self._id_bytes = ArrayFile(folder / "id_bytes.npy", np.uint8)
        self._id_offsets.append(np.zeros(1, np.int64))
        self._label_counts = np.zeros(len(source.classes()) + 1, np.int64)  # the last one counts label -1
        self._split_counts = np.zeros(len(SPLITS) + 1, np.int64)
        self._bad: list[dict[str, str]] = []

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._images, self._labels, self._splits, self._id_offsets, self._id_bytes):
            if file is not None:
                file.abandon()

    def add(self, items: list[Item], decoded: list[np.ndarray | BadImage]) -> None:
        """Appends the good images; a bad one is noted, or raises `UserError`, as the settings say."""
        kept: list[Item] = []
        pixels: list[np.ndarray] = []
        for item, image in zip(items, decoded, strict=True):
            if isinstance(image, BadImage):
                self._note_bad(item, image)
                continue
            self._check_size(item, image)
            kept.append(item)
            pixels.append(image)
        if kept:
            self._append_images(pixels)
            self._append_rows(kept)

    def bytes_needed(self) -> int:
        """About what all images will take; without their pixels as long as no image is known."""
        row = int(np.prod(self._images.row)) if self._images else 0
        return (row + 64) * self._source.count()

    def finish(self) -> dict[str, Any]:
        """Closes the files and returns what meta.json says. Raises `UserError` if there is no image."""
        if self._images is None:
            if not self._bad:
                raise UserError(self._source.where, "holds no row", "give one with images")
            first = f"the first: {self._bad[0]['id']}: {self._bad[0]['reason']}"
            raise UserError(self._source.where, f"none of its {len(self._bad)} images can be read", first)
        for file in (self._images, self._labels, self._splits, self._id_offsets, self._id_bytes):
            file.close()
        settings, classes = self._settings, self._source.classes()
        transform = {
            "size": list(self._images.row[1:]),
            "fit": settings.fit if settings.size else None,
            "resampling": RESAMPLING if settings.size else None,
            "background": settings.background,
        }
        return {
            "format": FORMAT,
            "name": self._source.name,
            "source": settings.source,
            "images": self._images.rows,
            "shape": list(self._images.row),
            "classes": classes,
            "class_counts": self._label_counts[:-1].tolist(),
            "unlabelled": int(self._label_counts[-1]),
            "splits": {name: int(n) for name, n in zip(SPLITS, self._split_counts, strict=False) if n},
            "left_out": list(self._source.left_out()),
            "bad_images": self._bad,
            "transform": transform,
            "content_hash": self._content_hash(),
        }

    def _content_hash(self) -> str:
        assert self._images is not None
        parts = [repr(self._images.row), self._images.digest.hexdigest(), self._labels.digest.hexdigest()]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _note_bad(self, item: Item, bad: BadImage) -> None:
        if self._settings.on_bad_image == "error":
            raise UserError(
                f"{self._source.where}: {item.id}",
                f"cannot be read: {bad}",
                "repair or remove it, or set data.on_bad_image=skip",
            )
        self._bad.append({"id": item.id, "reason": str(bad)})

    def _check_size(self, item: Item, image: np.ndarray) -> None:
        size = (image.shape[0], image.shape[1])
        if self._first is None:
            self._first = (item.id, size)
        if size == self._first[1]:
            return
        (h0, w0), (h1, w1) = self._first[1], size
        raise UserError(
            self._source.where,
            f"images differ in size: {self._first[0]} is {h0}x{w0} and {item.id} is {h1}x{w1} (height x width)",
            f"choose one size for all, for example data.size={_usual_size(min(h0, w0, h1, w1))}",
        )

    def _append_images(self, pixels: list[np.ndarray]) -> None:
        wanted = self._settings.channels
        if wanted is None:
            wanted = 3 if self._has_colour or not all(map(is_grey, pixels)) else 1
        if self._images is None:
            self._open_images(wanted, self._folder / "images.npy")
        elif wanted != self._images.row[0]:
            self._widen()
        assert self._images is not None
        self._images.append(np.stack([as_channels(image, wanted) for image in pixels]))

    @property
    def _has_colour(self) -> bool:
        return self._images is not None and self._images.row[0] == 3

    def _open_images(self, channels: int, path: Path) -> None:
        assert self._first is not None
        self._images = ArrayFile(path, np.uint8, (channels, *self._first[1]))
        if self.bytes_needed() > shutil.disk_usage(self._folder).free:
            raise no_room(self._folder, self.bytes_needed())

    def _widen(self) -> None:
        """Copies the grey images written so far into a file with three channels."""
        grey = self._images
        assert grey is not None
        grey.close()
        path = grey.path
        narrow = path.with_name("grey.npy")
        os.replace(path, narrow)
        self._open_images(3, path)
        assert self._images is not None
        images = np.load(narrow, mmap_mode="r")
        rows = max(1, BLOCK // int(np.prod(grey.row)))
        for start in range(0, len(images), rows):
            self._images.append(np.repeat(images[start : start + rows], 3, axis=1))
        os.remove(narrow)

    def _append_rows(self, items: list[Item]) -> None:
        labels = np.array([item.label for item in items], np.int64)
        splits = np.array([SPLITS.index(item.split) if item.split else -1 for item in items], np.int8)
        names = [item.id.encode("utf-8", "surrogateescape") for item in items]
        self._labels.append(labels)
        self._splits.append(splits)
        self._id_offsets.append(self._id_bytes.rows + np.cumsum([len(name) for name in names]))
        self._id_bytes.append(np.frombuffer(b"".join(names), np.uint8))
        np.add.at(self._label_counts, labels, 1)  # -1 is the last one
        np.add.at(self._split_counts, splits, 1)


def no_room(folder: Path, needed: int) -> UserError:
    """The one line for a disk that is too full to pack into `folder`; what lies in it counts as free."""
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in folder.iterdir())
    return UserError(
        str(folder.parent),
        f"the disk is full: packing needs {needed:,} bytes here and {free:,} are free",
        "free some room, or set the environment variable TWOFOLD_CACHE to a folder on another disk",
    )


def _usual_size(side: int) -> int:
    """The largest usual size that enlarges no image."""
    return max((usual for usual in (32, 64, 128, 256) if usual <= side), default=32)
