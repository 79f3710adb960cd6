"""Pixels <-> x0: uint8 images (B, C, H, W) in 0..255 and float tensors in [-1, 1].

`PixelCodec` is the codec of pixel models. A latent codec has the same two methods.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """encode(images uint8) -> x0, decode(x0) -> images uint8."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


class PixelCodec:
    """x0 = images / 127.5 - 1."""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 in [-1, 1]."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 (0..255), not {images.dtype}")
        return images.float().div_(127.5).sub_(1.0)

    def decode(self, x0: Tensor) -> Tensor:
        """float (B, C, H, W) -> uint8: rounded to the nearest level and clamped, never wrapped."""
        return x0.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
