"""The training images that an uploaded picture is nearest to, by its pixels and by what the model sees in it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Store, open_store, spread
from .models import Served
from .search import Search

PART = 256  # images that are read before others have a turn


@dataclass(frozen=True)
class Near:
    """One of them. id: in its store. label: its class's name, None = unknown. distance: per number of pixels in grey
    levels (rms), or Euclidean between features. image: uint8 (C, H, W)."""

    id: str
    label: str | None
    distance: float
    image: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """store: of the training images, of which these rows are looked at, by two searches."""

    store: Store
    rows: np.ndarray
    pixels: Search
    features: Search

    def of(self, images: Tensor, features: Tensor, k: int) -> Generator[None, None, list[tuple[list[Near], ...]]]:
        """(by pixels, by features) of each picture, uint8 (B, C, H, W) and its features (B, D): the k nearest."""
        distance, index = yield from self.pixels.nearest(images.flatten(1), k)
        by_pixels = self._named(distance / images[0].numel() ** 0.5, index)
        by_features = self._named(*(yield from self.features.nearest(features, k)))
        return list(zip(by_pixels, by_features, strict=True))

    def _named(self, distance: Tensor, index: Tensor) -> list[list[Near]]:
        return [
            [self._near(int(i), float(d)) for d, i in zip(*pair, strict=True)]
            for pair in zip(distance, index, strict=True)
        ]

    def _near(self, place: int, distance: float) -> Near:
        row = int(self.rows[place])
        label = int(self.store.labels[row])
        name = self.store.classes[label] if 0 <= label < len(self.store.classes) else None
        return Near(self.store.id(row), name, distance, self.store.batch([row])[0].numpy())


def reachable(served: Served) -> bool:
    """Whether it embeds pictures, and its training images are on this machine; nothing is downloaded for neighbours."""
    if served.trained is None or served.reader is None:
        return False
    source = served.trained.source
    place = source.partition(":")[2] or source
    return source == "digits" or Path(place).expanduser().exists()


def reading(served: Served, most: int) -> Generator[None, None, Neighbours]:
    """Opens the training images and reads them and their features, a part at a time; as much of either as `HELD` allows
    is kept for searching, and of the pixels nothing else."""
    assert served.trained is not None
    store = open_store(served.trained)
    rows = store.indices("train")
    rows = rows[spread(len(rows), most)]
    parts: list[Any] = []
    for start in range(0, len(rows), PART):
        parts.append(served.reader.read(store.batch(rows[start : start + PART])))
        yield
    features = torch.cat(parts)
    of_pixels = Search(lambda near: store.batch(rows[near.numpy()]).flatten(1).float(), len(rows), _grey(store.shape))
    of_features = Search(features.__getitem__, len(rows), features.mean(0))
    yield from of_pixels.read()
    yield from of_features.read()
    return Neighbours(store, rows, of_pixels, of_features)


def _grey(shape: tuple[int, ...]) -> Tensor:
    """Half of the largest value: what is left of whole numbers without it is exact."""
    return torch.full((math.prod(shape),), 127.5)
