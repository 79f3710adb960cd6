"""Residual networks of images (He et al. 2016), with the stem of CIFAR or that of ImageNet.

    basic       x <- relu(shortcut(x) + norm(conv3x3(relu(norm(conv3x3(x))))))
    bottleneck  x <- relu(shortcut(x) + norm(conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(x)))))))))  4 times wider

The first block of a stage but the first has stride 2, in its 3x3 convolution; its shortcut is a 1x1 convolution and a
norm, which it also is where channels change. Without the last layer ResNet-18 has 11,168,832 parameters (CIFAR) or
11,176,512 (ImageNet), ResNet-50 23,508,032.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...settings.student import NormSettings, ResNetSettings
from ...taps import Layer
from .parts import Backbone, ConvNorm, Norm, check_size, initialise, relu

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Block(nn.Module):
    """A residual block: (B, C, H, W) -> (B, D, H / stride, W / stride); D is `expansion` times `channels`."""

    expansion = 1

    def __init__(self, before: int, channels: int, stride: int, norm: NormSettings) -> None:
        super().__init__()
        after = channels * self.expansion
        self.body = self._body(before, channels, stride, norm)
        changed = stride > 1 or before != after
        self.shortcut = ConvNorm(before, after, 1, stride, norm=norm) if changed else nn.Identity()

    def _body(self, before: int, channels: int, stride: int, norm: NormSettings) -> nn.Sequential:
        return nn.Sequential(
            ConvNorm(before, channels, 3, stride, relu(), norm), ConvNorm(channels, channels, 3, norm=norm)
        )

    @property
    def last_norm(self) -> Norm:
        return self.body[-1][1]  # type: ignore[index, return-value]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


class Bottleneck(Block):
    """The block of the deeper ones: 1x1 to `channels`, 3x3, 1x1 to 4 times as many."""

    expansion = 4

    def _body(self, before: int, channels: int, stride: int, norm: NormSettings) -> nn.Sequential:
        return nn.Sequential(
            ConvNorm(before, channels, 1, 1, relu(), norm),
            ConvNorm(channels, channels, 3, stride, relu(), norm),
            ConvNorm(channels, channels * 4, 1, norm=norm),
        )


class ResNet(Backbone):
    """The backbone of these settings; see `Backbone`. Strides 1, 2, 4, 8 (CIFAR) or 4, 8, 16, 32 (ImageNet)."""

    def __init__(self, settings: ResNetSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        blocks = settings.blocks or DEPTHS[settings.depth]
        first = 4 if settings.stem == "imagenet" else 1
        small = "take network.backbone.stem=cifar, or fewer stages" if first == 4 else "take fewer stages"
        check_size("resnet", shape, first << len(blocks) - 1, small)
        size, stride = (7, 2) if first == 4 else (3, 1)
        self.stem: nn.Module = ConvNorm(shape[0], settings.channels, size, stride, relu(), settings)
        self.pool = nn.MaxPool2d(3, 2, 1) if first == 4 else nn.Identity()
        self.groups = nn.ModuleList()
        kind, before, layers = (Bottleneck if settings.depth == 50 else Block), settings.channels, dict[str, Layer]()
        for i, count in enumerate(blocks):
            channels = settings.channels * 2**i
            stage = nn.Sequential()
            for k in range(count):
                stage.append(kind(before, channels, 2 if i and k == 0 else 1, settings))
                before = channels * kind.expansion
            self.groups.append(stage)
            layers[f"stage.{i}"] = Layer(stage, before, first << i)
        self.layers = layers
        # what a ReLU used twice in a block gives last is the block's output
        self.aliases = {f"layer{i + 1}.{n - 1}.relu": f"stage.{i}" for i, n in enumerate(blocks)}
        self.aliases |= {f"layer{i + 1}": f"stage.{i}" for i in range(len(blocks))}
        initialise(self.modules())
        if settings.zero_init:
            for module in self.modules():
                if isinstance(module, Block):
                    nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self.pool(self.stem(x))
        for stage in self.groups:
            x = stage(x)
            maps.append(x)
        return maps
