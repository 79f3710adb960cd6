"""UniPC (Zhao et al. 2023): a multistep predictor whose next evaluation also corrects the step just made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch import Tensor

from .step import Denoise, Noise, Step, last_step, levels_of, predict

Known = list[tuple[float, Tensor]]  # (lambda, x0_hat), newest first


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    *,
    order: int = 2,
    variant: str = "bh2",
) -> Iterator[Step]:
    """UniPC of the data prediction (Zhao et al. 2023, UniP and UniC), one evaluation a step.

    order: 2 or 3, of the predictor; the corrector adds one. variant: the paper's B(h), bh1 = h or bh2 = 1 - e^-h, which
    matters where one point is used (order 2, and the first steps). Of a step from s to s', with r_k the place of
    another point between them (s at 0, s' at 1, earlier ones negative) and D_k = (its x0_hat - that at s) / r_k,

        x' = (s'/s) x + (1 - s'/s) x0_hat + B sum_k rho_k D_k

    Predictor: earlier points. Corrector: the point at s' too, once it is evaluated. So x0_hat of step i belongs to the
    predicted x, which is the one in `Step`. Towards sigma 0 the order falls to 1, as published; the last x is not
    corrected.
    """
    levels = levels_of(sigmas)
    known: Known = []
    start, used = x, 0  # the corrected state one level above, the order that led from it to x
    for i, (s, t) in enumerate(pairwise(levels)):
        now = (-math.log(s), predict(denoise, x, s))
        yield Step(i, s, x, now[1])
        if known:
            x = _advance(start, levels[i - 1], s, known[:used], variant, corrected_by=now)
        known = [now, *known[: order - 1]]
        start, used = x, min(len(known), len(levels) - 1 - i if levels[-1] == 0 else order)
        x = now[1] if t == 0 else _advance(x, s, t, known[:used], variant)
    yield last_step(levels, x, now[1])


def _advance(
    x: Tensor, s: float, t: float, known: Known, variant: str, corrected_by: tuple[float, Tensor] | None = None
) -> Tensor:
    """From s to t > 0 by the points in known, newest (that at s) first, and the one at t where there is one."""
    h = math.log(s / t)
    now, m0 = known[0]
    points = [*known[1:], corrected_by] if corrected_by else known[1:]
    places = [(where - now) / h for where, _ in points]
    x = (t / s) * x + (1 - t / s) * m0
    for weight, place, (_, value) in zip(_weights(places, h, variant), places, points, strict=True):
        x = x + weight / place * (value - m0)
    return x


def _weights(places: list[float], h: float, variant: str) -> list[float]:
    """B rho_k. Of one point rho is 1/2 (the paper's choice); of more, they integrate polynomials exactly."""
    if len(places) == 1:
        return [0.5 * (h if variant == "bh1" else -math.expm1(-h))]
    moments, last = [], -math.expm1(-h)
    for k in range(1, len(places) + 1):  # integral of h e^(h(v-1)) v^k from 0 to 1
        last = 1 - k * last / h
        moments.append(last)
    powers = np.array(places)[None] ** np.arange(len(places))[:, None]
    return [float(w) for w in np.linalg.solve(powers, moments)] if places else []
