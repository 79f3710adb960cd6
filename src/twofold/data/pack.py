"""Packing: a source becomes a folder of memory-mapped arrays, once.

    images.npy       uint8 (N, C, H, W)
    labels.npy       int64 (N,), -1 = none
    splits.npy       int8 (N,), the source's own splits as indices into CODES, -1 where it names none
    id_offsets.npy   int64 (N + 1,); the id of image i is id_bytes.npy[id_offsets[i] : id_offsets[i + 1]], UTF-8
    hashes.npy       uint64 (N, 2) of each image's pixels
    meta.json        everything else; its presence says that the folder is complete

and, where images of the source have them:

    attributes.npy   int8 (N, A), 0, 1, or -1 = unknown
    masks.npy        uint8 (N, H, W), class indices, 255 = void
    points.npy       float32 (N, P, 2), x and y in pixels of the packed image, NaN = not there
    pairs.npy        uint8 (N, C2, H, W), the paired images
    groups.npy       int64 (N,), whose image it is, as a number; -1 = none

Images are decoded into parts of so many rows; complete parts are joined at the end. Memory does not grow with the
data, a killed process loses no complete part, and several processes may pack one store together (see `parts`): the
result is the same, bit for bit. Where there are many images, the process forks, and each fork decodes by itself;
where there are few, or no forks, threads decode, a bounded number of images ahead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__
from ..errors import UserError
from ..files import atomic_folder, disk_full
from ..settings.data import DataSettings
from .belongings import Decoded, decode_item
from .decode import BadImage
from .forks import Forks, end_without, possible
from .items import Item, Source
from .join import Join
from .parts import Parts
from .sources import PIXEL_SETTINGS
from .writer import PartWriter, no_room, room, taken

Progress = Callable[[int, int | None], None]

PART, LEAST_PART = 8192, 1024  # rows that are packed before they are safe: at most, and if they are to be shared
SHARES = 8  # parts for each process, so that all end at about the same time
ALONE = 4096  # rows that are packed before forks would have helped
CHUNK = 16  # images per task: small enough for large images
CHUNK_BYTES = 1 << 18  # small ones go up to this together, which hides the cost of a task
TURN = 1e-5  # seconds after which a thread that runs Python lets another one do so; Python's own is 5 ms
TICK = 0.25  # seconds between reports of progress
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """Where packed data is kept: $TWOFOLD_CACHE, else ~/.cache/twofold."""
    return Path(os.environ.get("TWOFOLD_CACHE") or "~/.cache/twofold").expanduser()


def pack(
    source: Source, settings: DataSettings, folder: Path, unchanged: Callable[[], bool], progress: Progress | None
) -> None:
    """Makes `folder` a complete store, together with whoever else is at it.

    unchanged: asked at the end whether the source is still what it was at the start.
    Raises `UserError` for images that cannot be read or differ in size, a full disk, a cache that cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _Packing(source, settings, folder, unchanged, progress).run()
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


class _Packing:
    """One process's work on one store."""

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        folder: Path,
        unchanged: Callable[[], bool],
        progress: Progress | None,
    ) -> None:
        self._source, self._settings, self._folder, self._unchanged = source, settings, folder, unchanged
        self._progress, self._told = progress, 0.0
        self._total = source.count()
        self._facts = source.facts()
        self._forks, self._threads = Forks(0, lambda: None), _workers()
        self._checked = False  # whether the disk has room
        self._items: Iterator[Item] = iter(())
        self._at = -1  # the row of the source at which `_items` is open
        self._aside = folder.with_name(f".{folder.name}.parts")

    def run(self) -> None:
        parts, last = self._parts(), None
        parts.remove_older()
        try:
            with warnings.catch_warnings(), _short_turns():
                # what Pillow thinks of large images and odd metadata is no news: a bad image is told in one line
                warnings.filterwarnings("ignore", module="PIL")
                with self._forked(parts) as self._forks:
                    while not complete(self._folder):
                        last = self._step(parts, last)
                        parts = self._parts()  # which others may have removed
        except BaseException:
            parts.give_up()
            raise
        shutil.rmtree(self._aside, ignore_errors=True)

    def _step(self, parts: Parts, last: int | None) -> int | None:
        """Packs one part, joins them all, or waits for others. last: the part that was packed last; so is returned."""
        with parts.claim(last) as part:
            if part is not None and not complete(self._folder):
                self._make(parts, part)
        if part is None and not parts.missing():
            self._finish(parts)
        elif part is None:  # others are still at theirs
            self._tick(parts.done)
            self._forks.wait(TICK)
        return part

    def _parts(self) -> Parts:
        pixels = {name: getattr(self._settings, name) for name in PIXEL_SETTINGS if name != "on_bad_image"}
        plan = {"source": self._settings.source, "working_folder": os.getcwd(), **pixels}
        plan |= {"unlabelled": self._settings.unlabelled} if self._settings.unlabelled else {}
        plan |= {"generated": self._settings.generated} if self._settings.generated else {}
        rows = min(PART, max(LEAST_PART, self._total // (SHARES * _workers())))
        return Parts(self._aside, rows, self._total, plan)

    def _forked(self, parts: Parts) -> Forks:
        """As many forks as there are cores, if there is enough to do: one process always waits for the disk.

        What is streamed is not read by forks: connections do not survive that.
        """
        todo, parent = self._total - parts.done(), os.getpid()
        if todo <= ALONE or _workers() < 2 or self._settings.streaming or not possible():
            return Forks(0, lambda: None)

        def work() -> None:
            part, self._progress = None, lambda done, total: end_without(parent)
            while not complete(self._folder):
                with parts.claim(part) as part:
                    if part is None:
                        return
                    self._make(parts, part)

        self._threads = 0
        return Forks(min(_workers(), parts.count - 1), work)

    def _make(self, parts: Parts, part: int) -> None:
        """Packs one part."""
        self._tick(parts.done, force=True)
        rows = 0
        done = lambda: parts.done() + rows  # noqa: E731
        decoding = self._decoded(parts.span(part), lambda: self._tick(done))
        with atomic_folder(parts.path(part)) as aside, PartWriter(aside, self._source, self._settings) as writer:
            try:
                with contextlib.closing(decoding) as chunks:
                    for items, images in chunks:
                        writer.add(items, images)
                        self._check_room(parts, writer)
                        rows += len(items)
                        self._tick(done)
                writer.finish()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise no_room(parts.folder, self._needed(writer)) from error
        self._tick(parts.done, force=True)

    def _tick(self, done: Callable[[], int], force: bool = False) -> None:
        """Tells the progress every `TICK` seconds at most, and hears what forks have to tell."""
        now = time.monotonic()
        if force or now - self._told >= TICK:
            self._told = now
            self._forks.check()
            if self._progress is not None:
                self._progress(done(), self._total)

    def _decoded(
        self, span: tuple[int, int | None], waiting: Callable[[], None]
    ) -> Generator[tuple[list[Item], list[Decoded | BadImage]], None, None]:
        """Chunks of the items start <= i < stop; goes on in the source where it is open there."""
        start, stop = span
        if start != self._at:
            self._items = self._source.items(start)
        self._at = -1 if stop is None else stop
        items = islice(self._items, None if stop is None else stop - start)
        return decoded(items, self._settings, waiting, self._facts, self._threads)

    def _needed(self, writer: PartWriter) -> int:
        """About what all images will take; without their pixels as long as no image is known."""
        return (writer.row_bytes() + 64) * self._total

    def _check_room(self, parts: Parts, writer: PartWriter) -> None:
        if not self._checked and writer.row_bytes():
            self._checked = True
            if self._needed(writer) > room(parts.folder):
                raise no_room(parts.folder, self._needed(writer))

    def _finish(self, parts: Parts) -> None:
        """Joins the parts, unless another process has done so by the time the lock is free."""
        alive = lambda: self._tick(lambda: self._total)  # noqa: E731
        with _lock(self._folder, alive):
            if complete(self._folder) or parts.missing():  # missing: another process could not join them
                return
            _remove_leftovers(self._folder)
            joined = parts.folder / "joined"
            try:
                with ThreadPoolExecutor(1) as beside:  # no more is read of the source, so it is looked at meanwhile
                    unchanged = beside.submit(self._unchanged)
                    meta = Join(parts.paths(), joined, self._source, self._settings, alive).run()
                if not unchanged.result():
                    raise UserError(self._source.where, "changed while it was being packed", "run the command again")
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise no_room(parts.folder, 2 * taken(parts.folder)) from error
            except EOFError:  # pixels were lost while the machine went down: all is packed again
                shutil.rmtree(parts.folder)
                return
            except UserError:
                shutil.rmtree(parts.folder, ignore_errors=True)  # parts that do not go together are of no use
                raise
            with atomic_folder(self._folder) as aside:
                for file in joined.iterdir():
                    os.rename(file, aside / file.name)
                (aside / "meta.json").write_text(json.dumps({**meta, "twofold": __version__}, indent=1), "utf-8")


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Decoding a small image takes less than the time for which a thread usually keeps the interpreter: without this
    the decoders would spend most of theirs waiting for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(TURN, before))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def decoded(
    items: Iterable[Item],
    settings: DataSettings,
    waiting: Callable[[], None],
    facts: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Generator[tuple[list[Item], list[Decoded | BadImage]], None, None]:
    """Chunks of items, decoded, in order, a bounded number of chunks ahead.

    facts: see `decode_item`. threads: that decode, one for each core if None; with 0, nothing is done ahead.
    """
    threads = _workers() if threads is None else threads
    most, items, size = threads + 2 if threads else 1, iter(items), CHUNK
    ahead: deque[tuple[list[Item], Future[list[Decoded | BadImage]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else _Here()
    try:
        while True:
            while len(ahead) < most and (chunk := list(islice(items, size))):
                ahead.append((chunk, pool.submit(_decode_chunk, chunk, settings, facts or {})))
            if not ahead:
                return
            chunk, future = ahead.popleft()
            while not wait([future], TICK).done:
                waiting()
            found = future.result()
            if isinstance(found[0], Decoded):
                size = max(CHUNK, CHUNK_BYTES // max(1, found[0].pixels.nbytes))
            yield chunk, found
    finally:
        pool.shutdown(cancel_futures=True)


class _Here(Executor):
    """Does at once what others would do in a thread."""

    def submit(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*given, **named))
        return future


def _workers() -> int:
    """Cores of this process; those of a machine are shared by the processes that torchrun has started on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))))


def _decode_chunk(items: list[Item], settings: DataSettings, facts: Mapping[str, Any]) -> list[Decoded | BadImage]:
    out: list[Decoded | BadImage] = []
    for item in items:
        try:
            out.append(decode_item(item, settings, facts))
        except BadImage as bad:
            out.append(bad)
    return out


@contextlib.contextmanager
def _lock(folder: Path, alive: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of one store; whoever waits for it still reports that he is alive."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=TICK)
            break
        except Timeout:
            alive()
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
