"""What a teacher says of every training image, asked once and kept: then a step of the student costs no teacher.

Of each image and its mirror image, at each noise level of the selection: the means over pixels of the wanted layers, or
their whole maps, float16 in memory-mapped shards. Noise belongs to the pixels of an image, and is the same at all
levels. Whatever views the student sees, the teacher saw the image as it is, or mirrored where the view is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...codec import PixelCodec
from ...data import Store
from ...data.latents import Latents, fill, shelf_of
from ...recognize.views import image_noise
from .teacher import Teacher

PIXELS_AT_ONCE = 2**20  # of images that the teacher sees in one pass
HINT = "objective.cache=pooled or none, fewer objective.sigma.bins, or TWOFOLD_CACHE on another disk"


class Asking:
    """Who asks: the encoder of `data.latents`. sigmas: (bins,) float64."""

    def __init__(self, teacher: Teacher, sigmas: Tensor, how: Literal["pooled", "maps"], device: torch.device) -> None:
        self.teacher, self.sigmas, self.how, self.device = teacher, sigmas, how, device
        probe = torch.zeros(1, *teacher.shape, device=device)
        noise = torch.zeros(1, *teacher.x0_shape, device=device)
        self.shapes = [tuple(m.shape[1:]) for m in self._kept(teacher.maps(probe, sigmas[:1], noise))]

    @property
    def moments_key(self) -> str:
        """The same for the same numbers."""
        levels = hashlib.sha256(self.sigmas.numpy().tobytes()).hexdigest()
        return f"{self.teacher.key} {levels} {self.how} {self.teacher.denoiser.autocast}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bins, 1, numbers) of one image."""
        return len(self.sigmas), 1, sum(int(np.prod(shape)) for shape in self.shapes)

    def moments(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, bins, 1, numbers)."""
        size = max(1, PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
        return torch.cat([self._asked(part) for part in images.split(size)])

    def _asked(self, images: Tensor) -> Tensor:
        noise = image_noise(images, self.teacher.x0_shape).to(self.device) if self.teacher.input == "noised" else None
        x0, found = PixelCodec().encode(images.to(self.device)), []
        for sigma in self.sigmas:
            maps = self._kept(self.teacher.maps(x0, sigma.expand(len(x0)), noise))
            found.append(torch.cat([one.flatten(1) for one in maps], 1))
        return torch.stack(found, 1)[:, :, None]

    def _kept(self, maps: list[Tensor]) -> list[Tensor]:
        return [one.mean((2, 3), keepdim=True) for one in maps] if self.how == "pooled" else maps

    def unpacked(self, numbers: Tensor) -> list[Tensor]:
        """(B, numbers) as the maps (B, D, h, w) they are of; h = w = 1 where means are kept."""
        parts = numbers.split([int(np.prod(shape)) for shape in self.shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Answers:
    """What was kept: `at` one level of each image, or all of them."""

    def __init__(self, asking: Asking, kept: Latents) -> None:
        self.asking, self.kept = asking, kept

    def __call__(self, rows: Tensor, mirrored: np.ndarray | None) -> Tensor:
        """(B, bins, numbers) float32 of store rows (B,), on the CPU. mirrored: (B,) bool, None for none."""
        return self.kept(rows.cpu().numpy(), mirrored)[:, :, 0].float()

    def at(self, rows: Tensor, mirrored: np.ndarray | None, bin: Tensor, device: torch.device) -> list[Tensor]:
        """The maps of those images at one bin (B,) of each; of the others nothing is read."""
        numbers = self.kept(rows.cpu().numpy(), mirrored, bin.cpu().numpy())
        return self.asking.unpacked(numbers[:, 0].to(device).float())

    def maps(self, numbers: Tensor, bin: Tensor) -> list[Tensor]:
        """Of (B, bins, numbers), the maps at one bin (B,) of each image."""
        return self.asking.unpacked(numbers[torch.arange(len(numbers), device=numbers.device), bin])

    def pooled(self, numbers: Tensor) -> Tensor:
        """(bins, B, D): the means over pixels of all layers side by side, at every bin."""
        count = numbers.shape[1]
        maps = self.asking.unpacked(numbers.flatten(0, 1))
        means = torch.cat([one.mean((2, 3)) for one in maps], 1)
        return means.unflatten(0, (-1, count)).transpose(0, 1)


def ask(
    asking: Asking, store: Store, rows: np.ndarray, mirror: bool, rank: int, world: int
) -> Iterator[tuple[int, int] | Answers]:
    """Asks about what is not kept yet, together with the other processes; yields (done, in all), and the answers last.

    Raises `UserError` for a disk without room, before anything is asked.
    """
    words = {"what": "answers of the teacher", "hint": HINT}
    shelf = shelf_of(asking.moments_key, store, rows, asking.shape, mirror, "teachers", **words)
    yield from fill(shelf, asking, store, rank, world)
    yield Answers(asking, Latents(shelf))
