"""From a layer's map (B, D, h, w) to a vector: by name, because the name goes into settings, keys and saved heads.

mean      average over positions (B, D): what DDAE and most of the literature read
max       largest over positions (B, D)
grid<k>   averages over k x k fields (B, D * k * k), or fewer where the map is smaller
map       the whole map (B, D * h * w): for attentive pooling
"""

from __future__ import annotations

import re

from torch import Tensor
from torch.nn import functional

from ..errors import UserError
from ..taps import Layer

POOLS = ("mean", "max", "grid<k>", "map")


def check_pool(name: str) -> str:
    """The name, if it is one. Raises `UserError` listing those there are."""
    if name in ("mean", "max", "map") or re.fullmatch(r"grid[1-9]\d?", name):
        return name
    raise UserError(f"pool={name}", "no such pooling", "mean, max, grid2 (averages over 2 x 2 fields) or map")


def pooled(maps: Tensor, pool: str) -> Tensor:
    """(B, D, h, w), or (B, D) as it is -> (B, D'), float32 whatever the network computed in."""
    maps = maps.float()
    if maps.ndim == 2:
        return maps
    if pool == "mean":
        return maps.mean((2, 3))
    if pool == "max":
        return maps.amax((2, 3))
    if pool == "map":
        return maps.flatten(1)
    return functional.adaptive_avg_pool2d(maps, _fields(pool, maps.shape[2], maps.shape[3])).flatten(1)


def pooled_width(layer: Layer, shape: tuple[int, int, int], pool: str) -> int:
    """D' of a layer of a network for x0 of this shape."""
    height, width = (-(-side // layer.stride) for side in shape[1:])
    if pool in ("mean", "max"):
        return layer.channels
    h, w = (height, width) if pool == "map" else _fields(pool, height, width)
    return layer.channels * h * w


def _fields(pool: str, height: int, width: int) -> tuple[int, int]:
    k = int(pool.removeprefix("grid"))
    return min(k, height), min(k, width)
