"""The autoencoder of latent diffusion (Rombach et al. 2022, AutoencoderKL), which diffusers runs.

    z = mean + exp(logvar / 2) * noise,   (mean, logvar) = encoder(x0)          x0_hat = decoder(z)

Each level halves the maps but the last, so L levels make latents of 1 / 2^(L - 1) the height and width. With the
default settings it is the KL-f8 of Stable Diffusion: 83,653,863 parameters for RGB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import PixelCodec
from ..errors import UserError
from ..settings.network import AutoencoderSettings
from ..taps import Layer

LOGVAR = (-30.0, 20.0)  # the published range; outside it std is 0 or without meaning


def kl_options(settings: AutoencoderSettings, channels: int) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKL for images of so many channels."""
    levels = len(settings.multipliers)
    return {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(settings.channels * m for m in settings.multipliers),
        "layers_per_block": settings.blocks,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": settings.norm_groups,
        "mid_block_add_attention": settings.attention,
    }


class Autoencoder(nn.Module):
    """vae: diffusers' AutoencoderKL for images of `shape` (C, H, W). layers: none, it is no denoiser.

    latent_shape: (D, h, w). Raises `UserError` for images that cannot be halved often enough, and for widths that the
    groups of its norms do not divide.
    """

    layers: Mapping[str, Layer] = {}

    def __init__(self, settings: AutoencoderSettings, shape: tuple[int, int, int]) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.settings = settings
        channels, height, width = shape
        stride = settings.stride
        if height % stride or width % stride:
            what = f"its {len(settings.multipliers)} levels need multiples of {stride}"
            hint = f"set data.size={_up(height, stride)}x{_up(width, stride)}, or fewer network.multipliers"
            raise UserError(f"images of {height}x{width}", what, hint)
        self.latent_shape = (settings.latent_channels, height // stride, width // stride)
        self.vae: Any = AutoencoderKL(**kl_options(settings, channels))

    def moments(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar), both (B, D, h, w), of x0 (B, C, H, W); logvar in -30..20."""
        found = self.vae.quant_conv(self.vae.encoder(x0))
        mean, logvar = found.chunk(2, 1)
        return mean, logvar.clamp(*LOGVAR)

    def decode(self, z: Tensor) -> Tensor:
        """x0_hat (B, C, H, W) of z (B, D, h, w)."""
        return self.vae.decoder(self.vae.post_quant_conv(z))

    def forward(self, x0: Tensor, noise: Tensor | None = None, cond: object = None) -> Tensor:
        """x0_hat of the posterior's mean. The other arguments are for those who ask what a network costs."""
        return self.decode(self.moments(x0)[0])


class AutoencoderModel(nn.Module):
    """An autoencoder while it is trained: forward(x0, noise) -> (x0_hat, mean, logvar), all float32.

    shape: (C, H, W) of its images. autocast: as in `Denoiser`; only the convolutions run under it.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, network: Autoencoder, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.shape = network, shape
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Of the noise that a batch of it carries: that of its latents."""
        return self.network.latent_shape

    def forward(self, x0: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """noise: (B, D, h, w) standard normal, to decode a draw from the posterior; None: its mean."""
        with torch.autocast(x0.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            mean, logvar = self.network.moments(x0)
            mean, logvar = mean.float(), logvar.float()
            z = mean if noise is None else mean + (logvar / 2).exp() * noise
            x0_hat = self.network.decode(z)
        return x0_hat.float(), mean, logvar


def _up(side: int, stride: int) -> int:
    return -(-side // stride) * stride
