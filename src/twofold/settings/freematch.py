"""Settings of semi-supervised training: FreeMatch, and FixMatch as its case of one fixed threshold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Settings


class FreeMatch(Settings):
    """Objective: a classifier from few labels and many unlabelled images, which it names itself where it is sure."""

    kind: Literal["freematch"] = "freematch"
    labelled_batch: int = Field(
        64, ge=1, description="labelled images per step, besides the batch, which is of all images without their labels"
    )
    real_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of those that is real, where there are generated ones too; null = as many as there are",
    )
    unlabelled_weight: float = Field(1.0, ge=0, description="factor on the loss of unlabelled images; 0 = labels alone")
    weight_from_images: int = Field(0, ge=0, description="images after which unlabelled ones begin to count")
    threshold: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="probability from which an answer is taken for a label: learned (FreeMatch), or fixed"
    )
    fixed_threshold: float = Field(0.95, ge=0, lt=1, description="fixed: that probability (FixMatch's)")
    threshold_decay: float = Field(0.999, ge=0, lt=1, description="adaptive: decay of its running means, per step")
    threshold_range: tuple[float, float] | None = Field(
        None, description="adaptive: where it is clamped to (SVHN: [0.9, 0.95]); null = it is not"
    )
    fairness: float = Field(0.0, ge=0, description="factor on FreeMatch's fairness loss; 0 as in DPT")
    flip: bool = Field(True, description="whether views are mirrored at random; false for digits and letters")
    shift: int = Field(
        4, ge=0, description="views are shifted by up to so many pixels, what comes in is a mirror image"
    )
    fill: list[int] | None = Field(
        None, description="colour 0..255, a number per channel, behind what is cut out; null = each image's mean"
    )

    @model_validator(mode="after")
    def _possible(self) -> FreeMatch:
        if self.threshold_range is not None:
            low, high = self.threshold_range
            if not 0 <= low <= high <= 1:
                raise ValueError(f"threshold_range={[low, high]} is no range within 0..1")
        if self.fill is not None and not all(0 <= level <= 255 for level in self.fill):
            raise ValueError(f"fill={self.fill} has a level that is not 0..255")
        return self
