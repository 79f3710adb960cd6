"""Settings of the networks (see `twofold.networks`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from .base import Settings
from .iddm import IDDMSettings
from .regression import RDNSettings
from .student import StudentSettings, whole_blocks


class TapHeadSettings(Settings):
    """A classifier that reads the mean of every map the encoder hands on: what makes a U-Net a joint model."""

    kind: Literal["taps", "published"] = Field(
        "taps",
        description="taps: layer norms, told the noise level by an embedding; published: Joint Diffusion's head, batch "
        "norms over the features and the raw time",
    )
    pool: int = Field(1, ge=1, description="maps are averaged over the parts of a grid of so many by so many")
    hidden: int | None = Field(
        None, ge=1, description="width of its hidden layer; null = half its input's (taps: at most 512)"
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout before both of its layers (published: 0.7)")
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")


class UNetSettings(Settings):
    """The U-Net of DDPM and its relatives: DDAE, Joint Diffusion (ADM) and EDM DDPM++ are option sets."""

    kind: Literal["unet"] = Field("unet", description="a U-Net")
    channels: int = Field(128, ge=4, description="channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 2, 2), min_length=1, description="channel multiplier per level")
    blocks: int = Field(2, ge=1, description="residual blocks per level (the decoder has one more)")
    attention: tuple[PositiveInt, ...] = Field((16,), description="resolutions (shorter side, pixels) with attention")
    heads: int = Field(1, ge=1, description="attention heads (ignored where head_channels is set)")
    head_channels: int | None = Field(None, ge=1, description="channels per attention head")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")
    classes: int | None = Field(None, ge=0, description="label classes; 0 = unconditional; null = those of the data")
    learned_variance: bool = Field(
        False, description="twice the outputs: the second half says how wide a reverse step is (improved DDPM, ADM)"
    )
    augment_dim: int = Field(0, ge=0, description="width of the augmentation label (9 for EDM's); 0 = none")
    resample: Literal["conv", "residual"] = Field(
        "conv", description="strided convolutions, or residual blocks (BigGAN)"
    )
    downsample_padding: Literal["both", "end"] = Field("both", description="zero padding of strided convolutions")
    conditioning: Literal["add", "scale_shift"] = Field("add", description="how the embedding enters a residual block")
    label_position: Literal["before", "after"] = Field("after", description="label added before or after the time MLP")
    embedding_order: Literal["sin_cos", "cos_sin"] = Field("sin_cos", description="order in the sinusoidal embedding")
    embedding_endpoint: bool = Field(True, description="lowest frequency is exactly 1/10000 (ADM: False)")
    embedding_channels: int | None = Field(
        None, ge=2, description="width of the sinusoidal embedding; null = channels (ADM at 512: twice that)"
    )
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
    checkpoint: bool = Field(
        False,
        exclude_if=lambda value: not value,  # older settings keep their hash
        description="keep a block's input alone and compute it anew in the backward pass: less memory, slower",
    )
    head: TapHeadSettings | None = Field(None, description="classifier head of a joint model; null = none")
    low_factor: Literal[2, 4, 8] | None = Field(
        None,
        exclude_if=lambda value: value is None,  # older settings keep their hash
        description="super-resolution: the network sees the image, so many times as small, beside the noisy one; null "
        "= it does not",
    )
    low_residual: bool = Field(
        True,
        exclude_if=lambda value: value,
        description="super-resolution: it predicts what the enlarged (bicubic) image lacks; false: the image itself",
    )
    low_noise: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda value: value == 0,
        description="super-resolution: trained with noise of levels up to this on the small image (x0 in [-1, 1]), and "
        "told which, for small images that are themselves made up or damaged; 0 = none",
    )

    @model_validator(mode="after")
    def _noise_on_what(self) -> UNetSettings:
        if self.low_noise and not self.low_factor:
            raise ValueError(f"low_noise={self.low_noise:g} is noise on a small image; it needs low_factor")
        return self


class DiTSettings(Settings):
    """The diffusion transformer of Peebles and Xie 2023: blocks of attention told noise and label by adaLN-Zero."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(2, ge=1, description="side of the squares that become tokens; divides height and width")
    width: int = Field(384, ge=4, description="channels of a token (S 384, B 768, L 1024, XL 1152); a multiple of 4")
    depth: int = Field(12, ge=1, description="blocks (S and B 12, L 24, XL 28)")
    heads: int = Field(6, ge=1, description="attention heads (S 6, B 12, L and XL 16)")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block's MLP, in widths of a token")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in attention's output and in the MLP")
    classes: int | None = Field(None, ge=0, description="label classes; 0 = unconditional; null = those of the data")
    learned_variance: bool = Field(
        False, description="twice the outputs: the second half says how wide a reverse step is"
    )
    embedding_channels: int = Field(256, ge=2, description="width of the sinusoidal embedding; even")
    embedding_endpoint: bool = Field(False, description="lowest frequency is exactly 1/10000 (diffusers: True)")
    embedders: Literal["shared", "each"] = Field(
        "shared", description="one embedding of noise level and label, or one for each block (diffusers' layout)"
    )
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of the layer norms")
    mlp_norm_eps: float | None = Field(None, gt=0, description="that before the MLP; null = norm_eps")
    checkpoint: bool = Field(
        False,
        exclude_if=lambda value: not value,  # older settings keep their hash
        description="keep a block's input alone and compute it anew in the backward pass: less memory, slower",
    )

    @model_validator(mode="after")
    def _divides(self) -> DiTSettings:
        for divisor, name in ((self.heads, f"heads={self.heads}"), (4, "4")):
            if self.width % divisor:
                raise ValueError(f"width={self.width} is not a multiple of {name}")
        if self.embedding_channels % 2:
            raise ValueError(f"embedding_channels={self.embedding_channels} is odd; it needs an even number")
        return self


class UViTSettings(Settings):
    """The U-ViT of Bao et al. 2023: noise level, label and patches are tokens, and skips join early and late blocks."""

    kind: Literal["uvit"] = "uvit"
    patch: int = Field(2, ge=1, description="side of the squares that become tokens; divides height and width")
    width: int = Field(512, ge=4, description="channels of a token (S 512, M 768, L 1024, H 1152); even")
    depth: int = Field(12, ge=2, description="blocks beside the middle one (S 12, M 16, L 20, H 28); even")
    heads: int = Field(8, ge=1, description="attention heads (S 8, M 12, L and H 16)")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block's MLP, in widths of a token")
    qkv_bias: bool = Field(False, description="biases of queries, keys and values")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in attention's output and in the MLP")
    skip: Literal["concat", "add", "linear_add", "add_linear", "none"] = Field(
        "concat",
        description="how a late block takes its early one in: linear of both side by side, their sum, the sum with a "
        "linear of the early one, a linear of the sum, or not at all",
    )
    time_mlp: bool = Field(False, description="an MLP on the sinusoidal embedding of the noise level")
    final_conv: bool = Field(True, description="a 3x3 convolution over the output (the published H: none)")
    classes: int | None = Field(None, ge=0, description="label classes; 0 = unconditional; null = those of the data")
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of the layer norms")
    init_std: float = Field(0.02, gt=0, description="standard deviation that linear layers begin with")
    checkpoint: bool = Field(
        False, description="keep a block's input alone and compute it anew in the backward pass: less memory, slower"
    )

    @model_validator(mode="after")
    def _divides(self) -> UViTSettings:
        for divisor, name in ((self.heads, f"heads={self.heads}"), (2, "2")):
            if self.width % divisor:
                raise ValueError(f"width={self.width} is not a multiple of {name}")
        if self.depth % 2:
            raise ValueError(f"depth={self.depth} is odd; half of the blocks stand on either side of the middle one")
        return self


class ConvNetSettings(Settings):
    """A small convolutional classifier: the independent judge of generated images, or a student."""

    kind: Literal["convnet"] = "convnet"
    channels: int = Field(32, ge=4, description="channels of the first stage; doubled at each reduction")
    stages: int = Field(2, ge=1, description="stages, each halving the resolution after the first")
    pool: int = Field(1, ge=1, description="the last map is averaged over the parts of a grid of so many by so many")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout before the linear layer")
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")


class WideResNetSettings(Settings):
    """A noise-conditional WideResNet, the published baseline of classifiers of noisy images."""

    kind: Literal["wideresnet"] = "wideresnet"
    depth: int = Field(28, ge=10, description="convolutional layers: 6 k + 4 for k blocks in each of three groups")
    width: int = Field(10, ge=1, description="channels of the groups: 16, 32 and 64 times this")
    embedding_scale: float | None = Field(
        None, gt=0, description="factor on the noise level's number; null = ln sigma (EDM), a time of 0..1 (others)"
    )
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        return whole_blocks(value)


class WRNSettings(Settings):
    """The WideResNet of semi-supervised learning: batch norms, clean images (WRN-28-2 as in FixMatch and FreeMatch)."""

    kind: Literal["wrn"] = "wrn"
    depth: int = Field(28, ge=10, description="convolutional layers: 6 k + 4 for k blocks in each of three groups")
    width: int = Field(2, ge=1, description="channels of the groups: 16, 32 and 64 times this")
    slope: float = Field(0.1, ge=0, lt=1, description="slope of the leaky ReLUs below 0")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the blocks")
    norm_eps: float = Field(1e-3, gt=0, description="epsilon of the batch norms")
    norm_momentum: float = Field(
        1e-3, gt=0, le=1, description="share of a step's statistics in the running ones; short runs need more"
    )
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        return whole_blocks(value)


class UNetEncoderSettings(Settings):
    """The encoder half of a U-Net with a pooled head: guided-diffusion's classifier of noisy images."""

    kind: Literal["unet_encoder"] = "unet_encoder"
    channels: int = Field(128, ge=4, description="channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2, 2, 2), min_length=1, description="channel multiplier per level")
    blocks: int = Field(2, ge=1, description="residual blocks per level")
    attention: tuple[PositiveInt, ...] = Field(
        (32, 16, 8), description="resolutions (shorter side, pixels) with attention"
    )
    head_channels: int = Field(64, ge=1, description="channels per attention head")
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = Field(
        "attention", description="head: attention or mean of the last map, or an MLP on the means of every map"
    )
    conditioning: Literal["add", "scale_shift"] = Field("scale_shift", description="how the embedding enters a block")
    resample: Literal["conv", "residual"] = Field("residual", description="strided convolutions, or residual blocks")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the residual blocks")
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")


class TrunkSettings(Settings):
    """A U-Net up to one of its layers, and a head: fine-tuning, or a classifier on frozen features."""

    kind: Literal["trunk"] = "trunk"
    layer: str | None = Field(
        None,
        description="last layer kept (dec.5, alias out_6); null = the best of its probe, else the middle",
    )
    head: Literal["linear", "mlp"] = Field("linear", description="linear, or an MLP that is told the noise level too")
    freeze: bool = Field(False, description="train the head alone")
    pretrained: bool = Field(True, description="start from the weights of init_from; false = from scratch")
    embedding_scale: float | None = Field(
        None, gt=0, description="factor on the noise level's number in the mlp head; null = as for wideresnet"
    )
    classes: int | None = Field(None, ge=2, description="classes; null = those of the data")
    unet: UNetSettings | None = Field(None, description="the U-Net; null = that of init_from")


class AutoencoderSettings(Settings):
    """The autoencoder of latent diffusion (Rombach et al. 2022), as diffusers runs it; the defaults are KL-f8."""

    kind: Literal["autoencoder"] = "autoencoder"
    channels: int = Field(128, ge=4, description="channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field(
        (1, 2, 4, 4), min_length=2, description="channel multiplier per level; each level but the last halves the size"
    )
    blocks: int = Field(2, ge=1, description="residual blocks per level (the decoder has one more)")
    latent_channels: int = Field(4, ge=1, description="channels of the latents")
    norm_groups: int = Field(32, ge=1, description="groups of the group norms; divides the channels of every level")
    attention: bool = Field(True, description="attention in the middle, over all places of the smallest map")

    @property
    def classes(self) -> int:
        """It is told no labels."""
        return 0

    @property
    def stride(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _groups_divide(self) -> AutoencoderSettings:
        for width in (self.channels * m for m in self.multipliers):
            if width % self.norm_groups:
                raise ValueError(f"norm_groups={self.norm_groups} does not divide the {width} channels of a level")
        return self


NetworkSettings = Annotated[
    UNetSettings
    | DiTSettings
    | UViTSettings
    | IDDMSettings
    | ConvNetSettings
    | WideResNetSettings
    | WRNSettings
    | UNetEncoderSettings
    | TrunkSettings
    | StudentSettings
    | AutoencoderSettings
    | RDNSettings,
    Field(discriminator="kind"),
]
