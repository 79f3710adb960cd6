"""Settings of `twofold evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from .base import Settings
from .data import DataSettings
from .tasks import Normaliser


class EvaluateSettings(Settings):
    """What samples are compared with, and how."""

    data: DataSettings | None = Field(None, description="real images; default: the run's own data")
    split: Literal["train", "validation", "test", "all"] = Field("all", description="part the distance is taken to")
    n: int = Field(1_000, ge=5, description="samples to measure")
    seed: int = Field(0, ge=0, description="seed of the first sample")
    encoder: str = Field(
        "auto",
        description="auto (pixels, averaged down if need be), pixels, pixels8 (of 8x8), convnet (the classifier), "
        "inception (FID's network), transformers:ORG/NAME (or a local folder), or cls:ORG/NAME (its class token)",
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
    sampler: str | None = Field(None, description="sampler; default: the run's usual one (validation.sampler)")
    steps: int | None = Field(None, ge=1, description="sampler steps; default: the run's usual ones, or 20")
    guidance: float = Field(1.0, ge=0, description="guidance scale: 1 conditional, 0 unconditional")
    guide: str | None = Field(
        None, description="who pulls samples to their class: labels, representations, own, or the run of a classifier"
    )
    guide_scale: float | None = Field(
        None, ge=0, description="how much the guide pulls; default: own 5, representations 4, a classifier 1"
    )
    guide_interval: tuple[float, float] | None = Field(
        None, description="the guide acts only where low < sigma <= high; default: at all levels it knows"
    )
    classifier: str | None = Field(None, description="run of a classifier that judges the samples; default: none")
    noise_levels: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="levels, in units of x0, at which a classifier is measured; default: 0.02 to 10 if it knows noise",
    )
    noise_draws: int = Field(1, ge=1, description="draws of noise per image and level")
    ood: str | None = Field(
        None, description="source of images of another kind: how well the model tells them from its own; default: none"
    )
    ood_images: int = Field(1_000, ge=20, description="ood: images of either kind, at most")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network while sampling; auto: what is fastest here"
    )
    micro_batch: int = Field(64, ge=1, description="images per forward pass")
    at: str = Field("last", description="snapshot: last, best-frechet, best-loss or an image count")
    likelihood: Literal["bound", "ode"] | None = Field(
        None,
        description="bits per dimension of held-out images: bound (variational) or ode (probability flow); "
        "default: not measured",
    )
    likelihood_images: int = Field(500, ge=2, description="likelihood: held-out images, at most")
    likelihood_steps: int | None = Field(
        None,
        ge=2,
        description="bound: levels of the chain; default: the model's table, or 1,000. ode: steps of 4 evaluations; "
        "default: 20",
    )
    likelihood_evaluations: int = Field(
        50, ge=2, description="bound: levels drawn at random for each image, without bias; as many as there are: all"
    )
    likelihood_draws: int = Field(1, ge=1, description="ode: draws of noise per image")
    normaliser: Normaliser | None = Field(
        None,
        description="landmarks: what errors are divided by: inter_ocular, box (root of the area of the points' box), "
        "two points, or pixels; default: as the run was trained",
    )
    threshold: float | None = Field(
        None, gt=0, description="landmarks: error above which an image failed; default: as the run was trained, or 0.1"
    )
    likelihood_labels: bool = Field(False, description="likelihood: of images given their own labels")

    @field_validator("guide_interval")
    @classmethod
    def _interval(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError(f"{value[0]:g} is not below {value[1]:g}")
        return value

    @field_validator("save_statistics")
    @classmethod
    def _npz(cls, value: str | None) -> str | None:
        """Told before anything is computed."""
        if value is not None and not value.endswith(".npz"):
            raise ValueError(f"statistics are kept as .npz; name it {value}.npz")
        return value
