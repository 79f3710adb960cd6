"""Between a denoiser and a sampler: classifier-free guidance and clipping, as callables (x, sigma) -> x0_hat.

    guided = uncond + g * (cond - uncond)                       (Ho and Salimans 2022, eq. 6, with g = 1 + w)

g = 1 is the conditional model, g = 0 the unconditional one, g > 1 exaggerates the condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError
from ..noise import as_sigma, expand
from .samplers import Denoise


def guided(
    denoiser: Denoiser,
    label: Tensor | None,
    guidance: float = 1.0,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """A callable (x, sigma) -> x0_hat that denoises towards these labels.

    label: (B,) int64, -1 = none; None: no labels at all, and one unconditional pass. guidance: g above.
    interval: (low, high) in sigma; guidance acts where low < sigma <= high, and the plain conditional model elsewhere
        (Kynkaanniemi et al. 2024, section 3).

    Both passes are one forward of the concatenated batch; wherever g is 1 or 0 there is one pass of the batch itself.
    """
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise UserError(f"interval={interval}", "not an interval of sigma", "0 <= low < high")
    if label is None:
        return lambda x, sigma: denoiser.denoise(x, sigma)
    null = torch.full_like(label, -1)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = as_sigma(sigma)
        g = torch.full_like(sigma, guidance)
        if interval is not None:
            g = torch.where((interval[0] < sigma) & (sigma <= interval[1]), g, 1.0)
        if bool((g == 1).all()):
            return denoiser.denoise(x, sigma, {"label": label})
        if bool((g == 0).all()):
            return denoiser.denoise(x, sigma, {"label": null})
        twice = sigma if sigma.ndim == 0 else torch.cat([sigma, sigma])
        both = denoiser.denoise(torch.cat([x, x]), twice, {"label": torch.cat([label, null])})
        cond, uncond = both.chunk(2)
        return uncond + expand(g, x) * (cond - uncond)

    return denoise


def clipped(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """The same with x0_hat clamped to [low, high], where the pixels of every image lie; never for latents."""
    return lambda x, sigma: denoise(x, sigma).clamp(low, high)
