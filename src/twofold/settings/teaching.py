"""Settings of `twofold distill`: a small network taught by a diffusion model, then a task, and what it is worth."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from .base import Settings
from .data import DataSettings
from .distilling import Distill
from .kd import KD
from .short import in_model
from .student import BackboneSettings, HeadSettings, ResNetSettings
from .tasks import HEADS, Landmarks, Segmentation
from .train import LoopSettings, Supervised, ValidationSettings

IN_DATA = ("labels", "labels_per_class", "labels_seed", "annotated")  # settings of `data` that need not say so
TASKS = {"classify": ("supervised", "kd"), "segment": ("segmentation",), "landmarks": ("landmarks",)}
Task = Literal["classify", "segment", "landmarks"]
Stage = Literal["all", "pretrain", "finetune", "scratch", "equal"]

TaskObjective = Annotated[Supervised | KD | Segmentation | Landmarks, Field(discriminator="kind")]


class PretrainSettings(Settings):
    """The student imitates its teacher on all training images; no label is needed."""

    objective: Distill
    train: LoopSettings = LoopSettings()
    validation: ValidationSettings = ValidationSettings(samples=0)


class FinetuneSettings(Settings):
    """The task: the student with a head, on the images that are labelled. From scratch the same is done."""

    objective: TaskObjective = Supervised()
    head: HeadSettings
    freeze: bool | Literal["try"] = Field(
        False,
        description="train the head alone, of every student alike (with head.kind=pool a linear probe); try: both "
        "ways, at every learning rate; the best on the validation part counts",
    )
    train: LoopSettings = LoopSettings()
    lrs: tuple[PositiveFloat, ...] = Field(
        (), description="learning rates to try, for each student alike; the best on the validation part counts"
    )
    validation: ValidationSettings = ValidationSettings(samples=0, keep_best=False)


class TeachingSettings(Settings):
    """Distillation: a teacher, a student, a task; beside it the same student without a teacher."""

    data: DataSettings
    labels: str | None = Field(None, min_length=1, description="short for data.labels: a file of labels")
    labels_per_class: int | None = Field(None, ge=1, description="short for data.labels_per_class")
    labels_seed: int | None = Field(None, ge=0, description="short for data.labels_seed")
    annotated: float | None = Field(None, gt=0, description="short for data.annotated: masks or points that are known")
    task: Task = Field("classify", description="what the student is to do")
    pretrain_data: DataSettings | None = Field(
        None, description="images to imitate the teacher on; default: those of data, without their labels"
    )
    student: str | None = Field(
        None, min_length=1, description="a student that was taught before, for this task too: RUN or an experiment"
    )
    backbone: BackboneSettings = ResNetSettings()
    pretrain: PretrainSettings | None = None
    finetune: FinetuneSettings
    stage: Stage = Field(
        "all",
        description="pretrain, finetune (with what it needs), scratch (without a teacher), equal (from scratch with as "
        "much computing as pretrain and finetune together), or all of it",
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and noise; added to those of the parts")

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, values: Any) -> Any:
        return in_model(values, IN_DATA)

    @model_validator(mode="after")
    def _fits(self) -> TeachingSettings:
        kind, head = self.finetune.objective.kind, self.finetune.head.kind
        if kind not in TASKS[self.task]:
            wanted = " or ".join(TASKS[self.task])
            raise ValueError(f"task={self.task} needs finetune.objective.kind={wanted}, not {kind}")
        heads = HEADS["supervised" if kind == "kd" else kind]
        if head not in heads:
            raise ValueError(
                f"finetune.objective.kind={kind} needs finetune.head.kind={' or '.join(heads)}, not {head}"
            )
        if kind == "kd" and (self.pretrain is not None or self.student is not None):
            raise ValueError("finetune.objective.kind=kd has a teacher of its own; leave pretrain and student out")
        if getattr(self.finetune.objective, "multi_label", False):
            raise ValueError("finetune.objective.multi_label=true is not for task=classify, which is about one class")
        if self.student is not None and self.pretrain is not None:
            raise ValueError(
                f"student={self.student} was taught before; leave the teacher out (pretrain=null), or leave student out"
            )
        if self.task == "classify" and self.data.annotated is not None:
            raise ValueError("annotated is about masks and points; task=classify counts labels_per_class")
        taught = self.pretrain is not None or self.student is not None or kind == "kd"
        if not taught and self.stage != "scratch":
            raise ValueError(
                "nobody teaches; give the teacher, `twofold distill RUN`, or student=RUN, or stage=scratch for none"
            )
        return self

    @property
    def record(self) -> TeachingSettings:
        """The same settings whichever stage is asked for: what an experiment's folder is named by."""
        return self.model_copy(update={"stage": "all"})
