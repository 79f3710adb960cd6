"""Packing: a source becomes a folder of memory-mapped arrays, once.

    images.npy       uint8 (N, C, H, W)
    labels.npy       int64 (N,), -1 = none
    splits.npy       int8 (N,), the source's own splits as indices into SPLITS, -1 where it names none
    id_offsets.npy   int64 (N + 1,); the id of image i is id_bytes.npy[id_offsets[i] : id_offsets[i + 1]], UTF-8
    meta.json        everything else; its presence says that the folder is complete

Images are decoded by threads, a bounded number ahead, and appended in order, so memory does not grow with the data.
All of it happens in a temporary folder that is synced and renamed at the end, under a lock: a second process waits
and finds the store, and what a killed one left is removed by the next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from .. import __version__
from ..errors import UserError
from ..files import atomic_folder, disk_full
from ..settings.data import DataSettings
from .decode import BadImage, decode
from .items import Item, Source
from .writer import StoreWriter, no_room

Progress = Callable[[int, int | None], None]
Decoded = np.ndarray | BadImage

CHUNK = 16  # images per task: large enough to hide the cost of a task, small enough for large images
TICK = 0.25  # seconds between reports of progress
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """Where packed data is kept: $TWOFOLD_CACHE, else ~/.cache/twofold."""
    return Path(os.environ.get("TWOFOLD_CACHE") or "~/.cache/twofold").expanduser()


def pack(
    source: Source, settings: DataSettings, folder: Path, unchanged: Callable[[], bool], progress: Progress | None
) -> None:
    """Makes `folder` a complete store, unless it is one by the time its lock is free.

    unchanged: asked at the end whether the source is still what it was at the start.
    Raises `UserError` for images that cannot be read or differ in size, a full disk, a cache that cannot be written.
    """
    tick = _Tick(progress)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, tick):
            if complete(folder):
                return
            _remove_leftovers(folder)
            _pack_aside(source, settings, folder, unchanged, tick)
    except OSError as error:
        if error.errno in FULL:  # before anything is known of the images
            raise disk_full(folder.parent) from error
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(
            str(folder.parent),
            f"cannot be written ({error.strerror})",
            "set the environment variable TWOFOLD_CACHE to a folder of yours",
        ) from error


def complete(folder: Path) -> bool:
    """Whether `folder` holds a finished store."""
    return (folder / "meta.json").is_file()


def _pack_aside(
    source: Source, settings: DataSettings, folder: Path, unchanged: Callable[[], bool], tick: _Tick
) -> None:
    """Packs into a temporary folder that becomes `folder` at the end; leaves nothing behind when it fails."""
    with atomic_folder(folder) as aside, StoreWriter(aside, source, settings) as writer:
        try:
            _fill(writer, source, settings, tick)
            meta = writer.finish()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise no_room(aside, writer.bytes_needed()) from error
        if not unchanged():
            raise UserError(source.where, "changed while it was being packed", "run the command again")
        (aside / "meta.json").write_text(json.dumps({**meta, "twofold": __version__}, indent=1), "utf-8")


def _fill(writer: StoreWriter, source: Source, settings: DataSettings, tick: _Tick) -> None:
    total = source.count()
    tick(0, total, force=True)
    done = 0
    with warnings.catch_warnings():
        # what Pillow thinks of large images and odd metadata is no news here: a bad image is told in one line
        warnings.filterwarnings("ignore", module="PIL")
        with contextlib.closing(decoded(source.items(), settings, lambda: tick(done, total))) as chunks:
            for items, pixels in chunks:
                writer.add(items, pixels)
                done += len(items)
                tick(done, total)
    tick(done, total, force=True)


def decoded(
    items: Iterable[Item], settings: DataSettings, waiting: Callable[[], None]
) -> Generator[tuple[list[Item], list[Decoded]], None, None]:
    """Chunks of items with their pixels, in order, decoded a bounded number of chunks ahead."""
    workers, items = _workers(), iter(items)
    ahead: deque[tuple[list[Item], Future[list[Decoded]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        while True:
            while len(ahead) < workers + 2 and (chunk := list(islice(items, CHUNK))):
                ahead.append((chunk, pool.submit(_decode_chunk, chunk, settings)))
            if not ahead:
                return
            chunk, future = ahead.popleft()
            while not wait([future], TICK).done:
                waiting()
            yield chunk, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _workers() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _decode_chunk(items: list[Item], settings: DataSettings) -> list[Decoded]:
    out: list[Decoded] = []
    for item in items:
        try:
            out.append(decode(item.encoded, settings))
        except BadImage as bad:
            out.append(bad)
    return out


class _Tick:
    """Calls progress(done, total) every `TICK` seconds at most."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._last = progress, 0.0

    def __call__(self, done: int, total: int | None, force: bool = False) -> None:
        now = time.monotonic()
        if self._progress is not None and (force or now - self._last >= TICK):
            self._last = now
            self._progress(done, total)


@contextlib.contextmanager
def _lock(folder: Path, tick: _Tick) -> Iterator[None]:
    """Holds the lock of one store; whoever waits for it still reports that he is alive."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=TICK)
            break
        except Timeout:
            tick(0, None)
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """What killed processes left behind; the lock says that nobody is writing there any more."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)  # without meta.json: not a store
