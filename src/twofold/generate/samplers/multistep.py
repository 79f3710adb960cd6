"""DPM-Solver++ multistep (Lu et al. 2022b): earlier x0_hat make a polynomial in lambda, at one evaluation a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from .step import Denoise, Noise, Step, draw, last_step, levels_of, predict


def dpmpp2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order at one evaluation a step.

    With lambda = -ln sigma and h = ln(s / s'): x' = (s'/s) x + (1 - s'/s) ((1 + 1/2r) x0_hat - 1/2r previous x0_hat),
    r = previous h / h. The first step, and the last one into sigma 0 where h is infinite, are of first order.
    """
    levels = levels_of(sigmas)
    previous, h_previous = None, 0.0
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        target = x0_hat
        if previous is not None and t > 0:
            target = x0_hat + math.log(s / t) / (2 * h_previous) * (x0_hat - previous)
        x = (t / s) * x + (1 - t / s) * target
        previous, h_previous = x0_hat, math.log(s / t) if t > 0 else math.inf
    yield last_step(levels, x, x0_hat)


def dpmpp3m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(3M) (Lu et al. 2022b, their code): a parabola through the last three x0_hat, one evaluation a step.

    As published (also in k-diffusion and diffusers), its quadratic term has half the weight that would integrate the
    parabola exactly: it is of second order with small errors, and at 10 to 20 evaluations nothing is lost by it.
    The first step is of first order, the second is that of `dpmpp2m`, the last one into sigma 0 is of first order.
    """
    levels = levels_of(sigmas)
    known: list[tuple[float, Tensor]] = []  # (lambda, x0_hat), newest first
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        known = [(-math.log(s), x0_hat), *known[:2]]
        x = x0_hat if t == 0 else (t / s) * x + _parabola(known, math.log(s / t))
    yield last_step(levels, x, x0_hat)


def _parabola(known: list[tuple[float, Tensor]], h: float) -> Tensor:
    """s' times the integral of e^lambda x0_hat, with as many points as there are.

    With v = (lambda' - lambda) / h it is that of h e^(h(v-1)) m(v) from 0 to 1, where m(v) = m0 + slope v + bend v^2.
    """
    (now, m0), *earlier = known
    level = -math.expm1(-h)
    line = 1 - level / h
    total = level * m0
    if not earlier:
        return total
    (before, m1), *oldest = earlier
    back = (now - before) / h
    slope = (m0 - m1) / back
    if len(earlier) == 1:
        return total + 0.5 * level * slope  # as in `dpmpp2m`
    ((first, m2),) = oldest
    far = (before - first) / h
    bend = (slope - (m1 - m2) / far) / (back + far)
    return total + line * (slope + back * bend) + (0.5 - line / h) * bend  # exact would be 1 - 2 line / h


def dpmpp2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, eta: float = 1.0
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b): the reverse SDE with the multistep of `dpmpp2m`.

    eta: how much noise is new, 1 = the reverse SDE, 0 = `dpmpp2m` (the scale is k-diffusion's). With
    q = (s'/s)^(1 + eta):  x' = q x + (1 - q) ((1 + 1/2r) x0_hat - 1/2r previous x0_hat) + s' sqrt(1 - e^(-2 eta h)) z.
    Second weak order. No noise is added on the step into sigma 0, which is of first order.
    """
    levels = levels_of(sigmas)
    previous, h_previous = None, 0.0
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        if t == 0:
            x = x0_hat
            break
        h = math.log(s / t)
        target = x0_hat if previous is None else x0_hat + h / (2 * h_previous) * (x0_hat - previous)
        keep = (t / s) ** (1 + eta)
        x = keep * x + (1 - keep) * target
        if eta > 0:
            x = x + t * math.sqrt(-math.expm1(-2 * eta * h)) * draw(noise, x)
        previous, h_previous = x0_hat, h
    yield last_step(levels, x, x0_hat)
