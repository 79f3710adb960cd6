"""Settings of the networks (see `twofold.networks`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .base import Settings


class UNetSettings(Settings):
    """The U-Net of DDPM and its relatives: DDAE, Joint Diffusion (ADM) and EDM DDPM++ are option sets."""

    kind: Literal["unet"] = "unet"
    channels: int = Field(128, ge=4, description="channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 2, 2), min_length=1, description="channel multiplier per level")
    blocks: int = Field(2, ge=1, description="residual blocks per level (the decoder has one more)")
    attention: tuple[PositiveInt, ...] = Field((16,), description="resolutions (shorter side, pixels) with attention")
    heads: int = Field(1, ge=1, description="attention heads (ignored where head_channels is set)")
    head_channels: int | None = Field(None, ge=1, description="channels per attention head")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")
    classes: int | None = Field(None, ge=0, description="label classes; 0 = unconditional; null = those of the data")
    augment_dim: int = Field(0, ge=0, description="width of the augmentation label (9 for EDM's); 0 = none")
    resample: Literal["conv", "residual"] = Field(
        "conv", description="strided convolutions, or residual blocks (BigGAN)"
    )
    downsample_padding: Literal["both", "end"] = Field("both", description="zero padding of strided convolutions")
    conditioning: Literal["add", "scale_shift"] = Field("add", description="how the embedding enters a residual block")
    label_position: Literal["before", "after"] = Field("after", description="label added before or after the time MLP")
    embedding_order: Literal["sin_cos", "cos_sin"] = Field("sin_cos", description="order in the sinusoidal embedding")
    embedding_endpoint: bool = Field(True, description="lowest frequency is exactly 1/10000 (ADM: False)")
    norm_groups: int = Field(32, ge=1, description="groups of the group norms")
    norm_group_channels: int = Field(4, ge=1, description="fewest channels in a group; narrow layers get fewer groups")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the group norms")
    out_norm_groups: int | None = Field(None, ge=1, description="groups of the last norm (default norm_groups)")
    skip_scale: float = Field(1.0, gt=0, description="factor on every residual sum (EDM: sqrt(1/2))")
    resample_projection: bool = Field(False, description="1x1 convolution on the skip of resampling blocks (EDM)")
    decoder_attention: Literal["all", "last"] = Field("all", description="decoder blocks of a level that attend")
    init: Literal["default", "zero_out", "edm"] = Field(
        "default", description="PyTorch's initialisation, zero output convolutions (ADM), or EDM's"
    )


class ConvNetSettings(Settings):
    """A small convolutional classifier: the independent judge of generated images, or a student."""

    kind: Literal["convnet"] = "convnet"
    channels: int = Field(32, ge=4, description="channels of the first stage; doubled at each reduction")
    stages: int = Field(2, ge=1, description="stages, each halving the resolution after the first")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout before the linear layer")
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")


NetworkSettings = Annotated[UNetSettings | ConvNetSettings, Field(discriminator="kind")]
