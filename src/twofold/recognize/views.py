"""What recognition does to an image before the network sees it: a view is an augmented copy with noise of its own.

All of it is keyed by the pixels of the image itself, (hash of its pixels, seed, view), so that the same picture gives
the same features in any file, order, batch or process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.augment import flip, shifted
from ..draws import ImageDraws

BLACK = 0  # as uint8
DRAWS = 3  # uniforms in front of the noise of a view: flip, vertical and horizontal shift


@dataclass(frozen=True)
class Views:
    """count: views of every image. flip: mirrored with probability 1/2. shift: moved by up to so many pixels in both
    directions, with black beyond the border (DDAE and most of the literature: 4 on 32x32 images). seed: of all of it.

    Without flip and shift all views show the image as it is, and only their noise differs.
    """

    count: int = 1
    flip: bool = False
    shift: int = 0
    seed: int = 0

    def make(self, images: Tensor, view: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """View number `view` of uint8 images (B, C, H, W): the images as seen (uint8, same shape), and standard normal
        noise (B, *shape) float32 on the CPU."""
        uniforms, noise = _drawn(images, shape, self.seed, view)
        if self.flip:
            images = flip(images, uniforms[:, 0])
        return (shifted(images, uniforms[:, 1:], self.shift, BLACK) if self.shift else images), noise


def image_noise(images: Tensor, shape: tuple[int, ...], seed: int = 0, view: int = 0) -> Tensor:
    """Standard normal noise (B, *shape) float32 that belongs to the pixels of these uint8 images (B, C, H, W)."""
    return _drawn(images, shape, seed, view)[1]


def _drawn(images: Tensor, shape: tuple[int, ...], seed: int, view: int) -> tuple[Tensor, Tensor]:
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (0..255), not {images.dtype}")
    draws = ImageDraws("recognize")
    uniforms = np.empty((len(images), DRAWS))
    noise = np.empty((len(images), *shape), np.float32)
    for i, image in enumerate(images.cpu().contiguous().numpy()):
        generator = draws(pixel_hash(image), seed, view)
        generator.random(out=uniforms[i])
        generator.standard_normal(out=noise[i], dtype=np.float32)
    return torch.from_numpy(uniforms), torch.from_numpy(noise)


def pixel_hash(image: np.ndarray) -> int:
    """64 bits that name the pixels of a uint8 image (C, H, W)."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=8, salt=np.array(image.shape, np.uint32).tobytes()[:16])
    return int.from_bytes(digest.digest(), "little")
