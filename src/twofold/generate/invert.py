"""The noise that an image already has: up the probability-flow ODE, from a clean image to a noise level.

    dx/dsigma = (x - x0_hat(x, sigma)) / sigma = eps          (Karras et al. 2022, eq. 1 with eq. 3)

A sampler that solves the same ODE downwards comes back to the image, so whatever it ends in instead under guidance is
the guidance's doing (Song et al. 2021a, section 4.3; Su et al. 2022). Fresh noise forgets the image sooner.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .samplers import Denoise
from .samplers.step import levels_of, predict

STRENGTHS = (0.05, 20.0)  # sigma of strength 0 and 1: hardly visible, and nothing left of an image in [-1, 1]


def inverted(denoise: Denoise, x0: Tensor, sigmas: Tensor) -> Tensor:
    """x (B, C, H, W) at sigmas[0] that the ODE leads down to x0, by Heun's method.

    x0: (B, C, H, W), the state in its dtype. sigmas: the grid of the way down, descending (N + 1,); a last level of 0
    is left out: the image is taken for what lies at the smallest level above it. Costs two evaluations a level.
    Raises `ValueError` for a grid that does not descend.
    """
    up = [s for s in levels_of(sigmas) if s > 0][::-1]
    x = x0
    for s, t in pairwise(up):
        eps = (x - predict(denoise, x, s)) / s
        ahead = x + (t - s) * eps
        x = x + (t - s) * 0.5 * (eps + (ahead - predict(denoise, ahead, t)) / t)
    return x


def strength_sigma(strength: float, sigma_range: tuple[float, float]) -> float:
    """The noise level of a strength 0..1: uniform in ln sigma from 0.05 (0) over 1 (0.5) to 20 (1), in units of x0.

    Clamped to what the model knows. Raises `ValueError` outside 0..1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength:g} is not within 0..1")
    low, high = STRENGTHS
    return float(min(max(low * (high / low) ** strength, sigma_range[0]), sigma_range[1]))


def down_grid(steps: int, sigma: float, lowest: float) -> Tensor:
    """The levels of an edit: `steps` of them uniform in ln sigma from sigma to `lowest`, then 0; (steps + 1,) float64.

    Where sigma is hardly above `lowest` it is one step.
    """
    if steps == 1 or sigma <= lowest * 1.01:
        return torch.tensor([sigma, 0.0], dtype=torch.float64)
    return torch.cat([torch.logspace(0, 1, steps, base=lowest / sigma, dtype=torch.float64) * sigma, torch.zeros(1)])
