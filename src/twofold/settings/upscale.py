"""Settings of `twofold upscale`: which images become larger, how, and what they are measured against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Settings


class UpscaleSettings(Settings):
    """How images are enlarged. Where a field is empty the sampler's or the model's own value is used."""

    shrink: bool = Field(
        False, description="the images are what should come out: each is shrunk, enlarged again and measured"
    )
    truth: str | None = Field(
        None, min_length=1, description="folder of the true large images, of the same names, to measure against"
    )
    split: Literal["test", "validation"] = Field(
        "test", description="without IMAGES: the part of the run's own data that is shrunk, enlarged and measured"
    )
    n: int | None = Field(None, ge=1, description="only the first so many images; default: all")
    seed: int = Field(0, ge=0, lt=2**63, description="seed; an image's noise depends on it and on the image alone")
    sampler: str = Field("dpmpp2m", description="as for `twofold sample`")
    steps: int | None = Field(
        None,
        ge=1,
        description="solver steps; default: the sampler's (dpmpp2m: 20); 1: the mean of all that fits, smooth",
    )
    sigma_max: float | None = Field(None, gt=0, description="noise level it starts from; default: the model's largest")
    low_noise: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda value: value == 0,  # older folders keep their names
        description="level of noise put on the small images, up to network.low_noise of training: the model then "
        "trusts them less; for images that are damaged, compressed or made by another model",
    )
    label: int | str | None = Field(None, description="class of all images, where the model knows classes")
    guidance: float = Field(1.0, ge=0, description="1 = as trained, above 1 exaggerates the class")
    tile: int | None = Field(
        None,
        ge=0,
        description="side in pixels of the overlapping parts in which a large image is made; 0: never in parts; "
        "default: twice that of the training images",
    )
    most_pixels: int = Field(
        1 << 24, ge=1, description="an image that would have more pixels than this is refused: it takes long"
    )
    encoder: str | None = Field(
        None,
        description="also the Frechet distance to the true images with this encoder (pixels, inception, ...), where "
        "all have one size; default: none",
    )
    figures: int = Field(16, ge=0, description="how many images comparison.png shows")
    at: str = Field("last", description="snapshot of a run: last, best-psnr, best-loss or an image count")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an unreadable file ends the run or is skipped")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network; auto: what is fastest here"
    )
    micro_batch: int | None = Field(
        None, ge=1, description="images enlarged together; default: as many as have 2^16 pixels, 64 at most"
    )

    @model_validator(mode="after")
    def _one_truth(self) -> UpscaleSettings:
        if self.shrink and self.truth is not None:
            raise ValueError("shrink=true says that the images themselves are the truth; leave truth out")
        return self
