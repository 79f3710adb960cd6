"""What sigma is. Everything else in twofold works in the frame x = x0 + sigma * noise.

A noise family maps that frame onto a network F:

    x0_hat = c_skip x + c_out F(c_in x, c_noise)                        (Karras et al. 2022, eq. 7)

| family  | c_skip          | c_out               | c_in             | c_noise | start         | F's target            |
| VP, eps | 1               | -s                  | 1/sqrt(1+s^2)    | t(s)    | sqrt(1+s^2) n | noise                 |
| VP, v   | 1/(1+s^2)       | -s/sqrt(1+s^2)      | 1/sqrt(1+s^2)    | t(s)    | sqrt(1+s^2) n | (n - s x0)/sqrt(1+s^2)|
| VP, x0  | 0               | 1                   | 1/sqrt(1+s^2)    | t(s)    | sqrt(1+s^2) n | x0                    |
| flow    | 1/(1+s)         | -s/(1+s)            | 1/(1+s)          | s/(1+s) | (1+s) n       | noise - x0            |
| EDM     | sd^2/(s^2+sd^2) | s sd/sqrt(s^2+sd^2) | 1/sqrt(s^2+sd^2) | ln(s)/4 | s n           | (x0 - c_skip x)/c_out |

VP (Ho et al. 2020; Song et al. 2021): x_t = sqrt(abar) x0 + sqrt(1-abar) noise is x / sqrt(1+s^2) with
s^2 = (1-abar)/abar. Flow (Lipman et al. 2023; Liu et al. 2023): x_t = (1-t) x0 + t noise is x (1-t), s = t/(1-t).
All coefficients are float64; sigma is () or (B,) and always a noise standard deviation in units of x0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .settings.noise import EDMNoise, FlowNoise, NoiseSettings, VPNoise
from .settings.sample import FAST, GRIDS

SNAP = 1e-4  # a t this near to an integer is that integer: undoes float32 round-off of sigma
RANGE_TOLERANCE = 1e-6  # relative; sigma arrives through float32


@dataclass(frozen=True)
class Coefficients:
    """c_skip, c_out, c_in, c_noise at one or B noise levels; float64, each () or (B,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def as_sigma(sigma: Tensor | float) -> Tensor:
    """sigma as a float64 tensor, () or (B,)."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64)  # not in two steps: a Python number would pass through float32
    if sigma.ndim > 1:
        raise ValueError(f"sigma must be () or (B,), not {tuple(sigma.shape)}")
    return sigma


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A () or (B,) coefficient shaped to multiply x (B, ...) in x's dtype and on its device."""
    value = value.to(device=x.device, dtype=x.dtype, non_blocking=True)  # a few numbers; never worth waiting for
    return value if value.ndim == 0 else value.view(-1, *([1] * (x.ndim - 1)))


def add(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x = x0 + sigma * noise; sigma is () or (B,)."""
    return x0 + expand(as_sigma(sigma), x0) * noise


class Family:
    """A row of the table above; `sigma_range` is what a network of this family is trained for."""

    sigma_range: tuple[float, float]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        raise NotImplementedError

    def start_scale(self, sigma: float) -> float:
        """Standard deviation of the sampler's first x at this sigma (the `start` column)."""
        raise NotImplementedError

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What F should have said; written without the cancellation of (x0 - c_skip x) / c_out."""
        raise NotImplementedError

    def training_sigma(self, u: Tensor) -> Tensor:
        """Quantile function of the training distribution of sigma: u in [0, 1) -> sigma, both (B,) float64."""
        raise NotImplementedError

    def check(self, sigma: Tensor) -> None:
        """Raises `UserError` where sigma is outside `sigma_range`."""
        if not sigma.numel():
            return
        low, high = self.sigma_range
        least, most = float(sigma.min()), float(sigma.max())
        if not (least >= low * (1 - RANGE_TOLERANCE) and most <= high * (1 + RANGE_TOLERANCE)):
            bad = most if most > high else least
            raise UserError(f"sigma={bad:.6g}", f"outside [{low:.6g}, {high:.6g}]", "this model was not trained for it")

    def clean(self, x0: Tensor, sigma: Tensor | float) -> Tensor:
        """x0 / c_in(sigma): the network is told sigma but sees x0 itself (RepFusion's clean input)."""
        return x0 / expand(self.coefficients(as_sigma(sigma)).c_in, x0)


def alpha_bar(settings: VPNoise) -> np.ndarray:
    """The discrete table's alpha-bar, (steps,) float64, t = 0..steps-1."""
    n = settings.steps
    if settings.table == "cosine":  # Nichol and Dhariwal 2021, eq. 17; betas clipped at 0.999
        f = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    elif settings.table == "scaled_linear":  # Stable Diffusion
        beta = np.linspace(0.00085**0.5, 0.012**0.5, n) ** 2
    elif settings.table == "sqrt_linear":  # as IDDM names them; elsewhere "sqrt_linear" is what is "linear" here
        beta = np.linspace(1e-4**0.5, 0.02**0.5, n) ** 2
    elif settings.table == "sqrt":
        beta = np.linspace(1e-4, 0.02, n) ** 0.5
    else:  # scaled so that a shorter table ends at the same noise; guided-diffusion's rule
        low = {"linear": 1e-4, "joint": 1e-3}[settings.table]
        beta = np.minimum(np.linspace(low, 0.02, n) * (1000 / n), 0.999)
    return np.cumprod(1 - beta)


class _Table:
    """sigma <-> t of a discrete table; between its entries ln sigma is linear in t."""

    def __init__(self, settings: VPNoise) -> None:
        abar = alpha_bar(settings)
        self.log_sigma = torch.from_numpy(0.5 * (np.log1p(-abar) - np.log(abar)))
        self.discrete, self.first = settings.discrete, settings.first
        self.range = (float(self.log_sigma[self.first].exp()), float(self.log_sigma[-1].exp()))

    def sigma(self, t: Tensor) -> Tensor:
        table = self.log_sigma.to(t.device)
        low = t.floor().long().clamp(0, len(table) - 2)
        return torch.lerp(table[low], table[low + 1], t.double() - low).exp()

    def t(self, sigma: Tensor) -> Tensor:
        table, log = self.log_sigma.to(sigma.device), sigma.log()
        low = (torch.searchsorted(table, log.contiguous(), right=True) - 1).clamp(0, len(table) - 2)
        t = low + (log - table[low]) / (table[low + 1] - table[low])
        t = t.clamp(0, len(table) - 1)
        near = t.round()
        return near if self.discrete else torch.where((t - near).abs() < SNAP, near, t)

    def training_sigma(self, u: Tensor) -> Tensor:
        table = self.log_sigma.to(u.device)
        return table[(self.first + u * (len(table) - self.first)).long().clamp(self.first, len(table) - 1)].exp()


class _Continuous:
    """beta(t) = 0.1 + 19.9 t, ab(t) = exp(-(0.1 t + 9.95 t^2)); t in [t_min, 1] (Song et al. 2021, VP SDE)."""

    def __init__(self, settings: VPNoise) -> None:
        self.t_min = settings.t_min
        # plain floats: a family may be made while tensors are made on the meta device
        low, high = (math.sqrt(math.expm1(0.1 * t + 9.95 * t**2)) for t in (settings.t_min, 1.0))
        self.range = (low, high)

    def sigma(self, t: Tensor) -> Tensor:
        t = t.double() / 999
        return torch.expm1(0.1 * t + 9.95 * t**2).sqrt()

    def t(self, sigma: Tensor) -> Tensor:
        """999 t(sigma), the time U-ViT's latent models were trained with."""
        return 999 * (-0.1 + (0.01 + 39.8 * torch.log1p(sigma**2)).sqrt()) / 19.9

    def training_sigma(self, u: Tensor) -> Tensor:
        return self.sigma(999 * (self.t_min + (1 - self.t_min) * u))


class VP(Family):
    """DDPM and its relatives, by table and by what the network predicts."""

    def __init__(self, settings: VPNoise) -> None:
        self.settings = settings
        self.table = _Continuous(settings) if settings.table == "continuous" else _Table(settings)
        self.sigma_range = self.table.range

    def sigma(self, t: Tensor | float) -> Tensor:
        """sigma of table time t (0-based; 0..999 for the continuous table)."""
        return self.table.sigma(torch.as_tensor(t, dtype=torch.float64))

    def t(self, sigma: Tensor | float) -> Tensor:
        """Table time of sigma; exact for the table's own levels."""
        return self.table.t(as_sigma(sigma))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_in = (1 + sigma**2).rsqrt()
        c_noise = (self.table.t(sigma) + self.settings.time_offset) * self.settings.time_scale
        one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
        match self.settings.predicts:
            case "eps":
                return Coefficients(one, -sigma, c_in, c_noise)
            case "v":
                return Coefficients(c_in**2, -sigma * c_in, c_in, c_noise)
            case _:
                return Coefficients(zero, one, c_in, c_noise)

    def start_scale(self, sigma: float) -> float:
        return math.sqrt(1 + sigma**2)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        match self.settings.predicts:
            case "eps":
                return noise
            case "v":
                return (noise - expand(sigma, x0) * x0) * expand((1 + sigma**2).rsqrt(), x0)
            case _:
                return x0

    def training_sigma(self, u: Tensor) -> Tensor:
        return self.table.training_sigma(u)


class EDM(Family):
    """Karras et al. 2022, table 1 (last column)."""

    def __init__(self, settings: EDMNoise) -> None:
        self.settings = settings
        self.sigma_range = (settings.sigma_min, settings.sigma_max)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        sd = self.settings.sigma_data
        norm = (sigma**2 + sd**2).rsqrt()
        return Coefficients(sd**2 * norm**2, sigma * sd * norm, norm, sigma.log() / 4)

    def start_scale(self, sigma: float) -> float:
        return sigma

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        # (x0 - c_skip (x0 + s n)) / c_out = (s x0 - sd^2 n) / (sd sqrt(s^2 + sd^2))
        sd = self.settings.sigma_data
        norm = (sigma**2 + sd**2).rsqrt() / sd
        return expand(sigma * norm, x0) * x0 - expand(sd**2 * norm, x0) * noise

    def training_sigma(self, u: Tensor) -> Tensor:
        normal = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
        return (self.settings.p_mean + self.settings.p_std * normal).exp().clamp(*self.sigma_range)


class Flow(Family):
    """Rectified flow; t = sigma / (1 + sigma). t = 1 would be an infinite sigma and is never reached."""

    def __init__(self, settings: FlowNoise) -> None:
        self.settings = settings
        self.sigma_range = (settings.t_min / (1 - settings.t_min), settings.t_max / (1 - settings.t_max))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_in = 1 / (1 + sigma)
        return Coefficients(c_in, -sigma * c_in, c_in, sigma * c_in * self.settings.time_scale)

    def start_scale(self, sigma: float) -> float:
        return 1 + sigma

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0

    def training_sigma(self, u: Tensor) -> Tensor:
        if self.settings.training == "logit_normal":  # Esser et al. 2024, section 3.1
            t = torch.sigmoid(torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12)))
            t = t.clamp(self.settings.t_min, self.settings.t_max)
        else:
            t = self.settings.t_min + (self.settings.t_max - self.settings.t_min) * u
        return t / (1 - t)


FAMILIES = {"vp": VP, "edm": EDM, "flow": Flow}


def family(settings: NoiseSettings) -> Family:
    """The noise family that these settings describe."""
    return FAMILIES[settings.kind](settings)  # type: ignore[arg-type]


def loss_weight(family: Family, sigma: Tensor, min_snr_gamma: float | None = None) -> Tensor:
    """Weight of |F - target|^2, (B,) float64.

    1 by default: eps-, v-, x0- and flow-matching as published, and EDM's lambda(sigma) c_out^2 = 1.
    With gamma, min-SNR (Hang et al. 2023, eq. 8): min(1/s^2, gamma) on |x0_hat - x0|^2, that is times c_out^2 on F,
    which gives min(SNR, gamma)/SNR for eps, /(SNR+1) for v and min(SNR, gamma) for x0.
    """
    if min_snr_gamma is None:
        return torch.ones_like(sigma)
    return (sigma**-2).clamp(max=min_snr_gamma) * family.coefficients(sigma).c_out ** 2


def karras_grid(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """sigma_0 > ... > sigma_{steps-1}, then 0: (steps + 1,) float64 (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def log_grid(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform in ln sigma (log-SNR), then 0: (steps + 1,) float64."""
    ramp = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return torch.cat([ramp.exp(), ramp.new_zeros(1)])


def time_grid(family: Family, steps: int) -> Tensor:
    """Evenly spaced in the family's own time (table time, or t of a flow), then 0: (steps + 1,) float64.

    For a table of T entries: from T-1 down to 0 (spacing "linspace"), between entries where steps - 1 does not divide
    T - 1.
    """
    low, high = family.sigma_range
    if isinstance(family, VP):
        ends = family.t(torch.tensor([high, low], dtype=torch.float64))
        sigma = family.sigma(torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64))
    elif isinstance(family, Flow):
        t = torch.linspace(family.settings.t_max, family.settings.t_min, steps, dtype=torch.float64)
        sigma = t / (1 - t)
    else:
        raise UserError("grid=time", "an EDM model has no table of times", "use grid=karras or grid=log")
    return torch.cat([sigma.clamp(low, high), sigma.new_zeros(1)])


def ddim_grid(family: Family, steps: int) -> Tensor:
    """DDIM's published grid ("leading" spacing): t = k * (T // steps) for k < steps, descending, then sigma 0.

    Where the table is used from a later entry on (`noise.first`), it begins there: first + k * (T // steps).
    Does not start at the largest sigma. Raises `UserError` where steps exceeds the table or there is no table.
    """
    if not isinstance(family, VP) or isinstance(family.table, _Continuous):
        raise UserError("grid=ddim", "this model has no discrete table", "use grid=karras or grid=log")
    total = family.settings.steps
    first = family.settings.first
    if steps > total - first:
        most = total - first
        raise UserError(f"steps={steps}", f"more than the {most} entries of the table", f"use at most {most}")
    stride = min(total // steps, (total - 1 - first) // max(steps - 1, 1))
    sigma = family.sigma(first + torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride)
    return torch.cat([sigma, sigma.new_zeros(1)])


def grid(
    family: Family,
    steps: int,
    kind: str = "karras",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    """A descending sigma grid of `steps` levels followed by 0, (steps + 1,) float64.

    sigma_min and sigma_max (karras and log only) default to the family's range and must lie within it.
    """
    if steps < 1:
        raise UserError(f"steps={steps}", "a grid needs at least one step")
    if kind in ("time", "ddim") and (sigma_min, sigma_max) != (None, None):
        raise UserError(f"grid={kind}", "takes no sigma_min or sigma_max", "use grid=karras or grid=log")
    low, high = family.sigma_range
    low, high = (low if sigma_min is None else sigma_min), (high if sigma_max is None else sigma_max)
    if not low < high:
        raise UserError(f"sigma_min={low:.6g}", f"not below sigma_max={high:.6g}")
    family.check(torch.tensor([low, high], dtype=torch.float64))
    match kind:
        case "karras":
            return karras_grid(steps, low, high, rho)
        case "log":
            return log_grid(steps, low, high)
        case "time":
            return time_grid(family, steps)
        case "ddim":
            return ddim_grid(family, steps)
    raise UserError(f"grid={kind}", "no such grid", f"valid: {', '.join(GRIDS)}, {FAST}, or a respacing such as ddim25")
