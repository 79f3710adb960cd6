"""MobileNetV2 (Sandler et al. 2018): inverted residuals.

    x <- [x +] norm(conv1x1(act(norm(depthwise3x3(act(norm(conv1x1(x)))))))      act(x) = min(max(x, 0), 6), 6 x wider

2,223,872 parameters without its last layer, with either stem. On ImageNet the strides of its seven groups are 1, 2, 2,
2, 1, 2, 1 after a stem of 2 (32 in all); on CIFAR 1, 2, 1, 2, 1, 2, 1 after a stem of 1 (8 in all).
"""

from __future__ import annotations

from torch import Tensor, nn

from ...settings.student import MobileNetV2Settings, NormSettings
from ...taps import Layer
from .parts import Backbone, ConvNorm, check_size, initialise

GROUPS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))  # widening, D, blocks
STRIDES = {"imagenet": (2, 1, 2, 2, 2, 1, 2, 1), "cifar": (1, 1, 2, 1, 2, 1, 2, 1)}  # of the stem and the groups
STAGES = (1, 2, 4)  # groups before a stage's end; the last stage ends with the 1x1 convolution after all groups
LAST = 1280


class Inverted(nn.Module):
    """An inverted residual: (B, C, H, W) -> (B, D, H / stride, W / stride)."""

    def __init__(self, before: int, channels: int, stride: int, widening: int, norm: NormSettings) -> None:
        super().__init__()
        wide = before * widening
        self.residual = stride == 1 and before == channels
        self.body = nn.Sequential()
        if widening > 1:
            self.body.append(ConvNorm(before, wide, 1, 1, nn.ReLU6(inplace=True), norm))
        self.body.append(ConvNorm(wide, wide, 3, stride, nn.ReLU6(inplace=True), norm, groups=wide))
        self.body.append(ConvNorm(wide, channels, 1, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(Backbone):
    """The backbone of these settings; see `Backbone`. Strides 4, 8, 16, 32 (ImageNet) or 2, 2, 4, 8 (CIFAR)."""

    def __init__(self, settings: MobileNetV2Settings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        strides = STRIDES[settings.stem]
        small = "take network.backbone.stem=cifar" if settings.stem == "imagenet" else ""
        check_size("mobilenetv2", shape, 32 if settings.stem == "imagenet" else 8, small)
        before = rounded(32 * settings.width_mult)
        self.stem = ConvNorm(shape[0], before, 3, strides[0], nn.ReLU6(inplace=True), settings)
        self.groups, layers, total = nn.ModuleList(), dict[str, Layer](), strides[0]
        for i, (widening, width, count) in enumerate(GROUPS):
            channels, stride = rounded(width * settings.width_mult), strides[i + 1]
            group = nn.Sequential()
            for k in range(count):
                group.append(Inverted(before, channels, stride if k == 0 else 1, widening, settings))
                before = channels
            self.groups.append(group)
            total *= stride
            if i in STAGES:
                layers[f"stage.{len(layers)}"] = Layer(group, before, total)
        last = max(LAST, rounded(LAST * settings.width_mult))
        self.last = ConvNorm(before, last, 1, 1, nn.ReLU6(inplace=True), settings)
        layers[f"stage.{len(layers)}"] = Layer(self.last, last, total)
        self.layers = layers
        self.aliases = {"conv2.activate": f"stage.{len(layers) - 1}", "conv2": f"stage.{len(layers) - 1}"}
        initialise(self.modules())

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self.stem(x)
        for i, group in enumerate(self.groups):
            x = group(x)
            if i in STAGES:
                maps.append(x)
        return [*maps, self.last(x)]


def rounded(width: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor, and the next one where that is more than a tenth below."""
    near = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * width else near
