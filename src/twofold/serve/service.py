"""What routes share: the models, the engine, the limits, and the way of a request through them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from anyio import CapacityLimiter
from starlette.requests import Request

from ..settings.serve import ServeSettings
from . import work
from .engine import Compute, Engine, Job, Watcher
from .keys import Keys
from .metrics import Metrics
from .models import Served, device_of
from .neighbours import reachable
from .refused import Refused, closing, dead

DECODERS = max(2, (os.cpu_count() or 2) // 2)  # requests whose pictures are unpacked at the same time
END = object()  # of what a job tells


class Service:
    """places: {name: model} of each device. `start` before the first request; `close` finishes what was accepted."""

    def __init__(self, places: Sequence[Mapping[str, Served]], settings: ServeSettings, keys: Keys) -> None:
        self.places, self.settings, self.keys = list(places), settings, keys
        self.models: Mapping[str, Served] = places[0]
        watcher = Watcher(batch=lambda key, images: self.metrics.batches.observe(images), failed=self.failed)
        self.engine = Engine(places, settings.queue, settings.batch, settings.wait, settings.groups, watcher, _alive)
        self.metrics = Metrics(self.engine)
        self.on_error: Callable[[BaseException], None] = lambda error: None
        for place in self.places:
            for model in place.values():
                model.searched = settings.neighbours > 0 and reachable(model)
        self.ready = False
        self.decoders = CapacityLimiter(DECODERS)
        self._background: set[asyncio.Task[None]] = set()

    def failed(self, error: BaseException) -> None:
        """Counts a mistake of the server's own, and tells who wants to know."""
        self.metrics.errors.inc()
        with contextlib.suppress(Exception):  # a log that cannot be written is no reason to stop
            self.on_error(error)

    async def start(self) -> None:
        """Starts the devices, tries every model once, so that the first caller does not wait for that, and reads the
        training images among which neighbours are looked for."""
        self.engine.start()
        await asyncio.gather(*(self._warm(name) for name in self.models))
        self.ready = True
        for name in (name for name, model in self.models.items() if model.searched):
            task = asyncio.create_task(self._learn(name))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _warm(self, name: str) -> None:
        model = self.models[name]
        if model.denoiser is None:
            return
        label = 0 if model.denoiser.classes else None
        plan = model.plans()
        labels = _labels(model, plan, label, 1, 1.0)
        for number in range(len(self.places)):  # a key each, so that every device has one
            asked = work.Making(name, plan, [0], labels)
            await self.submit(("warm", name, number), 1, partial(work.make, batch=1), asked, seconds=600).answer

    async def _learn(self, name: str) -> None:
        compute = lambda models, jobs: work.learn_neighbours(models, jobs, name, self.settings.neighbours)  # noqa: E731
        job: Job | None = None
        try:
            job = self.submit(("learn", name), 1, compute, None, seconds=86_400)
            await job.answer
            known = next(place[name].neighbours for place in self.places if place[name].neighbours is not None)
            for place in self.places:  # on whichever device they were read
                place[name].neighbours = known
        except asyncio.CancelledError:
            pass
        except Exception as error:  # without neighbours everything else still works
            for place in self.places:
                place[name].searched = False
            self.failed(error)
        finally:
            if job is not None and not job.over:  # whoever stops the server does not wait for them
                job.leave()

    async def close(self) -> None:
        """Takes nothing more; returns when everything in the queue is answered."""
        self.ready = False
        for task in list(self._background):
            task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self.engine.close)

    def submit(
        self,
        key: Hashable,
        images: int,
        compute: Compute,
        asked: Any,
        on_progress: Callable[[Any], None] | None = None,
        seconds: float | None = None,
        arrived: float | None = None,
    ) -> Job:
        """A job in the queue. arrived: when its request had (`time.monotonic`). Raises `Refused` where there is no
        place."""
        seconds = self.settings.deadline if seconds is None else seconds
        return self.engine.submit(Job(key, images, compute, asked, seconds, on_progress=on_progress, arrived=arrived))

    def model(self, name: str, ability: str | None = None) -> Served:
        """A model by its name. Raises `Refused` for one that is not served, or cannot do this."""
        if name not in self.models:
            raise Refused(404, name[:100], "is not served here", f"there is {', '.join(self.models)}"[:300])
        model = self.models[name]
        if ability is not None and ability not in model.abilities:
            raise Refused(404, f"{name}/{ability}", "this model cannot do it", f"it can {', '.join(model.abilities)}")
        return model

    async def answer(self, request: Request, ability: str, job: Job) -> Any:
        """What comes of a job; nothing more is computed for it when its caller leaves. Raises what it was refused with,
        and `Gone`."""
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({job.answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if job.answer.done():
                return job.answer.result()
            raise self._gone(ability)
        finally:
            leaving.cancel()
            if not job.answer.done():
                job.leave()

    async def events(self, ability: str, job: Job, told: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        """What a job tells, and at the end its result. told: where it says so. Whoever stops iterating has left."""
        job.answer.add_done_callback(lambda _: told.put_nowait(END))
        try:
            while (event := await told.get()) is not END:
                yield event
            yield job.answer.result()
        finally:
            if not job.answer.done():
                job.leave()
                self.metrics.left.labels(ability).inc()

    def _gone(self, ability: str) -> Gone:
        self.metrics.left.labels(ability).inc()
        return Gone()

    def check_open(self) -> None:
        """Raises `Refused` while the server is not ready, or not any more."""
        if not self.ready:
            raise closing()
        if not self.engine.living:
            self.check_alive()

    def check_alive(self) -> None:
        """Raises `Refused` where a device has died."""
        if self.engine.dead:
            raise dead(self.engine.dead, len(self.places))


class Gone(Exception):
    """The caller has left; nobody reads the answer."""


def _alive(place: Mapping[str, Served]) -> None:
    """Raises what a device says that cannot compute any more, as after a CUDA error. One whose memory is full can."""
    with contextlib.suppress(torch.OutOfMemoryError):
        (torch.ones(1, device=device_of(next(iter(place.values())))) + 1).item()


async def _left(request: Request) -> None:
    """Returns when the caller has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _labels(model: Served, plan: Any, label: Any, n: int, guidance: float) -> Any:
    from ..generate.labels import check_labels

    assert model.denoiser is not None
    return check_labels(model.denoiser, label, n, guidance, plan.guide)
