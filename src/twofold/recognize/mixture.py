"""Classes as clouds around a mean: nearest class means, and a mixture that unlabelled images take part in.

    l(x, c) = (m_c^T C^-1 x - 1/2 m_c^T C^-1 m_c) / heat + log pi_c       one covariance C for all classes: linear in x

`Prototypes` takes means from the labelled images alone. `Mixture` is expectation maximisation (Nigam et al. 2000):
every image belongs to each class by its probability, and means and C are made of all of them. In the E step the classes
are kept in given shares (`assign.balanced`), without which clusters die when there is one label a class.

It ends in the maximum that is nearest to where it begins. A labelled image that is unlike its class leads it to one in
which two classes share a cluster and a third is cut in two; so it begins a second time, at clusters of all images,
matched with the labels, and stays there if that explains the images far better (`AHEAD`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .assign import balanced, potentials
from .clusters import matched, ward
from .heads import NEVER, Features, as_float, labelled
from .learned import Base, Fitting, Learned, SpaceName
from .propagate import Propagation
from .spaces import InSpace, Space, linear, space_of

CHANGE = 1e-4  # of the mean probability, at which a mixture has settled
AHEAD = 0.1  # nats an image: what clusters must explain more, for labels know better where classes are alike


@dataclass(frozen=True)
class Prototypes(Base):
    """The nearest class mean. sharpness: logits per squared distance, in units of the features' mean squared length."""

    space: SpaceName = "columns+rows"
    dims: int | None = None
    sharpness: float = 10.0

    def on(self, x: Features, classes: int) -> Fitting:
        space = space_of(self.space, x, self.dims)
        u = space(as_float(x)).double()
        scale = u.square().sum(1).mean().clamp(min=1e-30) / self.sharpness

        def fit(y: Tensor, weight: Features | None = None) -> Learned:
            belongs = members(y, classes, weight).to(u)
            means = _means(u, belongs)
            bias = torch.where(belongs.sum(0) > 0, -means.square().sum(1) / (2 * scale), NEVER)
            return learned_of(u, space, (means / scale).T, bias)

        return fit


@dataclass(frozen=True)
class Settled:
    """Where a mixture has settled. weights (R, K), bias (K,): l(x, c). explained: log-likelihood, nats an image."""

    weights: Tensor
    bias: Tensor
    explained: float


@dataclass(frozen=True)
class Mixture(Base):
    """Expectation maximisation; labelled images stay what they are and count `trust` times.

    start: whose answers the first means are made of; best: of propagation, and again of `clusters`. covariance: one
    number, or a matrix, of which `shrinkage` is taken as one number. heat: > 1 for softer memberships. even: classes
    have equal shares.
    """

    start: Literal["labels", "propagation", "best"] = "best"
    space: SpaceName = "whitened"
    dims: int | None = None
    covariance: Literal["spherical", "tied"] = "tied"
    shrinkage: float = 0.1
    heat: float = 1.0
    trust: float = 1.0
    even: bool = True
    steps: int = 50

    def on(self, x: Features, classes: int) -> Fitting:
        space = space_of(self.space, x, self.dims)
        u = space(as_float(x)).double()
        first = None if self.start == "labels" else Propagation().on(x, classes)
        clusters = self._clusters(x, u, classes) if self.start == "best" else None

        def fit(y: Tensor, weight: Features | None = None) -> Learned:
            given = members(y, classes, weight).to(u)
            present = given.sum(0) > 0
            begun = given if first is None else balanced(first(y, weight).scores, present, tolerance=CHANGE).to(u)
            found = self.refined(u, given, _means(u, begun))
            if clusters is not None and bool(present.all()):
                other = self.refined(u, given, _means(u, matched(clusters, given)))
                found = other if other.explained > found.explained + AHEAD else found
            return learned_of(u, space, found.weights, found.bias)

        return fit

    def _clusters(self, x: Features, u: Tensor, classes: int) -> Tensor:
        """Log-probabilities (N, K) of as many clusters, which know no label."""
        means, everywhere = _means(u, ward(as_float(x), classes).to(u)), torch.ones(classes, dtype=torch.bool)
        found = self.refined(u, u.new_zeros(len(u), classes), means, everywhere)
        return (u @ found.weights + found.bias).log_softmax(1)

    def refined(self, u: Tensor, given: Tensor, means: Tensor, present: Tensor | None = None) -> Settled:
        """From these means (K, R) to where nothing moves any more. given (N, K): the labelled images' weights.
        present (K,): classes that there are; default: those with labels."""
        known = given.sum(1) > 0
        present = given.sum(0) > 0 if present is None else present.to(u.device)
        belongs, inverse = None, torch.eye(u.shape[1]).to(u) / _spread(u - u.mean(0))
        prior = present.to(u)
        for _ in range(self.steps):
            weights, bias = self._rule(means, inverse, prior, present)
            scores = u[~known] @ weights + bias
            if self.even and len(scores):
                scores = scores + _shift(scores, prior)
            before, belongs = belongs, given / given.sum(1, keepdim=True).clamp(min=1e-30)
            belongs[~known] = scores.softmax(1)
            if before is not None and float((belongs - before).abs().sum(1).mean()) < CHANGE:
                break
            counted = torch.where(known[:, None], self.trust * given, belongs)
            means = _means(u, counted)
            inverse = self._inverse(u, means, counted)
            if not self.even:
                prior = counted.sum(0) / counted.sum()
        explained = _explained(u, given, means, inverse, prior / prior.sum())
        if self.even:
            bias = bias + _shift(u @ weights + bias, prior)
        return Settled(weights, bias, explained)

    def _rule(self, means: Tensor, inverse: Tensor, prior: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        weights = inverse @ means.T / self.heat
        bias = (prior / prior.sum()).clamp(min=1e-30).log() - (means.T * weights).sum(0) / 2
        return weights, torch.where(present, bias, NEVER)

    def _inverse(self, u: Tensor, means: Tensor, counted: Tensor) -> Tensor:
        """Of the covariance within classes."""
        total, size = counted.sum(), u.shape[1]
        mass = counted.sum(1, keepdim=True)
        within = ((u * mass).T @ u - means.T @ (means * counted.sum(0)[:, None])) / total
        share = 1.0 if self.covariance == "spherical" else self.shrinkage
        sphere = (within.diagonal().mean()).clamp(min=1e-12) * torch.eye(size).to(u)
        return torch.linalg.inv((1 - share) * within + share * sphere)


def members(y: Features, classes: int, weight: Features | None = None) -> Tensor:
    """(N, K) float64: the weight of a labelled image in the column of its class, 0 elsewhere."""
    y = torch.as_tensor(y).cpu()
    rows, truth = labelled(y, len(y), classes)
    found = torch.zeros(len(y), classes, dtype=torch.float64)
    found[rows, truth] = 1.0 if weight is None else torch.as_tensor(weight)[rows].double().cpu()
    return found


def learned_of(u: Tensor, space: Space, weight: Tensor, bias: Tensor) -> Learned:
    """What a linear rule in the space's coordinates u (N, R) says of its images; weight (R, K), bias (K,)."""
    head = linear(weight.float().contiguous(), bias.float().contiguous())
    return Learned((u @ weight + bias).cpu(), InSpace(space, head))


def _means(u: Tensor, counted: Tensor) -> Tensor:
    return counted.T @ u / counted.sum(0).clamp(min=1e-30)[:, None]


def _explained(u: Tensor, given: Tensor, means: Tensor, inverse: Tensor, prior: Tensor) -> float:
    """Mean log-density of u (N, R), of labelled images together with their class; without R/2 log 2 pi."""
    alone = (torch.linalg.slogdet(inverse)[1] - ((u @ inverse) * u).sum(1)) / 2
    weights = inverse @ means.T
    joint = u @ weights - (means.T * weights).sum(0) / 2 + prior.clamp(min=1e-30).log()
    known = given.sum(1) > 0
    of_class = (joint * given).sum(1) / given.sum(1).clamp(min=1e-30)
    return float((alone + torch.where(known, of_class, joint.logsumexp(1))).mean())


def _shift(scores: Tensor, prior: Tensor) -> Tensor:
    """What makes classes even, nearly; absent ones stay as they are."""
    return potentials(scores, prior, tolerance=CHANGE).nan_to_num(neginf=0.0)


def _spread(centred: Tensor) -> Tensor:
    """The mean variance of a coordinate."""
    return centred.square().mean().clamp(min=1e-12)
