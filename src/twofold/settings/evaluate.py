"""Settings of `twofold evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

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
        description="auto (pixels, averaged down if need be), pixels, pixels8 (of 8x8), convnet (the classifier), "
        "inception (FID's network), or transformers:ORG/NAME (or a local folder)",
    )
    weights: str | None = Field(None, description="file of the inception encoder; default: looked for, or downloaded")
    metrics: tuple[Literal["kid", "coverage", "sfid", "inception_score"], ...] | None = Field(
        None,
        description="further metrics (coverage comes with density; sfid and inception_score need encoder=inception); "
        "default: kid and coverage for pretrained encoders, inception_score too for inception, none for others",
    )
    reference: str | None = Field(
        None, description="statistics file (.npz: mu, sigma) the distance is taken to; without data= nothing else is"
    )
    save_statistics: str | None = Field(None, description="write the statistics of `split` of the data to this .npz")
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

    @field_validator("save_statistics")
    @classmethod
    def _npz(cls, value: str | None) -> str | None:
        """Told before anything is computed."""
        if value is not None and not value.endswith(".npz"):
            raise ValueError(f"statistics are kept as .npz; name it {value}.npz")
        return value
