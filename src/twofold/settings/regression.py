"""Settings of super-resolution in one pass: a network that is told the low image alone, and its objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import Settings


class RDNSettings(Settings):
    """The residual dense network of Zhang et al. 2018, at the size of IDDM's SRv1: one pass from low image to large."""

    kind: Literal["rdn"] = "rdn"
    channels: int = Field(64, ge=1, description="channels between blocks")
    growth: int = Field(32, ge=1, description="channels that each dense layer adds to what its block reads")
    blocks: int = Field(3, ge=1, description="residual dense blocks (as published: 16 or 20)")
    dense_layers: int = Field(6, ge=1, description="dense layers per block (as published: 8 or 6)")
    low_factor: Literal[2, 4, 8] = Field(4, description="how many times as high and wide its images become")
    low_residual: bool = Field(
        True, description="it predicts what the enlarged (bicubic) image lacks; false: the image itself (SRv1)"
    )

    @property
    def classes(self) -> int:
        """It is told no labels."""
        return 0


class Regression(Settings):
    """Objective: the large image from its low one, in one pass. Gives a super-resolution model that draws nothing."""

    kind: Literal["regression"] = "regression"
    distance: Literal["mse", "l1"] = Field("mse", description="what being off costs: its square, or its size")
    crop: int | None = Field(
        None, ge=1, description="trained on squares of this side, cut from the images at random; null = whole"
    )


def check_regression(settings: Any) -> None:
    """Raises `ValueError` where settings of a training run do not go with `objective.kind=regression`."""
    objective, factor = settings.objective, settings.network.low_factor
    for name in ("lora", "init_from"):
        if getattr(settings, name) is not None:
            raise ValueError(f"{name} is for denoisers, not for objective.kind=regression; leave it out")
    if settings.train.compile:
        raise ValueError("train.compile=true is for denoisers; leave it false for objective.kind=regression")
    if settings.data.crop_area != (1.0, 1.0):
        hint = "leave it out (objective.crop cuts parts as they are)"
        raise ValueError(f"data.crop_area enlarges what it crops, and such images are blurred; {hint}")
    if objective.crop and objective.crop % factor:
        raise ValueError(f"objective.crop={objective.crop} must be a multiple of network.low_factor={factor}")
