"""A packed data set: every image as uint8 in one memory-mapped array, with labels, stable ids and splits.

`open_store(settings)` packs a source the first time and reopens it from the cache afterwards (see `pack`). The split
lies in a small file of its own, so another seed or share never packs the images again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, nearest
from ..files import atomic_file
from ..settings.data import DataSettings
from .items import SPLITS
from .pack import Progress, cache_root, complete, pack
from .sources import fingerprint, fingerprint_of, open_source
from .split import assign, split_key

BLOCK = 1 << 24  # bytes of pixels looked at together by `describe`


def open_store(settings: DataSettings, progress: Progress | None = None) -> Store:
    """The packed images of `settings.source`; packs them if the cache does not hold them yet.

    progress: called as progress(images done, total or None) at least once a second while packing.
    Raises `UserError` for whatever is wrong with the source, an image, the settings, or the cache.
    """
    source = open_source(settings)
    key = fingerprint_of(source, settings)
    name = re.sub(r"[^\w.-]+", "_", source.name)[:60] or "images"
    folder = cache_root() / "data" / f"{name}-{key[:20]}"
    if not complete(folder):
        pack(source, settings, folder, lambda: fingerprint(settings) == key, progress)
    return Store(folder, settings)


class Store:
    """A packed data set on disk; opening reads no pixels.

    images: uint8 (N, C, H, W) memory map. labels: int64 (N,) memory map, -1 = none. classes: names in label order, may
    be empty. shape: (C, H, W). content_hash: sha256 hex of shape, pixels and labels. name: short name of the source.
    meta: what packing noted, with `bad_images` and `left_out`. folder: where it lies.

    Raises `UserError` if files are missing or damaged.
    """

    def __init__(self, folder: Path | str, settings: DataSettings) -> None:
        self.folder, self.settings = Path(folder), settings
        try:
            self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text("utf-8"))
            self.images: np.memmap = self._load("images")
            self.labels: np.ndarray = self._load("labels")
            self._own: np.ndarray = self._load("splits")
            self._id_offsets, self._id_bytes = self._load("id_offsets"), self._load("id_bytes")
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(" ".join(str(error).split())) from error
        self.shape: tuple[int, int, int] = tuple(self.meta["shape"])
        self.classes: list[str] = self.meta["classes"]
        self.name: str = self.meta["name"]
        self.content_hash: str = self.meta["content_hash"]
        n = self.meta["images"]
        if self.images.shape != (n, *self.shape) or any(len(rows) != n for rows in (self.labels, self._own)):
            raise self._damaged(f"{len(self.images)} images instead of {n}")
        self._pixels = np.asarray(self.images)  # the same memory without np.memmap's cost per index
        self._codes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._pixels)

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {len(self)} images, shape={self.shape}, classes={len(self.classes)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self.settings)  # worker processes open the files again

    def indices(self, split: str) -> np.ndarray:
        """Rows of "train", "validation", "test" or "all": int64, sorted. Raises `UserError` if there are none."""
        if split == "all":
            return np.arange(len(self))
        if split not in SPLITS:
            raise UserError(f"split={split}", "no such split", nearest(split, (*SPLITS, "all")))
        rows = np.flatnonzero(self.codes == SPLITS.index(split))
        if not len(rows):
            raise UserError(f"data={self.settings.source}", f"its {split} split holds no image", self._why_empty(split))
        return rows

    @property
    def codes(self) -> np.ndarray:
        """The split of every image: int8 (N,), indices into ("train", "validation", "test")."""
        if self._codes is None:
            self._codes = self._stored_codes()
        return self._codes

    def batch(self, indices: np.ndarray | Sequence[int] | Tensor) -> Tensor:
        """Images at these rows: uint8 (B, C, H, W), a copy, on the CPU. Raises `IndexError` for rows there are not."""
        rows = np.asarray(indices, np.int64)
        if rows.size and rows.min() < 0:
            raise IndexError(f"row {rows.min()}")  # numpy would count from the end
        return torch.from_numpy(self._pixels[rows])

    def id(self, i: int) -> str:
        """Stable id of image i: its path within the folder, or file:row."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i}")
        start, end = self._id_offsets[i : i + 2]
        return self._id_bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def _load(self, name: str) -> Any:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def _damaged(self, reason: str) -> UserError:
        return UserError(str(self.folder), f"this packed store is damaged ({reason})", "delete it; it is packed again")

    def _stored_codes(self) -> np.ndarray:
        """The split these settings ask for, from its file or made now and kept."""
        path = self.folder / f"split-{split_key(self.settings)}.npy"
        try:
            codes = np.load(path)
            if codes.shape == (len(self),):
                return codes
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or cut short: made again below
        codes = assign(self._own, self.labels, self.settings)
        # a cache that is read-only or full is no reason to stop: the split is the same every time it is made
        with contextlib.suppress(OSError, UserError):
            atomic_file(path, lambda aside: _save(aside, codes))
        return codes

    def _why_empty(self, split: str) -> str:
        if split == "train":
            return "its files all belong to other splits; add a train split, or use split all"
        if getattr(self.settings, f"{split}_share") == 0:
            return f"data.{split}_share is 0; set it to hold images out"
        return f"there are too few training images to hold any out; raise data.{split}_share or add images"


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would append .npy to a path
        np.save(file, array)


def describe(store: Store) -> dict[str, Any]:
    """What is in a store, for people and reports.

    images, shape, classes, counts {split: {class: images}} (key "unlabelled" for label -1), mean and std per channel
    with pixels in 0..1, bytes on disk, hash, bad_images, left_out, folder. Reads every pixel once.
    """
    names = [*store.classes, "unlabelled" if "unlabelled" not in store.classes else "no label"]
    counts = {}
    for code, split in enumerate(SPLITS):
        n = np.bincount(np.asarray(store.labels)[store.codes == code] % len(names), minlength=len(names))
        counts[split] = {name: int(k) for name, k in zip(names, n, strict=True) if k or name != names[-1]}
    mean, std = _moments(store)
    return {
        "name": store.name,
        "images": len(store),
        "shape": list(store.shape),
        "classes": store.classes,
        "counts": counts,
        "mean": mean,
        "std": std,
        "bytes": sum(file.stat().st_size for file in store.folder.iterdir()),
        "hash": store.content_hash,
        "bad_images": store.meta["bad_images"],
        "left_out": store.meta["left_out"],
        "folder": str(store.folder),
    }


def _moments(store: Store) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in 0..1; exact, from counts of the 256 levels."""
    levels = np.zeros((store.shape[0], 256), np.int64)
    step = max(1, BLOCK // int(np.prod(store.shape)))
    for start in range(0, len(store), step):
        block = store.images[start : start + step]
        for channel, counts in enumerate(levels):
            counts += np.bincount(block[:, channel].ravel(), minlength=256)
    share = levels / levels.sum(axis=1, keepdims=True)
    value = np.arange(256) / 255
    mean = share @ value
    return mean.tolist(), np.sqrt(np.maximum(share @ value**2 - mean**2, 0)).tolist()
