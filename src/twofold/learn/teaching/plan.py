"""What an experiment of distillation will do, and what it will cost: known before it does anything.

What cannot be is said here, and not after hours of training; `twofold distill --dry-run` shows what can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...data import Store, open_store
from ...errors import UserError
from ...run import Run
from ...settings.student import BackboneSettings
from ...settings.teaching import TeachingSettings
from ...settings.train import TrainSettings
from ..classes import class_names
from ..crew import Crew
from ..estimate import estimate
from ..experiment import RECORD, Experiment
from ..inherit import student_model
from ..parts import Parts
from ..training import complete
from . import cost, recipes
from .checks import backbone_of, check_given, check_training, known_rows
from .judge import MAIN

TAUGHT, SCRATCH, EQUAL = "taught", "scratch", "equal compute"
ARMS = {
    "finetune": (TAUGHT,),
    "scratch": (SCRATCH,),
    "equal": (EQUAL,),
    "all": (TAUGHT, SCRATCH, EQUAL),
    "pretrain": (),
}
TEST = 2  # the code of the test part


@dataclass(frozen=True)
class Try:
    """How the task is learned. freeze: the head alone."""

    lr: float
    freeze: bool

    def __str__(self) -> str:
        return f"{self.lr:g}{', head alone' if self.freeze else ''}"


class Plan(Experiment):
    """One experiment before it begins. parts: where artefacts are, or will be."""

    kind = "an experiment of distillation"

    def __init__(self, settings: TeachingSettings, store: Store, crew: Crew, out: Path, parts: Path) -> None:
        super().__init__(settings.record, crew, out)
        self.settings, self.store = settings, store
        self.parts = Parts(parts, crew, out / RECORD)

    @cached_property
    def given(self) -> Any:
        """The student that was taught before, None where there is none."""
        source = self.settings.student
        return None if source is None else student_model(backbone_of(source))

    @property
    def backbone(self) -> BackboneSettings:
        """That of the student: the given one's, else the settings'."""
        if self.given is None:
            return self.settings.backbone
        found: BackboneSettings = self.given.network.settings.backbone
        return found

    def check(self) -> None:
        """Raises `UserError` for whatever would go wrong in any stage, as far as it can be known."""
        s, kinds = self.settings, ("labels", "masks", "points")
        kind = kinds[list(MAIN).index(s.task)]
        for settings in self.trainings():
            check_training(self._complete(settings), self._store_of(settings), self.store.shape[0])
        if self.given is not None:
            check_given(str(s.student), self.given.shape[0], self.store.shape[0])
        _ = self.teacher if s.stage != "scratch" else None  # which opens it
        if s.stage == "pretrain":
            return
        _ = self.task_flops  # which builds the head
        if not len(self._known("train")):
            raise UserError(f"data={s.data.source}", f"no training image has {kind}", f"task={s.task} learns from them")
        if len(self._tries()) > 1 and not len(self._known("validation")):
            hint = "set data.validation_share, or leave finetune.lrs and finetune.freeze=try out"
            raise UserError("finetune", f"no validation image has {kind} to choose by", hint)

    def _known(self, split: str) -> np.ndarray:
        return known_rows(self.store, self.settings.task, split)

    def trainings(self) -> list[TrainSettings]:
        """Every kind of training run there will be, each once."""
        s = self.settings
        found = [] if s.pretrain is None else [recipes.pretraining(s, self.backbone)]
        if s.stage == "pretrain":
            return found
        return [*found, recipes.task(s, self.backbone, None), recipes.task(s, self.backbone, None, taught=False)]

    def in_words(self) -> str:
        """What there is to learn from."""
        known, every = len(self._known("train")), len(self.store.indices("train"))
        return f"{known:,} of {every:,} training images known, {len(self._test_rows()):,} to test"

    def works(self) -> list[tuple[str, int, float, int | None]]:
        """(what, images, FLOPs, parameters) of everything that the stage does, whether it is there already or not."""
        s = self.settings
        found: list[tuple[str, int, float, int | None]] = []
        size = self._parameters if self._arms() else None
        n, tries = s.finetune.train.n_images, len(self._tries())
        if s.stage != "scratch" and self.pretraining_flops:
            assert s.pretrain is not None
            found.append(("pretrain", s.pretrain.train.n_images, self.pretraining_flops, None))
        for name in self._arms():
            each = n if name != EQUAL else n + self._extra_images()
            times = tries if name != EQUAL or s.stage == "equal" else 1
            flops = each * self.task_flops + (self.kd_flops if name == TAUGHT else 0.0)
            found.append((name, each * times, flops * times, size))
        return found

    @property
    def _parameters(self) -> int:
        """Of the student with its head."""
        settings = self._complete(recipes.task(self.settings, self.backbone, None, taught=False))
        return estimate(settings, self.store.shape, class_names(settings, self.store), teacher=False).parameters

    def _arms(self) -> list[str]:
        """Ways to the task that the stage asks for, without what would be the same as `scratch`."""
        return [name for name in ARMS[self.settings.stage] if name != EQUAL or self._extra_images()]

    def _complete(self, settings: TrainSettings) -> TrainSettings:
        return complete(settings, self._store_of(settings), Run(self.parts.folder / "not-made-yet"))

    def _store_of(self, settings: TrainSettings) -> Store:
        return self.store if settings.data == self.settings.data else open_store(settings.data)

    def _tries(self) -> list[Try]:
        """Every way to learn the task from one beginning that is to be tried."""
        part = self.settings.finetune
        frozen = (False, True) if part.freeze == "try" else (part.freeze,)
        return [Try(lr, freeze) for freeze in frozen for lr in part.lrs or (part.train.lr,)]

    @cached_property
    def task_flops(self) -> float:
        """FLOPs of one image in a training step of the task."""
        return self._step_flops(self._tries()[0].freeze)

    def _step_flops(self, freeze: bool) -> float:
        """The same where the head alone is trained, or all of it."""
        settings = self._complete(recipes.task(self.settings, self.backbone, None, taught=False, freeze=freeze))
        return cost.student_flops(settings, self.store) / settings.train.n_images

    @cached_property
    def teacher(self) -> cost.Taught | None:
        """The teacher of this experiment, which is opened for that; None where it has none of its own."""
        s = self.settings
        if s.pretrain is None and s.finetune.objective.kind != "kd":
            return None
        teaches = recipes.task(s, self.backbone, None) if s.pretrain is None else recipes.pretraining(s, self.backbone)
        settings = self._complete(teaches)
        return cost.taught(settings, self._store_of(settings))

    @cached_property
    def pretraining_flops(self) -> float:
        """FLOPs of the whole pre-training, the teacher's passes counted; 0 where there is none here."""
        if self.settings.pretrain is None or self.teacher is None:
            return 0.0
        settings = self._complete(recipes.pretraining(self.settings, self.backbone))
        return cost.student_flops(settings, self._store_of(settings)) + self.teacher.flops

    @property
    def kd_flops(self) -> float:
        """FLOPs of the passes of a classifier that teaches in the task; 0 without one."""
        return self.teacher.flops if self.teacher is not None and self.settings.pretrain is None else 0.0

    def _extra_images(self) -> int:
        """Images of the task that cost as much as being taught, in whole steps."""
        batch = self.settings.finetune.train.batch_size
        return round((self.pretraining_flops + self.kd_flops) / self.task_flops / batch) * batch

    def _test_rows(self) -> Any:
        return (self.store.codes == TEST).nonzero()[0]
