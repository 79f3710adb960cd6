"""What training does to an image: itself at several noise levels, and what the model makes of each.

A level is shown as x / sqrt(1 + sigma^2), which has the spread of an image at any sigma (of a variance-preserving model
it is what the network is given); SNR = 1 / sigma^2, in decibels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data import Store
from ..denoiser import Denoiser
from ..draws import ImageDraws
from ..noise import Family, add, log_grid
from .grids import as_tiles, level_grid

LEVELS = 7


@dataclass(frozen=True)
class Noising:
    """One image at L noise levels, lowest first: uint8 (L, C, H, W) noised and denoised, and sigma of each."""

    noised: Any
    denoised: Any
    sigmas: Sequence[float]


@torch.no_grad()
def noising(denoiser: Denoiser, store: Store, levels: int = LEVELS) -> Noising | None:
    """The first training image, with the same noise at every level; None for a model that needs another image beside.

    The levels part what training spends on noise levels evenly, where the model says what that is; else they are even
    in ln sigma.
    """
    if denoiser.low_factor:
        return None
    row = store.indices("train")[:1]
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    sigma = trained_levels(denoiser, levels)
    x0 = denoiser.codec.encode(store.batch(row).to(device)).expand(levels, -1, -1, -1)
    drawn = ImageDraws("evaluate")(0, int(row[0])).standard_normal(x0.shape[1:], dtype=np.float32)
    x = add(x0, torch.from_numpy(drawn).to(device), sigma)
    label = int(store.labels[row[0]])
    cond = {"label": torch.full((levels,), label, device=device)} if 0 <= label < denoiser.classes else None
    found = denoiser.denoise(x, sigma, cond)
    shown = x * (1 + sigma**2).rsqrt().to(x.dtype).to(device)[:, None, None, None]
    decode = denoiser.codec.decode
    return Noising(decode(shown).cpu().numpy(), decode(found).cpu().numpy(), sigma.tolist())


def trained_levels(denoiser: Denoiser, levels: int) -> torch.Tensor:
    """(levels,) float64, rising, within the model's range."""
    family = getattr(denoiser, "family", None)
    if not isinstance(family, Family):
        return log_grid(levels, *denoiser.sigma_range)[:-1].flip(0)
    u = torch.linspace(0.02, 0.98, levels, dtype=torch.float64)
    return family.training_sigma(u).sort().values


def decibels(sigma: float) -> str:
    """The signal-to-noise ratio of x0 + sigma * noise, for x0 of variance 1: "−20 dB" at sigma 10."""
    value = round(-20 * math.log10(sigma))
    return f"{value:+d} dB".replace("-", "−") if value else "0 dB"


def two_digits(value: float) -> str:
    """A positive number to two digits, written out: "0.10", "2.4", "130"."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.{max(0, 1 - math.floor(math.log10(rounded)))}f}"


def picture(found: Noising) -> bytes:
    """A PNG with a column per level: sigma, the noised image, SNR, and the denoised one."""
    rows = [as_tiles(found.noised), as_tiles(found.denoised)]
    words, ratios = ([say(sigma) for sigma in found.sigmas] for say in (two_digits, decibels))
    return level_grid(rows, words, ratios, ["with noise", "denoised"], ("sigma", "SNR"))
