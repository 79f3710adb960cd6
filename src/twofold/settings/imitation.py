"""Settings of what a student's maps are held against a teacher's with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Settings

Distance = Literal["l2", "l1", "l2_norm", "cosine"]


class HintLoss(Settings):
    """Pooled maps, the student's through a linear adapter to the teacher's channels (FitNets, pooled as RepFusion)."""

    kind: Literal["hint"] = "hint"
    weight: float = Field(1.0, ge=0, description="factor on it")
    distance: Distance = Field(
        "l2", description="mean squared or absolute difference, that of unit vectors (l2_norm), or 1 - cosine"
    )


class DenseLoss(Settings):
    """Whole maps: the student's through an adapter, resized to the teacher's places."""

    kind: Literal["dense"] = "dense"
    weight: float = Field(1.0, ge=0, description="factor on it (RepFusion: 1 with l2, 10 with l1)")
    distance: Distance = Field("l2", description="as for hint; unit vectors are those of places")


class AttentionLoss(Settings):
    """Attention transfer: where maps are large, whatever their channels; no adapter."""

    kind: Literal["attention"] = "attention"
    weight: float = Field(1000.0, ge=0, description="factor on it (RepFusion: 1000)")


class RKDLoss(Settings):
    """Relational distillation: distances and angles between the images of a batch; no adapter."""

    kind: Literal["rkd"] = "rkd"
    weight: float = Field(1.0, ge=0, description="factor on both")
    distance: float = Field(25.0, ge=0, description="factor on the distances' part")
    angle: float = Field(50.0, ge=0, description="factor on the angles' part")


class ContrastiveLoss(Settings):
    """InfoNCE: an image's pooled student map is nearer to its teacher's than to those of the batch's other images."""

    kind: Literal["contrastive"] = "contrastive"
    weight: float = Field(1.0, ge=0, description="factor on it")
    temperature: float = Field(0.1, gt=0, description="that cosines are divided by")


LossSettings = Annotated[HintLoss | DenseLoss | AttentionLoss | RKDLoss | ContrastiveLoss, Field(discriminator="kind")]
