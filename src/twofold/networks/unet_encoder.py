"""The encoder half of a U-Net with a pooled head: guided-diffusion's classifier of noisy images.

    stem and levels of the U-Net, middle, then one of
    attention    one query (the mean pixel) looks at all pixels       adaptive    mean over pixels, linear
    spatial      means of every map, linear, ReLU, linear             spatial_v2  the same with norm and SiLU

Dhariwal and Nichol 2021, section 4 and appendix; attention pooling as in Radford et al. 2021 (CLIP). With its default
settings it has 17,445,386 parameters for 10 classes of 32x32 RGB images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..denoiser import Cond
from ..errors import UserError
from ..settings.network import UNetEncoderSettings, UNetSettings
from .blocks import Norm, attend, silu
from .unet import UNet

HIDDEN = 2048  # of the spatial pools


class UNetEncoder(nn.Module):
    """forward(x (B, C, H, W), c_noise (B,)) -> logits (B, classes); conditions are not looked at.

    classes: settings.classes, or else how many the data has. layers: "enc.0" ... "mid", as in `UNet`.
    Raises `UserError` as `UNet` does, and for fewer than 2 classes.
    """

    def __init__(self, settings: UNetEncoderSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        classes = settings.classes or classes
        if classes < 2:
            raise UserError("network.classes", f"a classifier of {classes} classes", "it needs at least 2")
        self.settings, inner = settings, _unet_settings(settings)
        self.unet = UNet(inner, shape)
        self.unet.truncate("mid")
        self.layers = self.unet.layers
        channels = self.layers["mid"].channels
        self.every = settings.pool in ("spatial", "spatial_v2")
        width = sum(layer.channels for layer in self.layers.values()) if self.every else channels
        self.pool: nn.Module
        match settings.pool:
            case "attention":
                pixels = -(-shape[1] // self.unet.multiple) * -(-shape[2] // self.unet.multiple)
                self.pool = AttentionPool(channels, pixels, settings.head_channels, classes, inner)
            case "adaptive":
                self.pool = MeanPool(channels, classes, inner)
            case "spatial":
                self.pool = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
            case _:
                norm = Norm(HIDDEN, inner)
                self.pool = nn.Sequential(nn.Linear(width, HIDDEN), norm, nn.SiLU(), nn.Linear(HIDDEN, classes))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        maps = self.unet.encode(x, c_noise).taps
        if self.every:
            return self.pool(torch.cat([h.float().mean((2, 3)) for h in maps.values()], dim=1))
        return self.pool(maps["mid"])


class AttentionPool(nn.Module):
    """(B, C, H, W) -> (B, classes): what the mean pixel sees in all pixels and in itself, by position.

    pixels: H * W. head_channels divides C, as it does in the layers before.
    """

    def __init__(self, channels: int, pixels: int, head_channels: int, classes: int, settings: UNetSettings) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = Norm(channels, settings)
        self.position = nn.Parameter(torch.randn(pixels + 1, channels) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = silu(self.norm(x)).flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.position
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N + 1, d)
            for part in self.qkv(tokens).chunk(3, dim=2)
        )
        return self.proj(attend(q[:, :, :1], k, v).flatten(1))


class MeanPool(nn.Module):
    """(B, C, H, W) -> (B, classes): norm, SiLU, mean over pixels, a linear layer that begins at zero."""

    def __init__(self, channels: int, classes: int, settings: UNetSettings) -> None:
        super().__init__()
        self.norm = Norm(channels, settings)
        self.linear = nn.Linear(channels, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(silu(self.norm(x)).mean((2, 3)))


def _unet_settings(settings: UNetEncoderSettings) -> UNetSettings:
    """The U-Net that this is the first half of: Dhariwal and Nichol's."""
    return UNetSettings(
        channels=settings.channels,
        multipliers=settings.multipliers,
        blocks=settings.blocks,
        attention=settings.attention,
        head_channels=settings.head_channels,
        dropout=settings.dropout,
        classes=0,
        resample=settings.resample,
        conditioning=settings.conditioning,
        embedding_order="cos_sin",
        embedding_endpoint=False,
        init="zero_out",
    )
