"""BiSeNetV1 (Yu et al. 2018): a shallow path that keeps the detail beside the backbone, whose last maps are context.

    attend(m)  h = relu(norm(3x3(m))),  h * sigmoid(norm(1x1(mean h)))
    context    c32 = 3x3(up(attend(m32) + relu(norm(1x1(mean m32))))),  c16 = 3x3(up(attend(m16) + c32))
    fusion     f = relu(norm(1x1(detail | c16))),  f + f * sigmoid(relu(norm(1x1(mean f))))
    logits     main = head(f),  auxiliary = head(c16), head(c32)           head: 3x3, norm, relu, dropout, 1x1

m32 and m16 are the backbone's last maps, the detail path and c16 have the stride of the one before them (8 with strides
4, 8, 16, 32). The context path has a quarter of the backbone's width, detail as many channels, fusion twice. With
ResNet-18 it has 12,680,320 parameters with the backbone, 594,962 in the main and 75,026 in each auxiliary head (18
classes).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...settings.student import BiSeNetHeadSettings
from ...taps import Layer
from .heads import Pixels, check_pixel_classes
from .parts import ConvNorm, initialise, relu, resized


def mean(x: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, D, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


class Attend(nn.Module):
    """Attention refinement: (B, C, h, w) -> (B, D, h, w), each channel weighted by what the whole map holds."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(before, channels, 3, 1, relu())
        self.gate = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(mean(x)).sigmoid()


class Fusion(nn.Module):
    """Detail and context side by side -> (B, D, h, w); the gate has a ReLU, as in the published code."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(before, channels, 1, 1, relu())
        self.gate = ConvNorm(channels, channels, 1, 1, relu())

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.conv(torch.cat([detail, context], 1))
        return x + x * self.gate(mean(x)).sigmoid()


class BiSeNetHead(nn.Module):
    """A class for every pixel: logits (B, K, H, W); in training the list [main, auxiliary, auxiliary] of such.

    Raises `UserError` for a backbone with fewer than three maps.
    """

    stride = 1

    def __init__(self, settings: BiSeNetHeadSettings, stages: Sequence[Layer], classes: int, channels: int) -> None:
        super().__init__()
        check_pixel_classes(classes)
        if len(stages) < 3:
            what = f"reads three maps, the backbone has {len(stages)}"
            raise UserError("network.head.kind=bisenet", what, "take network.head.kind=fcn, or more stages")
        width = settings.channels or max(2, stages[-1].channels // 8 * 2)
        self.detail = detail_path(channels, width, stages[-3].stride)
        self.attend16 = Attend(stages[-2].channels, width)
        self.attend32 = Attend(stages[-1].channels, width)
        self.whole = ConvNorm(stages[-1].channels, width, 1, 1, relu())
        self.up32, self.up16 = ConvNorm(width, width, 3, 1, relu()), ConvNorm(width, width, 3, 1, relu())
        self.fusion = Fusion(2 * width, 2 * width)
        initialise(self.modules())
        self.main = Pixels(2 * width, 2 * width, classes, settings.dropout)
        self.aux = nn.ModuleList(Pixels(width, width // 2, classes, settings.dropout) for _ in range(2))

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor | list[Tensor]:
        m16, m32 = maps[-2:]
        detail = self.detail(x)
        h = self.attend32(m32) + self.whole(mean(m32))
        c32 = self.up32(resized(h, m16.shape[2:], "nearest"))
        c16 = self.up16(resized(self.attend16(m16) + c32, detail.shape[2:], "nearest"))
        size = x.shape[2:]
        main = resized(self.main(self.fusion(detail, c16)), size)
        if not self.training:
            return main
        return [main, *(resized(aux(c), size) for aux, c in zip(self.aux, (c16, c32), strict=True))]


def detail_path(channels: int, width: int, stride: int) -> nn.Sequential:
    """Image (B, C, H, W) -> (B, width, H / stride, W / stride): 7x7, 3x3, 3x3 and 1x1; stride 1, 2, 4 or 8.

    The first of the 3x3 ones keep the size where the stride is smaller than 8.
    """
    halves = stride.bit_length() - 1
    if stride != 1 << halves or halves > 3:
        what = f"the backbone's third map from the end has stride {stride}"
        raise UserError("network.head.kind=bisenet", what, "it can be 1, 2, 4 or 8; take network.head.kind=fcn")
    steps = [2 if i < halves else 1 for i in range(3)]
    inner = width // 2
    return nn.Sequential(
        ConvNorm(channels, inner, 7, steps[0], relu()),
        ConvNorm(inner, inner, 3, steps[1], relu()),
        ConvNorm(inner, inner, 3, steps[2], relu()),
        ConvNorm(inner, width, 1, 1, relu()),
    )
