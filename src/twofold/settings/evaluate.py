"""Settings of `twofold evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Settings
from .data import DataSettings


class EvaluateSettings(Settings):
    """What samples are compared with, and how."""

    data: DataSettings | None = Field(None, description="real images; default: the run's own data")
    split: Literal["train", "validation", "test", "all"] = Field("all", description="part the distance is taken to")
    n: int = Field(1_000, ge=5, description="samples to measure")
    seed: int = Field(0, ge=0, description="seed of the first sample")
    encoder: str = Field(
        "auto",
        description="auto (pixels, averaged down if need be), pixels, pixels8 (of 8x8), or convnet (the classifier)",
    )
    sampler: str = Field("dpmpp2m", description="sampler")
    steps: int = Field(20, ge=1, description="sampler steps")
    guidance: float = Field(1.0, ge=0, description="guidance scale: 1 conditional, 0 unconditional")
    classifier: str | None = Field(None, description="run of a classifier that judges the samples; default: none")
    noise_levels: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="levels, in units of x0, at which a classifier is measured; default: 0.02 to 10 if it knows noise",
    )
    noise_draws: int = Field(1, ge=1, description="draws of noise per image and level")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network while sampling; auto: what is fastest here"
    )
    micro_batch: int = Field(64, ge=1, description="images per forward pass")
    at: str = Field("last", description="snapshot: last, best-frechet, best-loss or an image count")
