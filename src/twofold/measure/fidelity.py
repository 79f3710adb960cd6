"""How near an image is to the one it should be: peak signal-to-noise ratio and structural similarity.

    PSNR = 10 log10(255^2 / mean squared error)                                        in decibels
    SSIM = mean of (2 ma mb + C1)(2 sab + C2) / ((ma^2 + mb^2 + C1)(sa^2 + sb^2 + C2))  (Wang et al. 2004, eq. 13)

with means, variances and the covariance under a Gaussian window of 11x11 pixels and sigma 1.5, C1 = (0.01 * 255)^2 and
C2 = (0.03 * 255)^2. Both are of uint8 images, so the range is 255 by definition; a constant offset of 0.1 in [-1, 1] is
26.02 dB. Both are taken of each image, all its channels together, and averaged over images by whoever asks.

Both favour blur, which `detail` shows: an image that is the mean of many has less of it than any of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EQUAL = 100.0  # decibels, of images that are equal, so that a mean over images stays finite
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64 decibels of images uint8 (B, C, H, W); equal ones, and those nearer than that, have `EQUAL`."""
    _check(a, b)
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 10 ** (-EQUAL / 10)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64, 1 = equal, of images uint8 (B, C, H, W); only where the window lies within the image.

    The window is the largest odd one that fits into images smaller than 11 pixels, of the same sigma; what it says of
    these cannot be compared with published numbers.
    """
    _check(a, b)
    n, c, *sides = a.shape
    x, y = (z.double().reshape(n * c, 1, *sides) for z in (a, b))
    windows = [_window(side, a.device) for side in sides]

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, windows[0].view(1, 1, -1, 1)), windows[1].view(1, 1, 1, -1))

    mx, my = mean(x), mean(y)
    vx, vy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    same = (2 * mx * my + C1) * (2 * xy + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))
    return same.unflatten(0, (n, c)).flatten(1).mean(1)


def detail(images: Tensor) -> Tensor:
    """(B,) float64: mean squared difference of neighbouring pixels, across and down, of uint8 (B, C, H, W).

    In grey levels squared; 0 for images of one colour. A number for comparing sets of images, not for one of them: it
    counts noise as much as edges. Images of one row or column have it along the other.
    """
    x = images.double()
    across, down = x.diff(dim=3).square().flatten(1), x.diff(dim=2).square().flatten(1)
    both = torch.cat([across, down], 1)
    return both.mean(1) if both.shape[1] else both.new_zeros(len(x))


def _window(side: int, device: torch.device) -> Tensor:
    """A Gaussian over an odd number of pixels, of sum 1."""
    size = min(WINDOW, side - 1 + side % 2)
    at = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def _check(a: Tensor, b: Tensor) -> None:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"two equal shapes (B, C, H, W) of uint8, not {a.dtype} {tuple(a.shape)}, {tuple(b.shape)}")
