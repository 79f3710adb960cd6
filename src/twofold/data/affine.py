"""One random affine map per image: turned, scaled, sheared and moved, in one bilinear interpolation.

What a classifier of few images needs most: the class stays what it is (unlike under flips and large turns of digits),
and no two views of an image are the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

AFFINE_DRAWS = 6  # uniforms an image needs
DEGREES, SCALE, SHEAR = 15.0, 0.1, 0.1  # largest, at strength 1


def affine(x0: Tensor, u: Tensor, strength: float, shift: float) -> Tensor:
    """Views of images x0 (B, C, H, W), of their shape, type and device; beyond its sides an image repeats its edge.

    u: (B, AFFINE_DRAWS) uniforms in [0, 1), on the CPU: angle, scale across and down, shear, shift across and down,
    each evenly from minus its largest value to plus it. strength: of the first four; 1: 15 degrees, 10 %, 10 %.
    shift: largest one, in pixels. Raises `ValueError` for a strength or shift below 0.
    """
    if strength < 0 or shift < 0:
        raise ValueError(f"strength {strength}, shift {shift}: both are 0 or more")
    height, width = x0.shape[-2:]
    angle, across, down, shear, right, low = (2 * u.double() - 1).unbind(1)
    angle = angle * math.radians(DEGREES * strength)
    sx, sy = 1 + across * min(SCALE * strength, 0.9), 1 + down * min(SCALE * strength, 0.9)
    shear = shear * SHEAR * strength
    cos, sin = angle.cos(), angle.sin()
    # turns and shears are of pixels, grid_sample's coordinates of sides
    tall = height / width
    rows = [
        torch.stack([cos * sx, (shear - sin * sy) * tall, 2 * right * shift / width], 1),
        torch.stack([sin * sx / tall, cos * sy, 2 * low * shift / height], 1),
    ]
    maps = torch.stack(rows, 1).to(x0)
    with torch.autocast(x0.device.type, enabled=False):
        grid = F.affine_grid(maps, list(x0.shape), align_corners=False)
        return F.grid_sample(x0, grid, mode="bilinear", padding_mode="border", align_corners=False)
