"""What the weights of a published checkpoint do not tell; `x.json` beside `x.pt` holds it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings
from .noise import VPNoise


class CheckpointSettings(Settings):
    """Options of a foreign checkpoint. null = as the weights, or the published models with such weights, have it."""

    size: int | None = Field(None, ge=1, description="height and width of x0: pixels, or those of the latents")
    heads: int | None = Field(None, ge=1, description="attention heads")
    head_channels: int | None = Field(None, ge=1, description="channels per attention head, instead of heads")
    attention_order: Literal["legacy", "new"] | None = Field(
        None,
        description="rows of guided-diffusion's qkv: legacy = q, k, v of each head in turn; new = all q, all k, all v",
    )
    noise: VPNoise | None = Field(None, description="the noise table and what the network predicts")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks, where training goes on")
    autoencoder: str | None = Field(
        None, min_length=1, description="folder of diffusers' AutoencoderKL (latent models)"
    )
    class_names: tuple[str, ...] = Field((), description="what the classes are called, in order")
