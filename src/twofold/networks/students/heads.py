"""Heads of students: what makes answers of a backbone's maps.

    pool     logits = linear(dropout(mean over pixels of the last map))                               (B, K)
    fcn      logits = 1x1(dropout(relu(norm(3x3(sum_i up(norm(1x1(map_i))))))))                        (B, K, H, W)
    deconv   heat = 1x1(relu(norm(deconv(...))))         SimpleBaseline, Xiao et al. 2018             (B, K, h, w)
    fuse     heat = 1x1(relu(norm(1x1(all maps side by side at the finest size))))   HRNetV2          (B, K, h, w)

`bisenet` has a file of its own. A head is called with (x0, maps) and has `stride`: pixels of the image per answer, 0
for one answer about the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...settings.student import DeconvHeadSettings, FCNHeadSettings, FuseHeadSettings, PoolHeadSettings
from ...taps import Layer
from .parts import ConvNorm, Norm, initialise, relu, resized

HEAT_STD = 1e-3  # that the convolutions of heat maps begin with


class PoolHead(nn.Module):
    """One answer about the image: (B, K)."""

    stride = 0

    def __init__(self, settings: PoolHeadSettings, stages: Sequence[Layer], classes: int, channels: int) -> None:
        super().__init__()
        if classes < 2:
            raise UserError("network.classes", f"a classifier of {classes} classes", "it needs at least 2")
        self.dropout = nn.Dropout(settings.dropout)
        self.grid = settings.grid
        self.linear = nn.Linear(stages[-1].channels * settings.grid**2, classes)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        last = maps[-1]
        pooled = last.mean((2, 3)) if self.grid == 1 else F.adaptive_avg_pool2d(last, self.grid).flatten(1)
        return self.linear(self.dropout(pooled))


class Pixels(nn.Sequential):
    """A 3x3 convolution, norm, ReLU, dropout, and 1x1 to K classes: (B, D, h, w) -> (B, K, h, w)."""

    def __init__(self, before: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__(
            ConvNorm(before, channels, 3, 1, relu()), nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1)
        )
        initialise(self.modules())
        last_begins(self[-1], 0.01)


class FCNHead(nn.Module):
    """A class for every pixel: logits (B, K, H, W); in training a list of one such tensor."""

    stride = 1

    def __init__(self, settings: FCNHeadSettings, stages: Sequence[Layer], classes: int, channels: int) -> None:
        super().__init__()
        check_pixel_classes(classes)
        count = settings.stages or len(stages)
        if count > len(stages):
            what = f"the backbone has {len(stages)} maps"
            raise UserError(f"network.head.stages={count}", what, f"give at most {len(stages)}")
        self.count = count
        self.into = nn.ModuleList(ConvNorm(layer.channels, settings.channels, 1) for layer in stages[-count:])
        initialise(self.into.modules())
        self.main = Pixels(settings.channels, settings.channels, classes, settings.dropout)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor | list[Tensor]:
        maps = maps[-self.count :]
        size = maps[0].shape[2:]
        parts = [resized(into(m), size) for into, m in zip(self.into, maps, strict=True)]
        logits = resized(self.main(torch.stack(parts).sum(0)), x.shape[2:])
        return [logits] if self.training else logits


class DeconvHead(nn.Module):
    """Heat maps (B, K, h, w) from the last map: each transposed convolution (4x4) doubles both sides.

    h = ceil(H / stride): where the coarsest map reaches beyond the image, so much is cut off below and on the right.
    """

    def __init__(self, settings: DeconvHeadSettings, stages: Sequence[Layer], classes: int, channels: int) -> None:
        super().__init__()
        check_points(classes)
        coarse, factor = stages[-1].stride, 2**settings.layers
        if coarse % factor:
            most = (coarse & -coarse).bit_length() - 1
            what = f"they would enlarge by {factor} what the backbone made {coarse} times smaller"
            raise UserError(f"network.head.layers={settings.layers}", what, f"give at most {most}")
        self.stride = coarse // factor
        before, self.up = stages[-1].channels, nn.Sequential()
        for _ in range(settings.layers):
            up = nn.ConvTranspose2d(before, settings.channels, 4, 2, 1, bias=False)
            self.up.append(nn.Sequential(up, Norm(settings.channels), relu()))
            before = settings.channels
        self.last = nn.Conv2d(before, classes, 1)
        heat_begins(self)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        return self.last(self.up(maps[-1])[:, :, :height, :width])


class FuseHead(nn.Module):
    """Heat maps (B, K, h, w) at the size of the finest map, from all maps; h = ceil(H / stride)."""

    def __init__(self, settings: FuseHeadSettings, stages: Sequence[Layer], classes: int, channels: int) -> None:
        super().__init__()
        check_points(classes)
        self.stride = stages[0].stride
        width = sum(layer.channels for layer in stages)
        self.mix = ConvNorm(width, width, 1, 1, relu(), bias=True)
        self.last = nn.Conv2d(width, classes, 1)
        heat_begins(self)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        return self.last(self.mix(torch.cat([resized(m, size) for m in maps], 1)))


def last_begins(conv: nn.Module, std: float) -> None:
    """A convolution that begins normal, with zero biases."""
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def heat_begins(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            last_begins(module, HEAT_STD)


def check_pixel_classes(classes: int) -> None:
    if classes < 2:
        raise UserError("network.classes", f"pixels of {classes} classes", "segmentation needs at least 2")


def check_points(classes: int) -> None:
    if classes < 1:
        raise UserError("network.classes", f"{classes} points", "landmarks need at least 1")
