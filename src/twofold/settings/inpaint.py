"""Settings of `twofold inpaint`: which part of an image is painted anew, and how (see `twofold.generate.inpaint`)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from .given import GivenSettings
from .sample import SampleSettings

SAMPLER = "euler_ancestral"  # new noise in every step: what was decided too early is given up sooner
STEPS = 20
REPAINTS = 10
JUMP = 1


class InpaintSettings(GivenSettings):
    """What is painted anew, and how."""

    mask: str = Field(
        min_length=1,
        description="what is painted anew: an image whose white part it is, a folder with one for every image under "
        "the same name, or left,top,right,bottom in pixels of the model's images",
    )
    sampler: str = Field(SAMPLER, description="any sampler of `twofold sample`; those with noise do best")
    steps: int | None = Field(
        None,
        ge=1,
        description="solver steps without those taken again; default: 20 of euler_ancestral, else the sampler's",
    )
    repaints: int = Field(
        REPAINTS, ge=1, description="how often each step at a decisive level is taken; 1: once, as above"
    )
    jump: int = Field(JUMP, ge=1, description="steps that are taken again together")
    repaint_interval: tuple[float, float] | None = Field(
        None, description="the decisive levels, low < sigma <= high in units of x0; default: by the size of the images"
    )

    @field_validator("mask", mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        """mask=[2, 2, 6, 6] is mask=2,2,6,6."""
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("repaint_interval")
    @classmethod
    def _interval(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError(f"{value[0]:g}, {value[1]:g} is no interval; give [low, high] with 0 <= low < high")
        return value

    def sampling(self) -> SampleSettings:
        """The same as settings of `twofold sample`, with the steps that are usual here."""
        usual = STEPS if self.steps is None and self.sampler == SAMPLER else self.steps
        return super().sampling().model_copy(update={"steps": usual})
