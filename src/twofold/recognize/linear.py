"""Linear heads on features, fitted to their exact minimum: logistic regression and least squares.

    logistic   mean_i w_i CE(W^T u_i + b, y_i)            + l2/2 |W|^2      scikit-learn's C     = 1 / (l2 n)
    ridge      mean_i w_i |W^T u_i + b - onehot(y_i)|^2   + l2 |W|^2        scikit-learn's alpha = l2 n

over the n labelled images, with u = (x - mean) / scale; the bias is not penalised. For two classes scikit-learn's
logistic regression has one vector, the difference of our two, whose square is twice their sum: there C = 2 / (l2 n).

Both problems are turned into coordinates in which the features' covariance is diagonal, which is exact: |W| does not
change. With fewer images than dimensions there are only as many coordinates as images (W is a combination of them), so
few labels on wide features cost next to nothing. There ridge is a division, for all strengths at once, and logistic
regression starts from the exact curvature.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .heads import NEVER, Features, Heads, LinearHead, device_of, labelled, problem, temperature
from .softmax import Task, minimise

__all__ = ["Heads", "LinearHead", "fit_logistic", "fit_ridge", "temperature"]

GROUP = 2**26  # numbers in the features of problems that are fitted together
SMALL = 2**16  # multiplications of a product with the features, up to which float32 saves nothing
FLOAT32 = 1e-6  # the gradient that float32 reaches safely, in units of the features


def fit_logistic(
    x: Features,
    y: Features,
    classes: int,
    l2: Sequence[float],
    weight: Features | None = None,
    standardise: bool = True,
    intercept: bool = True,
    tolerance: float = 1e-5,
    max_steps: int = 2000,
) -> Heads:
    """Multinomial logistic regression for every problem and every strength, all in one go.

    x (P, N, D), or (N, D) for one problem. y (N,): classes from 0, -1 = unlabelled and left out. l2: S strengths > 0.
    weight (N,) >= 0: how much an image counts, 1 by default. standardise: features are centred and divided by their
    (weighted) standard deviation, which is a BatchNorm before the layer; constant ones become 0. Returns `Heads`
    with S heads a problem, whose `gradient` (P, S) bounds the entries of the objective's gradient, over centred
    features where there is an intercept; at most `tolerance` unless a warning says so. Large problems run in float32
    as far as that goes, and every one ends in float64. A class without labels gets weight 0 and the bias `NEVER`.
    Memory: a few times N K numbers for each fit in progress, one at least.
    Raises `UserError` for NaN or infinite features, fewer than two classes among the labels, or sizes that disagree.
    """
    labels = _labels(x, y, classes, weight)
    _check(x, labels, l2)
    heads: list[tuple[Tensor, ...]] = []
    for designs in _groups(x, labels, standardise, intercept):
        weights, norms = _minimise(designs, labels, l2, intercept, tolerance, max_steps)
        heads += [(*d.head(w, labels, intercept), norm) for d, w, norm in zip(designs, weights, norms, strict=True)]
    found = _heads(heads, l2)
    worst = torch.stack([head[-1] for head in heads])
    if (late := int((worst > tolerance).sum())) > 0:
        warnings.warn(
            f"{late} of {worst.numel()} logistic regressions stopped above the tolerance {tolerance:g}, at a gradient "
            f"of up to {worst.max():.1e}: raise l2, the tolerance or max_steps ({max_steps})",
            stacklevel=2,
        )
    return found


def fit_ridge(
    x: Features,
    y: Features,
    classes: int,
    l2: Sequence[float],
    weight: Features | None = None,
    standardise: bool = True,
    intercept: bool = True,
) -> Heads:
    """Least squares to one-hot targets, in closed form: a decomposition per problem serves all strengths.

    Arguments, result and errors as `fit_logistic`'s. The heads' "logits" are the targets they estimate: right for
    ranking classes, not for a softmax; `temperature` says how sharp one should be.
    """
    labels = _labels(x, y, classes, weight)
    _check(x, labels, l2)
    strengths = torch.tensor(l2, dtype=torch.float64, device=device_of(x))[:, None, None]
    heads: list[tuple[Tensor, ...]] = []
    for designs in _groups(x, labels, standardise, intercept):
        for d in designs:
            rank = d.basis.shape[1]
            share, target = labels.share.to(d.z), labels.target.to(d.z)
            inverse = 1 / (d.curvature[:rank, None] + strengths)  # (S, r, 1)
            weights = inverse * (d.z[:rank] @ (target * share).T)
            constant = (target @ share / share.sum()).expand(len(l2), -1)
            weights = torch.cat([weights, constant[:, None]], 1) if intercept else weights
            heads.append((*d.head(weights.mT, labels, intercept), torch.zeros(len(l2)).to(d.z)))
    return _heads(heads, l2)


@dataclass(frozen=True)
class _Labels:
    """The n images that count: their rows, one-hot targets (K', n) over the classes present, shares w_i / n."""

    rows: Tensor
    target: Tensor
    share: Tensor
    present: Tensor
    classes: int


@dataclass(frozen=True)
class _Design:
    """One problem's features in coordinates where z diag(share) z^T is diagonal: u_i = basis z_i.

    z (r, n), with a last row of ones for an intercept, and curvature: that diagonal. basis (D, r). shift (D,) is what
    was taken off the features; mean and scale (D,) are what heads apply to them.
    """

    z: Tensor
    curvature: Tensor
    basis: Tensor
    shift: Tensor
    mean: Tensor
    scale: Tensor

    def head(self, weights: Tensor, labels: _Labels, intercept: bool) -> tuple[Tensor, ...]:
        """weights (S, K', r or r + 1) in those coordinates -> weight (S, D, K), bias (S, K), mean, scale."""
        rank, (strengths, dims) = self.basis.shape[1], (len(weights), len(self.basis))
        found = self.basis @ weights[:, :, :rank].mT  # (S, D, K')
        constant = weights[:, :, rank] if intercept else weights.new_zeros(weights.shape[:2])
        constant = constant - ((self.shift - self.mean) / self.scale) @ found
        present = labels.present.to(weights.device)
        weight = weights.new_zeros(strengths, dims, labels.classes).index_copy_(2, present, found)
        bias = weights.new_full((strengths, labels.classes), NEVER).index_copy_(1, present, constant)
        return weight, bias, self.mean, self.scale


def _heads(heads: list[tuple[Tensor, ...]], l2: Sequence[float]) -> Heads:
    weight, bias, mean, scale, gradient = (torch.stack(parts) for parts in zip(*heads, strict=True))
    return Heads(weight, bias, mean, scale, tuple(map(float, l2)), gradient)


def _labels(x: Features, y: Features, classes: int, weight: Features | None) -> _Labels:
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError("features", f"of shape {tuple(x.shape)}", "expected (problems, images, dimensions), not empty")
    rows, truth = labelled(y, x.shape[-2], classes)
    n = len(rows)
    share = torch.ones(n, dtype=torch.float64)
    if weight is not None:
        weight = torch.as_tensor(np.array(weight) if isinstance(weight, np.ndarray) else weight).cpu()
        if weight.shape != (x.shape[-2],) or not torch.isfinite(weight).all() or (weight < 0).any():
            raise UserError("weight", "not a number >= 0 for every image", f"expected {x.shape[-2]}")
        share = weight[rows].double()
        rows, truth, share = rows[share > 0], truth[share > 0], share[share > 0]
    present, truth = truth.unique(return_inverse=True)
    if len(present) < 2:
        raise UserError("labels", "all images are of one class", "a classifier needs at least two")
    target = torch.nn.functional.one_hot(truth, len(present)).T.double()
    return _Labels(rows, target, share / n, present, classes)


def _check(x: Features, labels: _Labels, l2: Sequence[float]) -> None:
    """Reads everything once, before the first fit."""
    if not len(l2) or not all(0 < strength < float("inf") for strength in l2):
        raise UserError("l2", f"{list(l2)}", "one or more numbers above 0")
    for p in range(len(x) if x.ndim == 3 else 1):
        features = problem(x, p)
        finite = torch.isfinite(features[labels.rows.to(features.device)]).all(1)
        if not finite.all():
            where = f"features of problem {p}" if x.ndim == 3 else "features"
            raise UserError(where, f"NaN or infinity for {int((~finite).sum())} of {len(finite)} labelled images")


def _groups(x: Features, labels: _Labels, standardise: bool, intercept: bool) -> Iterator[list[_Design]]:
    """The problems, as many at a time as may be held at once."""
    problems = len(x) if x.ndim == 3 else 1
    dims = min(x.shape[-1], len(labels.rows)) + 1
    count = max(1, GROUP // (dims * len(labels.rows)))
    for start in range(0, problems, count):
        group = range(start, min(problems, start + count))
        yield [_design(problem(x, p), labels, standardise, intercept) for p in group]


def _design(x: Tensor, labels: _Labels, standardise: bool, intercept: bool) -> _Design:
    x = x[labels.rows.to(x.device)]
    precision, x = torch.finfo(x.dtype).eps, x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)
    share = labels.share.to(x.device)
    zero, one = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    shift, scale = (share @ x / share.sum() if standardise or intercept else zero), one
    largest = x.abs().amax(0)
    x = x - shift
    if standardise:
        scale = (share @ x.square() / share.sum()).sqrt()
        constant = scale <= 8 * precision * largest  # what varies by rounding alone is constant
        scale = torch.where(constant, one, scale)
        x = (x / scale).masked_fill_(constant, 0)
    z, basis = x.T, None
    if len(x) < x.shape[1]:
        basis, z = torch.linalg.qr(x.T)  # x^T = basis z
    curvature, rotation = torch.linalg.eigh((z * share) @ z.T)
    basis = rotation if basis is None else basis @ rotation
    z, curvature = rotation.T @ z, curvature.clamp_min(0)
    if intercept:
        z = torch.cat([z, z.new_ones(1, z.shape[1])])
        curvature = torch.cat([curvature, share.sum()[None]])
    return _Design(z.contiguous(), curvature, basis, shift, shift if standardise else zero, scale)


def _minimise(
    designs: list[_Design], labels: _Labels, l2: Sequence[float], intercept: bool, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """(P, S, K', r) weights and (P, S) gradient norms of the designs' logistic regressions."""
    z = designs[0].z
    curvature = torch.stack([d.curvature for d in designs])
    penalty = torch.tensor(l2, dtype=torch.float64)[:, None].repeat(1, len(z)).to(z)
    if intercept:
        penalty[:, -1] = 0
    weights = z.new_zeros(len(designs), len(l2), len(labels.target), len(z))
    limit = torch.full_like(curvature[:, 0], tolerance)
    rank, ones = designs[0].basis.shape[1], [z.new_ones(1, 1)] * intercept

    def solve(dtype: torch.dtype, limit: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        features, frames = [d.z.to(dtype) for d in designs], None
        if len(designs[0].basis) == rank:  # else turning the gradient back would cost more than the gradient
            frames = [torch.block_diag(d.basis, *ones).to(dtype) for d in designs]
        given = (curvature, labels.target, labels.share, penalty, limit)
        of_fits, target, share, penalties, tolerances = (t.to(z.device, dtype) for t in given)
        task = Task(features, of_fits, target, share, penalties, tolerances, max_steps, frames)
        found, sizes = minimise(task, start.to(dtype))
        return found.double(), sizes.double()

    if z.numel() * len(labels.target) > SMALL:
        units = torch.stack([(d.z.square() @ labels.share.to(z)).sum().sqrt() for d in designs])
        floor = FLOAT32 * (units / len(z) ** 0.5).clamp_min(1)
        weights, _ = solve(torch.float32, torch.maximum(0.9 * limit, floor), weights)
    return solve(torch.float64, limit, weights)
