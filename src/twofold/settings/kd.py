"""Settings of distillation with a trained classifier as teacher: soft targets, and losses on what lies before them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Settings
from .imitation import AttentionLoss, ContrastiveLoss, DenseLoss, HintLoss, RKDLoss


class SoftTargets(Settings):
    """The teacher's probabilities at a temperature (Hinton et al. 2015)."""

    kind: Literal["soft"] = "soft"
    weight: float = Field(1.0, ge=0, description="factor on it (RepFusion on ImageNet: 0.1)")
    temperature: float = Field(4.0, gt=0, description="that logits are divided by (RepFusion on ImageNet: 10)")


class LogitsLoss(Settings):
    """The teacher's logits (Ba and Caruana 2014)."""

    kind: Literal["logits"] = "logits"
    weight: float = Field(1.0, ge=0, description="factor on their mean squared difference")


class CRDLoss(Settings):
    """Contrastive representation distillation, with a memory of all training images (Tian et al. 2020)."""

    kind: Literal["crd"] = "crd"
    weight: float = Field(0.8, ge=0, description="factor on it")
    channels: int = Field(128, ge=1, description="of the space that both networks' features are embedded in")
    negatives: int = Field(16_384, ge=1, description="images that each is held against, at most")
    temperature: float = Field(0.07, gt=0, description="that products are divided by")
    momentum: float = Field(0.5, ge=0, lt=1, description="share of the old embedding in the memory's new one")


class AFDLoss(Settings):
    """Attention feature distillation: learns which student layer follows which of the teacher's (Ji et al. 2021)."""

    kind: Literal["afd"] = "afd"
    weight: float = Field(200.0, ge=0, description="factor on it")
    channels: int = Field(128, ge=1, description="of queries and keys")


KDLoss = Annotated[
    SoftTargets | LogitsLoss | HintLoss | DenseLoss | AttentionLoss | RKDLoss | ContrastiveLoss | CRDLoss | AFDLoss,
    Field(discriminator="kind"),
]


class KD(Settings):
    """Objective: a classifier that follows its labels and a trained classifier. Gives a classifier.

    Unlabelled images follow the teacher alone.
    """

    kind: Literal["kd"] = "kd"
    teacher: str = Field(min_length=1, description="the trained classifier: RUN, RUN@SNAPSHOT or a file")
    sigma: float | None = Field(
        None, gt=0, description="the teacher is a denoiser, whose maps of clean images at this noise level are followed"
    )
    losses: tuple[KDLoss, ...] = Field((SoftTargets(),), min_length=1, description="how it is followed; summed")
    teacher_layers: tuple[str, ...] = Field(
        (),
        description="its layers that are followed; default: the last, for dense and attention the last of each size "
        "that both have, for afd the last of each size",
    )
    student_layers: tuple[str, ...] = Field((), description="the student's layer for each of them")
    label_weight: float = Field(1.0, ge=0, description="factor on the cross-entropy of labels; 0 = the teacher alone")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    mixup: float = Field(0.0, ge=0, description="MixUp: shares are drawn from Beta(mixup, mixup); 0 = none")
    mixup_probability: float = Field(0.5, ge=0, le=1, description="share of the images that are mixed with another")
    shift: int = Field(0, ge=0, description="random shifts in pixels, up to this many in each direction")
    pad: Literal["edge", "black"] = Field("edge", description="what comes in at the side of a shifted image")
    affine: float = Field(
        0.0, ge=0, description="strength of random turns, scalings and shears; 1 = up to 15 degrees, 10 % and 10 %"
    )

    @model_validator(mode="after")
    def _fits(self) -> KD:
        theirs, mine = len(self.teacher_layers), len(self.student_layers)
        several = all(loss.kind in ("afd", "soft", "logits") for loss in self.losses)
        if bool(theirs) != bool(mine) or (theirs != mine and not several):
            raise ValueError(f"{mine} student_layers for {theirs} teacher_layers; give one for each, or neither")
        kinds = [loss.kind for loss in self.losses]
        if self.sigma is not None and {"soft", "logits"} & {*kinds}:
            raise ValueError(
                f"sigma={self.sigma:g} is of a denoiser, which has no logits; give losses of maps, such as hint"
            )
        if kinds.count("crd") > 1:
            raise ValueError("losses has crd twice; one memory is enough")
        return self
