"""Settings of the autoencoder of a latent model: which one, and how its latents are kept and drawn."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from .base import Settings


class CodecSettings(Settings):
    """What turns images into the latents that are diffused. A bare string is its `source`: `codec=runs/autoencoder`."""

    source: str = Field(
        min_length=1,
        description="an autoencoder: the run of one, a latent model's run, a folder or hub name of diffusers' "
        "AutoencoderKL, or a file in the layout of the published KL-f8",
    )
    scale: float | None = Field(
        None, gt=0, description="factor on the latents; null = the autoencoder's own (Stable Diffusion: 0.18215)"
    )
    shift: float | None = Field(None, description="taken off the latents before that; null = the autoencoder's own")
    sample: bool = Field(
        True, description="draw from the posterior each time an image is visited; false = its mean, always"
    )
    store: bool = Field(
        True, description="encode the training images once and keep what they become; false = encode in every step"
    )
    mirror: bool | None = Field(None, description="keep that of mirror images too; null = where data.flip=true")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value
