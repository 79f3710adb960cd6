"""The WideResNet that RepFusion distils into: pre-activation, leaky ReLUs, convolutions without biases.

    block   h = conv1(act(norm1(x))),  x <- conv2(act(norm2(h))) + shortcut(x)          act(x) = max(x, slope x)

The shortcut is a 1x1 convolution where channels change, and reads act(norm1(x)) in the first block (Zagoruyko and
Komodakis 2016, as in FixMatch's code). 1,466,320 parameters for WRN-28-2 and 36,472,784 for WRN-28-10, without the last
layer. The network kind `wrn` is the same with biases, whose publications have them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...settings.student import WideSettings
from ...taps import Layer
from .parts import Backbone, Norm, Pointwise, check_size, initialise


class WideBlock(nn.Module):
    """Two 3x3 convolutions: (B, C, H, W) -> (B, D, H / stride, W / stride). first: the network's first block."""

    def __init__(self, before: int, channels: int, stride: int, settings: WideSettings, first: bool) -> None:
        super().__init__()
        self.first, self.slope = first, settings.slope
        self.norm1 = Norm(before, settings)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm2 = Norm(channels, settings)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity() if before == channels else Pointwise(before, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(x), self.slope)
        x = h if self.first else x
        h = F.leaky_relu(self.norm2(self.conv1(h)), self.slope)
        return self.conv2(h) + self.shortcut(x)


class Wide(Backbone):
    """The backbone of these settings; see `Backbone`. Strides 1, 2, 4; the last map is normed and activated.

    layers has "norm" too, RepFusion's hook `bn1`: the last map before its leaky ReLU.
    """

    def __init__(self, settings: WideSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        check_size("wide", shape, 4)
        self.stem = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.groups, layers, before = nn.ModuleList(), dict[str, Layer](), 16
        for i in range(3):
            group, channels = nn.Sequential(), 16 * settings.width * 2**i
            for k in range((settings.depth - 4) // 6):
                group.append(WideBlock(before, channels, 2 if i and k == 0 else 1, settings, first=not i and not k))
                before = channels
            self.groups.append(group)
            layers[f"stage.{i}"] = Layer(group, before, 2**i)
        self.norm, self.act = Norm(before, settings), nn.LeakyReLU(settings.slope)
        del layers["stage.2"]
        self.layers = {**layers, "norm": Layer(self.norm, before, 4), "stage.2": Layer(self.act, before, 4)}
        self.aliases = {"bn1": "norm"}
        initialise(self.modules(), settings.slope)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [map for name, map in self.named_maps(x).items() if name.startswith("stage.")]

    def named_maps(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        x = self.stem(x)
        for i, group in enumerate(self.groups):
            x = group(x)
            maps[f"stage.{i}"] = x
        del maps["stage.2"]
        maps["norm"] = self.norm(x)
        return {**maps, "stage.2": self.act(maps["norm"])}
