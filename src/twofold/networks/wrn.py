"""The WideResNet of semi-supervised learning: a classifier of clean images with batch norms.

    x <- x0 / 0.5                                                           so that its standard deviation is about 1
    block   h = conv1(act(norm1(x))),  x <- conv2(act(norm2(h))) + shortcut(x)          act(x) = max(x, slope x)
    logits = linear(mean over pixels of act(norm(x)))

Zagoruyko and Komodakis 2016, as in MixMatch, FixMatch and FreeMatch: the shortcut is a 1x1 convolution where channels
change, and reads act(norm1(x)) in the first block. WRN-28-2 has 1,469,642 parameters for 10 classes of RGB images. It
is not told a noise level; `wideresnet` is the one that is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..settings.network import WRNSettings
from ..taps import Layer

STD = 0.5  # of x0


class BatchNorm(nn.BatchNorm2d):
    """The batch norm of these settings, then the leaky ReLU; computed in the precision of its weights."""

    def __init__(self, channels: int, settings: WRNSettings) -> None:
        super().__init__(channels, eps=settings.norm_eps, momentum=settings.norm_momentum)
        self.slope = settings.slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x.to(self.weight.dtype)), self.slope)


class WRNBlock(nn.Module):
    """Two 3x3 convolutions: (B, C, H, W) -> (B, D, H / stride, W / stride). first: the network's first block."""

    def __init__(self, before: int, channels: int, stride: int, settings: WRNSettings, first: bool) -> None:
        super().__init__()
        self.first, self.dropout = first, settings.dropout
        self.norm1 = BatchNorm(before, settings)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1)
        self.norm2 = BatchNorm(channels, settings)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.shortcut = nn.Identity() if before == channels else nn.Conv2d(before, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = h if self.first else x
        h = F.dropout(self.norm2(self.conv1(h)), self.dropout, self.training)
        return self.conv2(h) + self.shortcut(x)


class WRN(nn.Module):
    """forward(x0 (B, C, H, W) in [-1, 1]) -> logits (B, classes); the noise level and conditions are not looked at.

    classes: settings.classes, or else how many the data has. layers: "block.0", "block.1", ... in order.
    Raises `UserError` for images smaller than 4x4 and for fewer than 2 classes.
    """

    def __init__(self, settings: WRNSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        if min(shape[1:]) < 4:
            raise UserError("network.kind=wrn", f"images of {shape[1]}x{shape[2]} are too small", "use convnet")
        classes = settings.classes or classes
        if classes < 2:
            raise UserError("network.classes", f"a classifier of {classes} classes", "it needs at least 2")
        self.stem = nn.Conv2d(shape[0], 16, 3, padding=1)
        self.blocks, layers = nn.ModuleList(), dict[str, Layer]()
        before = 16
        for group in range(3):
            channels = 16 * settings.width * 2**group
            for i in range((settings.depth - 4) // 6):
                block = WRNBlock(before, channels, 2 if group and i == 0 else 1, settings, first=not self.blocks)
                layers[f"block.{len(self.blocks)}"] = Layer(block, channels, 2**group)
                self.blocks.append(block)
                before = channels
        self.layers: Mapping[str, Layer] = layers
        self.norm = BatchNorm(before, settings)
        self.linear = nn.Linear(before, classes)
        self._initialise(settings.slope)

    def _initialise(self, slope: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, slope, "fan_out", "leaky_relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, c_noise: Tensor | None = None, cond: object = None) -> Tensor:
        h = self.stem(x / STD)
        for block in self.blocks:
            h = block(h)
        return self.linear(self.norm(h).mean((2, 3)))
