"""One step of the reverse process: from noise level s to the next lower level t, and what it costs in bits.

The true step, given x0, is q(x_t | x_s, x0) = N(x0 + (t/s)^2 (x - x0), small I) in the frame x = x0 + sigma * noise:

    small(s, t) = t^2 (s^2 - t^2) / s^2                     beta~ of Ho et al. 2020 (eq. 7), divided by abar_t
    large(s, t) = (s^2 - t^2) (1 + t^2) / (1 + s^2)         beta, divided by abar_t

A network may learn where between the two the variance of its own step lies (Nichol and Dhariwal 2021, eq. 15):

    ln variance = v ln large + (1 - v) ln small             v elementwise, about 0..1

Its step has the same mean with x0_hat for x0. How many bits a pixel it costs to tell x_t (or, on the last step, the
8-bit image itself) with the model's step instead of the true one are the terms of the variational bound (Ho et al.
2020, eq. 5). A Gaussian's bits do not depend on the frame it is written in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .errors import UserError
from .noise import VP, Family, expand

Level = TypeVar("Level", float, Tensor)
LEVEL = 2 / 255  # between neighbouring levels of an 8-bit pixel, in x0
SURE = 1e-12  # least probability of a pixel's level in a loss: -ln of it and its gradient are finite


def small(s: Level, t: Level) -> Level:
    """The lower bound of a step's variance, shape of s; 0 where t is 0."""
    return (t / s) ** 2 * (s**2 - t**2)


def large(s: Level, t: Level) -> Level:
    """The upper bound of a step's variance, shape of s."""
    return (s**2 - t**2) * (1 + t**2) / (1 + s**2)


def between(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """exp(v ln high + (1 - v) ln low): v (B, C, H, W) in about 0..1; low, high () or (B,), > 0."""
    return (v * expand(high.log(), v) + (1 - v) * expand(low.log(), v)).exp()


@dataclass(frozen=True)
class StepDown:
    """A step from `sigma` to `below`, with the bounds of its variance; float64, each () or (B,)."""

    sigma: Tensor
    below: Tensor
    low: Tensor
    high: Tensor


def table_family(family: Family) -> VP:
    """The family, if it has a discrete table to step through. Raises `UserError` for one that has none."""
    if not isinstance(family, VP) or family.settings.table == "continuous":
        raise UserError("variance", "only networks with a table of noise levels learn one", "use noise.kind=vp")
    return family


def table_step(family: VP, sigma: Tensor) -> StepDown:
    """The step from each sigma to the next lower entry of the table, or to 0 from its first one.

    There the lower bound would be 0, and the next entry's is taken, as published.
    """
    t = family.t(sigma)
    below = torch.where(t >= 1, family.sigma((t - 1).clamp(min=0)), 0.0)
    first, second = family.sigma(torch.zeros_like(t)), family.sigma(torch.ones_like(t))
    least = small(second, first) / (1 + first**2)  # beta~ of the second entry, as abar before the first one is 1
    return StepDown(sigma, below, torch.where(t >= 1, small(sigma, below), least), large(sigma, below))


def bits(family: VP, x0: Tensor, error: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The variational bound's term of each image at its own level of a table, in bits per dimension, (B,).

    sigma: (B,), entries of the table; what else goes in and comes out is said at `step_bits`.
    """
    return step_bits(table_step(family, sigma), x0, error, v)


def step_bits(step: StepDown, x0: Tensor, error: Tensor, v: Tensor, least: float = SURE) -> Tensor:
    """What the model's step costs each image, in bits per dimension: (B,) in the dtype of x0.

    x0: (B, C, H, W), 8-bit images in [-1, 1] (latents have no last step in bits: for them it is a density). error:
    x0_hat - x0, so that nothing cancels. v: (B, C, H, W). A step to 0 is the last one, which names the pixel's level;
    least: see `log_level_probability`.
    """
    low, high, ratio = step.low, step.high, (step.below / step.sigma) ** 2
    gap = v * expand((high / low).log(), v)  # of the model's log variance above the true one
    log_variance = gap + expand(low.log(), v)
    moved = expand((1 - ratio) ** 2 / low, error) * error.square()
    divergence = 0.5 * (torch.expm1(-gap) + gap + moved * (-gap).exp())
    last = -log_level_probability(x0, x0 + error, (0.5 * log_variance).exp(), least)
    each = torch.where((step.below == 0).to(x0.device).view(-1, 1, 1, 1), last, divergence)
    return each.flatten(1).mean(1) / math.log(2)


def log_level_probability(x0: Tensor, mean: Tensor, std: Tensor, least: float = SURE) -> Tensor:
    """ln P(the pixel's own level) under N(mean, std^2) cut into 256 levels, open outside (Ho et al. 2020, eq. 13).

    x0, mean, std: (B, C, H, W); x0 on the levels of an 8-bit image. least: smaller probabilities count as this one; 0:
    nothing is rounded up, however far out, which a bound must not do.
    """
    above, below = (x0 - mean + LEVEL / 2) / std, (x0 - mean - LEVEL / 2) / std
    first, last = x0 < -1 + LEVEL / 4, x0 > 1 - LEVEL / 4
    flip = below > 0  # of two tails the one that does not round to 1 - 1 = 0
    far, near = torch.where(flip, -below, above), torch.where(flip, -above, below)
    if least:
        chance = torch.where(first, _mass(above), torch.where(last, _mass(-below), _mass(far) - _mass(near)))
        return chance.clamp(min=least).log()
    whole = _log_mass(far)
    inside = whole + torch.log1p(-(_log_mass(near) - whole).exp())
    return torch.where(first, _log_mass(above), torch.where(last, _log_mass(-below), inside))


def _mass(z: Tensor) -> Tensor:
    """Standard normal mass below z."""
    return torch.special.ndtr(z)


def _log_mass(z: Tensor) -> Tensor:
    """Its logarithm, far out too."""
    return torch.special.log_ndtr(z)
