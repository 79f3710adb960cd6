"""Images at a lower resolution and back: the one definition of what super-resolution starts from.

    low  = round(bicubic(images)), its filter as much wider as the image becomes smaller (antialiased)
    high = bicubic(low), clamped to [-1, 1]

Both are Pillow's bicubic, with which images are packed, to one or two grey levels. Low images are rounded to 8 bits, as
the file that a user brings is.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .errors import UserError


def shrink(images: Tensor, factor: int) -> Tensor:
    """uint8 (B, C, H, W) -> uint8 (B, C, H/factor, W/factor). Raises `UserError` where factor divides no side."""
    height, width = images.shape[2:]
    check_divides(height, width, factor)
    if factor == 1:
        return images
    return _bicubic(images, height // factor, width // factor).to(images.dtype)


def enlarge(low: Tensor, height: int, width: int) -> Tensor:
    """x0 (B, C, h, w) in [-1, 1] -> (B, C, height, width), float32 or better; of that size already, it is returned."""
    if tuple(low.shape[2:]) == (height, width):
        return low
    return _resized(low, height, width).clamp_(-1, 1)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """The baseline of super-resolution: uint8 (B, C, h, w) -> uint8, `factor` times as high and wide, bicubic."""
    height, width = images.shape[2] * factor, images.shape[3] * factor
    return _bicubic(images, height, width).to(images.dtype)


def check_divides(height: int, width: int, factor: int) -> None:
    """Raises `UserError` where an image of this size has no whole number of low pixels."""
    if height % factor or width % factor:
        what = f"is no multiple of {factor}, the factor of super-resolution"
        hint = f"give images of {max(height - height % factor, factor)}x{max(width - width % factor, factor)}"
        raise UserError(f"{height}x{width}", what, hint)


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """Whole levels after each of the two passes, across and then down, as in Pillow."""
    across = _resized(images.float(), images.shape[2], width).round_().clamp_(0, 255)
    return _resized(across, height, width).round_().clamp_(0, 255)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)
