"""Settings of `twofold edit`: towards what an image is changed, how much, and by whom (see `twofold.generate.edit`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .base import Settings
from .text import as_text


class EditSettings(Settings):
    """What is changed in images, and how. Where a field is empty the guide's or the model's own value is used."""

    to: str = Field(
        min_length=1, description="the class to change to, or attributes joined by ;, such as 'Smiling;not Male'"
    )
    guide: str | None = Field(
        None,
        description="who pulls: representations or own (by the head of a joint model), labels (a class-conditional "
        "denoiser), or the run of a classifier that knows noise; default: own, else labels",
    )
    strength: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="0 (hardly any change) to 1 (a new image): where on the way to noise it starts; auto: as "
        "little as it takes",
    )
    sigma: float | None = Field(None, gt=0, description="that noise level itself, in units of x0, instead of strength")
    scale: float | None = Field(
        None,
        gt=0,
        description="how much the guide pulls, with auto the first that is tried; default: representations 1, others 2",
    )
    steps: int = Field(12, ge=1, description="solver steps of every attempt")
    noise: Literal["inverted", "random"] = Field(
        "inverted", description="inverted: the noise the image itself has on the way up; random: fresh, by its pixels"
    )
    seed: int = Field(0, ge=0, description="seed of random noise")
    confidence: float = Field(
        0.999, gt=0, lt=1, description="probability of the target at which an image has arrived, as the guide sees it"
    )
    margin: float = Field(
        0.25, ge=0, le=1, description="0: step back as near to the original as the answer allows; 1: not at all"
    )
    search: Literal["nearest", "first"] = Field(
        "nearest",
        description="auto: all attempts, of which the nearest is kept, or only up to the first that is enough",
    )
    judge: str | None = Field(
        None,
        description="run of an independent classifier of clean images, whose answers are told too; default: none",
    )
    n: int | None = Field(None, ge=1, description="edit only the first so many images; default: all")
    figures: int = Field(32, ge=0, description="how many images get a figure of their own")
    at: str = Field("last", description="snapshot of a run: last, best-frechet, best-loss or an image count")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an unreadable file ends the run or is skipped")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network; auto: what is fastest here"
    )
    micro_batch: int = Field(64, ge=1, description="images edited together")

    @field_validator("to", mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        """to=3 and to=007 name classes as they were written."""
        return as_text(value)
