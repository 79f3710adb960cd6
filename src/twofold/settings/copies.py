"""Settings of `twofold copies`: which images are looked at, against which training images (see `measure.copies`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings
from .data import DataSettings


class CopiesSettings(Settings):
    """How copies of training images are looked for."""

    data: DataSettings | None = Field(
        None,
        description="the training images: a RUN, whose parts are known, or a SOURCE; default: of the samples' run",
    )
    held_out: str | None = Field(
        None, min_length=1, description="a source of new real images to calibrate on; default: the data's held-out part"
    )
    space: str = Field(
        "auto",
        description="besides pixels, what images are compared by: own (the run's features), none, or an encoder "
        "(inception, transformers:ORG/NAME, cls:ORG/NAME); auto: own where a run of a denoiser is known",
    )
    flips: bool = Field(False, description="look for mirrored copies too")
    rule: Literal["ratio", "distance"] = Field(
        "ratio",
        description="ratio: nearest against second nearest picture; distance: the nearest alone, which flags plain "
        "images more easily",
    )
    rate: float = Field(
        0.001,
        gt=0,
        lt=0.5,
        description="share of new real images that may be flagged by mistake, over all spaces together",
    )
    fail_above: float | None = Field(
        None, ge=0, le=1, description="exit code 1 if a larger share is flagged; default: never"
    )
    keep: str | None = Field(None, min_length=1, description="a new folder for the images that are not flagged")
    shown: int = Field(48, ge=1, description="pairs in the report, the most suspicious ones")
    block: int = Field(4096, ge=16, description="training images compared at a time: less takes less memory")
    at: str = Field("last", description="snapshot of the run whose features are used")
