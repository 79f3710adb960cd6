"""Many softmax regressions at once, by one batched L-BFGS.

A fit is one problem (features) at one strength. With columns z_i of a problem's features, targets t_i and weights u_i,

    f(W) = sum_i u_i CE(W z_i, t_i) + 1/2 sum_d penalty_d |W_d|^2

is minimised over W (K, D). It is convex, and positive penalties make the minimum unique. All fits take their steps
together: the products with the features run once per problem for all its strengths, everything else on all fits at
once, with numbers of their own for each. A fit that has converged leaves, and the next one in the queue takes its
place, so nothing is computed twice. The caller gives coordinates in which z z^T is diagonal; then
1 / (curvature / K + penalty) is the exact inverse Hessian at W = 0 and a good first guess everywhere.

    L-BFGS       Nocedal and Wright 2006, algorithm 7.4 (two-loop recursion)
    line search  approximate Wolfe conditions of Hager and Zhang 2005, eq. 4: slopes only, no function values, which
                 float32 cannot tell apart near the minimum. Logits are linear along a line, so a trial costs a softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

MEMORY = 10  # steps that the inverse Hessian is made of
TRIALS = 20  # step sizes tried along one direction
CACHE = 2**19  # logits of all fits in progress: as many as stay near the cores of a CPU
STATE = 2**26  # numbers in their history


@dataclass(frozen=True)
class Task:
    """features: P matrices (D, N) of one dtype. curvature (P, D): diagonal of z u z^T. target (K, N): one-hot.

    weight (N,): u_i. penalty (S, D). tolerance (P,): of the gradient's largest row norm, which bounds its entries in
    whatever orthonormal coordinates.
    """

    features: Sequence[Tensor]
    curvature: Tensor
    target: Tensor
    weight: Tensor
    penalty: Tensor
    tolerance: Tensor
    max_steps: int


def minimise(task: Task, start: Tensor) -> tuple[Tensor, Tensor]:
    """(P, S, K, D) where each fit ends and (P, S) the norm of its gradient there. start: where they begin."""
    problems, strengths, classes, dims = start.shape
    weights, norms = start.flatten(0, 1).clone(), start.new_full((problems * strengths,), torch.inf)
    room = _room(classes, dims, task.target.shape[1], start.device.type)
    queue = iter(range(problems * strengths))
    fits = _Fits(task, _next(queue, room), weights)
    while len(fits.fit):
        done = fits.finished()
        if 8 * int(done.sum()) >= len(done):  # moving the state costs about a fifth of a step: wait until it pays
            weights[fits.fit[done]], norms[fits.fit[done]] = fits.W[done], fits.norm[done]
            fits.replace(done, _Fits(task, _next(queue, room - int((~done).sum())), weights))
        else:
            fits.step(~done)
    return weights.view_as(start), norms.view(problems, strengths)


def _next(queue: Iterator[int], count: int) -> list[int]:
    return list(islice(queue, count))


def _room(classes: int, dims: int, n: int, device: str) -> int:
    """Fits in progress at once."""
    logits = CACHE if device == "cpu" else 64 * CACHE
    return max(1, min(logits // (classes * n), STATE // (2 * MEMORY * classes * dims)))


class _Fits:
    """The state of B fits in progress, in order of their problems: W and its gradient (B, K, D), logits (B, K, N)."""

    def __init__(self, task: Task, fit: list[int], weights: Tensor) -> None:
        self.task = task
        self.fit = torch.tensor(fit, dtype=torch.int64, device=weights.device)
        self.steps, self.stuck = torch.zeros_like(self.fit), torch.zeros_like(self.fit)
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []
        self._places()
        self.W = weights[self.fit]
        self.L = self._logits(self.W)
        self.G = self._gradient(self._residual(self.L))
        self.norm = self.G.norm(dim=2).amax(1)

    def finished(self) -> Tensor:
        """(B,) whether a fit has converged, is held up by rounding, or has used up its steps."""
        return (self.norm <= self.tolerance) | (self.stuck > 1) | (self.steps >= self.task.max_steps)

    def replace(self, done: Tensor, new: _Fits) -> None:
        """Drops the fits that are done, and takes in new ones."""
        keep = ~done
        for name in ("fit", "steps", "stuck", "W", "L", "G", "norm"):
            setattr(self, name, torch.cat([getattr(self, name)[keep], getattr(new, name)]))
        none = torch.zeros_like(new.W)  # no history yet
        self.history = [
            (torch.cat([s[keep], none]), torch.cat([y[keep], none]), torch.cat([rho[keep], none[:, 0, 0]]))
            for s, y, rho in self.history
        ]
        self._places()

    def _places(self) -> None:
        """Where each problem's fits are, and what belongs to each fit."""
        task, strengths = self.task, len(self.task.penalty)
        problem = self.fit // strengths
        self.spans, at = [], 0
        for p, count in zip(*(part.tolist() for part in problem.unique_consecutive(return_counts=True)), strict=True):
            self.spans.append((p, at, at + count))
            at += count
        self.penalty = task.penalty[self.fit % strengths][:, None]  # (B, 1, D)
        self.inverse = 1 / (task.curvature[problem][:, None] / len(task.target) + self.penalty)
        self.tolerance = task.tolerance[problem]

    def step(self, active: Tensor) -> None:
        """One step of the `active` fits; the others stay."""
        direction = -self._inverse_hessian(self.G)
        slope = _dot(self.G, direction)
        moving = active & (slope < 0)
        direction.mul_(moving[:, None, None])
        size, logits, residual = self._search(direction, self._logits(direction), slope.mul_(moving))
        step = direction.mul_(size[:, None, None])
        self.W, self.L = self.W + step, logits
        gradient = self._gradient(residual)
        change = gradient - self.G
        curved = _dot(step, change)
        rho = torch.where(curved > 0, 1 / curved.clamp_min(torch.finfo(curved.dtype).tiny), 0)
        self.history = [*self.history[-MEMORY + 1 :], (step, change, rho)]
        self.G, self.norm = gradient, gradient.norm(dim=2).amax(1)
        failed = (size == 0) | (slope == 0)
        self.steps, self.stuck = self.steps + 1, (self.stuck + 1) * failed
        if (failed & active).any():  # rounding has spoilt its history: once more without
            self.history = [(s, y, rho * ~failed) for s, y, rho in self.history]

    def _inverse_hessian(self, vector: Tensor) -> Tensor:
        """Its product with (B, K, D): the two-loop recursion. A pair whose rho is 0 does not count."""
        shares = []
        for s, y, rho in reversed(self.history):
            share = rho * _dot(s, vector)
            vector = torch.addcmul(vector, share[:, None, None], y, value=-1)
            shares.append(share)
        vector = self.inverse * vector
        if self.history:
            _, y, rho = self.history[-1]
            scale = rho * _dot(y, self.inverse * y)
            vector = vector / torch.where(scale > 0, scale, 1)[:, None, None]
        for (s, y, rho), share in zip(self.history, reversed(shares), strict=True):
            vector = torch.addcmul(vector, (share - rho * _dot(y, vector))[:, None, None], s)
        return vector

    def _search(self, direction: Tensor, along: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) step sizes, and logits and residuals (B, K, N) there. along: what the logits gain per unit of size."""
        ridge = _dot(self.penalty * self.W, direction), _dot(self.penalty * direction, direction)
        size = torch.ones_like(slope)
        low, low_slope = torch.zeros_like(slope), slope.clone()
        high, high_slope = torch.full_like(slope, torch.inf), torch.zeros_like(slope)
        logits = self.L + along
        residual = self._residual(logits)
        now = _dot(residual, along) + ridge[0] + ridge[1]
        for _ in range(TRIALS):
            short, far = now < 0.9 * slope, now > -0.5 * slope
            bad = (short | far).nonzero()[:, 0]
            if not len(bad):
                return size, logits, residual
            low, low_slope = torch.where(short, size, low), torch.where(short, now, low_slope)
            high, high_slope = torch.where(far, size, high), torch.where(far, now, high_slope)
            secant = (-low_slope / (high_slope - low_slope)).clamp(0.1, 0.9)
            between = torch.where(high.isinf(), 3 * size, low + (high - low) * secant)
            size = torch.where(short | far, between, size)
            logits[bad] = torch.addcmul(self.L[bad], size[bad, None, None], along[bad])
            residual[bad] = self._residual(logits[bad])
            now[bad] = (_dot(residual[bad], along[bad]) + ridge[0][bad]) + size[bad] * ridge[1][bad]
        size[bad] = low[bad]  # where the slope still fell: never worse than the start
        logits[bad] = torch.addcmul(self.L[bad], size[bad, None, None], along[bad])
        residual[bad] = self._residual(logits[bad])
        return size, logits, residual

    def _residual(self, logits: Tensor) -> Tensor:
        """Gradient of the data term in its logits."""
        return torch.softmax(logits, 1).sub_(self.task.target).mul_(self.task.weight)

    def _logits(self, W: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, N)"""
        out = torch.empty_like(W[:1, :, :1]).expand(len(W), *self.task.target.shape).contiguous()
        for p, a, b in self.spans:
            torch.mm(W[a:b].flatten(0, 1), self.task.features[p], out=out[a:b].flatten(0, 1))
        return out

    def _gradient(self, residual: Tensor) -> Tensor:
        """Gradient (B, K, D) of everything, at W."""
        out = torch.empty_like(self.W)
        for p, a, b in self.spans:
            torch.mm(residual[a:b].flatten(0, 1), self.task.features[p].mT, out=out[a:b].flatten(0, 1))
        return out.addcmul_(self.penalty, self.W)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products of two (B, K, M)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
