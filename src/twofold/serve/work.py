"""What the models do for a group of jobs: generators that yield where others may have a turn.

Each takes the models of a device and jobs of one key, and answers every job with plain arrays; turning them into files
is left to the server's threads. A job's result never depends on the company it was computed in, but for rounding (at
most one grey level).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generate import inpaint, vary
from ..generate.edit import Edited, editing
from ..generate.pull import answers
from ..generate.sample import Plan, drawing
from ..generate.samplers import Step
from ..generate.targets import probability
from ..measure import probabilities
from .engine import Job
from .models import Served
from .neighbours import Neighbours, reading
from .refused import Refused

Models = Mapping[str, Served]
Work = Generator[None, None, None]


@dataclass(frozen=True)
class Making:
    """Images to be made. seeds: one per image. labels: (N,) or (N, K), None = none. plan: how.

    original, mask: of a picture that is changed: uint8 (1, C, H, W), and bool (H, W) where it is painted anew.
    strength: of a variation, 0..1. previews: whether the caller wants to watch.
    """

    model: str
    plan: Plan
    seeds: Sequence[int]
    labels: Tensor | None = None
    original: Tensor | None = None
    mask: Tensor | None = None
    strength: float = 0.0
    previews: bool = False


@dataclass(frozen=True)
class Made:
    """images: uint8 (N, C, H, W). seconds: from the start of the computation to its end."""

    images: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Preview:
    """step of steps, 0 = the first; sigma: of the state. images: what is believed by now, uint8 (N, C, H, W)."""

    step: int
    steps: int
    sigma: float
    images: np.ndarray


def make(models: Models, jobs: Sequence[Job], batch: int) -> Work:
    """New images for all jobs, whose plans are the same; `batch` at a time, and fewer of larger ones, so that memory
    does not grow with what is asked for."""
    start = time.monotonic()
    asked: list[Making] = [job.asked for job in jobs]
    model, plan = models[asked[0].model], asked[0].plan
    seeds = [seed for one in asked for seed in one.seeds]
    labels = None if asked[0].labels is None else torch.cat([one.labels for one in asked if one.labels is not None])
    owner = [(job, place) for job in jobs for place in range(len(job.asked.seeds))]
    found: dict[int, list[np.ndarray]] = {id(job): [] for job in jobs}
    assert model.denoiser is not None
    batch = max(1, min(batch, batch * math.prod(model.denoiser.shape) // math.prod(plan.shape)))
    for begin in range(0, len(seeds), batch):
        rows = slice(begin, begin + batch)
        mine = owner[rows]
        if all(job.over for job, _ in mine):
            continue
        some = replace(plan, micro_batch=len(mine))
        watched = any(job.asked.previews for job, _ in mine)
        steps = drawing(model.denoiser, some, seeds[rows], None if labels is None else labels[rows], watched)
        last = yield from _walk(steps, len(plan.sigmas) - 1, mine)
        for (job, _), image in zip(mine, last, strict=True):
            found[id(job)].append(image)
        for job in {id(job): job for job, _ in mine}.values():
            if len(found[id(job)]) == len(job.asked.seeds):
                job.done(Made(np.stack(found[id(job)]), time.monotonic() - start))


def _walk(steps: Iterator[Step], count: int, mine: Sequence[tuple[Job, int]]) -> Generator[None, None, np.ndarray]:
    """Walks to the last step, telling those who watch, and returns its images."""
    images: np.ndarray | None = None
    for step in steps:
        if step.images is not None:
            images = step.images.numpy()
            _tell(step, count, mine, images)
        yield
    assert images is not None
    return images


def _tell(step: Step, count: int, mine: Sequence[tuple[Job, int]], images: np.ndarray) -> None:
    """A preview to every job that watches and whose images are all in this batch."""
    rows: dict[int, list[int]] = {}
    for row, (job, _) in enumerate(mine):
        rows.setdefault(id(job), []).append(row)
    for job in {id(job): job for job, _ in mine}.values():
        its = rows[id(job)]
        if job.asked.previews and len(its) == len(job.asked.seeds) and step.index < count:
            job.tell(Preview(step.index, count, float(step.sigma), images[its]))


def change(models: Models, jobs: Sequence[Job], batch: int) -> Work:
    """Parts of pictures painted anew, or variations of them; one job after another."""
    for job in jobs:
        start = time.monotonic()
        asked: Making = job.asked
        denoiser = models[asked.model].denoiser
        assert denoiser is not None and asked.original is not None
        parts = []
        for begin in range(0, len(asked.seeds), batch):
            rows = slice(begin, begin + batch)
            seeds = asked.seeds[rows]
            labels = None if asked.labels is None else asked.labels[rows]
            plan = replace(asked.plan, micro_batch=len(seeds))
            images = asked.original.expand(len(seeds), -1, -1, -1)
            if asked.mask is not None:
                count = inpaint.solver_steps(plan)
                steps = inpaint.inpainting(denoiser, plan, images, asked.mask, seeds, labels, previews=asked.previews)
            else:
                count = vary.solver_steps(plan, asked.strength, denoiser.sigma_range)
                steps = vary.varying(
                    denoiser, plan, images, seeds=seeds, strength=asked.strength, labels=labels, previews=asked.previews
                )
            last: Tensor | None = None
            for step in steps:
                if step.images is not None:
                    last = step.images
                    if asked.previews and len(seeds) == len(asked.seeds) and step.index < count:
                        job.tell(Preview(step.index, count, float(step.sigma), last.numpy()))
                yield
                if job.over:
                    break
            if job.over:
                break
            assert last is not None
            parts.append(last.numpy())
        else:
            job.done(Made(np.concatenate(parts), time.monotonic() - start))


@dataclass(frozen=True)
class Pictures:
    """Pictures to say something about: uint8 (N, C, H, W). k: neighbours wanted."""

    model: str
    images: Tensor
    k: int = 0


def _together(jobs: Sequence[Job], batch: int, ask: Callable[[Tensor], Tensor]) -> Generator[None, None, list[Tensor]]:
    """What `ask` says of the pictures of all jobs, `batch` at a time: one tensor a job."""
    images = torch.cat([job.asked.images for job in jobs])
    parts = []
    for part in images.split(batch):
        parts.append(ask(part))
        yield
    return list(torch.cat(parts).split([len(job.asked.images) for job in jobs]))


def classify(models: Models, jobs: Sequence[Job], batch: int) -> Work:
    """Probabilities (N, K) of all pictures."""
    model = models[jobs[0].asked.model]
    found = yield from _together(jobs, batch, partial(probabilities, model.answers))
    for job, one in zip(jobs, found, strict=True):
        job.done(one.numpy())


def embed(models: Models, jobs: Sequence[Job], batch: int) -> Work:
    """Features (N, D) of all pictures."""
    model = models[jobs[0].asked.model]
    found = yield from _together(jobs, batch, model.reader.read)
    for job, one in zip(jobs, found, strict=True):
        job.done(one.numpy())


def near(models: Models, jobs: Sequence[Job], batch: int) -> Work:
    """(by pixels, by features) of every picture: the nearest training images."""
    model = models[jobs[0].asked.model]
    if model.neighbours is None:
        raise Refused(503, "neighbours", "the training images are still being read", "try again a little later", 2)
    known: Neighbours = model.neighbours
    features = yield from _together(jobs, batch, model.reader.read)
    pictures = torch.cat([job.asked.images for job in jobs])
    found = yield from known.of(pictures, torch.cat(features), max(job.asked.k for job in jobs))
    counts = [len(job.asked.images) for job in jobs]
    for job, end in zip(jobs, np.cumsum(counts), strict=True):
        job.done([(a[: job.asked.k], b[: job.asked.k]) for a, b in found[end - len(job.asked.images) : end]])


def learn_neighbours(models: Models, jobs: Sequence[Job], name: str, most: int) -> Work:
    """Reads the training images of a model, in turn with what callers ask for."""
    model = models[name]
    model.neighbours = yield from reading(model, most)
    for job in jobs:
        job.done(None)


@dataclass(frozen=True)
class Changing:
    """A counterfactual: a picture uint8 (1, C, H, W) towards target (1,) or (1, K). frames: pictures along the way."""

    model: str
    image: Tensor
    target: Tensor
    how: Mapping[str, Any]
    frames: int


@dataclass(frozen=True)
class Changed:
    """edited: what came of it. shares (F,) from 0, the picture itself, to 1, the edited one. frames: uint8
    (F, C, H, W). logits (F, K) about them; p_target (F,)."""

    edited: Edited
    shares: np.ndarray
    frames: np.ndarray
    logits: np.ndarray
    p_target: np.ndarray
    names: list[str]


def edit(models: Models, jobs: Sequence[Job]) -> Work:
    """Counterfactuals, one job after another, an attempt at a time."""
    for job in jobs:
        asked: Changing = job.asked
        model = models[asked.model]
        how = model.recipe(**asked.how)
        assert how is not None and model.denoiser is not None
        found: Edited | None = None
        for attempt in editing(model.denoiser, how, asked.image, asked.target):
            found = attempt
            yield
            if job.over:
                break
        if found is None or job.over:
            continue
        shares = np.linspace(0, 1, asked.frames)
        whole = found.images.double() - asked.image.double()
        frames = (asked.image.double() + torch.from_numpy(shares)[:, None, None, None] * whole).round().to(torch.uint8)
        logits = answers(how.pull.asked, frames)
        target = asked.target.expand(len(frames), *asked.target.shape[1:])
        p_target = probability(logits, target).numpy()
        job.done(Changed(found, shares, frames.numpy(), logits.numpy(), p_target, list(how.pull.class_names)))
        yield
