"""Squares cut from images at random: what super-resolution of large photographs is trained on."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import UserError
from .batches import Batch

CROP_DRAWS = 2  # the last uniform numbers of an image: where its square begins, down and across


def cropped(batch: Batch, side: int) -> Batch:
    """Images and noise (B, C, H, W) become (B, C, side, side); each image's square lies where its numbers say.

    The noise is that of the upper left corner: any part of it is as good as another.
    """
    begins = []
    for k, length in enumerate(batch.images.shape[2:]):
        u = batch.uniforms[:, k - CROP_DRAWS]
        begins.append((u * (length - side + 1)).long().clamp(max=length - side).tolist())
    squares = [
        image[:, top : top + side, left : left + side] for image, top, left in zip(batch.images, *begins, strict=True)
    ]
    noise = None if batch.noise is None else batch.noise[:, :, :side, :side].contiguous()
    return replace(batch, images=torch.stack(squares), noise=noise)


def check_crop(side: int, shape: tuple[int, int, int]) -> None:
    """Raises `UserError` where images (C, H, W) hold no such square."""
    if side > min(shape[1:]):
        what = f"the images have {shape[1]}x{shape[2]} pixels"
        raise UserError(f"objective.crop={side}", what, f"give data.size={side} or more, or a smaller crop")
