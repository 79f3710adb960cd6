"""Settings of IDDM's U-Net (see `twofold.networks.iddm`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from .base import Settings


class IDDMSettings(Settings):
    """The U-Net of IDDM: norms of one group, residual double convolutions, attention at every resolution."""

    kind: Literal["iddm"] = "iddm"
    channels: int = Field(64, ge=4, description="channels at full resolution")
    multipliers: tuple[PositiveInt, ...] = Field(
        (1, 2, 4),
        min_length=1,
        description="channel multiplier per level; below the last there is one more, as wide, and the middle, twice it",
    )
    act: Literal["gelu", "silu", "relu", "relu6", "lrelu"] = Field(
        "gelu", description="activation; lrelu has the slope 0.1 below 0"
    )
    heads: int = Field(4, ge=1, description="attention heads; divides the channels of every level that attends")
    attention: Literal["all", "below_full", "alternate", "none"] = Field(
        "all",
        description="where it attends: everywhere; not at full resolution, which costs most; at every second place "
        "(IDDM's slim network); nowhere",
    )
    up: Literal["bilinear", "transposed"] = Field(
        "bilinear", description="how maps are doubled: bilinearly, or by a transposed convolution (IDDM's unetv2)"
    )
    embedding_channels: int = Field(256, ge=2, description="width of the sinusoidal embedding; even")
    classes: int | None = Field(None, ge=0, description="label classes; 0 = unconditional; null = those of the data")

    @property
    def widths(self) -> list[int]:
        """Channels per level, full resolution first."""
        return [self.channels * m for m in self.multipliers]

    @property
    def places(self) -> list[str]:
        """Layers that attend, by name, in order of execution."""
        levels = len(self.multipliers)
        every = [*(f"enc.{k}" for k in range(1, levels + 1)), *(f"dec.{k}" for k in range(levels))]
        chosen = {"all": every, "below_full": every[:-1], "alternate": every[::2], "none": []}
        return chosen[self.attention]

    @model_validator(mode="after")
    def _divides(self) -> IDDMSettings:
        if self.attention != "none":
            for width in self.widths:
                if width % self.heads:
                    raise ValueError(f"heads={self.heads} does not divide the {width} channels of a level")
        if self.embedding_channels % 2:
            raise ValueError(f"embedding_channels={self.embedding_channels} is odd; it needs an even number")
        return self
