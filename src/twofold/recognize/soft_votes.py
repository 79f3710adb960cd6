"""Nearest neighbours that need not be sure of their class, and how much each of them counts.

Affinities a(x, y) of features of length 1, d apart:

    local       exp(-d^2 / (s_x s_y)), s the distance to the 7th neighbour (Zelnik-Manor and Perona 2004)
    cosine      max(cos, 0)^power (Iscen et al. 2019, eq. 8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, nearest
from ..measure.neighbours import nearest as nearest_vectors

AFFINITIES = ("local", "cosine")
LOCAL = 7  # the neighbour whose distance is the scale of an image's surroundings
LEAST = 1e-12  # share of votes below which a class counts as not voted for
BLOCK = 2**24  # numbers in the votes that are added up at a time


@dataclass(frozen=True)
class SoftVotes:
    """A head whose logits are the logarithms of shares of votes.

    features (M, D), of which only directions count; probabilities (M, K); reach (M,): their s. k: nearest ones that
    vote, each with the weight of its affinity.
    """

    features: Tensor
    probabilities: Tensor
    reach: Tensor
    k: int = 8
    affinity: str = "local"
    power: float = 3.0

    def logits(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K). Where no neighbour is near, all of them count the same."""
        reference = unit(self.features.to(x.device).float())
        distance, index = nearest_vectors(unit(x.float()), reference, min(max(self.k, LOCAL), len(reference)))
        own, index = local_reach(distance), index[:, : self.k]
        weight = affinities(distance[:, : self.k], own, self.reach.cpu().double()[index], self.affinity, self.power)
        weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
        weight = weight / weight.sum(1, keepdim=True)
        votes = self.probabilities.cpu().double()
        rows = max(1, BLOCK // (weight.shape[1] * votes.shape[1]))
        pairs = zip(weight.split(rows), index.split(rows), strict=True)
        found = [torch.einsum("nk,nkc->nc", w, votes[i]) for w, i in pairs]
        return torch.cat(found).clamp(min=LEAST).log().to(x)

    def tensors(self) -> dict[str, Tensor]:
        how = torch.tensor([self.k, AFFINITIES.index(self.affinity), self.power], dtype=torch.float64)
        return {"features": self.features, "probabilities": self.probabilities, "reach": self.reach, "how": how}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SoftVotes:
        k, affinity, power = tensors["how"].tolist()
        features, probabilities, reach = (tensors[name] for name in ("features", "probabilities", "reach"))
        return cls(features, probabilities, reach, int(k), AFFINITIES[int(affinity)], power)


def local_reach(distance: Tensor) -> Tensor:
    """s (N,) of the distances (N, k) to neighbours, nearest first."""
    return distance[:, min(LOCAL, distance.shape[1]) - 1].clamp(min=1e-12)


def affinities(distance: Tensor, reach: Tensor, others: Tensor, affinity: str, power: float) -> Tensor:
    """a (N, k) of distances (N, k) between images of reach (N,) and their neighbours, of reach `others` (N, k)."""
    if affinity == "cosine":
        return (1 - distance.square() / 2).clamp(min=0) ** power
    return (-distance.square() / (reach[:, None] * others)).exp()


def unit(x: Tensor) -> Tensor:
    """Rows of length 1; zeros stay."""
    return torch.nn.functional.normalize(x, dim=1, eps=1e-30)


def check_affinity(name: str) -> None:
    """Raises `UserError` for one that does not exist."""
    if name not in AFFINITIES:
        raise UserError(f"affinity={name}", "no such affinity", nearest(name, AFFINITIES))
