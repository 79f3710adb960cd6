"""A bounded queue before each model's device: what can be computed together is, and everybody gets a turn.

    submit -> queue -> a group of jobs with one key -> its generator, one step at a time, in turn with other groups

A device is used by one thread. The oldest waiting job starts a group, and jobs with the same key join it, up to `batch`
images. Who comes first waits for company only while more keep coming, and `wait` seconds at most. Jobs of a key that
every device is busy with wait for the end of a group, when they all start together; a full batch does not wait. A group
whose callers have all gone, or are past their deadline, is not computed further.

What fails in a group is told to its callers alone. A device that cannot compute any more, or whose thread ends in
whatever way, is dead for good: who it worked for is told at once, and so is everybody who waits where none is left.

Threads of the server hand jobs in and are called back in the event loop they came from.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import OutOfMemoryError

from ..errors import UserError
from .refused import Refused, closing, crowded, dead, full, late

QUIET = 0.0015  # seconds without a newcomer after which a group does not wait for more

Compute = Callable[[Any, "Sequence[Job]"], Generator[None, None, None]]  # (the models of a device, the jobs)


@dataclass(eq=False)
class Job:
    """One request. key: jobs with equal keys are computed together. images: how many it counts as.

    compute: called with the models of the device it runs on and all jobs of its group; a generator that yields where
    others may have a turn, and ends when each job was answered. asked: what for. seconds: until its deadline, from
    when the request had `arrived` (a time of `time.monotonic`; None = now).
    """

    key: Hashable
    images: int
    compute: Compute
    asked: Any
    seconds: float
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    on_progress: Callable[[Any], None] | None = None
    arrived: float | None = None

    def __post_init__(self) -> None:
        self.entered = time.monotonic()
        self.deadline = (self.entered if self.arrived is None else self.arrived) + self.seconds
        self.answer: asyncio.Future[Any] = self.loop.create_future()
        self.over = False  # answered, refused or left
        # the device looks at deadlines as well, between its steps, and may be in the middle of a long one
        timer = self.loop.call_later(max(0.0, self.deadline - self.entered), lambda: self.refuse(late(self.seconds)))
        self.answer.add_done_callback(lambda _: timer.cancel())

    def done(self, result: Any) -> None:
        """Answers it. Called by whoever computes."""
        self._end(lambda: self.answer.set_result(result))

    def refuse(self, error: Exception) -> None:
        """Answers it with what went wrong."""
        self._end(lambda: self.answer.set_exception(error))

    def tell(self, event: Any) -> None:
        """Says how far it is, to a caller who wants to know."""
        if self.on_progress is not None and not self.over:
            self._call(self.on_progress, event)

    def leave(self) -> None:
        """The caller has gone: nothing more is computed for it."""
        self.over = True
        self.answer.cancel()

    def _end(self, settle: Callable[[], None]) -> None:
        if not self.over:
            self.over = True
            self._call(lambda: None if self.answer.done() else settle())

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the caller
            self.loop.call_soon_threadsafe(function, *args)


def _in_words(error: Exception) -> Exception:
    """What callers are told of it."""
    if isinstance(error, UserError):
        return Refused.by(error)
    return crowded() if isinstance(error, MemoryError | OutOfMemoryError) else error


@dataclass(eq=False)
class _Group:
    jobs: list[Job]
    place: Any
    steps: Generator[None, None, None]

    def alive(self) -> bool:
        return any(not job.over for job in self.jobs)


@dataclass
class Watcher:
    """Who is told what happens; all of it may be ignored."""

    batch: Callable[[Hashable, int], None] = lambda key, images: None
    failed: Callable[[BaseException], None] = lambda error: None


class Engine:
    """`submit` from the event loop; `start` and `close` once. places: the models of each device, one thread for each.

    queue: jobs that may wait. batch: images of a group, at most. groups: that take turns on a device. check: asked of
    a device where a group has failed; raises where it cannot compute any more. dead: {number of a device: what it died
    of}.
    """

    def __init__(
        self,
        places: Sequence[Any],
        queue: int = 64,
        batch: int = 32,
        wait: float = 0.005,
        groups: int = 4,
        watcher: Watcher | None = None,
        check: Callable[[Any], None] = lambda place: None,
    ) -> None:
        self.places, self.most, self.batch, self.wait, self.groups = list(places), queue, batch, wait, groups
        self.watcher, self.check = watcher or Watcher(), check
        self.dead: dict[int, BaseException] = {}
        self._waiting: deque[Job] = deque()
        self._active: dict[Hashable, int] = {}  # keys that are being computed, on all devices
        self._change = threading.Condition()
        self._closing = False
        self._newest = -math.inf
        self._pace = 0.05  # seconds that a job took lately, on the whole
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def working(self) -> int:
        """Groups that are being computed."""
        return sum(self._active.values())

    @property
    def living(self) -> int:
        """Devices that have not died."""
        return len(self.places) - len(self.dead)

    def submit(self, job: Job) -> Job:
        """A place in the queue. Raises `Refused` where there is none, after `close`, and when every device is dead."""
        with self._change:
            if self._closing:
                raise closing()
            if not self.living:
                raise dead(self.dead, len(self.places))
            self._forget_dead()
            if len(self._waiting) >= self.most:
                raise full(len(self._waiting), self._pace * len(self._waiting) / self.living)
            self._waiting.append(job)
            self._newest = time.monotonic()
            self._change.notify_all()
        return job

    def start(self) -> None:
        """Begins to work."""
        for number, place in enumerate(self.places):
            thread = threading.Thread(target=self._work, args=(number, place), name=f"device-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Takes nothing more, finishes what is in the queue, and returns when all of it is answered."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    # -- a device's thread ----------------------------------------------------------------------------------------

    def _work(self, number: int, place: Any) -> None:
        turns: deque[_Group] = deque()
        try:
            self._serve(place, turns)
        except BaseException as error:  # of whatever kind: nobody may wait for a device that is no more
            self._died(number, turns, error)

    def _serve(self, place: Any, turns: deque[_Group]) -> None:
        """Until all work is done for good. turns: the groups it works for, at any time."""
        while (jobs := self._next(turns)) is not None:
            if jobs:
                turns.append(_Group(jobs, place, self._begin(place, jobs)))
            if turns:
                if self._step(turns[0]):
                    turns.rotate(-1)
                else:
                    turns.popleft()

    def _died(self, number: int, turns: deque[_Group], error: BaseException) -> None:
        with self._change:
            self.dead[number] = error
            lost = [job for group in turns for job in group.jobs]
            for group in turns:
                self._release(group)
            if not self.living:
                lost += self._waiting
                self._waiting.clear()
            self._change.notify_all()
        for job in lost:
            job.refuse(dead(self.dead, len(self.places)))
        with contextlib.suppress(Exception):
            self.watcher.failed(error)

    def _begin(self, place: Any, jobs: list[Job]) -> Generator[None, None, None]:
        """Runs inside `_step`, as everything does that may fail: a mistake must not end the device's thread."""
        self.watcher.batch(jobs[0].key, sum(job.images for job in jobs))
        yield from jobs[0].compute(place, jobs)

    def _step(self, group: _Group) -> bool:
        """One step of a group; whether there are more."""
        now = time.monotonic()
        for job in group.jobs:
            if not job.over and now > job.deadline:
                job.refuse(late(job.seconds))
        try:
            if group.alive():
                next(group.steps)
                return True
        except StopIteration:
            pass
        except Exception as error:
            self._failed(group, error)
        try:
            group.steps.close()
        except Exception as error:
            self._failed(group, error)
        self._ended(group)
        return False

    def _failed(self, group: _Group, error: Exception) -> None:
        if not isinstance(error, UserError | Refused):
            self.watcher.failed(error)
            self.check(group.place)
        for job in group.jobs:
            job.refuse(_in_words(error))

    def _ended(self, group: _Group) -> None:
        took = time.monotonic() - min(job.entered for job in group.jobs)
        with self._change:
            self._release(group)
            self._pace = 0.8 * self._pace + 0.2 * took / len(group.jobs)
            self._change.notify_all()
        for job in group.jobs:  # who forgot one of them would let its caller wait for ever
            job.refuse(RuntimeError("was not answered"))

    def _release(self, group: _Group) -> None:
        """It is not computed any more."""
        key = group.jobs[0].key
        self._active[key] -= 1
        if not self._active[key]:
            del self._active[key]

    # -- who is next ----------------------------------------------------------------------------------------------

    def _next(self, turns: deque[_Group]) -> list[Job] | None:
        """The jobs of a new group, [] where there is none to begin now, None when all work is done for good."""
        with self._change:
            while True:
                self._forget_dead()
                ready, pause = self._ready() if len(turns) < self.groups else (None, None)
                if ready is not None:
                    return self._take(ready)
                if turns:
                    return []
                if self._closing and not self._waiting:
                    return None
                self._change.wait(pause)

    def _ready(self) -> tuple[Job | None, float | None]:
        """The oldest job that may begin now; else in how many seconds to look again, None: when something changes."""
        now, pause = time.monotonic(), None
        looked_at: set[Hashable] = set()
        for job in self._waiting:
            if job.key in looked_at:
                continue
            looked_at.add(job.key)
            ripe = min(job.entered + self.wait, self._newest + QUIET)
            full_batch = sum(other.images for other in self._waiting if other.key == job.key) >= self.batch
            idle = self._active.get(job.key, 0) < self.living
            if full_batch or (idle and (now >= ripe or self._closing)):
                return job, None
            if idle:
                pause = ripe - now if pause is None else min(pause, ripe - now)
            else:  # of a key that is being computed: looked at again when that group ends, or for its deadline
                left = max(job.deadline - now, 0.001)
                pause = left if pause is None else min(pause, left)
        return None, pause

    def _take(self, first: Job) -> list[Job]:
        """A group: this job and those of its key behind it, as many as go into a batch."""
        jobs: list[Job] = []
        images = 0
        for job in list(self._waiting):
            if job.key == first.key and (not jobs or images + job.images <= self.batch):
                jobs.append(job)
                images += job.images
                self._waiting.remove(job)
        self._active[first.key] = self._active.get(first.key, 0) + 1
        return jobs

    def _forget_dead(self) -> None:
        """Removes jobs whose callers have gone, and refuses those that are too late."""
        now = time.monotonic()
        for job in [job for job in self._waiting if job.over or now > job.deadline]:
            job.refuse(late(job.seconds))
            self._waiting.remove(job)
