"""What teaching costs in computing, so that the same student from scratch can be given as much."""

from __future__ import annotations

from dataclasses import dataclass

from ...data import Store
from ...hashing import model_hash
from ...settings.train import TrainSettings
from ..classes import class_names
from ..distilling.cost import opened, teacher_cost
from ..distilling.teacher import Teacher
from ..estimate import estimate
from ..foreign import check_foreign
from ..inherit import place_of


@dataclass(frozen=True)
class Taught:
    """A teacher's part in a run, without holding on to it. flops: of its passes; key: its content."""

    flops: float
    key: str


def taught(settings: TrainSettings, store: Store) -> Taught:
    """Opens the teacher of a run once. Raises `UserError` for one that does not fit, or computes something else than it
    was trained to (attention in another order).
    """
    teacher = opened(settings, store.shape, class_names(settings, store))
    if isinstance(teacher, Teacher):
        check_foreign(place_of(teacher.source)[0], teacher.denoiser, store)
    cost = teacher_cost(teacher, settings, store.shape, len(store.indices("train")))
    return Taught(cost.flops, model_hash(teacher.denoiser if isinstance(teacher, Teacher) else teacher.model))


def student_flops(settings: TrainSettings, store: Store) -> float:
    """FLOPs of a run's steps without its teacher."""
    return estimate(settings, store.shape, class_names(settings, store), teacher=False).flops
