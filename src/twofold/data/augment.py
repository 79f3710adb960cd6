"""Augmentation that does not leak into generated images: the network is told what was done to each image.

Karras et al. 2022 ("Elucidating the design space of diffusion-based generative models", appendix F.2), after Karras
et al. 2020 (ADA). Six operations; each image draws which are active, and a label of 9 numbers (0 where inactive) goes
to the network. Sampling and recognition pass zeros, which stand for an image as it is.

| operation              | active with | parameters, w and w' ~ N(0, 1)                 | labels              |
| horizontal flip        | 1           | b ~ Bernoulli(1/2)                             | b                   |
| vertical flip          | p           | b ~ Bernoulli(1/2)                             | b                   |
| isotropic scale        | p           | factor 2^(0.2 w)                               | w                   |
| rotation               | p           | a ~ U(-pi, pi)                                 | cos a - 1, sin a    |
| anisotropic scale      | p           | s = 2^(0.2 w) along r and 1/s across;          | w cos r, w sin r    |
|                        |             | r ~ U(-pi, pi) or, half the time, r = 0        |                     |
| fractional translation | p           | (W w, H w') / 8 pixels                         | w, w'               |

The last four are one affine map about the image's centre, in pixels, x right and y down, angles counter-clockwise as
seen, from output to input:

    G^-1 = Scale(1/scale) Rot(a) Rot(-r) Scale(1/s, s) Rot(r) Trans(-shift)

carried out once, at twice the resolution, so that it neither blurs nor aliases:

    u[m] = sqrt(2) sum_k x[k] h[m - 2k]    warp u bilinearly    x'[k] = 1/sqrt(2) sum_m u'[m] h[m - 2k]

h is the sym6 wavelet's low-pass filter (Daubechies 1992, section 8.1), 12 taps. It is orthogonal to its own even
shifts, so with no warp x' = x exactly. Beyond its edges an image goes on as its mirror image: half its size is added
on each side (whatever the batch holds), and the few positions still further out are mirrored back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError

AUGMENT_DRAWS = 14  # uniforms an image needs
AUGMENT_LABELS = 9  # width of its label

# least asymmetric Daubechies filter with six vanishing moments
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
TAPS = len(SYM6)
CENTRE = sum(n * h for n, h in enumerate(SYM6)) / sum(SYM6)  # u[m] stands at pixel (m - CENTRE) / 2
REACH = TAPS // 4  # pixels on either side that u at a place is made of


def flip(images: Tensor, u: Tensor) -> Tensor:
    """Mirrors left and right where u < 1/2. images (B, ..., W) of any dtype, so masks too; u (B,) in [0, 1)."""
    return _where(u < 0.5, images.flip(-1), images)


def flip_points(points: Tensor, u: Tensor, width: int, partner: Tensor) -> Tensor:
    """The same for key points (B, P, 2), x and y in pixels: x becomes width - 1 - x, and the left eye the right one.

    partner: (P,) the point that each one is in a mirror, see `mirror_partners`. NaN stays NaN.
    """
    mirrored = points[:, partner]
    mirrored = torch.stack([width - 1 - mirrored[..., 0], mirrored[..., 1]], dim=-1)
    return _where(u < 0.5, mirrored, points)


def mirror_partners(
    count: int, pairs: Sequence[Sequence[int]], setting: str = "data.flip_pairs", kind: str = "point"
) -> Tensor:
    """(count,) int64: the point that takes each one's place in a mirror. pairs: points that a mirror exchanges.

    setting, kind: how an error calls what is exchanged. Raises `UserError` unless every point is in one pair at most:
    mirrored twice, all must be as it was.
    """
    named = [int(point) for pair in pairs for point in pair]
    wrong = [point for point in named if not 0 <= point < count or named.count(point) > 1]
    if wrong or any(len(pair) != 2 for pair in pairs):
        plural = {"point": "points", "class": "classes"}[kind]
        what = f"{kind} {wrong[0]} is not one of {count}, or in two pairs" if wrong else f"a pair is two {plural}"
        raise UserError(setting, what, f"list pairs of different {plural}, counted from 0")
    partner = torch.arange(count)
    for i, j in pairs:
        partner[i], partner[j] = j, i
    return partner


def shifted(images: Tensor, u: Tensor, most: int, fill: float | None = None) -> Tensor:
    """Each image moved by -most..most whole pixels, vertically and horizontally; the same dtype and device.

    images (B, C, H, W). u (B, 2) uniforms in [0, 1). fill: what comes in at the sides; None: the edge repeated, for
    floating-point images.
    """
    height, width = images.shape[-2:]
    offset = (u * (2 * most + 1)).long().clamp(0, 2 * most).to(images.device)
    sides = (most, most, most, most)
    padded = F.pad(images, sides, mode="replicate") if fill is None else F.pad(images, sides, value=fill)
    rows = offset[:, :1] + torch.arange(height, device=images.device)
    columns = offset[:, 1:] + torch.arange(width, device=images.device)
    every = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def augment(x0: Tensor, u: Tensor | np.ndarray, probability: float) -> tuple[Tensor, Tensor]:
    """Augments a batch as the table above says; each image by its own numbers only.

    x0: (B, C, H, W) float in [-1, 1], any device. u: (B, AUGMENT_DRAWS) float64 uniforms in [0, 1), on the CPU, so that
    nobody waits for the device. probability: p of the table, 0..1.
    Returns the images, in [-1, 1], and their labels (B, AUGMENT_LABELS) float32, both on x0's device. An image whose
    geometric operations are all inactive is returned bit for bit, but for its flips.
    """
    u = torch.as_tensor(u, dtype=torch.float64, device="cpu")
    if tuple(u.shape) != (len(x0), AUGMENT_DRAWS):
        raise ValueError(f"u is {tuple(u.shape)}; {len(x0)} images need ({len(x0)}, {AUGMENT_DRAWS})")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} is not in 0..1")
    labels, to_input = _parameters(u, probability, x0.shape[-1], x0.shape[-2])
    out = _where(labels[:, 0] > 0, x0.flip(-1), x0)
    out = _where(labels[:, 1] > 0, out.flip(-2), out)
    moved = labels[:, 2:].any(dim=1).nonzero().squeeze(1)
    if len(moved):
        where = moved.to(x0.device, non_blocking=True)
        out = out.index_copy(0, where, warp(out[where], to_input[moved]))
    return out, labels.to(x0.device, torch.float32, non_blocking=True)


def warp(x0: Tensor, to_input: Tensor) -> Tensor:
    """x0 (B, C, H, W) in [-1, 1] seen through affine maps; the result is clamped to [-1, 1].

    to_input: (B, 2, 3) float64, from the output's (x, y, 1) to the input's (x, y), pixels from the centre.
    """
    height, width = x0.shape[-2:]
    dtype, device = (x0.dtype if x0.dtype == torch.float64 else torch.float32), x0.device
    with torch.autocast(device.type, enabled=False):
        fine = _finer(height, dtype, device) @ x0.to(dtype) @ _finer(width, dtype, device).mT
        position = _places(height, width, dtype, device) @ to_input.to(device, dtype, non_blocking=True).mT[:, None]
        grid = torch.stack([_grid(position[..., 0], width), _grid(position[..., 1], height)], dim=-1)
        warped = F.grid_sample(fine, grid, mode="bilinear", padding_mode="border", align_corners=True)
        out = _coarser(height, dtype, device) @ warped @ _coarser(width, dtype, device).mT
    return out.clamp(-1, 1).to(x0.dtype)


def _parameters(u: Tensor, p: float, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Labels (B, 9) and maps from output to input (B, 2, 3), float64; each row a function of its row of u."""
    draw = iter(u.unbind(1))

    def active() -> Tensor:
        return (next(draw) < p).double()

    def coin() -> Tensor:
        return (next(draw) < 0.5).double()

    def normal() -> Tensor:
        return torch.special.ndtri(next(draw).clamp(1e-12, 1 - 1e-12))

    def angle() -> Tensor:
        return (2 * next(draw) - 1) * math.pi

    mirror, upend = coin(), active() * coin()
    isotropic = active() * normal()
    rotation = active() * angle()
    anisotropic, direction = active() * normal(), angle() * coin()
    moved = active()
    across, down = moved * normal(), moved * normal()
    labels = torch.stack(
        [
            mirror, upend, isotropic, rotation.cos() - 1, rotation.sin(),
            anisotropic * direction.cos(), anisotropic * direction.sin(), across, down,
        ],
        dim=1,
    )  # fmt: skip
    linear = _rotate(rotation - direction) @ _scale(-anisotropic, anisotropic) @ _rotate(direction)
    linear = _scale(-isotropic, -isotropic) @ linear
    shift = torch.stack([across * width, down * height], dim=1)[..., None] / 8
    return labels, torch.cat([linear, -linear @ shift], dim=2)


def _rotate(angle: Tensor) -> Tensor:
    """(B, 2, 2): Rot(angle) of the module's text."""
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    """(B, 2, 2): factors 2^(0.2 x) and 2^(0.2 y)."""
    return torch.diag_embed(torch.exp2(0.2 * torch.stack([x, y], dim=1)))


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.to(no.device, non_blocking=True).view(-1, *[1] * (no.ndim - 1)), yes, no)


def _fold(position: Tensor, size: int) -> Tensor:
    """Mirrors positions into 0..size-1 about the centres of the first and the last pixel."""
    last = size - 1
    return last - (position.remainder(max(2 * last, 1)) - last).abs()


def _grid(position: Tensor, size: int) -> Tensor:
    """Pixels from the centre -> grid_sample's coordinate of that place in u, whose ends are -1 and 1."""
    first, count = _fine_range(size)
    pixel = position + (size - 1) / 2
    beyond = _margin(size) - REACH
    pixel = torch.where((pixel < -beyond) | (pixel > size - 1 + beyond), _fold(pixel, size), pixel)
    return (2 * pixel + CENTRE - first) * (2 / (count - 1)) - 1


# -- what depends on the shape only -----------------------------------------------------------------------------------


def _margin(size: int) -> int:
    """Mirrored pixels added on each side."""
    return size // 2 + 2 * REACH


def _fine_range(size: int) -> tuple[int, int]:
    """The index m of the first u that `size` pixels and their margins determine, and how many they are."""
    margin = _margin(size)
    return TAPS - 2 - 2 * margin, 2 * (size + 2 * margin) - TAPS + 2


@lru_cache(maxsize=64)
def _finer(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count, size): pixels -> u, the mirrored margins included."""
    first, count = _fine_range(size)
    out = torch.zeros(count, size, dtype=torch.float64)
    pixels = torch.arange(-_margin(size), size + _margin(size))
    for k, source in zip(pixels.tolist(), _fold(pixels, size).tolist(), strict=True):
        for n, h in enumerate(SYM6):
            if 0 <= 2 * k + n - first < count:
                out[2 * k + n - first, source] += math.sqrt(2) * h
    return out.to(device, dtype)


@lru_cache(maxsize=64)
def _coarser(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, 2 size + 10): u'[0], u'[1], ... -> pixels."""
    out = torch.zeros(size, 2 * size + TAPS - 2, dtype=torch.float64)
    for k in range(size):
        out[k, 2 * k : 2 * k + TAPS] = torch.tensor(SYM6, dtype=torch.float64) / math.sqrt(2)
    return out.to(device, dtype)


@lru_cache(maxsize=64)
def _places(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 height + 10, 2 width + 10, 3): where u' stands, as (x, y, 1) in pixels from the centre."""
    y, x = (
        (torch.arange(2 * size + TAPS - 2, dtype=torch.float64) - CENTRE) / 2 - (size - 1) / 2
        for size in (height, width)
    )
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).to(device, dtype)
