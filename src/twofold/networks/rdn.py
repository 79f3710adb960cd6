"""Super-resolution in one pass: the residual dense network of Zhang et al. 2018 (RDN), as IDDM's SRv1 has it.

    shallow   first = conv3(low),  h = conv3(first)
    block     h + conv1([h, d_1, .., d_L]),   d_k = silu(conv3([h, d_1, .., d_k-1]))
    fused     first + conv3(conv1([block_1, .., block_B]))
    large     bicubic(low) + conv3(shuffle(conv3(fused)))              (the paper and SRv1: without bicubic(low))

All of it is at the size of the low image but for the last convolution, and none of it looks at a whole image, so any
size will do. It answers with one image: trained with squared error, the mean of all that fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import PixelCodec
from ..lowres import check_divides, enlarge
from ..settings.regression import RDNSettings
from ..taps import Layer


class DenseBlock(nn.Module):
    """Each layer sees what all before it in the block have found: (B, channels, h, w) -> the same."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = range(channels, channels + layers * growth, growth)
        self.layers = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.fuse = nn.Conv2d(channels + layers * growth, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        found = [h]
        for layer in self.layers:
            found.append(F.silu(layer(torch.cat(found, 1))))
        return h + self.fuse(torch.cat(found, 1))


class RDN(nn.Module):
    """`upscale(low)`: x0 (B, C, h, w) in [-1, 1] -> (B, C, factor h, factor w), float32 or better, not clamped.

    With `low_residual` an untrained one is bicubic enlargement. layers: none, it is no denoiser. shape: (C, H, W) of
    the large images. Raises `UserError` for one whose sides the factor does not divide.
    """

    layers: Mapping[str, Layer] = {}

    def __init__(self, settings: RDNSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        s = self.settings = settings
        check_divides(shape[1], shape[2], s.low_factor)
        self.first = nn.Conv2d(shape[0], s.channels, 3, padding=1)
        self.second = nn.Conv2d(s.channels, s.channels, 3, padding=1)
        self.blocks = nn.ModuleList(DenseBlock(s.channels, s.growth, s.dense_layers) for _ in range(s.blocks))
        self.fuse = nn.Conv2d(s.blocks * s.channels, s.channels, 1)
        self.third = nn.Conv2d(s.channels, s.channels, 3, padding=1)
        self.up = nn.Conv2d(s.channels, s.channels * s.low_factor**2, 3, padding=1)
        self.out = nn.Conv2d(s.channels, shape[0], 3, padding=1)
        if s.low_residual:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def upscale(self, low: Tensor) -> Tensor:
        factor = self.settings.low_factor
        first = self.first(low)
        h, found = self.second(first), []
        for block in self.blocks:
            h = block(h)
            found.append(h)
        h = first + self.third(self.fuse(torch.cat(found, 1)))
        large: Tensor = self.out(F.pixel_shuffle(self.up(h), factor)).to(low.dtype)
        if not self.settings.low_residual:
            return large
        return enlarge(low, low.shape[2] * factor, low.shape[3] * factor) + large

    def forward(self, x0: Tensor, c_noise: Tensor | None = None, cond: object = None) -> Tensor:
        """`upscale` of every factor-th pixel of x0 (B, C, H, W). For those who ask what a network costs, and call it as
        they call a denoiser's."""
        factor = self.settings.low_factor
        return self.upscale(x0[:, :, ::factor, ::factor])


class Upscaler(nn.Module):
    """A super-resolution model that draws nothing: forward(low x0 (B, C, h, w)) -> x0_hat (B, C, factor h, factor w).

    shape: (C, H, W) of the images it was trained on. autocast: as in `Denoiser`. low_factor: as there.
    """

    class_names: tuple[str, ...] = ()
    classes = 0

    def __init__(self, network: RDN, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.shape, self.low_factor = network, shape, int(network.settings.low_factor)
        self.codec = PixelCodec()
        self.autocast: torch.dtype | None = None

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self.network.layers

    def forward(self, low: Tensor) -> Tensor:
        with torch.autocast(low.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.network.upscale(low)
