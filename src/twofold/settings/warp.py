"""Settings of the augmentation that moves an image together with its mask or its key points."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Settings
from .size import Size

Distribution = Literal["uniform", "normal"]


class WarpSettings(Settings):
    """One random similarity map an image (turned, enlarged, moved), a random crop, and colours; default: nothing.

    Published, for masks (RepFusion's BiSeNet): scale=[0.5,2] crop=448 cat_max_ratio=0.75 colour=1. For key points (its
    WFLW): turn=30 turn_distribution=normal turn_probability=0.6 scale=[0.75,1.25] scale_distribution=normal.
    """

    scale: tuple[float, float] = Field((1.0, 1.0), description="least and largest enlargement; 2 shows half a side")
    scale_distribution: Distribution = Field(
        "uniform", description="uniform, or normal: about the middle of scale, one deviation to each end, clipped there"
    )
    turn: float = Field(0.0, ge=0, le=180, description="degrees: largest turn, or the deviation if normal")
    turn_distribution: Distribution = Field("uniform", description="uniform, or normal: clipped at two deviations")
    turn_probability: float = Field(1.0, ge=0, le=1, description="share of images that are turned")
    shift: float = Field(0.0, ge=0, le=1, description="largest move to each side, as a share of that side")
    crop: Size = Field(None, description="random crop to this height x width, the sides padded where it is larger")
    cat_max_ratio: float | None = Field(
        None, gt=0, le=1, description="draw a crop again, 10 times at most, where one class fills more of it than this"
    )
    colour: float = Field(
        0.0, ge=0, le=2, description="strength of random brightness, contrast, saturation and hue; 1 as published"
    )
    pad: Literal["black", "edge"] = Field("black", description="what an image shows beyond its sides; masks: void")

    @property
    def moves(self) -> bool:
        """Whether any pixel may come to lie elsewhere."""
        return self.scale != (1.0, 1.0) or self.shift > 0 or self.crop is not None or self.turns

    @property
    def turns(self) -> bool:
        """Whether any image is turned."""
        return self.turn > 0 and self.turn_probability > 0

    @model_validator(mode="after")
    def _range(self) -> WarpSettings:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale reaches from {low:g} to {high:g}; write the smaller one first, both above 0")
        if self.cat_max_ratio is not None and self.crop is None:
            raise ValueError("cat_max_ratio is about crops; set crop too, or leave it out")
        return self
