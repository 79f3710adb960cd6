"""Class-balanced answers: probabilities whose sums over all images are given (optimal transport, Cuturi 2013).

    P_ic = exp((l_ic + b_c) / T) / sum_c' exp((l_ic' + b_c') / T),        b such that sum_i P_ic = N prior_c

Rows sum to 1 by construction; b, one number a class, is the minimum of the convex function

    T sum_i log sum_c exp((l_ic + b_c) / T) - N sum_c prior_c b_c

Sinkhorn's step, b += T log(N prior / sum_i P), goes there from anywhere; Newton's ends it, where Sinkhorn's would take
thousands of steps: at low temperatures, which are approached from higher ones. As T -> 0, P becomes the assignment of
images to classes of given sizes with the largest sum of l (a linear program).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError

TOLERANCE = 1e-7  # of the column sums, as a share of what they should be
ROUGHLY = 1e-2  # the same at the temperatures on the way
SINKHORN, NEWTON = 6, 60  # steps at one temperature
SWEEPS, HALVINGS, REACH = 300, 70, 50.0  # of the last resort; how far a class that gets nearly all or nothing may be


def balanced(
    logits: Tensor, prior: Tensor | None = None, temperature: float = 1.0, tolerance: float = TOLERANCE
) -> Tensor:
    """P (N, K) float64 for logits l (N, K), on their device. prior (K,): shares of the classes, uniform by default.

    tolerance: as of `potentials`. A class whose share is 0 gets nothing. Only where no P has these sums (images that
    allow of few classes only) are they not met. Raises `UserError` for shares below 0 or all 0, a temperature that is
    not above 0, and logits that are not finite.
    """
    shift = potentials(logits, prior, temperature, tolerance)
    return torch.softmax((logits.double() + shift) / temperature, 1)


def potentials(
    logits: Tensor, prior: Tensor | None = None, temperature: float = 1.0, tolerance: float = TOLERANCE
) -> Tensor:
    """b (K,) float64 of `balanced`, with the mean 0; minus infinity for classes whose share is 0.

    tolerance: of the sums, as a share; above `TOLERANCE`, where they are hard to meet they are not.
    """
    share = _checked(logits, prior, temperature)
    some = share > 0
    scores, target = logits.double()[:, some], share[some] * len(logits)
    shift = torch.zeros_like(target)
    heat = max(temperature, float(scores.amax(1).sub(scores.amin(1)).mean()) / 4)
    while heat > temperature:
        shift = _at(scores, target, heat, shift, ROUGHLY)
        heat /= 3
    shift = _at(scores, target, temperature, shift, tolerance)
    found = shift.new_full((len(share),), -torch.inf)
    found[some] = shift - shift.mean()
    return found


def _at(scores: Tensor, target: Tensor, heat: float, shift: Tensor, tolerance: float) -> Tensor:
    """The minimum at one temperature, from a guess."""
    for _ in range(SINKHORN):
        column = torch.softmax((scores + shift) / heat, 1).sum(0)
        if bool(((column - target).abs() <= tolerance * target).all()):
            return shift
        shift = shift + heat * (target.log() - column.clamp(min=1e-300).log())
    for _ in range(NEWTON):
        p = torch.softmax((scores + shift) / heat, 1)
        column = p.sum(0)
        if bool(((column - target).abs() <= tolerance * target).all()):
            return shift
        bend = (torch.diag(column) - p.T @ p) / heat
        ridge = 1e-12 * bend.diagonal().amax().clamp(min=1e-300)
        step = torch.linalg.solve(bend + ridge + ridge * torch.eye(len(bend)).to(bend), target - column)
        shift = _shorter(scores, target, heat, shift, step, float((step * (target - column)).sum()))
    return shift if tolerance > TOLERANCE else _class_by_class(scores, target, heat, shift)


def _class_by_class(scores: Tensor, target: Tensor, heat: float, shift: Tensor) -> Tensor:
    """The minimum along one class's potential after another, by halving: slow, and right where the function is nearly
    made of flat pieces and Newton's steps are lost in rounding (differences of thousands of temperatures)."""
    for _ in range(SWEEPS):
        for c in range(len(target)):
            others = torch.cat([scores[:, :c] + shift[:c], scores[:, c + 1 :] + shift[c + 1 :]], 1) / heat
            ahead = scores[:, c] / heat - torch.logsumexp(others, 1)
            low, high = -ahead.amax() - REACH, -ahead.amin() + REACH
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                much = torch.sigmoid(ahead + middle).sum() > target[c]
                low, high = torch.where(much, low, middle), torch.where(much, middle, high)
            shift = torch.cat([shift[:c], (heat * (low + high) / 2)[None], shift[c + 1 :]])
        column = torch.softmax((scores + shift) / heat, 1).sum(0)
        if bool(((column - target).abs() <= TOLERANCE * target).all()):
            break
    return shift


def _shorter(scores: Tensor, target: Tensor, heat: float, shift: Tensor, step: Tensor, slope: float) -> Tensor:
    """Newton's step, halved until the function falls as it should (Armijo), or Sinkhorn's where it never does."""

    def value(b: Tensor) -> float:
        return float(heat * torch.logsumexp((scores + b) / heat, 1).sum() - (target * b).sum())

    start, size = value(shift), 1.0
    if bool(torch.isfinite(step).all()) and slope > 0:
        for _ in range(20):
            if value(shift + size * step) <= start - 1e-4 * size * slope:
                return shift + size * step
            size /= 2
    column = torch.softmax((scores + shift) / heat, 1).sum(0)
    return shift + heat * (target.log() - column.clamp(min=1e-300).log())


def _checked(logits: Tensor, prior: Tensor | None, temperature: float) -> Tensor:
    """The shares, summing to 1."""
    if logits.ndim != 2 or not len(logits) or not torch.isfinite(logits).all():
        raise UserError("logits", f"of shape {tuple(logits.shape)}, or not finite", "expected (images, classes)")
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature}", "not above 0", "1 leaves the logits as they are")
    classes = logits.shape[1]
    share = torch.ones(classes) if prior is None else torch.as_tensor(prior)
    share = share.to(logits.device, torch.float64)
    if share.shape != (classes,) or not torch.isfinite(share).all() or (share < 0).any() or not share.sum() > 0:
        raise UserError("prior", f"{share.tolist()}", f"{classes} shares of at least 0, not all 0")
    return share / share.sum()
