"""What every sampler is made of: a step, a checked grid, one evaluation, one draw."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """A moment of sampling.

    index: 0..N. sigma: noise level of x. x: the state (B, C, H, W). x0_hat: what x is believed to become.
    images: x0_hat decoded, uint8 (B, C, H, W); only `trajectory` fills it.
    """

    index: int
    sigma: float
    x: Tensor
    x0_hat: Tensor
    images: Tensor | None = None


def final(steps: Iterable[Step]) -> Tensor:
    """Runs a sampler to its end and returns the last x: x0 where the grid ends at 0."""
    last = deque(steps, maxlen=1)
    return last[0].x


def levels_of(sigmas: Tensor) -> list[float]:
    """The grid as numbers. Raises `ValueError` where it does not descend to a level >= 0."""
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or levels[-1] < 0 or any(not s > t for s, t in pairwise(levels)):
        raise ValueError(f"sigmas must descend to a level >= 0, not {levels}")
    return levels


def predict(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """x0_hat in the state's dtype."""
    return denoise(x, torch.tensor(sigma, dtype=torch.float64)).to(x.dtype)


def draw(noise: Noise | None, x: Tensor) -> Tensor:
    """The next noise, on x's device and in its dtype. Raises `ValueError` where there is none to draw."""
    if noise is None:
        raise ValueError("this sampler is stochastic: give it noise()")
    return noise().to(x)


def last_step(levels: list[float], x: Tensor, x0_hat: Tensor) -> Step:
    """Step N: at sigma 0 the state is x0 itself; above it the last x0_hat stands beside it."""
    return Step(len(levels) - 1, levels[-1], x, x if levels[-1] == 0 else x0_hat)
