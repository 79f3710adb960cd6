"""What a network makes of images, kept as float16 in memory-mapped shards: an autoencoder's moments, a teacher's maps.

    NAME-KEY/manifest.json        everything the numbers depend on; its images are rows of one packed store
    NAME-KEY/moments-000012.npy   float16 (rows of the shard, views, 2D, h, w); view 1 is that of the mirror image

Moments are the posterior's mean and its logvar, one behind the other. ImageNet at 256 pixels with mirror images takes
2,562,334 x 8 x 32 x 32 x 2 bytes = 42 GB. A shard is there whole or not at all, so a run that was killed goes on at the
shard it was at, and memory holds one batch. Processes that see one folder share the shards, each of which is locked
while it is made; the ones of another machine with a folder of its own make them all there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import UserError
from ..files import atomic_file, atomic_json, disk_full
from .pack import FULL, cache_root
from .store import Store
from .writer import ArrayFile

FORMAT = 1
SHARD_ROWS = 8192  # images in a shard, at most,
SHARD_BYTES = 2**29  # of which it takes no more than this
BATCH = 256  # images that are handed to the autoencoder at once
FINITE = 65504.0  # the largest float16
TICK = 0.5  # seconds between looks at what others are making


class Encoder(Protocol):
    """Who makes moments. moments_key: the same for the same numbers."""

    @property
    def moments_key(self) -> str: ...

    def moments(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, 2D, h, w)."""
        ...


@dataclass(frozen=True)
class Shelf:
    """Where the moments of these rows of a store are, or will be.

    rows: sorted. shape: (2D, h, w), or whatever is kept of an image. mirror: whether those of mirror images are kept
    too. what, hint: how messages call it, and what helps where there is no room for it.
    """

    folder: Path
    rows: np.ndarray
    shape: tuple[int, int, int]
    mirror: bool
    shard_rows: int
    facts: dict[str, Any]
    what: str = "latents"
    hint: str = "codec.store=false, or TWOFOLD_CACHE on another disk"

    @property
    def views(self) -> int:
        return 2 if self.mirror else 1

    @property
    def row_bytes(self) -> int:
        return moments_bytes(self.shape) * self.views

    @property
    def shards(self) -> int:
        return -(-len(self.rows) // self.shard_rows)

    def part(self, shard: int) -> np.ndarray:
        """The rows of one shard."""
        return self.rows[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    def file(self, shard: int) -> Path:
        return self.folder / f"moments-{shard:06d}.npy"

    def missing(self) -> list[int]:
        """Shards that are not there yet, or not whole."""
        return [shard for shard in range(self.shards) if not self.whole(shard)]

    def images(self, shards: Iterable[int]) -> int:
        """How many images these shards are of."""
        return sum(len(self.part(shard)) for shard in shards)

    def whole(self, shard: int) -> bool:
        """Whether a shard is there."""
        try:
            found = np.load(self.file(shard), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return found.shape == (len(self.part(shard)), self.views, *self.shape) and found.dtype == np.float16


def moments_bytes(shape: tuple[int, int, int]) -> int:
    """Of the moments (2D, h, w) of one image."""
    return 2 * int(np.prod(shape))


def shelf(encoder: Encoder, store: Store, rows: np.ndarray, shape: tuple[int, int, int], mirror: bool) -> Shelf:
    """The shelf for these rows of a store. shape: (D, h, w) of x0.

    Raises `UserError` for a folder that holds something else under its name.
    """
    return shelf_of(encoder.moments_key, store, rows, (2 * shape[0], *shape[1:]), mirror)


def shelf_of(
    key: str,
    store: Store,
    rows: np.ndarray,
    moments: tuple[int, int, int],
    mirror: bool,
    place: str = "moments",
    **words: str,
) -> Shelf:
    """The shelf for these rows of a store. key: of who makes what is kept; moments: its shape for one image. place: a
    folder of the cache. words: `what` and `hint` of `Shelf`.
    """
    rows = np.unique(np.asarray(rows, np.int64))
    per_row = moments_bytes(moments) * (2 if mirror else 1)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "codec": key,
        "data": store.content_hash,
        "images": len(rows),
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "shape": list(moments),
        "mirror": mirror,
        "shard_rows": max(1, min(SHARD_ROWS, SHARD_BYTES // per_row)),
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    folder = cache_root() / place / f"{store.folder.name.rpartition('-')[0] or 'images'}-{name}"
    return Shelf(folder, rows, moments, mirror, facts["shard_rows"], facts, **words)


def fill(shelf: Shelf, encoder: Encoder, store: Store, rank: int = 0, world: int = 1) -> Iterator[tuple[int, int]]:
    """Makes what is missing on a shelf, beside whoever does the same, and ends when it is complete.

    Yields (images done, images to do) of all processes, after each batch and while it waits for others. rank, world:
    this process and their number, for where it begins: so they meet rarely. Raises `UserError` for a disk without room,
    before anything is encoded.
    """
    manifest = shelf.folder / "manifest.json"
    if not manifest.is_file():
        shelf.folder.mkdir(parents=True, exist_ok=True)
        atomic_json(manifest, shelf.facts)
    elif json.loads(manifest.read_text("utf-8")) != shelf.facts:
        what = f"holds {shelf.what} of another network or other images"
        raise UserError(str(shelf.folder), what, "delete the folder")
    todo = shelf.missing()
    total, begin = shelf.images(todo), len(todo) * rank // world
    todo = todo[begin:] + todo[:begin]
    _check_room(shelf, total)
    yield 0, total
    while todo:
        idle = True
        for shard in todo:
            with _claimed(shelf, shard) as mine:
                if mine:
                    idle, done = False, total - shelf.images(other for other in todo if not shelf.whole(other))
                    for images in _written(shelf, shard, encoder, store):
                        done += images
                        yield done, total
        todo = [shard for shard in todo if not shelf.whole(shard)]
        if todo and idle:
            time.sleep(TICK)
            yield total - shelf.images(todo), total


@contextlib.contextmanager
def _claimed(shelf: Shelf, shard: int) -> Iterator[bool]:
    """Whether this process is to make a shard: it is missing, and nobody else is at it, or will be within the block."""
    file = shelf.file(shard)
    lock = FileLock(file.with_name(f".{file.stem}.lock"), is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        wanted = not shelf.whole(shard)
        if wanted:
            for left in shelf.folder.glob(f".{file.name}.*"):  # of a killed process; nobody is writing there any more
                left.unlink(missing_ok=True)
        yield wanted
    finally:
        lock.release()


def _written(shelf: Shelf, shard: int, encoder: Encoder, store: Store) -> Iterator[int]:
    """Encodes one shard into a file aside, which then takes its place; yields how many images were done."""
    aside = shelf.file(shard).with_name(f".{shelf.file(shard).name}.{os.getpid()}.part")
    file = ArrayFile(aside, np.float16, (shelf.views, *shelf.shape))
    try:
        rows = shelf.part(shard)
        for start in range(0, len(rows), BATCH):
            images = store.batch(rows[start : start + BATCH])
            views = [images, images.flip(-1)][: shelf.views]
            file.append(torch.stack([_half(encoder.moments(view), shelf.what) for view in views], 1).numpy())
            yield len(images)
        file.close()
        atomic_file(shelf.file(shard), lambda path: os.replace(aside, path))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(shelf.folder) from error
    finally:
        file.abandon()
        aside.unlink(missing_ok=True)


def _half(moments: Tensor, what: str) -> Tensor:
    """float16 on the CPU. Raises `UserError` for what is not finite."""
    if not bool(moments.isfinite().all()):
        raise UserError(what, "are not finite", "the network that makes them is damaged, or its training went wrong")
    return moments.clamp(-FINITE, FINITE).half().cpu()


class Latents:
    """The moments on a complete shelf: `latents(rows, mirrored)` is float16 (B, 2D, h, w), on the CPU.

    Raises `UserError` where a shard is missing or damaged.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        missing = shelf.missing()
        if missing:
            where = str(shelf.file(missing[0]))
            raise UserError(where, f"these {shelf.what} are not there", "the same command makes them again")
        self._maps = [np.asarray(np.load(shelf.file(i), mmap_mode="r")) for i in range(shelf.shards)]

    def __call__(
        self, rows: np.ndarray, mirrored: np.ndarray | None = None, channel: np.ndarray | None = None
    ) -> Tensor:
        """rows: of the store, any of the shelf's. mirrored: (B,) bool, whose mirror image is wanted. channel: (B,) the
        only one that is read of each; the answer is (B, h, w) then.
        """
        place = np.searchsorted(self.shelf.rows, rows)
        if (self.shelf.rows[np.minimum(place, len(self.shelf.rows) - 1)] != rows).any():
            raise IndexError("a row that is not on this shelf")
        view = np.zeros(len(rows), np.int64) if mirrored is None else np.asarray(mirrored).astype(np.int64)
        out = np.empty((len(rows), *self.shelf.shape[channel is not None :]), np.float16)
        shard, within = np.divmod(place, self.shelf.shard_rows)
        for i in np.unique(shard):
            here = shard == i
            at = (within[here], view[here]) if channel is None else (within[here], view[here], channel[here])
            out[here] = self._maps[i][at]
        return torch.from_numpy(out)


def _check_room(shelf: Shelf, images: int) -> None:
    """Raises `UserError` where the disk has no room for those of so many images."""
    needed, free = images * shelf.row_bytes, shutil.disk_usage(shelf.folder).free
    if needed > free:
        what = f"the {shelf.what} need {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise UserError(str(shelf.folder), what, shelf.hint)
