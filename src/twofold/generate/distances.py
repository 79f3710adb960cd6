"""How far an edited image is from its original: in pixels, and in what the denoiser itself sees.

    rms      = sqrt(mean over pixels and channels of (a - b)^2)                              grey levels, 0..255
    l2       = |a - b| in units of [-1, 1]                                                   grows with the image's size
    features = sum over layers of mean over positions of |f(a) / |f(a)| - f(b) / |f(b)||^2   0 (equal) upwards

The last has the form of LPIPS (Zhang et al. 2018, eq. 1) without its learned weights and on this denoiser's own
features of the clean images; it compares edits by one model, and is not LPIPS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoiser
from .sample import place

LAYERS = 5  # that are compared, spread over the network


@dataclass(frozen=True)
class Distances:
    """(N,) float64 each; see the module."""

    rms: Tensor
    l2: Tensor
    features: Tensor


@torch.inference_mode()
def distances(denoiser: Denoiser, images: Tensor, others: Tensor) -> Distances:
    """Of each of the images to the other in its place, both uint8 (N, C, H, W)."""
    change = (images.cpu().double() - others.cpu().double()).flatten(1)
    rms = change.square().mean(1).sqrt()
    return Distances(rms, change.norm(dim=1) / 127.5, feature_distance(denoiser, images, others))


def feature_distance(denoiser: Denoiser, images: Tensor, others: Tensor) -> Tensor:
    """(N,) float64, on at most `LAYERS` layers: the first, the last and those between at equal steps."""
    names = list(denoiser.layers)
    last = len(names) - 1
    chosen = dict.fromkeys(names[round(k * last / (LAYERS - 1))] for k in range(LAYERS))
    device = place(denoiser)[0]
    a, b = (denoiser.features(denoiser.codec.encode(part.to(device)), 0.0, chosen) for part in (images, others))
    total = torch.zeros(len(images), dtype=torch.float64)
    for name in a:
        total += (_unit(a[name]) - _unit(b[name])).square().sum(1).mean((1, 2)).cpu().double()
    return total


def _unit(features: Tensor) -> Tensor:
    """(B, D, h, w) with vectors of length 1 at every position."""
    return torch.nn.functional.normalize(features.float(), dim=1, eps=1e-10)
