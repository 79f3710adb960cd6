"""Photometric distortion: random brightness, contrast, saturation and hue, as segmentation is trained with.

After Liu et al. 2016 ("SSD: Single shot multibox detector", section 2.2), with the published code's values at
strength 1. Colours y = (x0 + 1) / 2 in 0..1, clamped after every operation:

| operation  | active with | parameters                                                                        |
| brightness | 1/2         | b in -32/255..32/255 is added                                                     |
| contrast   | 1/2         | factor 0.5..1.5; with probability 1/2 here, else after the last                   |
| saturation | 1/2         | factor 0.5..1.5 on S of HSV, at most 1: V and hue stay (RGB only)                 |
| hue        | 1/2         | -36..36 degrees on H of HSV: S and V stay (RGB only)                              |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

COLOUR_DRAWS = 9  # uniforms an image needs
BRIGHTNESS, FACTOR, HUE = 32 / 255, 0.5, 36 / 60  # largest changes; hue in sixths of a turn


def distort(x0: Tensor, u: Tensor, strength: float = 1.0) -> Tensor:
    """Images with other colours; each by its own numbers only.

    x0: (B, C, H, W) float in [-1, 1], any device; saturation and hue are for C = 3. u: (B, COLOUR_DRAWS) float64
    uniforms in [0, 1), on the CPU. strength: 0..2, factor on the largest changes. An image for which nothing is active
    comes back bit for bit. Raises `ValueError` for a strength outside.
    """
    if not 0 <= strength <= 2:
        raise ValueError(f"strength {strength} is not in 0..2")
    if strength == 0 or not len(x0):
        return x0
    bright, contrast, early, saturated, hued = (u[:, i] < 0.5 for i in range(5))
    change = strength * (2 * u[:, 5:] - 1)
    factor = 1 + FACTOR * change
    out = x0.clone()
    _change(out, bright, lambda y, b: y + b, BRIGHTNESS * change[:, 0])
    _change(out, contrast & early, torch.mul, factor[:, 1])
    if x0.shape[1] == 3:
        _change(out, saturated, _saturation, factor[:, 2])
        _change(out, hued, _hue, HUE * change[:, 3])
    _change(out, contrast & ~early, torch.mul, factor[:, 1])
    return out


def _change(out: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor], amount: Tensor) -> None:
    """Applies an operation to the chosen images in place. chosen (B,) bool, amount (B,) float64, both on the CPU."""
    rows = chosen.nonzero().squeeze(1)
    if not len(rows):
        return
    dtype = out.dtype if out.dtype == torch.float64 else torch.float32
    where = rows.to(out.device, non_blocking=True)
    amounts = amount[rows].to(out.device, dtype, non_blocking=True).view(-1, 1, 1, 1)
    y = operation((out[where].to(dtype) + 1) / 2, amounts).clamp(0, 1)
    out.index_copy_(0, where, (2 * y - 1).to(out.dtype))


def _saturation(y: Tensor, factor: Tensor) -> Tensor:
    """S' = min(factor S, 1) of S = (V - min) / V moves every channel c to V - (S' / S) (V - c)."""
    value = y.amax(1, keepdim=True)
    most = value / (value - y.amin(1, keepdim=True)).clamp(min=torch.finfo(y.dtype).tiny)  # 1 / S
    return value - torch.minimum(factor.expand_as(most), most) * (value - y)


def _hue(y: Tensor, sixths: Tensor) -> Tensor:
    """H + sixths of a turn: channel n is V - (V - min) max(0, min(k, 4 - k, 1)), k = (n + H) mod 6, n = 5, 3, 1."""
    red, green, blue = y.split(1, dim=1)
    value, least = y.amax(1, keepdim=True), y.amin(1, keepdim=True)
    spread = value - least
    safe = spread.clamp(min=torch.finfo(y.dtype).tiny)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=y.dtype, device=y.device).view(1, 3, 1, 1) + hue + sixths).remainder(6)
    return value - spread * torch.minimum(k, 4 - k).clamp(0, 1)
