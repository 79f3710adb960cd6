"""Are generated images copies of training images? Distances to the nearest ones, and a rule calibrated on real images.

    d1     distance to the nearest training image
    d2     distance to the nearest one that shows another picture
    ratio  d1 / d2                      near 0 for a copy, near 1 for what lies between training images

A small d1 alone says little: plain images are near to everything. The ratio (Yoon et al. 2023) compares like with like.
How small is too small is told by real images that the model has never seen: of H of them, k have a value as small or
smaller, so a new real image is so suspicious with probability (k + 1) / (H + 1) at most (a conformal p-value; Vovk et
al. 2005). An image is flagged where that is below the rate asked for. Meehan et al. 2020 compare the same distances as
a whole: `nearer` is the share of pairs in which the generated image is nearer to the training images than the real one.

Two training images show the same picture where they are nearer to each other than the nearest `rate` of new real
images come to any: exact duplicates, crops and the like. Without that a copy of a picture that is there twice would
have a ratio of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .neighbours import nearest

NEIGHBOURS = 16  # nearest training images that are looked at for another picture


@dataclass(frozen=True)
class Near:
    """The nearest training images: d1, d2 (N,) float64 and the row of the nearest (N,) int64."""

    d1: Tensor
    d2: Tensor
    row: Tensor

    @property
    def ratio(self) -> Tensor:
        """d1 / d2 (N,), 0 where d1 is 0."""
        return torch.where(self.d1 == 0, 0.0, self.d1 / self.d2.clamp(min=1e-300))


@dataclass(frozen=True)
class Verdict:
    """What is said of generated images in one space. p: (N,) conformal p-values of their ratios or distances.
    flagged: (N,) bool. limit: below it a value is flagged. rate: the share of new real images that are flagged at most.
    nearer: probability that a generated image is nearer to the training images than a new real one; 0.5 = as near.
    """

    p: Tensor
    flagged: Tensor
    limit: float
    rate: float
    nearer: float
    nearer_interval: tuple[float, float]


def nearest_in(queries: Tensor, blocks: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """`nearest` over references that come in blocks (R_i, D): distances (Q, k) and rows counted over all blocks.

    k is cut to the number of references. Memory: one block and the queries (Q, D).
    """
    distances = torch.empty((len(queries), 0), dtype=torch.float64)
    rows, done = torch.empty((len(queries), 0), dtype=torch.int64), 0
    for block in blocks:
        d, i = nearest(queries, block, min(k, len(block)))
        distances, rows = torch.cat([distances, d], 1), torch.cat([rows, i + done], 1)
        order = distances.topk(min(k, distances.shape[1]), largest=False).indices
        distances, rows = distances.gather(1, order), rows.gather(1, order)
        done += len(block)
    return distances, rows


def closest(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One result of several of `nearest_in`, of the same images as they are and mirrored: of each row the nearer view.

    Distances (Q, k') ascend, infinite where a row is there already.
    """
    distances, rows = (torch.cat([part[which] for part in found], 1) for which in (0, 1))
    order = distances.argsort(stable=True, dim=1)
    distances, rows = distances.gather(1, order), rows.gather(1, order)
    seen = (rows[:, :, None] == rows[:, None, :]).tril(-1).any(2)
    return distances.masked_fill(seen, math.inf), rows


def apart(distances: Tensor, rows: Tensor, vectors: Callable[[Tensor], Tensor], same: float) -> Near:
    """d1 and d2 from the k nearest (N, k), nearest first: d2 is that to the first one that is another picture.

    vectors: rows (n,) -> (n, D). same: training images nearer together than this show the same picture. Where all k
    do, d2 is the largest distance found.
    """
    first = vectors(rows[:, 0])
    d2 = torch.where(distances.isfinite(), distances, -math.inf).amax(1)
    left = torch.ones(len(rows), dtype=torch.bool)
    for j in range(1, rows.shape[1]):
        if not bool(left.any()):
            break
        which = left.nonzero()[:, 0]
        gap = (vectors(rows[which, j]).double() - first[which].double()).square().sum(1).sqrt()
        other = which[(gap >= same) & (gap > 0) & distances[which, j].isfinite()]
        d2[other] = distances[other, j]
        left[other] = False
    return Near(distances[:, 0].clone(), d2, rows[:, 0].clone())


def least_rate(held_out: int, spaces: int = 1) -> float:
    """The smallest rate that so many held-out images can vouch for."""
    return spaces / (held_out + 1)


def limit_of(held_out: Tensor, rate: float) -> float:
    """The value below which at most `rate` of new real images lie: an order statistic of the held-out values (H,)."""
    place = math.floor(rate * (len(held_out) + 1) + 1e-9) - 1
    return held_out.sort().values[min(max(place, 0), len(held_out) - 1)].item()


def p_values(values: Tensor, held_out: Tensor) -> Tensor:
    """(1 + held-out values as small or smaller) / (H + 1), (N,): at most r with probability r for a new real image."""
    below = torch.searchsorted(held_out.sort().values, values.contiguous(), right=True)
    return (1 + below).double() / (len(held_out) + 1)


def judged(ours: Near, real: Near, rate: float, rule: str = "ratio") -> Verdict:
    """Which generated images are copies, by the values of held-out real ones.

    rule: "ratio" (d1 / d2) or "distance" (d1). rate: raised to `least_rate` where there are too few held-out images.
    An exact copy (d1 = 0) is always flagged.
    """
    values, against = (near.ratio if rule == "ratio" else near.d1 for near in (ours, real))
    rate = max(rate, least_rate(len(against)))
    limit = limit_of(against, rate)
    flagged = (values < limit) | (ours.d1 == 0)
    nearer = share_nearer(ours.d1, real.d1)
    return Verdict(
        p_values(values, against), flagged, limit, rate, nearer, _interval(nearer, len(values), len(against))
    )


def share_nearer(ours: Tensor, real: Tensor) -> float:
    """Share of pairs (one of either) in which ours is nearer; ties count half: the Mann-Whitney U, divided by n m."""
    ranked = real.sort().values
    above = len(ranked) - torch.searchsorted(ranked, ours, right=True)
    ties = torch.searchsorted(ranked, ours, right=True) - torch.searchsorted(ranked, ours)
    return ((above + 0.5 * ties).double().mean() / len(ranked)).item()


def _interval(share: float, n: int, m: int, confidence: float = 0.95) -> tuple[float, float]:
    """Of `share_nearer`, by the standard error of Hanley and McNeil 1982."""
    q1, q2 = share / (2 - share), 2 * share**2 / (1 + share)
    variance = (share * (1 - share) + (n - 1) * (q1 - share**2) + (m - 1) * (q2 - share**2)) / (n * m)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(max(variance, 0.0))
    return max(0.0, share - half), min(1.0, share + half)
