"""Ancestral samplers: each step goes below the next level and adds noise up to it. First order.

All three draw from the same Gaussian in this frame, in every family; what differs is how much of the noise is new.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from ... import reverse
from ...noise import as_sigma
from .step import Denoise, Noise, Step, draw, last_step, levels_of, predict


def ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, variance: str = "small"
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, eq. 6 and 7, any grid).

    variance: "small", that of q(x' | x, x0): s'^2 (s^2 - s'^2) / s^2; "large", beta: (s^2 - s'^2)(1+s'^2)/(1+s^2);
    or "learned" (Nichol and Dhariwal 2021, eq. 15): denoise returns x0_hat and v, (B, 2C, H, W), v in about [0, 1],
    and the variance of every pixel is large^v small^(1-v).
    No noise is added on the step into sigma 0.
    """
    levels = levels_of(sigmas)
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat, share = predict(denoise, x, s), None
        if variance == "learned":
            x0_hat, share = _halves(x0_hat, x)
        yield Step(i, s, x, x0_hat)
        x = x0_hat + (t / s) ** 2 * (x - x0_hat)
        if t > 0:
            x = x + _spread(s, t, variance, share) * draw(noise, x)
    yield last_step(levels, x, x0_hat)


def _spread(s: float, t: float, variance: str, share: Tensor | None) -> float | Tensor:
    """Standard deviation of the noise that a step from s to t > 0 adds."""
    low, high = reverse.small(s, t), reverse.large(s, t)
    if share is None:
        return math.sqrt(low if variance == "small" else high)
    return reverse.between(share, as_sigma(low), as_sigma(high)).sqrt()


def _halves(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape[1] != 2 * x.shape[1]:
        raise ValueError(
            f"variance=learned needs {2 * x.shape[1]} channels from denoise, x0_hat and v, not {output.shape[1]}"
        )
    x0_hat, share = output.chunk(2, dim=1)
    return x0_hat, share


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, eta: float = 0.0
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta 0 follows the ODE, eta 1 is `ddpm` with the small variance.

    In this frame: x' = x0_hat + sqrt(s'^2 - up^2) (x - x0_hat) / s + up z, up = eta sqrt(s'^2 (s^2 - s'^2) / s^2).
    """
    levels = levels_of(sigmas)
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        up = eta * t * math.sqrt(1 - (t / s) ** 2)
        x = x0_hat + math.sqrt(t**2 - up**2) / s * (x - x0_hat)
        if up > 0:
            x = x + up * draw(noise, x)
    yield last_step(levels, x, x0_hat)


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, eta: float = 1.0
) -> Iterator[Step]:
    """Euler ancestral (k-diffusion): an Euler step down to sqrt(s'^2 - up^2), then noise of standard deviation up.

    Its rule for up is DDIM's in this frame, so it is `ddim` with this eta, in every family: with eta 1 it is `ddpm`
    with the small variance. Not the variant for flows that rescales by 1 - t (its noise is of another size).
    """
    yield from ddim(denoise, x, sigmas, noise, eta=eta)
