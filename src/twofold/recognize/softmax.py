"""Many softmax regressions at once, by one batched L-BFGS.

A fit is one problem (features) at one strength. With columns z_i of a problem's features, targets t_i and weights u_i,

    f(W) = sum_i u_i CE(W z_i, t_i) + 1/2 sum_d penalty_d |W_d|^2

is minimised over W (K, D). It is convex, and positive penalties make the minimum unique. All fits take their steps
together: the products with the features run once per problem for all its strengths, everything else on all fits at
once, with numbers of their own for each. A fit that has converged leaves, and the next one in the queue takes its
place, so nothing is computed twice. The caller gives coordinates in which z z^T is diagonal; then
1 / (curvature / K + penalty) is the exact inverse Hessian at W = 0 and a good first guess everywhere.

    L-BFGS       Nocedal and Wright 2006, algorithm 7.4 (two-loop recursion)
    line search  approximate Wolfe conditions of Hager and Zhang 2005: slopes only, no function values, which
                 float32 cannot tell apart near the minimum. Logits are linear along a line, so a trial costs a softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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

    share (N,): u_i. penalty (S, D). tolerance (P,): of the gradient's largest entry in the coordinates that `frames`,
    P matrices (E, D), lead to; without them of its largest norm |gradient_k|, which no entry exceeds in any
    orthonormal coordinates.
    """

    features: Sequence[Tensor]
    curvature: Tensor
    target: Tensor
    share: Tensor
    penalty: Tensor
    tolerance: Tensor
    max_steps: int
    frames: Sequence[Tensor] | None = None

    @cached_property
    def shared(self) -> list[Tensor]:
        """The features times their shares."""
        return [z * self.share for z in self.features]


def minimise(task: Task, start: Tensor) -> tuple[Tensor, Tensor]:
    """(P, S, K, D) where each fit ends and (P, S) the size of its gradient there. start: where they begin."""
    problems, strengths, classes, dims = start.shape
    weights, sizes = start.flatten(0, 1).clone(), start.new_full((problems * strengths,), torch.inf)
    room = _room(classes, dims, task.target.shape[1], start.device.type)
    queue = iter(range(problems * strengths))
    fits = _Fits(task, _next(queue, room), weights)
    while len(fits.fit):
        done = fits.finished()
        if 8 * int(done.sum()) >= len(done):  # moving the state costs about a fifth of a step: wait until it pays
            weights[fits.fit[done]], sizes[fits.fit[done]] = fits.W[done], fits.left[done]
            fits.replace(done, _Fits(task, _next(queue, room - int((~done).sum())), weights))
        else:
            fits.step(~done)
    return weights.view_as(start), sizes.view(problems, strengths)


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
        self.G = self._gradient(self._residual(self.L), self.W)
        self.left = self._size(self.G)

    def finished(self) -> Tensor:
        """(B,) whether a fit has converged, is held up by rounding, or has used up its steps."""
        return (self.left <= self.tolerance) | (self.stuck > 1) | (self.steps >= self.task.max_steps)

    def replace(self, done: Tensor, new: _Fits) -> None:
        """Drops the fits that are done, and takes in new ones."""
        keep = ~done
        for name in ("fit", "steps", "stuck", "W", "L", "G", "left"):
            setattr(self, name, torch.cat([getattr(self, name)[keep], getattr(new, name)]))
        none = torch.zeros_like(new.W)  # no history yet
        self.history = [
            (torch.cat([s[keep], none]), torch.cat([y[keep], none]), torch.cat([rho[keep], none[:, 0, 0]]))
            for s, y, rho in self.history
        ]
        self._places()

    def _places(self) -> None:
        """What belongs to each fit."""
        task, strengths = self.task, len(self.task.penalty)
        self.problem = self.fit // strengths
        self.spans = _spans(self.problem)
        self.penalty = task.penalty[self.fit % strengths][:, None]  # (B, 1, D)
        self.inverse = 1 / (task.curvature[self.problem][:, None] / len(task.target) + self.penalty)
        self.tolerance = task.tolerance[self.problem]

    def step(self, active: Tensor) -> None:
        """One step of the `active` fits; the others stay."""
        direction = -self._inverse_hessian(self.G)
        slope = _dot(self.G, direction)
        moving = active & (slope < 0)
        direction.mul_(moving[:, None, None])
        slope.mul_(moving)
        along = self._logits(direction)
        W, L = self.W + direction, self.L + along
        gradient = self._gradient(self._residual(L), W)
        now = _dot(gradient, direction)
        bad = _too_short(now, slope) | _too_far(now, slope)
        failed = ~moving
        if bad.any():
            rows = bad.nonzero()[:, 0]
            size, L[rows], residual = self._search(rows, direction[rows], along[rows], slope[rows], now[rows])
            direction[rows] *= size[:, None, None]
            W[rows] = self.W[rows] + direction[rows]
            gradient[rows] = self._gradient(residual, W[rows], rows)
            failed[rows] |= size == 0
        self._remember(direction, gradient - self.G, failed & active)
        self.W, self.L, self.G, self.left = W, L, gradient, self._size(gradient)
        self.steps, self.stuck = self.steps + 1, (self.stuck + 1) * failed

    def _remember(self, step: Tensor, change: Tensor, failed: Tensor) -> None:
        curved = _dot(step, change)
        rho = torch.where(curved > 0, 1 / curved.clamp_min(torch.finfo(curved.dtype).tiny), 0)
        self.history = [*self.history[-MEMORY + 1 :], (step, change, rho)]
        if failed.any():  # rounding has spoilt their history: once more without
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

    def _search(
        self, rows: Tensor, direction: Tensor, along: Tensor, slope: Tensor, now: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes of some fits, for which 1 with slope `now` was not right; logits and residuals (b, K, N) there.

        along: what the logits gain per unit of size.
        """
        penalty, W, start = self.penalty[rows], self.W[rows], self.L[rows]
        ridge, bend = _dot(penalty * W, direction), _dot(penalty * direction, direction)
        size = torch.ones_like(slope)
        low, low_slope = torch.zeros_like(slope), slope
        high, high_slope = torch.full_like(slope, torch.inf), torch.zeros_like(slope)
        for _ in range(TRIALS):
            short, far = _too_short(now, slope), _too_far(now, slope)
            if not (short | far).any():
                break
            low, low_slope = torch.where(short, size, low), torch.where(short, now, low_slope)
            high, high_slope = torch.where(far, size, high), torch.where(far, now, high_slope)
            secant = (-low_slope / (high_slope - low_slope)).clamp(0.1, 0.9)
            between = torch.where(high.isinf(), 3 * size, low + (high - low) * secant)
            size = torch.where(short | far, between, size)
            logits = torch.addcmul(start, size[:, None, None], along)
            residual = self._residual(logits)
            now = _dot(residual * self.task.share, along) + ridge + size * bend
        else:
            size = torch.where(short | far, low, size)  # where the slope still fell: never worse than the start
            logits = torch.addcmul(start, size[:, None, None], along)
            residual = self._residual(logits)
        return size, logits, residual

    def _residual(self, logits: Tensor) -> Tensor:
        """Gradient of the losses in their logits."""
        return torch.softmax(logits, 1).sub_(self.task.target)

    def _logits(self, W: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, N)"""
        out = W.new_empty(len(W), *self.task.target.shape)
        for p, a, b in self.spans:
            torch.mm(W[a:b].flatten(0, 1), self.task.features[p], out=out[a:b].flatten(0, 1))
        return out

    def _gradient(self, residual: Tensor, W: Tensor, rows: Tensor | None = None) -> Tensor:
        """Gradient (B, K, D) of everything at W, for all fits or some."""
        out = torch.empty_like(W)
        for p, a, b in self.spans if rows is None else _spans(self.problem[rows]):
            torch.mm(residual[a:b].flatten(0, 1), self.task.shared[p].mT, out=out[a:b].flatten(0, 1))
        return out.addcmul_(self.penalty if rows is None else self.penalty[rows], W)

    def _size(self, gradient: Tensor) -> Tensor:
        """(B,): what the tolerance is about."""
        if self.task.frames is None:
            return gradient.norm(dim=2).amax(1)
        largest = [(gradient[a:b] @ self.task.frames[p].mT).abs().amax((1, 2)) for p, a, b in self.spans]
        return torch.cat(largest) if largest else gradient.new_empty(0)


def _spans(problem: Tensor) -> list[tuple[int, int, int]]:
    """(p, a, b) for each problem in a sorted list of them: its fits are a to b."""
    spans, at = [], 0
    for p, count in zip(*(part.tolist() for part in problem.unique_consecutive(return_counts=True)), strict=True):
        spans.append((p, at, at + count))
        at += count
    return spans


def _too_short(now: Tensor, slope: Tensor) -> Tensor:
    """Whether nearly nothing is gained of what the slope at the start promises."""
    return now < 0.9 * slope


def _too_far(now: Tensor, slope: Tensor) -> Tensor:
    """Whether the minimum along the line lies far behind; a parabola would have lost half of what it gave."""
    return now > -0.5 * slope


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products of two (B, K, M)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
