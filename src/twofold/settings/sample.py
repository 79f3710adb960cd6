"""Settings of sampling: how many images, of what, and by which solver (see `twofold.generate`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .base import Settings

OPTIONS = ("eta", "variance", "s_churn", "s_min", "s_max", "s_noise")  # passed on to the sampler where they are given


class SampleSettings(Settings):
    """What to generate. Where a field is empty the sampler's or the model's own value is used."""

    n: int = Field(64, ge=1, description="number of images")
    seed: int = Field(0, ge=0, description="seed of the first image; image i has seed + i")
    label: int | str | None = Field(
        "all", description="all (classes in turn), none, a class name, or the index of a class where none has that name"
    )
    at: str = Field("last", description="snapshot of a run: last, best-frechet, best-loss or an image count")
    sampler: str = Field("dpmpp2m", description="dpmpp2m, heun, euler, ddim or ddpm")
    steps: int | None = Field(None, ge=1, description="solver steps; default: the sampler's (dpmpp2m: 20)")
    grid: Literal["karras", "log", "time", "ddim"] | None = Field(
        None, description="spacing of the noise levels; default: the sampler's (dpmpp2m: log; heun: karras)"
    )
    guidance: float = Field(1.0, ge=0, description="1 = conditional, 0 = unconditional, above 1 exaggerates the class")
    guidance_interval: tuple[float, float] | None = Field(
        None, description="guide only where low < sigma <= high, sigma in units of x0; default: everywhere"
    )
    guide: str | None = Field(
        None, description="run of a classifier that knows noise and pulls samples to their class; default: none"
    )
    guide_scale: float = Field(1.0, ge=0, description="how much the guide pulls: 0 = not at all, 1 = by Bayes' rule")
    guide_interval: tuple[float, float] | None = Field(
        None, description="the guide acts only where low < sigma <= high; default: at all levels it knows"
    )
    eta: float | None = Field(None, ge=0, le=1, description="ddim: 0 follows the ODE, 1 is ancestral")
    variance: Literal["small", "large"] | None = Field(None, description="ddpm: posterior variance, or beta")
    s_churn: float | None = Field(None, ge=0, description="heun: total stochasticity, 0 = none")
    s_min: float | None = Field(None, ge=0, description="heun: smallest sigma that is churned")
    s_max: float | None = Field(None, ge=0, description="heun: largest sigma that is churned")
    s_noise: float | None = Field(None, ge=0, le=2, description="heun: standard deviation of the churned noise")
    sigma_min: float | None = Field(None, gt=0, description="smallest sigma of the grid; default: the model's")
    sigma_max: float | None = Field(None, gt=0, description="largest sigma of the grid; default: the model's")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the network; auto: what is fastest here, or what the folder was begun in"
    )
    micro_batch: int = Field(64, ge=1, description="images per forward pass; part of what makes images bit-identical")
    clip: bool | None = Field(None, description="clamp x0_hat to [-1, 1]; default: pixel models yes, latent models no")
    png: bool = Field(True, description="write one PNG per image")
    npz: bool = Field(True, description="write images.npz (arr_0 uint8 NHWC, arr_1 labels)")
    columns: int = Field(10, ge=1, description="columns, and at most as many rows, of grid.png")

    @model_validator(mode="after")
    def _intervals(self) -> SampleSettings:
        for name, low, high in (
            ("guidance_interval", *(self.guidance_interval or (0.0, 1.0))),
            ("guide_interval", *(self.guide_interval or (0.0, 1.0))),
            ("sigma_min, sigma_max", self.sigma_min or 0.0, self.sigma_max or float("inf")),
        ):
            if not 0 <= low < high:
                raise ValueError(f"{name}: {low:g} is not below {high:g}")
        return self

    def sampler_options(self) -> dict[str, Any]:
        """The options of the sampler that were given."""
        return {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
