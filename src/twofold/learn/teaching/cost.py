"""What teaching costs in computing, so that the same student from scratch can be given as much."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...data import Store
from ...settings.train import TrainSettings
from ..classes import class_names
from ..distilling.selection import make_selection
from ..distilling.teacher import Teacher
from ..estimate import estimate


def training_flops(settings: TrainSettings, shape: tuple[int, int, int], classes: list[str]) -> float:
    """FLOPs of one image in a training step of the student alone."""
    return estimate(settings, shape, classes).flops / settings.train.n_images


def teacher_flops(teacher: Teacher) -> float:
    """FLOPs of one image through the teacher, as far as it is read."""
    x0 = torch.zeros(1, *teacher.shape)
    noise = torch.zeros(1, *teacher.x0_shape)
    sigma = torch.full((1,), sum(teacher.denoiser.sigma_range) / 2, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        teacher.to(torch.device("cpu"), None).maps(x0, sigma, noise)
    return float(counter.get_total_flops())


def pretraining_flops(settings: TrainSettings, store: Store) -> float:
    """FLOPs of all of a pre-training: the student's steps and the teacher's passes (once an image if they are kept)."""
    s = settings.objective
    assert s.kind == "distill"
    teacher = Teacher(s.teacher, s.teacher_layers, s.input, store.shape)
    each = teacher_flops(teacher)
    own = estimate(settings, store.shape, class_names(settings, store)).flops
    known = teacher.levels, teacher.denoiser.sigma_range, store.shape, 1, max(2, len(store.classes))
    sigmas = make_selection(s.sigma, *known).sigmas
    count = 1 if sigmas is None else len(sigmas)
    if s.cache != "none":
        views = 2 if settings.data.flip else 1
        return own + each * len(store.indices("train")) * views * count
    passes = count if s.sigma.kind == "expectation" else 1
    return own + each * settings.train.n_images * passes
