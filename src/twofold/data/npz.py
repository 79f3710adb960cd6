"""One .npz file as a source, as `twofold sample` and `numpy.savez` write it.

    images or arr_0    uint8 (N, H, W, C), (N, H, W) or (N, C, H, W), of 1 or 3 channels; where the last two could both
                       be meant, the channels come last
    labels or arr_1    integers (N,), -1 = none; may be missing
    classes            names in label order; may be missing: they are then called 0, 1, ...
    splits             train, validation or test for each image, or nothing; may be missing

Other arrays are ignored. The images are read a piece at a time, so memory does not grow with the file; a packed member
(`numpy.savez_compressed`) has to be read from its front, for every part that is packed.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from .annotations import COLUMNS, refuse
from .items import FILE_SPLITS, Item, quotas
from .tables import digest_of

SUFFIX = ".npz"
IMAGES, LABELS = ("images", "arr_0"), ("labels", "arr_1")
CHANNELS = (1, 3)
AT_ONCE = 1 << 22  # bytes of pixels that are read together
PARSING = threading.Lock()  # NumPy parses headers as Python, which Python 3.11 cannot do in two threads at once
LOCAL_HEADER = 30  # bytes of a member's own header before its name, which ends with the lengths of name and more
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, struct.error)


class Member(NamedTuple):
    """An array in the file. shape: as it is stored. begins: bytes of its own header before the first value."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    begins: int


class Npz:
    """The file as a source. Raises `UserError` for a file that is damaged, or whose arrays are of another kind."""

    def __init__(self, settings: DataSettings, path: Path) -> None:
        self.path, self.settings = path, settings
        self.name, self.where = path.stem, f"data={settings.source}"
        refuse(settings, (*COLUMNS, "group"), self.where, "has no columns", "only Parquet and hub data have")
        self._members = self._read_headers()
        self._images = self._of_images()

    def identity(self) -> str:
        return f"npz\0{self.path.resolve()}\0{digest_of(self.path.parent, [self.path.name])}"

    def classes(self) -> list[str]:
        if (found := self._texts("classes")) is not None:
            return found
        return [str(i) for i in range(int(self._labels.max(initial=-1)) + 1)]

    def count(self) -> int:
        return len(self._rows)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return {}

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        rows = self._rows[start:stop]
        labels, names = self._labels, self.classes()
        if len(over := np.flatnonzero(labels >= len(names))):
            what = f"the label of image {over[0]} is {labels[over[0]]}, but it names {len(names)} classes"
            raise UserError(self.where, what, "labels begin at 0; -1 is none")
        splits = self._splits
        for row, image in zip(rows.tolist(), self._pixels(rows), strict=True):
            label = -1 if self.settings.images_only else int(labels[row])
            yield Item(f"{self.path.name}:{row}", image, label, splits[row])

    # -- what is in the file ------------------------------------------------------------------------------------------

    @cached_property
    def _labels(self) -> np.ndarray:
        """int64 (N,), -1 = none."""
        n, name = self._images.shape[0], self._named(LABELS)
        if name is None:
            return np.full(n, -1, np.int64)
        found = self._small(name)
        if found.dtype.kind not in "iu" or found.shape != (n,):
            what = f"{name} is {_shown(found.shape, found.dtype)}, and there are {n:,} images"
            raise UserError(self.where, what, "give one integer for each image, -1 = no label")
        found = found.astype(np.int64)
        if n and found.min() < -1:
            row = int(found.argmin())
            raise UserError(self.where, f"the label of image {row} is {found[row]}", "labels begin at 0; -1 is none")
        return found

    @cached_property
    def _splits(self) -> Sequence[str | None]:
        """Of each image, None where nothing is said."""
        n, names = self._images.shape[0], self._texts("splits")
        if names is None:
            return [None] * n
        if len(names) != n:
            raise UserError(self.where, f"splits names {len(names):,} of {n:,} images", "give one name for each image")
        known = {"": None, **FILE_SPLITS}
        if wrong := next((name for name in names if name.lower() not in known), None):
            raise UserError(self.where, f"there is no split {wrong!r}", nearest(wrong, FILE_SPLITS))
        return [known[name.lower()] for name in names]

    @cached_property
    def _rows(self) -> np.ndarray:
        """The images that are packed: all, or the first so many of each split."""
        splits = self._splits
        left = quotas(splits, self.settings)
        if all(most is None for most in left.values()):
            return np.arange(len(splits))
        kept = []
        for row, split in enumerate(splits):
            if left[split] is None or left[split] > 0:
                kept.append(row)
                left[split] = None if left[split] is None else left[split] - 1
        return np.array(kept, np.int64)

    def _pixels(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 (H, W) or (H, W, 3) of these rows, which ascend."""
        if not len(rows):
            return
        shape = self._images.shape[1:]
        size = int(np.prod(shape))
        at_once = max(1, AT_ONCE // size)
        with self._said(), self._opened(self._images, int(rows[0]) * size) as file:
            for first in range(int(rows[0]), int(rows[-1]) + 1, at_once):
                last = min(first + at_once, int(rows[-1]) + 1)
                values = file.read((last - first) * size)
                if len(values) < (last - first) * size:
                    raise EOFError("it ends too early")
                block = np.frombuffer(values, np.uint8).reshape(-1, *shape)
                begin, end = np.searchsorted(rows, (first, last))
                yield from map(self._upright, block[rows[begin:end] - first])

    def _upright(self, image: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, 3), whatever the axes are in the file."""
        if image.ndim == 2:
            return image
        if image.shape[-1] not in CHANNELS:
            image = np.ascontiguousarray(image.transpose(1, 2, 0))
        return image[..., 0] if image.shape[-1] == 1 else image

    def _of_images(self) -> Member:
        """The array of images, once it is known to be one."""
        name = self._named(IMAGES)
        if name is None:
            what = f"holds no array {' or '.join(IMAGES)} but {', '.join(self._members) or 'nothing'}"
            raise UserError(self.where, what, "save the images as images=, uint8 (N, H, W, C)")
        found = self._members[name]
        what, shape = f"{name} is {_shown(found.shape, found.dtype)}", found.shape
        if found.dtype != np.uint8:
            raise UserError(self.where, what, "save pixels as uint8, 0..255")
        channels = len(shape) == 3 or (len(shape) == 4 and (shape[3] in CHANNELS or shape[1] in CHANNELS))
        if not channels or 0 in shape[1:]:
            raise UserError(self.where, what, "give images (N, H, W), (N, H, W, C) or (N, C, H, W) of 1 or 3 channels")
        if not shape[0]:
            raise UserError(self.where, "holds no images", "give some")
        if found.fortran and len(shape) > 1:
            raise UserError(self.where, f"{name} is stored last axis first", "save numpy.ascontiguousarray(images)")
        if found.begins + int(np.prod(shape)) != found.info.file_size:
            what = f"{what}, but {found.info.file_size - found.begins:,} bytes of it are there"
            raise UserError(self.where, what, "write the file again")
        return found

    # -- the zip file -------------------------------------------------------------------------------------------------

    def _read_headers(self) -> dict[str, Member]:
        """{name: array}; reads no values."""
        found = {}
        with self._said(), zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
                    if version[0] not in read:
                        raise ValueError(f"{info.filename} is of a newer format")
                    with PARSING:
                        shape, fortran, dtype = read[version[0]](file)
                    found[info.filename.removesuffix(".npy")] = Member(info, shape, dtype, fortran, file.tell())
        return found

    @contextlib.contextmanager
    def _opened(self, member: Member, skip: int) -> Iterator[IO[bytes]]:
        """The values of an array from the byte `skip` on; of one that is not packed, none before are read."""
        with contextlib.ExitStack() as stack:
            file: IO[bytes]
            if member.info.compress_type == zipfile.ZIP_STORED and not member.info.flag_bits & 1:
                file = stack.enter_context(self.path.open("rb"))
                file.seek(member.info.header_offset)
                name, more = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
                file.seek(member.info.header_offset + LOCAL_HEADER + name + more + member.begins + skip)
            else:
                file = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(member.info))
                file.seek(member.begins + skip)
            yield file

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """A damaged file is told in one line."""
        try:
            yield
        except BROKEN as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(self.where, f"cannot be read as .npz ({reason})", "write the file again") from error

    def _named(self, names: Sequence[str]) -> str | None:
        """The first of these arrays that is there."""
        return next((name for name in names if name in self._members), None)

    def _small(self, name: str) -> np.ndarray:
        """All of an array of which there is little. Nothing is unpickled."""
        with self._said(), zipfile.ZipFile(self.path) as archive, PARSING:
            return np.lib.format.read_array(io.BytesIO(archive.read(self._members[name].info)), allow_pickle=False)

    def _texts(self, name: str) -> list[str] | None:
        """An array of names, or None where there is none."""
        if name not in self._members:
            return None
        found = self._members[name]
        if found.dtype.kind != "U" or len(found.shape) != 1:
            what = f"{name} is {_shown(found.shape, found.dtype)}"
            raise UserError(self.where, what, "save names as numpy.array([...]) of texts, one axis")
        return [str(text) for text in self._small(name)]


def _shown(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype} {tuple(shape)}"
