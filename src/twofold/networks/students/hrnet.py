"""HRNetV2 (Sun et al. 2019): maps of four resolutions side by side, which exchange what they hold again and again.

    exchange   y_i = relu(sum_j T_ij(x_j))    T_ij: 1x1 and norm, repeated to the finer size (j coarser than i); nothing
                                              (j = i); i - j convolutions 3x3 of stride 2 (j finer)

The widths are W, 2 W, 4 W and 8 W; W = 18 has 9.6 M parameters. neck: RepFusion's and the ImageNet classifier's, which
fuses all four into one map at the coarsest size.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ...settings.student import HRNetSettings
from ...taps import Layer
from .parts import Backbone, ConvNorm, check_size, initialise, relu, resized
from .resnet import Block, Bottleneck

BRANCHES = 4
STEM_BLOCKS = 4


class Exchange(nn.Module):
    """Blocks at each of `len(widths)` resolutions, then every resolution takes in all: list of maps -> the same."""

    def __init__(self, widths: list[int], settings: HRNetSettings) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(Block(width, width, 1, settings) for _ in range(settings.blocks))) for width in widths
        )
        count = range(len(widths))
        self.into = nn.ModuleList(nn.ModuleList(_way(widths, j, i, settings) for j in count) for i in count)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for i, ways in enumerate(self.into):
            size = maps[i].shape[2:]
            parts = [resized(ways[j](x), size, "nearest") for j, x in enumerate(maps)]  # type: ignore[index]
            fused.append(F.relu(sum(parts[1:], parts[0])))
        return fused


def _way(widths: list[int], source: int, to: int, norm: HRNetSettings) -> nn.Module:
    """T_ij, but for the repetition to the finer size."""
    if source == to:
        return nn.Identity()
    if source > to:
        return ConvNorm(widths[source], widths[to], 1, norm=norm)
    steps = [ConvNorm(widths[source], widths[source], 3, 2, relu(), norm) for _ in range(to - source - 1)]
    return nn.Sequential(*steps, ConvNorm(widths[source], widths[to], 3, 2, norm=norm))


class Neck(nn.Module):
    """Maps of all resolutions -> one at the coarsest: widened by bottlenecks, added from fine to coarse, 1x1."""

    def __init__(self, widths: list[int], settings: HRNetSettings) -> None:
        super().__init__()
        assert settings.neck is not None
        inner = [settings.neck // 64 * 2**i for i in range(BRANCHES)]
        self.widen = nn.ModuleList(Bottleneck(w, d, 1, settings) for w, d in zip(widths, inner, strict=True))
        self.down = nn.ModuleList(ConvNorm(4 * a, 4 * b, 3, 2, relu(), settings) for a, b in pairwise(inner))
        self.last = ConvNorm(4 * inner[-1], settings.neck, 1, 1, relu(), settings)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.widen[0](maps[0])
        for i, down in enumerate(self.down):
            x = down(x) + self.widen[i + 1](maps[i + 1])
        return self.last(x)


class HRNet(Backbone):
    """The backbone of these settings; see `Backbone`. Strides 4, 8, 16, 32, or 1, 2, 4, 8 with the stem of CIFAR.

    layers has "neck" last where there is one.
    """

    def __init__(self, settings: HRNetSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        first, stride = (4, 2) if settings.stem == "imagenet" else (1, 1)
        small = "take network.backbone.stem=cifar" if first == 4 else ""
        check_size("hrnet", shape, first << BRANCHES - 1, small)
        wide, widths = settings.stem_channels, [settings.width * 2**i for i in range(BRANCHES)]
        self.stem = nn.Sequential(
            ConvNorm(shape[0], wide, 3, stride, relu(), settings), ConvNorm(wide, wide, 3, stride, relu(), settings)
        )
        self.first = nn.Sequential(Bottleneck(wide, wide, 1, settings))
        for _ in range(STEM_BLOCKS - 1):
            self.first.append(Bottleneck(4 * wide, wide, 1, settings))
        self.begin = ConvNorm(4 * wide, widths[0], 3, 1, relu(), settings)  # of the finest maps
        before = (4 * wide, widths[1], widths[2])
        # what begins the next coarser maps reads the coarsest ones there are
        self.coarser = nn.ModuleList(
            ConvNorm(b, w, 3, 2, relu(), settings) for b, w in zip(before, widths[1:], strict=True)
        )
        self.exchanges = nn.ModuleList(
            nn.ModuleList(Exchange(widths[: n + 2], settings) for _ in range(count))
            for n, count in enumerate(settings.modules)
        )
        self.out = nn.ModuleList(nn.Identity() for _ in widths)  # where the maps are read
        layers = {f"stage.{i}": Layer(self.out[i], width, first << i) for i, width in enumerate(widths)}
        self.neck = None if settings.neck is None else Neck(widths, settings)
        if self.neck is not None:
            layers["neck"] = Layer(self.neck, settings.neck or 0, first << BRANCHES - 1)
        self.layers, self.aliases = layers, {}
        initialise(self.modules())

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(self.stem(x))
        maps = [self.begin(x), self.coarser[0](x)]
        for n, modules in enumerate(self.exchanges):
            if n:
                maps = [*maps, self.coarser[n](maps[-1])]
            for module in modules:  # type: ignore[attr-defined]
                maps = module(maps)
        maps = [tap(x) for tap, x in zip(self.out, maps, strict=True)]
        return maps if self.neck is None else [*maps, self.neck(maps)]

    def without_neck(self) -> None:
        """Leaves the neck out, which only pooling reads."""
        if self.neck is not None:
            self.neck = None
            self.layers = {name: layer for name, layer in self.layers.items() if name != "neck"}
