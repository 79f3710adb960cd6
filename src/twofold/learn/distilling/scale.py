"""The scale of a teacher's channels: what imitates all of them alike must not be led by the few that are large."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST = 1e-3  # of a channel's deviation, over the mean one of its layer


class Scale(nn.Module):
    """(t - mean) / std of each channel of each layer; over images, places and levels that were `add`ed.

    channels: of each layer. images, batch: how many images it is found with, and at a time.
    """

    images, batch = 1024, 128

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for i, count in enumerate(channels):
            self.register_buffer(f"mean_{i}", torch.zeros(count))
            self.register_buffer(f"std_{i}", torch.ones(count))
        self._sums = [torch.zeros(3, count, dtype=torch.float64) for count in channels]

    def add(self, maps: Sequence[Tensor]) -> None:
        """Takes in maps (B, D, h, w) of each layer."""
        for total, one in zip(self._sums, maps, strict=True):
            values = one.double().cpu()
            total[0] += values[:, 0].numel()
            total[1] += values.sum((0, 2, 3))
            total[2] += values.square().sum((0, 2, 3))

    def finish(self) -> None:
        """The mean and deviation of what was added."""
        for i, (count, total, squares) in enumerate(self._sums):
            mean = total / count
            std = (squares / count - mean.square()).clamp(min=0).sqrt()
            std = std.clamp(min=LEAST * float(std.mean()) or 1.0)
            getattr(self, f"mean_{i}").copy_(mean)
            getattr(self, f"std_{i}").copy_(std)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for i, one in enumerate(maps):
            mean, std = (getattr(self, f"{name}_{i}")[:, None, None] for name in ("mean", "std"))
            found.append((one - mean) / std)
        return found
