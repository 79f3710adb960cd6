"""Samplers: generators of the steps from noise to x0.

    for step in SAMPLERS["heun"].function(denoise, x, sigmas): ...

denoise: any callable (x, sigma) -> x0_hat; sigma is () float64 on the CPU.
x:       (B, C, H, W) float64 or float32, start_scale(sigmas[0]) * noise; the state stays in its dtype.
sigmas:  (N + 1,) float64, descending; the last is usually 0 and may be larger.
noise:   callable without arguments -> the next standard normal tensor, (B, C, H, W); only stochastic steps call it.

Each yields N + 1 steps. Step i < N holds the state at sigmas[i] and x0_hat = denoise(x, sigmas[i]); step N holds the
result: its x lies at sigmas[N], so it is x0 where that is 0, and nothing is evaluated for it. `final` drains them.

All are written in the frame x = x0 + sigma * noise, in which the probability-flow ODE is

    dx/dsigma = (x - denoise(x, sigma)) / sigma                            (Karras et al. 2022, eq. 1 with eq. 3)

for every family: a VP or flow state is x times c_in(sigma). With s = sigmas[i] and s' = sigmas[i + 1].
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, nearest

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


def _levels(sigmas: Tensor) -> list[float]:
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or levels[-1] < 0 or any(not s > t for s, t in pairwise(levels)):
        raise ValueError(f"sigmas must descend to a level >= 0, not {levels}")
    return levels


def _predict(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """x0_hat in the state's dtype."""
    return denoise(x, torch.tensor(sigma, dtype=torch.float64)).to(x.dtype)


def _draw(noise: Noise | None, x: Tensor) -> Tensor:
    if noise is None:
        raise ValueError("this sampler is stochastic: give it noise()")
    return noise().to(x)


def _last(levels: list[float], x: Tensor, x0_hat: Tensor) -> Step:
    return Step(len(levels) - 1, levels[-1], x, x if levels[-1] == 0 else x0_hat)


def ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, variance: str = "small"
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, eq. 6 and 7, any grid).

    variance: "small", that of q(x' | x, x0): s'^2 (s^2 - s'^2) / s^2; or "large", beta: (s^2 - s'^2)(1+s'^2)/(1+s^2).
    No noise is added on the step into sigma 0.
    """
    levels = _levels(sigmas)
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = _predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        x = x0_hat + (t / s) ** 2 * (x - x0_hat)
        if t > 0:
            spread = (t / s) ** 2 if variance == "small" else (1 + t**2) / (1 + s**2)
            x = x + math.sqrt(spread * (s**2 - t**2)) * _draw(noise, x)
    yield _last(levels, x, x0_hat)


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, eta: float = 0.0
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta 0 follows the ODE, eta 1 is `ddpm` with the small variance.

    In this frame: x' = x0_hat + sqrt(s'^2 - up^2) (x - x0_hat) / s + up z, up = eta sqrt(s'^2 (s^2 - s'^2) / s^2).
    """
    levels = _levels(sigmas)
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = _predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        up = eta * t * math.sqrt(1 - (t / s) ** 2)
        x = x0_hat + math.sqrt(t**2 - up**2) / s * (x - x0_hat)
        if up > 0:
            x = x + up * _draw(noise, x)
    yield _last(levels, x, x0_hat)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """Euler's method on the ODE; the same map as `ddim` with eta 0, on whatever grid it is given."""
    levels = _levels(sigmas)
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = _predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        x = x + (t - s) / s * (x - x0_hat)
    yield _last(levels, x, x0_hat)


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
    levels = _levels(sigmas)
    gain = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
    for i, (s, t) in enumerate(pairwise(levels)):
        raised = min(s * (1 + gain), levels[0]) if gain > 0 and s_min <= s <= s_max else s
        x_hat = x
        if raised > s:
            x_hat = x + math.sqrt(raised**2 - s**2) * s_noise * _draw(noise, x)
        x0_hat = _predict(denoise, x_hat, raised)
        yield Step(i, s, x, x0_hat)
        slope = (x_hat - x0_hat) / raised
        x = x_hat + (t - raised) * slope
        if t > 0:
            x0_hat = _predict(denoise, x, t)
            x = x_hat + (t - raised) * 0.5 * (slope + (x - x0_hat) / t)
    yield _last(levels, x, x0_hat)


def dpmpp2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order at one evaluation a step.

    With lambda = -ln sigma and h = ln(s / s'): x' = (s'/s) x + (1 - s'/s) ((1 + 1/2r) x0_hat - 1/2r previous x0_hat),
    r = previous h / h. The first step, and the last one into sigma 0 where h is infinite, are of first order.
    """
    levels = _levels(sigmas)
    previous, h_previous = None, 0.0
    for i, (s, t) in enumerate(pairwise(levels)):
        x0_hat = _predict(denoise, x, s)
        yield Step(i, s, x, x0_hat)
        target = x0_hat
        if previous is not None and t > 0:
            target = x0_hat + math.log(s / t) / (2 * h_previous) * (x0_hat - previous)
        x = (t / s) * x + (1 - t / s) * target
        previous, h_previous = x0_hat, math.log(s / t) if t > 0 else math.inf
    yield _last(levels, x, x0_hat)


@dataclass(frozen=True)
class Option:
    """A sampler's option: its default, and what it may be (`valid` in words, `accepts` as a test)."""

    default: Any
    valid: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Sampler:
    """A sampler and what there is to know about it without running it.

    order: of convergence on the ODE with its default options (weak order for a stochastic sampler).
    deterministic: with its default options. evaluations: of the denoiser for N steps into sigma 0.
    grid, steps: used where none are given; "time" gives way to "log" for models that know no time.
    """

    function: Callable[..., Iterator[Step]]
    order: int
    deterministic: bool
    grid: str
    steps: int
    evaluations: Callable[[int], int] = lambda steps: steps
    options: Mapping[str, Option] = field(default_factory=dict)


def _number(low: float, high: float, valid: str, default: float) -> Option:
    return Option(default, valid, lambda v: isinstance(v, int | float) and low <= v <= high)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        ddpm, 1, False, "time", 1000,
        options={"variance": Option("small", "small or large", lambda v: v in ("small", "large"))},
    ),
    "ddim": Sampler(ddim, 1, True, "log", 50, options={"eta": _number(0, 1, "0 (ODE) to 1 (ancestral)", 0.0)}),
    "euler": Sampler(euler, 1, True, "log", 50),
    "heun": Sampler(
        heun, 2, True, "karras", 18, lambda steps: 2 * steps - 1,
        options={
            "s_churn": _number(0, math.inf, "0 (ODE) or more", 0.0),
            "s_min": _number(0, math.inf, "a sigma, 0 or more", 0.0),
            "s_max": _number(0, math.inf, "a sigma, 0 or more", math.inf),
            "s_noise": _number(0, 2, "0 to 2, near 1", 1.0),
        },
    ),
    "dpmpp2m": Sampler(dpmpp2m, 2, True, "log", 20),
}  # fmt: skip


def resolve(name: str, options: Mapping[str, Any]) -> tuple[Sampler, dict[str, Any]]:
    """The sampler of that name and all its options, defaults filled in.

    Raises `UserError` for a sampler that does not exist, an option it does not have and a value it cannot take.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler={name}", "no such sampler", nearest(name, SAMPLERS))
    sampler = SAMPLERS[name]
    for key, value in options.items():
        if key not in sampler.options:
            hint = nearest(key, sampler.options) or "it has no options"
            raise UserError(f"{key}={value}", f"sampler {name} has no such option", hint)
        if not sampler.options[key].accepts(value):
            raise UserError(f"{key}={value}", "out of range", f"valid: {sampler.options[key].valid}")
    return sampler, {key: options.get(key, option.default) for key, option in sampler.options.items()}
