"""The parts of a store that is being packed, and which process makes which.

    .NAME.parts/plan.json       rows in a part and in all; what is packed, to recognize what was left by an older try
    .NAME.parts/000012.lock     held by the process that makes part 12
    .NAME.parts/000012/         the part, complete

A part is complete or absent, so a killed process loses the part it was at, and any number of processes, on any number
of machines that share the cache, work on one store: each takes a part that nobody holds. The system releases the
locks of a process that ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import atomic_json


class Parts:
    """The parts in one folder. total: rows of the source. rows: of one part, where no other process has said so yet.

    plan: describes what is packed; another folder with the same one is an older try at it.
    """

    def __init__(self, folder: Path, rows: int, total: int, plan: dict[str, Any]) -> None:
        self.folder, self._total, self._plan = folder, total, json.loads(json.dumps(plan))
        self.rows = self._rows(rows)
        self.count = max(1, -(-total // self.rows))

    def _rows(self, wanted: int) -> int:
        """Rows of a part, as the first process here has said. Another one that is done may be removing the folder at
        this very moment: then all begins again."""
        file = self.folder / "plan.json"
        while True:
            with contextlib.suppress(FileNotFoundError):
                self.folder.mkdir(exist_ok=True)
                if not file.exists():
                    atomic_json(file, {"rows": wanted, **self._plan})
                return int(json.loads(file.read_text("utf-8"))["rows"])

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06}"

    def paths(self) -> list[Path]:
        """All parts, in order."""
        return [self.path(part) for part in range(self.count)]

    def span(self, part: int) -> tuple[int, int | None]:
        """First and last row + 1 of the source; the last part goes to its end, however far that is."""
        start = part * self.rows
        return start, (start + self.rows if part + 1 < self.count else None)

    def missing(self) -> list[int]:
        """Parts that are not complete, in order."""
        with contextlib.suppress(FileNotFoundError):
            there = {path.name for path in self.folder.iterdir()}
            return [part for part in range(self.count) if f"{part:06}" not in there]
        return list(range(self.count))  # another process has finished and removed the folder

    def done(self) -> int:
        """Rows of the complete parts."""
        missing = self.missing()
        last = self._total - (self.count - 1) * self.rows
        return self._total - sum(last if part + 1 == self.count else self.rows for part in missing)

    @contextlib.contextmanager
    def claim(self, after: int | None) -> Iterator[int | None]:
        """Holds a missing part that nobody else holds, or None if there is none.

        After one's own last part, the next, for the source is open there. Otherwise the first of the longest stretch
        that is missing, and if somebody is at that one, the middle of the stretch: so that processes meet rarely.
        """
        missing = self.missing()
        wanted = [part for part in (after + 1 if after is not None else -1, *_stretch(missing)) if part in missing]
        for part in dict.fromkeys([*wanted, *missing]):
            if (lock := self._lock(part)) is None:
                continue
            try:
                if not self.path(part).exists():
                    self._clear(part)
                    yield part
                    return
            finally:
                lock.release()
        yield None

    def give_up(self) -> None:
        """After a failure: nothing stays if no part is complete and nobody else is at work."""
        if any(path.name.isdecimal() for path in self.folder.glob("*")) or self._busy(self.folder):
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_older(self) -> None:
        """Removes what killed processes have left of a source that has changed since."""
        for other in self.folder.parent.glob(".*.parts"):
            try:
                plan = json.loads((other / "plan.json").read_text("utf-8"))
            except (OSError, ValueError):
                continue
            plan.pop("rows", None)
            if other != self.folder and plan == self._plan and not self._busy(other):
                shutil.rmtree(other, ignore_errors=True)

    def _lock(self, part: int) -> FileLock | None:
        lock = FileLock(self.folder / f"{part:06}.lock", is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # held, or the folder is gone because all is done
            return None
        return lock

    def _clear(self, part: int) -> None:
        """What a killed process has left of a part; the lock says that nobody is writing there any more."""
        for left in self.folder.glob(f".{part:06}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    @staticmethod
    def _busy(folder: Path) -> bool:
        """Whether a process holds one of the parts of that folder that are begun (.000012.PID.tmp)."""
        for aside in folder.glob(".*.tmp"):
            lock = FileLock(folder / f"{aside.name.split('.')[1]}.lock", is_singleton=False)
            try:
                lock.acquire(timeout=0)
            except (Timeout, FileNotFoundError):
                return True
            lock.release()
        return False


def _stretch(missing: list[int]) -> tuple[int, ...]:
    """First and middle of the longest run of consecutive numbers."""
    best: tuple[int, int] = (0, 0)  # place in `missing`, length
    start = 0
    for i in range(1, len(missing) + 1):
        if i == len(missing) or missing[i] != missing[i - 1] + 1:
            best = max(best, (start, i - start), key=lambda run: run[1])
            start = i
    return () if not best[1] else (missing[best[0]], missing[best[0] + best[1] // 2])
