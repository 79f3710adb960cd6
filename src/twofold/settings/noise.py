"""Settings of the noise families: what sigma means to a network (see `twofold.noise`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Settings


class VPNoise(Settings):
    """Variance preserving (DDPM): a table of alpha-bar and what the network predicts."""

    kind: Literal["vp"] = "vp"
    table: Literal["linear", "joint", "cosine", "scaled_linear", "sqrt_linear", "sqrt", "continuous"] = Field(
        "linear",
        description="beta table: linear 1e-4..0.02, joint 1e-3..0.02, cosine, scaled_linear (Stable Diffusion), "
        "sqrt_linear and sqrt (IDDM: of 1e-4..0.02 the roots are linear, or linear is what the root is taken of), "
        "continuous (beta 0.1..20)",
    )
    steps: int = Field(1000, ge=2, description="entries of the table (ignored by continuous)")
    first: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: value == 0,  # older settings keep their hash
        description="first entry of the table that is trained on and sampled from (IDDM: 1)",
    )
    predicts: Literal["eps", "v", "x0"] = Field("eps", description="what the network's output means")
    time_offset: float = Field(0.0, description="the network is given (t + time_offset) * time_scale, t = 0..steps-1")
    time_scale: float = Field(1.0, gt=0, description="see time_offset; DDAE uses offset 1 and scale 1/1000")
    discrete: bool = Field(False, description="round t to the nearest entry instead of interpolating")
    t_min: float = Field(1e-3, gt=0, lt=1, description="smallest time of the continuous table")

    @model_validator(mode="after")
    def _first_is_in_the_table(self) -> VPNoise:
        if self.first and self.table == "continuous":
            raise ValueError("first is about the entries of a table, and table=continuous has none; set t_min")
        if self.first > self.steps - 2:
            raise ValueError(f"first={self.first} leaves no two of the {self.steps} entries")
        return self


class EDMNoise(Settings):
    """EDM (Karras et al. 2022): preconditioned x0, ln sigma normally distributed in training."""

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of x0")
    sigma_min: float = Field(0.002, gt=0, description="smallest sigma")
    sigma_max: float = Field(80.0, gt=0, description="largest sigma")
    p_mean: float = Field(-1.2, description="mean of ln sigma in training")
    p_std: float = Field(1.2, gt=0, description="standard deviation of ln sigma in training")


class FlowNoise(Settings):
    """Flow matching (rectified flow): the network predicts noise - x0 at t = sigma / (1 + sigma)."""

    kind: Literal["flow"] = "flow"
    t_min: float = Field(1e-3, gt=0, lt=0.5, description="smallest t; sigma = t / (1 - t)")
    t_max: float = Field(0.999, gt=0.5, lt=1, description="largest t (t = 1 would be an infinite sigma)")
    time_scale: float = Field(1000.0, gt=0, description="the network is given t * time_scale")
    training: Literal["uniform", "logit_normal"] = Field("logit_normal", description="distribution of t in training")


NoiseSettings = Annotated[VPNoise | EDMNoise | FlowNoise, Field(discriminator="kind")]
