"""What a super-resolution denoiser is shown beside the noisy image in training: the image at a lower resolution.

    low = shrink(images) + level * noise,  level uniform in 0..low_noise       (Ho et al. 2021, cascaded diffusion)

The noise is at the low resolution, as damage to a small file is; held-out images have none. What is enlarged of it is
clamped to [-1, 1], in training and in use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoiser import NetworkDenoiser
from ..lowres import enlarge, shrink
from .batches import Batch

LEAST = 2.0**-54  # half of the smallest uniform number above 0, whose normal number is -8.2


def low_draws(denoiser: NetworkDenoiser, crop: int | None) -> int:
    """How many uniform numbers an image needs: its level, and one for every low pixel and channel; 0 without noise."""
    if not most_noise(denoiser):
        return 0
    (channels, *sides), factor = denoiser.shape, denoiser.low_factor
    height, width = (crop, crop) if crop else sides
    return 1 + channels * (height // factor) * (width // factor)


def most_noise(denoiser: NetworkDenoiser) -> float:
    return float(getattr(denoiser.network, "low_noise", 0.0))


def lowered(denoiser: NetworkDenoiser, batch: Batch, first: int | None = None) -> dict[str, Tensor]:
    """{"low": x0 (B, C, H, W), enlarged, "low_noise": levels (B,)}; the second where there is noise.

    first: the column of `batch.uniforms` where those of `low_draws` begin; None: the images stay as they are.
    """
    height, width = batch.images.shape[2:]
    low = denoiser.codec.encode(shrink(batch.images, denoiser.low_factor))
    cond: dict[str, Tensor] = {}
    if first is not None:
        level = most_noise(denoiser) * batch.uniforms[:, first]
        u = batch.uniforms[:, first + 1 : first + 1 + low[0].numel()].clamp(min=LEAST)
        noise = torch.special.ndtri(u).unflatten(1, low.shape[1:])
        low = low + (level[:, None, None, None] * noise).to(low)
        cond["low_noise"] = level.to(low)
    return {"low": enlarge(low, height, width), **cond}
