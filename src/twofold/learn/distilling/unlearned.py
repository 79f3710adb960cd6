"""Noise levels that nothing is learned about: one, at random, with a falling bound, in bands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...settings.selection import AnnealedSelection, MultiSelection
from .choice import Choice, Selection


class Fixed(Selection):
    """One level."""

    def __init__(self, sigma: float) -> None:
        super().__init__(torch.tensor([sigma], dtype=torch.float64))

    def pick(self, x0: Tensor, u: Tensor, seen: float) -> Choice:
        assert self.sigmas is not None
        return Choice(self.sigmas.expand(len(x0)), torch.zeros(len(x0), dtype=torch.int64))


class Uniform(Selection):
    """Evenly over the levels there are, or over ln sigma from low to high."""

    def __init__(self, low: float, high: float, sigmas: Tensor | None) -> None:
        super().__init__(sigmas)
        self.low, self.high = low, high

    def pick(self, x0: Tensor, u: Tensor, seen: float) -> Choice:
        if self.sigmas is None:
            return Choice(_between(self.low, self.highest(seen), u[:, 0]))
        count = self.count(seen)
        bin = (u[:, 0] * count).long().clamp(max=count - 1)
        return Choice(self.sigmas[bin], bin)

    def highest(self, seen: float) -> float:
        """The highest level, after so many images."""
        return self.high

    def count(self, seen: float) -> int:
        """How many levels, from the lowest on, are drawn from."""
        assert self.sigmas is not None
        return len(self.sigmas)


class Annealed(Uniform):
    """The highest level falls from the first to `to_sigma`, in its place among levels (RepFusion) or in sigma."""

    def __init__(self, settings: AnnealedSelection, low: float, high: float, sigmas: Tensor | None) -> None:
        super().__init__(low, high, sigmas)
        self.settings = settings
        self.seen = 0.0

    def pick(self, x0: Tensor, u: Tensor, seen: float) -> Choice:
        self.seen = seen
        return super().pick(x0, u, seen)

    def highest(self, seen: float) -> float:
        share = min(1.0, seen / self.settings.until_images)
        if self.settings.falls == "sigma":
            return self.high + share * (self.settings.to_sigma - self.high)
        return float(self.high ** (1 - share) * self.settings.to_sigma**share)

    def count(self, seen: float) -> int:
        assert self.sigmas is not None
        if self.settings.falls == "sigma":
            return max(1, int((self.sigmas <= self.highest(seen) * (1 + 1e-9)).sum()))
        last = int((self.sigmas <= self.settings.to_sigma * (1 + 1e-9)).sum())
        share = min(1.0, seen / self.settings.until_images)
        return max(1, round(len(self.sigmas) + share * (last - len(self.sigmas))))

    def probabilities(self) -> Tensor | None:
        if self.sigmas is None:
            return None
        there = torch.arange(len(self.sigmas)) < self.count(self.seen)
        return there.double() / there.sum()

    def memory(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen, dtype=torch.float64)}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.seen = float(memory["seen"])


class Multi(Selection):
    """An even draw of a band, then one within it."""

    uniforms = 2

    def __init__(self, settings: MultiSelection, sigmas: Tensor | None) -> None:
        super().__init__(sigmas)
        bounds = torch.tensor(settings.bounds, dtype=torch.float64)
        self.low, self.high = bounds[:-1], bounds[1:]
        self.first, self.levels = torch.zeros(0), torch.zeros(0)
        if sigmas is None:
            return
        begin = torch.searchsorted(sigmas, bounds * (1 - 1e-9))
        begin[-1] = torch.searchsorted(sigmas, bounds[-1] * (1 + 1e-9), right=True)
        self.first, self.levels = begin[:-1], begin.diff()
        if (self.levels == 0).any():
            band = int((self.levels == 0).nonzero()[0, 0])
            where = f"objective.sigma.bounds={list(settings.bounds)}"
            what = f"no level of sigma.bins={settings.bins} is between {settings.bounds[band]:g} and "
            raise UserError(
                where, what + f"{settings.bounds[band + 1]:g}", "widen it, or set objective.sigma.bins=null"
            )

    def pick(self, x0: Tensor, u: Tensor, seen: float) -> Choice:
        band = (u[:, 0] * len(self.low)).long().clamp(max=len(self.low) - 1)
        if self.sigmas is None:
            return Choice(_between(self.low[band], self.high[band], u[:, 1]), pair=band)
        within = (u[:, 1] * self.levels[band]).long().minimum(self.levels[band] - 1)
        bin = self.first[band] + within
        return Choice(self.sigmas[bin], bin, pair=band)

    def probabilities(self) -> Tensor | None:
        if self.sigmas is None:
            return None
        found = torch.zeros_like(self.sigmas)
        for first, count in zip(self.first.tolist(), self.levels.tolist(), strict=True):
            found[first : first + count] = 1 / len(self.levels) / count
        return found


def _between(low: Any, high: Any, u: Tensor) -> Tensor:
    """ln sigma evenly from low to high."""
    ends = [torch.as_tensor(end, dtype=torch.float64).log() for end in (low, high)]
    return torch.lerp(ends[0], ends[1], u).exp()
