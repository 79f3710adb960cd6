"""Linear multistep methods on eps, the slope dx/dsigma: the slopes of earlier steps make a polynomial.

Both use their full order on the step into sigma 0 too, as published; its result is then not exactly x0_hat.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from .step import Denoise, Noise, Step, last_step, levels_of, predict

PLMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # newest first
GAUSS = (0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3))  # the mean there is that from 0 to 1, up to degree 3


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """Pseudo linear multistep (Liu et al. 2022): Adams-Bashforth weights of four slopes.

    DDIM's transfer (their eq. 9) is Euler's step in this frame, x' = x + (s' - s) eps'. The weights are those of evenly
    spaced steps whatever the grid, so that it converges with order 2 (their theorem). It starts as in their S-PNDM and
    in latent diffusion: the first step is Heun's, with one more evaluation (not where it leads into 0), the next two
    have two and three slopes. Their F-PNDM starts with Runge-Kutta steps through half times, which a sampler does not
    know.
    """
    levels = levels_of(sigmas)
    slopes: deque[Tensor] = deque(maxlen=4)  # newest first
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        slopes.appendleft((x - x0_hat) / s)
        slope = _sum(PLMS[len(slopes) - 1], slopes)
        if i == 0 and t > 0:
            ahead = x + (t - s) * slope
            slope = 0.5 * (slope + (ahead - predict(denoise, ahead, t)) / t)
        x = x + (t - s) * slope
    yield last_step(levels, x, x0_hat)


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, order: int = 4) -> Iterator[Step]:
    """Linear multistep (k-diffusion's LMS): Adams-Bashforth for uneven steps in sigma.

    The polynomial in sigma through the last `order` slopes (1 to 4; fewer at the start) is integrated exactly.
    """
    levels = levels_of(sigmas)
    slopes: deque[Tensor] = deque(maxlen=order)  # newest first
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        slopes.appendleft((x - x0_hat) / s)
        x = x + (t - s) * _sum(_adams(levels[i + 1 - len(slopes) : i + 1][::-1], t), slopes)
    yield last_step(levels, x, x0_hat)


def _adams(nodes: list[float], end: float) -> list[float]:
    """Weights of the slopes at nodes (newest first) in the mean slope from nodes[0] to end; they sum to 1."""
    u = [(node - nodes[0]) / (end - nodes[0]) for node in nodes]  # 0, then negative
    return [
        sum(math.prod((v - b) / (a - b) for k, b in enumerate(u) if k != j) for v in GAUSS) / 2 for j, a in enumerate(u)
    ]


def _sum(weights: list[float] | tuple[float, ...], slopes: deque[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], list(slopes)[1:], strict=True):
        total = total + weight * slope
    return total
