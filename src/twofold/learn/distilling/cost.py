"""What a teacher's passes take: computing and memory, of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...settings.train import TrainSettings
from .classifiers import ClassifierTeacher, DenoiserTeacher, kd_teacher
from .selection import make_selection
from .teacher import Teacher

FROZEN_BYTES = 4  # of a weight

AnyTeacher = Teacher | ClassifierTeacher | DenoiserTeacher


@dataclass(frozen=True)
class TeacherCost:
    """flops: of all its passes. memory: bytes of its weights."""

    flops: float = 0.0
    memory: int = 0


def opened(settings: TrainSettings, shape: tuple[int, int, int], classes: list[str]) -> AnyTeacher:
    """The teacher of a run of `distill` or `kd`. Raises `UserError` for one that does not fit."""
    s = settings.objective
    if s.kind == "distill":
        return Teacher(s.teacher, s.teacher_layers, s.input, shape)
    assert s.kind == "kd"
    return kd_teacher(s, classes, shape)


def teacher_cost(
    teacher: AnyTeacher, settings: TrainSettings, shape: tuple[int, int, int], images: int | None
) -> TeacherCost:
    """Of this teacher in a run. images: in the training part, each of which it is asked about once where its answers
    are kept; None: unknown, then in every step.
    """
    x0, n = torch.zeros(1, *shape), settings.train.n_images
    if not isinstance(teacher, Teacher):
        return TeacherCost(n * _flops(lambda: teacher(x0, [])), _bytes(teacher.model))
    noise = torch.zeros(1, *teacher.x0_shape)
    sigma = torch.full((1,), sum(teacher.denoiser.sigma_range) / 2, dtype=torch.float64)
    teacher.to(torch.device("cpu"), None)
    return TeacherCost(
        _flops(lambda: teacher.maps(x0, sigma, noise)) * _passes(teacher, settings, images), _bytes(teacher.denoiser)
    )


def _passes(teacher: Teacher, settings: TrainSettings, images: int | None) -> int:
    """Images that it sees in a run."""
    s = settings.objective
    assert s.kind == "distill"
    sigmas = make_selection(s.sigma, teacher.levels, teacher.denoiser.sigma_range, teacher.shape, 1, 2).sigmas
    count = 1 if sigmas is None else len(sigmas)
    if s.cache != "none" and images is not None:
        return images * (2 if settings.data.flip else 1) * count
    return settings.train.n_images * (count if s.sigma.kind == "expectation" else 1)


def _bytes(model: Any) -> int:
    return FROZEN_BYTES * sum(p.numel() for p in model.parameters())


def _flops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
