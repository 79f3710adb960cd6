"""Writes one part of a store: a stretch of the source's images, with all that belongs to them.

images.npy     uint8 (n, C, H, W), grey until the part's first coloured image
masks.npy      uint8 (n, H, W), pairs.npy   uint8 (n, C2, H, W): where an image of the part has one
rows.npz       labels, splits, ids, groups, attributes, points
part.json      what joining the parts must know; the bad images
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..settings.data import DataSettings
from .belongings import Decoded
from .decode import BadImage, as_channels, is_grey
from .items import CODES, Item, Source
from .transform import VOID

BLOCK = 1 << 22  # bytes copied at once when images are widened or joined
UNKNOWN = -1  # an attribute of which nothing is known
ROWS = ("id", "label", "split", "group", "attributes", "points")  # small things, written when the part is complete


class ArrayFile:
    """A .npy file that grows by appending and learns its length when it is closed.

    Appending, not a memory map: writing into the map of a file on a full disk kills the process.
    hashed: whether `digest` is kept. keep: how many rows of an existing file are kept, to go on behind them; raises
    `EOFError` if they are not there.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...] = (), hashed: bool = False, keep: int = 0) -> None:
        self.path, self.dtype, self.row, self.rows = path, np.dtype(dtype), row, 0
        self.digest, self._hashed = hashlib.sha256(), hashed
        if keep and not path.exists():
            raise EOFError(f"there is no {path}")
        self._file: BinaryIO = open(path, "r+b" if keep else "w+b")  # noqa: SIM115 (closed by close or abandon)
        self._header()
        self._row_bytes = self.dtype.itemsize * int(np.prod(row))
        self._skip(keep)

    def append(self, rows: np.ndarray) -> None:
        """rows: (k, *row)."""
        block = np.ascontiguousarray(rows, self.dtype)
        self._file.write(block.data)
        if self._hashed:
            self.digest.update(block.data)
        self.rows += len(block)

    def sync(self) -> None:
        """What was appended is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

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

    def _skip(self, keep: int) -> None:
        """Reads what is kept, for the digest; whatever follows it is cut off."""
        while self.rows < keep:
            rows = min(keep - self.rows, max(1, BLOCK // self._row_bytes))
            block = self._file.read(rows * self._row_bytes)
            if len(block) < rows * self._row_bytes:
                raise EOFError(f"{self.path} is shorter than {keep} rows")
            self.digest.update(block)
            self.rows += rows
        self._file.truncate()


class ImagesFile:
    """A file of images (n, C, H, W). With `channels` None it has one until the first coloured image, and then three."""

    def __init__(self, path: Path, channels: int | None) -> None:
        self._path, self._wanted = path, channels
        self.array: ArrayFile | None = None

    @property
    def channels(self) -> int:
        """0 before the first image."""
        return self.array.row[0] if self.array else 0

    def append(self, pixels: Sequence[np.ndarray]) -> None:
        """pixels: of each image (H, W) or (H, W, 3)."""
        channels = self._wanted
        if channels is None:
            channels = 3 if self.channels == 3 or not all(map(is_grey, pixels)) else 1
        if self.array is None:
            self.array = ArrayFile(self._path, np.uint8, (channels, *pixels[0].shape[:2]))
        elif channels != self.channels:
            self._widen(self.array)
        self.array.append(_stacked(pixels, channels))

    def _widen(self, grey: ArrayFile) -> None:
        """Copies the grey images written so far into a file with three channels."""
        grey.close()
        narrow = self._path.with_name(f"grey-{self._path.name}")
        os.replace(self._path, narrow)
        self.array = ArrayFile(self._path, np.uint8, (3, *grey.row[1:]))
        images = np.load(narrow, mmap_mode="r")
        rows = max(1, BLOCK // int(np.prod(grey.row)))
        for start in range(0, len(images), rows):
            self.array.append(np.repeat(images[start : start + rows], 3, axis=1))
        os.remove(narrow)


class PartWriter:
    """Takes decoded images in order and writes them into `folder`."""

    def __init__(self, folder: Path, source: Source, settings: DataSettings) -> None:
        self._folder, self._source, self._settings = folder, source, settings
        self._images = ImagesFile(folder / "images.npy", settings.channels)
        self._pairs = ImagesFile(folder / "pairs.npy", None)
        self._masks: ArrayFile | None = None
        self._rows: dict[str, list[Any]] = {name: [] for name in ROWS}
        self._first: tuple[str, tuple[int, ...]] | None = None
        self._bad: list[dict[str, str]] = []
        self._outside = {"points": 0, "images": 0}  # key points that count as not there, for being outside

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._images.array, self._pairs.array, self._masks):
            if file is not None:
                file.abandon()

    def add(self, items: list[Item], decoded: list[Decoded | BadImage]) -> None:
        """Appends the good images; a bad one is noted, or raises `UserError`, as the settings say."""
        if any(isinstance(image, BadImage) for image in decoded):
            items, decoded = self._without_bad(items, decoded)
        kept = [image for image in decoded if isinstance(image, Decoded)]
        if not kept:
            return
        self._check_sizes(items, kept)
        self._images.append([image.pixels for image in kept])
        if self._masks is not None or any(image.mask is not None for image in kept):
            self._append_masks([image.mask for image in kept])
        if self._pairs.array is not None or any(image.pair is not None for image in kept):
            self._append_pairs(items, [image.pair for image in kept])
        columns = dict(zip(Item._fields, zip(*items, strict=True), strict=True))
        for name in ROWS[:-1]:
            self._rows[name] += columns[name]
        self._rows["points"] += [image.points for image in kept]
        for image in kept:
            self._outside["points"] += image.outside
            self._outside["images"] += image.outside > 0

    def row_bytes(self) -> int:
        """What the files take for one image; 0 as long as no image is known."""
        files = (self._images.array, self._pairs.array, self._masks)
        return sum(int(np.prod(file.row)) for file in files if file is not None)

    def finish(self) -> None:
        """Closes the files and writes the small ones."""
        for file in (self._images.array, self._pairs.array, self._masks):
            if file is not None:
                file.close()
        np.savez(self._folder / "rows.npz", **self._arrays())  # type: ignore[arg-type]
        facts = {
            "rows": len(self._rows["id"]),
            "first": self._first,
            "channels": self._images.channels,
            "pair_channels": self._pairs.channels,
            "masks": self._masks is not None,
            "bad_images": self._bad,
            "points_outside": self._outside,
        }
        (self._folder / "part.json").write_text(json.dumps(facts), "utf-8")

    def _arrays(self) -> dict[str, np.ndarray]:
        rows = self._rows
        out: dict[str, np.ndarray] = {
            "labels": np.array(rows["label"], np.int64),
            "splits": np.array([CODES.index(split) if split else -1 for split in rows["split"]], np.int8),
            **_texts("id", rows["id"]),
        }
        if any(group is not None for group in rows["group"]):
            out |= _texts("group", rows["group"])
        if any(values is not None for values in rows["attributes"]):
            out["attributes"] = np.array(self._alike("attributes", UNKNOWN), np.int8)
        if any(points is not None for points in rows["points"]):
            out["points"] = np.array(self._alike("points", (np.nan, np.nan)), np.float32)
        return out

    def _alike(self, name: str, missing: Any) -> list[Any]:
        """The values, `missing` where there is none; they must all be as many."""
        values = self._rows[name]
        known = {len(value) for value in values if value is not None}
        if len(known) > 1:
            raise counts_differ(self._source.where, name, known)
        return [[missing] * min(known) if value is None else value for value in values]

    def _append_masks(self, masks: list[np.ndarray | None]) -> None:
        if self._masks is None:
            assert self._first is not None
            self._masks = ArrayFile(self._folder / "masks.npy", np.uint8, self._first[1])
            for _ in self._rows["id"]:  # images before the first mask
                self._masks.append(np.full((1, *self._first[1]), VOID, np.uint8))
        void = np.full(self._masks.row, VOID, np.uint8)
        self._masks.append(np.stack([void if mask is None else mask for mask in masks]))

    def _append_pairs(self, items: list[Item], pairs: list[np.ndarray | None]) -> None:
        lone = [item.id for item, pair in zip(items, pairs, strict=True) if pair is None]
        if self._pairs.array is None:
            lone = self._rows["id"][:1] + lone  # images before the first pair
        if lone:
            raise UserError(f"{self._source.where}: {lone[0]}", "has no paired image, while others have one", "add it")
        self._pairs.append([pair for pair in pairs if pair is not None])

    def _without_bad(
        self, items: list[Item], decoded: list[Decoded | BadImage]
    ) -> tuple[list[Item], list[Decoded | BadImage]]:
        for item, image in zip(items, decoded, strict=True):
            if isinstance(image, BadImage):
                self._note_bad(item, image)
        good = [i for i, image in enumerate(decoded) if not isinstance(image, BadImage)]
        return [items[i] for i in good], [decoded[i] for i in good]

    def _note_bad(self, item: Item, bad: BadImage) -> None:
        if self._settings.on_bad_image == "error":
            raise UserError(
                f"{self._source.where}: {item.id}",
                f"cannot be read: {bad}",
                "repair or remove it, or set data.on_bad_image=skip",
            )
        self._bad.append({"id": item.id, "reason": str(bad)})

    def _check_sizes(self, items: list[Item], kept: list[Decoded]) -> None:
        if self._first is None:
            self._first = (items[0].id, kept[0].pixels.shape[:2])
        size = self._first[1]
        for item, image in zip(items, kept, strict=True):
            if image.pixels.shape[:2] != size:
                raise sizes_differ(self._source.where, self._first, (item.id, image.pixels.shape[:2]))


def _stacked(pixels: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """Images (H, W) or (H, W, 3) -> (n, channels, H, W)."""
    if channels == 3 and all(image.ndim == 3 for image in pixels):
        return np.stack(pixels).transpose(0, 3, 1, 2)
    return np.stack([as_channels(image, channels) for image in pixels])


def sizes_differ(where: str, first: Sequence[Any], second: Sequence[Any]) -> UserError:
    """The one line for two images (id, (height, width)) of different sizes."""
    (h0, w0), (h1, w1) = first[1], second[1]
    return UserError(
        where,
        f"images differ in size: {first[0]} is {h0}x{w0} and {second[0]} is {h1}x{w1} (height x width)",
        f"choose one size for all, for example data.size={_usual_size(min(h0, w0, h1, w1))}",
    )


def counts_differ(where: str, name: str, counts: Collection[int]) -> UserError:
    """The one line for images with so many and so many points or attributes."""
    return UserError(where, f"its images have {min(counts)} to {max(counts)} {name}", "give all equally many")


def no_room(folder: Path, needed: int) -> UserError:
    """The one line for a disk that is too full to pack into `folder`; what lies in it counts as free."""
    return UserError(
        str(folder.parent),
        f"the disk is full: packing needs {needed:,} bytes here and {room(folder):,} are free",
        "free some room, or set the environment variable TWOFOLD_CACHE to a folder on another disk",
    )


def room(folder: Path) -> int:
    """Bytes that are free for `folder`, with what it takes already."""
    return shutil.disk_usage(folder).free + taken(folder)


def taken(folder: Path) -> int:
    """Bytes of the files in a folder and below it, as far as no other process is just moving them."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _usual_size(side: int) -> int:
    """The largest usual size that enlarges no image."""
    return max((usual for usual in (32, 64, 128, 256) if usual <= side), default=32)


def _texts(name: str, texts: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Texts as UTF-8 bytes, one after the other, and their lengths; -1 = none."""
    encoded = [None if text is None else text.encode("utf-8", "surrogateescape") for text in texts]
    return {
        f"{name}_lengths": np.array([-1 if text is None else len(text) for text in encoded], np.int64),
        f"{name}_bytes": np.frombuffer(b"".join(text for text in encoded if text is not None), np.uint8),
    }
