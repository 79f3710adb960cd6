"""Training batches: images and their random numbers, found by position and prepared ahead in a thread.

Position n of a run (the n-th image trained on) decides everything about itself: which image it is, its noise, its
noise level, its label dropout and its augmentation. So a batch can be made anywhere: on any rank, after any resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data import ImageOrder, Store, flip
from ..draws import ImageDraws

# Columns of `Batch.uniforms`: one purpose each, so that switching one off leaves the others as they were.
U_SIGMA, U_LABEL, U_FLIP, U_AUGMENT = 0, 1, 2, 3


@dataclass
class Batch:
    """images uint8 (B, C, H, W), label (B,) int64, uniforms (B, k) float64, noise (B, C, H, W) float32 or None."""

    images: Tensor
    label: Tensor
    uniforms: Tensor
    noise: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Pixels, labels and noise on `device`; the uniforms stay on the CPU, where they become float64 sigmas."""
        if device.type == "cpu":
            return self
        noise = None if self.noise is None else self.noise.pin_memory().to(device, non_blocking=True)
        images = self.images.pin_memory().to(device, non_blocking=True)
        return Batch(images, self.label.to(device, non_blocking=True), self.uniforms, noise)

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of at most `size` images."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            noise = None if self.noise is None else self.noise[part]
            yield Batch(self.images[part], self.label[part], self.uniforms[part], noise)


class Batches:
    """Makes the batch of any range of positions.

    rows: the rows of the store to train on. uniforms: how many an image needs. noise: whether it needs noise.
    """

    def __init__(self, store: Store, rows: np.ndarray, seed: int, uniforms: int, noise: bool, flip: bool) -> None:
        self.store, self.rows, self.seed = store, rows, seed
        self.uniforms, self.noise, self.flip = uniforms, noise, flip
        self.order = ImageOrder(len(rows), seed)
        self._draws = ImageDraws("train")

    def rows_at(self, start: int, stop: int) -> np.ndarray:
        """Store rows of positions start..stop-1."""
        return self.rows[self.order(np.arange(start, stop))]

    def make(self, start: int, stop: int) -> Batch:
        """The batch of positions start..stop-1."""
        rows = self.rows_at(start, stop)
        count = stop - start
        uniforms = np.empty((count, self.uniforms))
        noise = np.empty((count, *self.store.shape), np.float32) if self.noise else None
        for i in range(count):
            draws = self._draws(self.seed, start + i)
            draws.random(out=uniforms[i])
            if noise is not None:
                draws.standard_normal(out=noise[i], dtype=np.float32)
        images = self.store.batch(rows)
        label = torch.from_numpy(np.asarray(self.store.labels[rows], dtype=np.int64))
        if self.flip:
            images = flip(images, torch.from_numpy(uniforms[:, U_FLIP]))
        return Batch(images, label, torch.from_numpy(uniforms), None if noise is None else torch.from_numpy(noise))

    def stream(self, start: int, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of each global batch from position `start` on, without end; two are made ahead."""
        share = batch_size // world
        with ThreadPoolExecutor(1) as pool:
            position = start + rank * share

            def submit():  # type: ignore[no-untyped-def]
                nonlocal position
                future = pool.submit(self.make, position, position + share)
                position += batch_size
                return future

            ahead = [submit(), submit()]
            while True:
                batch = ahead.pop(0).result()
                ahead.append(submit())
                yield batch
