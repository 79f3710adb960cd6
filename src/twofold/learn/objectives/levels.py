"""At which noise levels a denoiser is trained, and what that does to its loss.

A level is a function of a uniform number u, so that it belongs to the image's position in training:

    family       the noise family's own distribution, its quantile function at u
    uniform      evenly over the table, over ln sigma (EDM) or over t (flow)
    log_normal   ln sigma ~ N(mean, std^2) (Karras et al. 2022, table 1), within the family's range
    importance   the family's own, but levels with large losses oftener, each loss divided by how much oftener
                 (Nichol and Dhariwal 2021, eq. 18: p_i ~ sqrt(E[L_i^2])): the same expected loss with less noise

The first three decide what is learned (how much each level counts), the last one only how fast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...noise import EDM, VP, Family, Flow
from ...settings.train import Denoising

REMEMBERED = 10  # losses of each bin that its second moment is the mean of
EVENLY = 1e-3  # share of the images that are drawn evenly: no bin is ever forgotten
BINS = 100  # of equal probability, where the family has no table


class Levels:
    """u (B,) in [0, 1) -> (sigma, weight), both (B,) float64: noise levels, and the factors on their losses."""

    def __init__(self, family: Family, settings: Denoising) -> None:
        self.family, self.settings = family, settings

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        match self.settings.levels:
            case "uniform":
                sigma = _uniform(self.family, u)
            case "log_normal":
                normal = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
                sigma = (self.settings.level_mean + self.settings.level_std * normal).exp()
                sigma = sigma.clamp(*self.family.sigma_range)
            case _:
                sigma = self.family.training_sigma(u)
        return sigma, torch.ones_like(sigma)


class Importance:
    """The same, from the losses that were seen: `observe` them, with the u they had.

    The last `REMEMBERED` losses of each bin are kept, the entries of the table or `BINS` parts of equal probability.
    Until every bin has its `REMEMBERED` all are equally likely.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        table = isinstance(family, VP) and family.settings.table != "continuous"
        self.bins = family.settings.steps if table else BINS  # type: ignore[attr-defined]
        self.losses = torch.zeros(self.bins, REMEMBERED, dtype=torch.float64)
        self.seen = torch.zeros(self.bins, dtype=torch.int64)
        self._shares()

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        bin, within = self._place(u)
        return self.family.training_sigma((bin + within) / self.bins), self._weight(bin)

    def observe(self, u: Tensor, losses: Tensor) -> None:
        """Takes note of weighted losses (B,) float64 of images that had these u, in the order of their positions."""
        bin, _ = self._place(u)
        plain = losses / self._weight(bin)
        for i, loss in zip(bin.long().tolist(), plain.tolist(), strict=True):
            if math.isfinite(loss):
                self.losses[i, int(self.seen[i]) % REMEMBERED] = loss
                self.seen[i] += 1
        self._shares()

    def memory(self) -> dict[str, Tensor]:
        """What a training state keeps of it."""
        return {"levels.losses": self.losses.clone(), "levels.seen": self.seen.clone()}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """The inverse of `memory`."""
        self.losses, self.seen = memory["levels.losses"].clone(), memory["levels.seen"].clone()
        self._shares()

    def _shares(self) -> None:
        """Probability of each bin, and where it begins."""
        share = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if bool((self.seen >= REMEMBERED).all()):
            size = self.losses.square().mean(1).sqrt()
            if float(size.sum()) > 0:
                share = (1 - EVENLY) * size / size.sum() + EVENLY / self.bins
        self.share, self.begin = share, share.cumsum(0) - share

    def _place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each u, and how far into it u is, in [0, 1)."""
        bin = (torch.searchsorted(self.begin, u.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        within = ((u - self.begin[bin]) / self.share[bin]).clamp(0, 1 - 1e-9)
        return bin.double(), within

    def _weight(self, bin: Tensor) -> Tensor:
        return 1 / (self.bins * self.share[bin.long()])


def _uniform(family: Family, u: Tensor) -> Tensor:
    low, high = family.sigma_range
    if isinstance(family, EDM):
        return torch.lerp(torch.tensor(low).double().log(), torch.tensor(high).double().log(), u).exp()
    if isinstance(family, Flow):
        t = torch.lerp(torch.tensor(family.settings.t_min).double(), torch.tensor(family.settings.t_max).double(), u)
        return (t / (1 - t)).clamp(low, high)
    return family.training_sigma(u)  # a VP table is drawn from evenly as it is


def levels(family: Family, settings: Denoising) -> Levels | Importance:
    """The distribution these settings ask for."""
    return Importance(family) if settings.levels == "importance" else Levels(family, settings)
