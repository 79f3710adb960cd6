"""Runge-Kutta methods in sigma: each step starts anew from one state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from .step import Denoise, Noise, Step, draw, last_step, levels_of, predict


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """Euler's method on the ODE; the same map as `ddim` with eta 0, on whatever grid it is given."""
    levels = levels_of(sigmas)
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        x = x + (t - s) / s * (x - x0_hat)
    yield last_step(levels, x, x0_hat)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise | None = None,
    *,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """EDM's sampler (Karras et al. 2022, algorithm 2): Heun's method, optionally raising sigma before each step.

    s_churn: overall stochasticity, 0 = none. s_min, s_max: sigmas between which it acts. s_noise: std of that noise.
    The raised sigma stays within sigmas[0], beyond which the denoiser need not have been trained; that matters only
    where s_max reaches up there. Two evaluations a step, one on the step into sigma 0.
    """
    levels = levels_of(sigmas)
    gain = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
    for i, (s, t) in enumerate(pairwise(levels)):
        raised = min(s * (1 + gain), levels[0]) if gain > 0 and s_min <= s <= s_max else s
        x_hat = x
        if raised > s:
            x_hat = x + math.sqrt(raised**2 - s**2) * s_noise * draw(noise, x)
        x0_hat = predict(denoise, x_hat, raised)
        yield Step(i, s, x, x0_hat)
        slope = (x_hat - x0_hat) / raised
        x = x_hat + (t - raised) * slope
        if t > 0:
            x0_hat = predict(denoise, x, t)
            x = x_hat + (t - raised) * 0.5 * (slope + (x - x0_hat) / t)
    yield last_step(levels, x, x0_hat)
