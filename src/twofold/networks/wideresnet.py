"""The noise-conditional WideResNet: a classifier of noisy images that is told their noise level.

    x <- (x - mean) / max(std, 1/sqrt(N))                                  per image, over its N numbers
    block   h = conv1(relu(norm1(x))) + linear(silu(emb)),  x <- conv2(relu(norm2(h))) + shortcut(x)
    emb = linear(silu(linear([sin, cos](2 pi f c))))                       f fixed, c = embedding_scale * c_noise

Zagoruyko and Komodakis 2016 with group norms; Song et al. 2021 (score SDE), appendix I. WRN-28-10 has 38,913,114
parameters for 10 classes of RGB images. Because of the standardisation the network is blind to the scale of its input
(c_in x and x give the same logits unless an image is nearly constant): it learns the level from c_noise alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import Cond
from ..errors import UserError
from ..settings.network import WideResNetSettings
from ..taps import Layer

FREQUENCIES, SPREAD = 128, 16.0  # of the random Fourier features
WIDTH = 512  # of the embedding


class GroupNorm(nn.GroupNorm):
    """Groups of four channels, at most 32; computed in the precision of its weights, as `blocks.Norm`."""

    def __init__(self, channels: int) -> None:
        super().__init__(min(channels // 4, 32), channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class FourierEmbedding(nn.Module):
    """c_noise (B,) -> (B, 512): sines and cosines at frequencies drawn once, then two linear layers."""

    frequencies: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.randn(FREQUENCIES) * SPREAD)
        self.first = nn.Linear(2 * FREQUENCIES, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = (2 * math.pi * self.scale) * c_noise[:, None] * self.frequencies
        waves = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(waves)))


class WideBlock(nn.Module):
    """Two 3x3 convolutions: (B, C, H, W), (B, 512) -> (B, D, H / stride, W / stride).

    The shortcut has no weights: it averages pixels and appends channels of zeros. first: the network's first block,
    whose shortcut too starts after norm and activation.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, first: bool) -> None:
        super().__init__()
        self.stride, self.first = stride, first
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.emb = nn.Linear(WIDTH, channels)
        self.norm2 = GroupNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        x = h if self.first else x
        h = self.conv1(h) + self.emb(emb)[:, :, None, None]
        h = self.conv2(F.relu(self.norm2(h)))
        if self.stride > 1:  # an odd side's last pixels are averaged over what is there, as the convolution sees them
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return h + F.pad(x, (0, 0, 0, 0, 0, h.shape[1] - x.shape[1]))


class WideResNet(nn.Module):
    """forward(x (B, C, H, W), c_noise (B,)) -> logits (B, classes); conditions are not looked at.

    classes: settings.classes, or else how many the data has. layers: "block.0", "block.1", ... in order.
    Raises `UserError` for images smaller than 4x4 and for fewer than 2 classes.
    """

    def __init__(self, settings: WideResNetSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        if min(shape[1:]) < 4:
            raise UserError("network.kind=wideresnet", f"images of {shape[1]}x{shape[2]} are too small", "use convnet")
        classes = settings.classes or classes
        if classes < 2:
            raise UserError("network.classes", f"a classifier of {classes} classes", "it needs at least 2")
        self.settings = settings
        # a network by itself is given c_noise as it is; a run's embedding_scale follows from its noise family
        self.embedding = FourierEmbedding(settings.embedding_scale or 1.0)
        self.stem = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.blocks, self.layers = nn.ModuleList(), dict[str, Layer]()
        before = 16
        for group in range(3):
            channels = 16 * settings.width * 2**group
            for i in range((settings.depth - 4) // 6):
                block = WideBlock(before, channels, 2 if group and i == 0 else 1, first=len(self.blocks) == 0)
                self.layers[f"block.{len(self.blocks)}"] = Layer(block, channels, 2**group)
                self.blocks.append(block)
                before = channels
        self.norm = GroupNorm(before)
        self.linear = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        emb = F.silu(self.embedding(c_noise))
        h = self.stem(standardised(x))
        for block in self.blocks:
            h = block(h, emb)
        return self.linear(F.relu(self.norm(h)).mean((2, 3)))


def standardised(x: Tensor) -> Tensor:
    """Each image (B, C, H, W) less its mean, over its standard deviation or 1/sqrt(C H W), whichever is larger."""
    std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    return (x - mean) / std.clamp(min=math.prod(x.shape[1:]) ** -0.5)
