"""A small residual classifier of clean images: the independent judge of generated ones, or a student."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..settings.network import ConvNetSettings
from ..taps import Layer

GROUPS = 8  # of the group norms, where they divide the channels


class Stage(nn.Module):
    """A residual pair of 3x3 convolutions (pre-activation, He et al. 2016); halves the resolution if stride is 2."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1)
        self.norm2 = nn.GroupNorm(_groups(channels), channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        changed = stride > 1 or in_channels != channels
        self.skip = nn.Conv2d(in_channels, channels, 1, stride) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class ConvNet(nn.Module):
    """forward(x (B, C, H, W) in [-1, 1]) -> logits (B, classes); the noise level and conditions are not looked at.

    classes: settings.classes, or else how many the data has. layers: "stage.0", "stage.1", ... in order.
    Raises `UserError` where images are smaller than the stages need, and for fewer than 2 classes.
    """

    def __init__(self, settings: ConvNetSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        if min(shape[1:]) >> (settings.stages - 1) < 2:
            raise UserError(f"network.stages={settings.stages}", f"too many for images of {shape[1]}x{shape[2]}")
        classes = settings.classes or classes
        if classes < 2:
            raise UserError("network.classes", f"a classifier of {classes} classes", "it needs at least 2")
        widths = [settings.channels * 2**i for i in range(settings.stages)]
        self.stem = nn.Conv2d(shape[0], widths[0], 3, 1, 1)
        self.stages = nn.ModuleList()
        for i, width in enumerate(widths):
            self.stages.append(Stage(widths[max(0, i - 1)], width, 1 if i == 0 else 2))
        self.norm = nn.GroupNorm(_groups(widths[-1]), widths[-1])
        self.dropout = nn.Dropout(settings.dropout)
        self.pool = settings.pool
        self.linear = nn.Linear(widths[-1] * settings.pool**2, classes)
        self.layers: Mapping[str, Layer] = {
            f"stage.{i}": Layer(stage, width, 2**i)
            for i, (stage, width) in enumerate(zip(self.stages, widths, strict=True))
        }

    def forward(self, x: Tensor, c_noise: Tensor | None = None, cond: object = None) -> Tensor:
        h = self.stem(x)
        for stage in self.stages:
            h = stage(h)
        h = F.silu(self.norm(h))
        h = h.mean((2, 3)) if self.pool == 1 else F.adaptive_avg_pool2d(h, self.pool).flatten(1)
        return self.linear(self.dropout(h))


def _groups(channels: int) -> int:
    return next(count for count in range(min(GROUPS, channels), 0, -1) if channels % count == 0)
