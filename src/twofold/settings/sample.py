"""Settings of sampling: how many images, of what, and by which solver (see `twofold.generate`)."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Settings
from .size import Size

# passed on to the sampler where they are given
OPTIONS = ("eta", "variance", "order", "variant", "s_churn", "s_min", "s_max", "s_noise")

GUIDES = ("labels", "representations", "own")  # of `generate.guide`, besides the runs of classifiers
GRIDS = ("karras", "log", "time", "ddim")  # of `noise.grid`
FAST = "fast"  # the nodes of DPM-Solver-fast
RESPACING = re.compile(r"ddim\d+|\d+(,\d+)*")  # of a table: ddim25, 250, or 10,15,20


class SampleSettings(Settings):
    """What to generate. Where a field is empty the sampler's or the model's own value is used."""

    n: int = Field(64, ge=1, description="number of images")
    seed: int = Field(0, ge=0, description="seed of the first image; image i has seed + i")
    label: int | str | None = Field(
        "all",
        description="all (classes in turn), none, train (drawn from the training images), a class name, the index of a "
        "class where none has that name, or attributes joined by ; such as 'Smiling;not Male'",
    )
    at: str = Field("last", description="snapshot of a run: last, best-frechet, best-loss or an image count")
    size: Size = Field(None, description="height x width in pixels: 32 or 32x48; default: as the model was trained")
    sampler: str | None = Field(
        None,
        description="default: the run's usual one (validation.sampler: dpmpp2m; for iddm ddpm). ODE: dpmpp2m, dpmpp3m, "
        "unipc, plms, lms, heun, ddim, euler, dpm1, dpm2, dpm3, dpm_fast, dpmpp2s, dpmpp3s, dpmpp_fast; with noise at "
        "every step: dpmpp2m_sde, euler_ancestral, ddpm",
    )
    steps: int | None = Field(None, ge=1, description="solver steps; default: the run's or the sampler's (dpmpp2m: 20)")
    grid: str | None = Field(
        None,
        description="spacing of the noise levels: karras, log, time, ddim, fast, or a respaced table such as ddim25 or "
        "10,15,20; default: the sampler's (dpmpp2m: log; heun: karras)",
    )
    to_zero: bool = Field(True, description="the last step goes to sigma 0; false: it ends at the smallest level")
    guidance: float = Field(1.0, ge=0, description="1 = conditional, 0 = unconditional, above 1 exaggerates the class")
    guidance_interval: tuple[float, float] | None = Field(
        None, description="guide only where low < sigma <= high, sigma in units of x0; default: everywhere"
    )
    guide: str | None = Field(
        None,
        description="who pulls samples to their label: labels (the model's condition, by guidance), representations or "
        "own (the head of a joint model), or the run of a classifier that knows noise; default: labels, if it has any",
    )
    guide_scale: float | None = Field(
        None,
        ge=0,
        description="how much the guide pulls: 0 = not at all; 1 = by Bayes' rule (own, classifiers) or maps moved by "
        "their whole length (representations); default: own 5, representations 4, a classifier 1",
    )
    guide_interval: tuple[float, float] | None = Field(
        None, description="the guide acts only where low < sigma <= high; default: at all levels it knows"
    )
    eta: float | None = Field(
        None, ge=0, le=1, description="ddim, euler_ancestral, dpmpp2m_sde: 0 follows the ODE, 1 is ancestral"
    )
    variance: Literal["small", "large", "learned"] | None = Field(
        None, description="ddpm: posterior variance, beta, or between the two by a network that learned it"
    )
    order: int | None = Field(None, ge=1, le=4, description="unipc: 2 or 3; lms: 1 to 4")
    variant: Literal["bh1", "bh2"] | None = Field(None, description="unipc: the function B(h) of its paper")
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

    @field_validator("grid", mode="before")
    @classmethod
    def _grid(cls, value: Any) -> Any:
        """A respacing may arrive as a number or as a list of them."""
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if value is None:
            return None
        text = str(value).replace(" ", "")
        if text not in (*GRIDS, FAST) and not RESPACING.fullmatch(text):
            raise ValueError(
                f"{value!r} is no grid; valid: {', '.join(GRIDS)}, {FAST}, or a respacing such as ddim25 or 10,15,20"
            )
        return text

    @field_validator("guidance_interval", "guide_interval")
    @classmethod
    def _interval(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] < 0:
            raise ValueError(f"{value[0]:g} is below 0, the least noise there is; give [low, high]")
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"{value[0]:g} is not below {value[1]:g}; give [low, high]")
        return value

    @model_validator(mode="after")
    def _range(self) -> SampleSettings:
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"sigma_min={low:g} is not below sigma_max={high:g}")
        return self

    def sampler_options(self) -> dict[str, Any]:
        """The options of the sampler that were given."""
        return {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
