"""ln p of an image along the probability-flow ODE (Song et al. 2021, eq. 39; Chen et al. 2018, theorem 1).

    dx / dsigma = (x - x0_hat) / sigma          d ln p / dsigma = -div of that = -(D - tr(d x0_hat / d x)) / sigma

from the smallest level, where the image is, to the largest, where ln p is that of the noise a sampler starts from. It
is solved in u = ln sigma for y = x / sqrt(sigma^2 + c^2), in which data of standard deviation c stand still: what is
left for the solver is how far the data are from one Gaussian.

The trace is exact, at the cost of D backward passes, or estimated by v^T (d x0_hat / d x) v with v of +1 and -1
(Hutchinson 1990; Grathwohl et al. 2019), the same v along the whole way: the estimate of ln p has no bias then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..denoiser import Cond, Denoiser
from .denoising_error import SIGMA_DATA

DIVERGENCES = ("hutchinson", "exact")
# stages of explicit Runge-Kutta: (place in the step, which earlier slope leads there), and the weights of all slopes
SOLVERS: dict[str, tuple[tuple[tuple[float, int], ...], tuple[float, ...]]] = {
    "heun": (((1.0, 0),), (1 / 2, 1 / 2)),
    "rk4": (((0.5, 0), (0.5, 1), (1.0, 2)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}

Slope = tuple[Tensor, Tensor]  # dy/du (B, C, H, W), and div of it (B,)


def log_density(
    denoiser: Denoiser,
    x: Tensor,
    steps: int,
    solver: str = "rk4",
    signs: Tensor | None = None,
    cond: Cond | None = None,
) -> Tensor:
    """ln p(x) in nats at the smallest level the denoiser knows: (B,) float64 on the CPU, of x (B, C, H, W).

    steps: equally long in ln sigma. signs: (B, C, H, W) of +1 and -1, for Hutchinson's estimate; None: the exact
    trace. Differentiates the denoiser in x; its x0_hat is not clamped.
    """
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    low, high = denoiser.sigma_range
    spread = getattr(getattr(getattr(denoiser, "family", None), "settings", None), "sigma_data", SIGMA_DATA)
    dimensions = x[0].numel()

    def slope(y: Tensor, u: float) -> Slope:
        sigma = min(max(math.exp(u), low), high)
        scale = math.hypot(sigma, spread)
        with torch.enable_grad():
            seen = (y * scale).to(x.dtype).requires_grad_()
            x0_hat = denoiser.denoise(seen, torch.full((len(y),), sigma, dtype=torch.float64), cond)
            trace = exact_trace(x0_hat, seen) if signs is None else hutchinson_trace(x0_hat, seen, signs)
        rest = (spread / scale) ** 2
        return rest * y - x0_hat.detach().to(exact) / scale, rest * dimensions - trace.to(exact)

    first, last, std = math.hypot(low, spread), math.hypot(high, spread), denoiser.start_scale(high)
    with torch.inference_mode(False), torch.no_grad():
        y = x.clone().to(exact) / first
        y, gathered = _integrate(slope, y, math.log(low), math.log(high), steps, solver)
        end = -0.5 * (y * (last / std)).square().flatten(1).sum(1)
        # ln of the start's normaliser, and of how much wider the last x is than the first for one y
        constant = dimensions * (math.log(last / first) - math.log(std * math.sqrt(2 * math.pi)))
        return (end + gathered).cpu().double() + constant


def _integrate(
    slope: Callable[[Tensor, float], Slope], y: Tensor, start: float, stop: float, steps: int, solver: str
) -> tuple[Tensor, Tensor]:
    """Where y gets, and the divergence gathered on the way."""
    stages, weights = SOLVERS[solver]
    length = (stop - start) / steps
    gathered = y.new_zeros(len(y))
    for step in range(steps):
        u = start + step * length
        slopes = [slope(y, u)]
        for place, source in stages:
            slopes.append(slope(y + place * length * slopes[source][0], u + place * length))
        for weight, (moved, spent) in zip(weights, slopes, strict=True):
            y = y + weight * length * moved
            gathered = gathered + weight * length * spent
    return y, gathered


def hutchinson_trace(x0_hat: Tensor, x: Tensor, signs: Tensor) -> Tensor:
    """v^T J v of each row, (B,): one backward pass."""
    (product,) = torch.autograd.grad(x0_hat, x, signs.to(x0_hat))
    return (product * signs.to(product)).flatten(1).sum(1)


def exact_trace(x0_hat: Tensor, x: Tensor) -> Tensor:
    """tr J of each row, (B,): a backward pass per dimension."""
    flat = x0_hat.flatten(1)
    total = flat.new_zeros(len(x))
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        total += row.flatten(1)[:, i]
    return total
