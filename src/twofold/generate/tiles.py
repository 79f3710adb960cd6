"""A large image in overlapping parts: where they lie, what their pixels weigh, and the whole that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

ALIGNED = 16  # pixels between the beginnings of tiles are a multiple of this: levels of a U-Net fall on the same places

Part = tuple[slice, slice]  # rows and columns


class Tiles:
    """Of an image of height x width. tile: (height, width) of the parts, in its pixels; None: it stays whole.

    larger: what is found of a part is so many times as high and wide.
    """

    def __init__(self, height: int, width: int, tile: tuple[int, int] | None, larger: int = 1) -> None:
        self.size, self.larger = (height, width), larger
        self.sides = [min(side, most) for side, most in zip(self.size, tile or self.size, strict=True)]
        self._places = [starts(n, side) for n, side in zip(self.size, self.sides, strict=True)]
        self._ramp = ramp([side * larger for side in self.sides], [len(places) > 1 for places in self._places])

    def blended(self, ask: Callable[[Part], Tensor]) -> Tensor:
        """What `ask` finds of each part, (B, D, h, w), put together: (B, D, H, W), averaged where parts overlap."""
        total = weight = mine = None
        for place in product(*self._places):
            found = ask(self._part(place))
            if all(len(places) == 1 for places in self._places):
                return found
            if total is None or weight is None or mine is None:
                size = [side * self.larger for side in self.size]
                total, weight = found.new_zeros((*found.shape[:2], *size)), found.new_zeros(size)
                mine = self._ramp.to(found)
            at = self._part(place, self.larger)
            total[(..., *at)] += mine * found
            weight[at] += mine
        assert total is not None and weight is not None
        return total / weight

    def _part(self, place: Sequence[int], times: int = 1) -> Part:
        rows, columns = (slice(z * times, (z + side) * times) for z, side in zip(place, self.sides, strict=True))
        return rows, columns


def starts(length: int, tile: int) -> list[int]:
    """Where tiles of this length begin along a side: they overlap by a quarter at least, and cover all of it."""
    step = max(1, tile * 3 // 4)
    step = step - step % ALIGNED or step
    return [*range(0, max(length - tile, 0), step), length - tile] if length > tile else [0]


def ramp(sides: Sequence[int], several: Sequence[bool]) -> Tensor:
    """(h, w): what a tile's pixels weigh, rising from its edges over a quarter of it where there are several tiles."""
    weights = []
    for side, many in zip(sides, several, strict=True):
        at = torch.arange(side, dtype=torch.float64)
        edge = torch.minimum(at + 0.5, side - at - 0.5) / (side / 4)
        weights.append(edge.clamp(max=1) if many else torch.ones_like(edge))
    return weights[0][:, None] * weights[1][None]
