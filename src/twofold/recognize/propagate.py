"""Labels that spread from few images to all, along a graph of nearest neighbours (Zhou et al. 2004).

    W_ij = a(x_i, x_j)                      where j is among the k nearest of i, or i of j; others 0
    S = D^-1/2 W D^-1/2                     D: row sums of W; a: see `soft_votes`
    F = (1 - alpha) (I - alpha S)^-1 Y      Y: one-hot rows of the labelled images, others 0

F is found by conjugate gradients, all classes at once: S is sparse, I - alpha S is positive definite with eigenvalues
in [1 - alpha, 1 + alpha], and nothing of the size N x N is ever made. scikit-learn's LabelSpreading iterates to the
same F.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..measure.neighbours import nearest as nearest_vectors
from .heads import Features, as_float, labelled
from .learned import Base, Fitting, Learned, SpaceName
from .soft_votes import LEAST, SoftVotes, affinities, check_affinity, local_reach, unit
from .spaces import InSpace, space_of

STATE = 2**27  # numbers in the vectors of one group of classes
TOLERANCE = 1e-13  # of the residual's norm, relative to the labels'
MAX_STEPS = 2000


@dataclass(frozen=True)
class Graph:
    """matrix: S (N, N) float64, sparse (CSR), symmetric, with an empty diagonal. reach: s (N,) of every image."""

    matrix: Tensor
    reach: Tensor

    @classmethod
    def of(cls, x: Features, k: int = 8, affinity: str = "local", power: float = 3.0) -> Graph:
        """Of features (N, D), on their device. Directions count, lengths do not.

        Neighbours are exact; copies of an image are its neighbours like any other. Raises `UserError` for k outside
        1 to N - 1, another affinity, and features that are not finite.
        """
        x = as_float(x)
        check_affinity(affinity)
        if not 1 <= k < len(x):
            raise UserError(f"k={k}", f"there are {len(x)} images", f"1 to {len(x) - 1}")
        distance, index = nearest_others(x, k)
        reach = local_reach(distance)
        weight = affinities(distance, reach, reach[index], affinity, power)
        return cls(_normalised(index, weight).to(x.device), reach.float())


def nearest_others(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest other images of each, by direction: distances and indices (N, k), on the CPU."""
    x = unit(x)
    distance, index = nearest_vectors(x, x, k + 1)
    own = index == torch.arange(len(x))[:, None]
    own[~own.any(1), -1] = True  # more than k copies of an image: one of them goes
    return distance[~own].view(-1, k), index[~own].view(-1, k)


def _normalised(index: Tensor, weight: Tensor) -> Tensor:
    """S of the neighbours (N, k) and the affinities to them, which are the same both ways."""
    n, k = index.shape
    row, column = torch.arange(n).repeat_interleave(k), index.flatten()
    pair, order = (torch.minimum(row, column) * n + torch.maximum(row, column)).sort(stable=True)
    first = torch.ones_like(pair, dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    pair, values = pair[first], weight.flatten()[order[first]].repeat(2)
    places = torch.stack([torch.cat([pair // n, pair % n]), torch.cat([pair % n, pair // n])])
    degree = values.new_zeros(n).scatter_add_(0, places[0], values)
    inverse = torch.where(degree > 0, degree.clamp(min=1e-300).rsqrt(), 0.0)
    values = values * inverse[places[0]] * inverse[places[1]]
    found = torch.sparse_coo_tensor(places, values, (n, n), check_invariants=False)
    with warnings.catch_warnings():  # that CSR is a beta feature
        warnings.simplefilter("ignore")
        return found.coalesce().to_sparse_csr()


def spread(graph: Tensor, seeds: Tensor, alpha: float = 0.99) -> Tensor:
    """F (N, K) float64, at least 0, for seeds Y (N, K) on a graph S (N, N), on its device.

    Raises `UserError` unless 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha:g}", "not between 0 and 1", "0.99 is usual")
    count = max(1, STATE // (4 * len(seeds)))
    parts = seeds.to(graph.device, torch.float64).split(count, dim=1)
    return torch.cat([_solved(graph, part * (1 - alpha), alpha) for part in parts], 1).clamp_(0)


def _solved(graph: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Conjugate gradients for every column of (I - alpha S) F = target (Hestenes and Stiefel 1952)."""
    found, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual.square().sum(0)
    limit = TOLERANCE**2 * size
    for _ in range(MAX_STEPS):
        active = size > limit
        if not active.any():
            return found
        image = direction - alpha * (graph @ direction)
        curved = (direction * image).sum(0)
        step = torch.where(active, size / curved.clamp(min=1e-300), 0.0)
        found.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        before, size = size, torch.where(active, residual.square().sum(0), size)
        direction = torch.where(active, residual + size / before.clamp(min=1e-300) * direction, direction)
    warnings.warn(f"label propagation stopped after {MAX_STEPS} steps, before its tolerance", stacklevel=3)
    return found


def propagate(
    graph: Tensor,
    y: Features,
    classes: int,
    alpha: float = 0.99,
    weight: Features | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """Probabilities (N, K) float64 on the CPU of all images of a graph S; y (N,) with -1 = unlabelled. Rows sum to 1.

    weight (N,): how much a labelled image counts. prior (K,): class-mass normalisation (Zhu et al. 2003, section 4):
    each class is scaled so that its share of the mass is this; None takes what has spread. An image that no label
    reaches gets 1 / K for each class.
    """
    rows, truth = labelled(y, graph.shape[0], classes)
    seeds = torch.zeros(graph.shape[0], classes, dtype=torch.float64)
    seeds[rows, truth] = 1.0 if weight is None else torch.as_tensor(weight)[rows].double().cpu()
    mass = spread(graph, seeds, alpha).cpu()
    reached = mass.sum(1) > 0
    if prior is not None:
        share = mass[reached] / mass[reached].sum(1, keepdim=True)
        mass = mass * (prior.to(mass) / share.sum(0).clamp(min=1e-300))
    total = mass.sum(1, keepdim=True)
    return torch.where(reached[:, None], mass / total.clamp(min=1e-300), 1 / classes)


@dataclass(frozen=True)
class Propagation(Base):
    """Label propagation on a graph of k nearest neighbours; new images ask their k nearest.

    mass: classes are scaled to equal masses. An image that no label reaches prefers, slightly, the class of the nearest
    labelled one.
    """

    space: SpaceName = "rows"
    dims: int | None = None
    k: int = 8
    alpha: float = 0.99
    affinity: Literal["local", "cosine"] = "local"
    power: float = 3.0
    mass: bool = False

    def on(self, x: Features, classes: int) -> Fitting:
        x = as_float(x)
        space = space_of(self.space, x, self.dims)
        u = space(x)
        k = min(self.k, len(u) - 1)
        graph = Graph.of(u, k, self.affinity, self.power)
        prior = torch.full((classes,), 1 / classes, dtype=torch.float64) if self.mass else None

        def fit(y: Tensor, weight: Features | None = None) -> Learned:
            found = propagate(graph.matrix, y, classes, self.alpha, weight, prior)
            found = _near_labelled(found, u, y)
            votes = SoftVotes(u.float(), found.to(u.device, torch.float32), graph.reach, k, self.affinity, self.power)
            return Learned(found.clamp(min=LEAST).log(), InSpace(space, votes))

        return fit


def _near_labelled(found: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """Images that no label reached, with a slight preference for the class of the nearest labelled one."""
    alone = found.amax(1) <= found.amin(1)
    if not alone.any():
        return found
    classes = found.shape[1]
    rows, truth = labelled(y, len(u), classes)
    one_hot = torch.nn.functional.one_hot(truth, classes).to(u)
    guess = (
        SoftVotes(u[rows.to(u.device)], one_hot, torch.ones(len(rows)), 1)
        .logits(u[alone.to(u.device)])
        .exp()
        .cpu()
        .double()
    )
    found = found.clone()
    found[alone] = 0.99 / classes + 0.01 * guess
    return found
