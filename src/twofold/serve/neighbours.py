"""The training images that an uploaded picture is nearest to, by its pixels and by what the model sees in it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Store, open_store, spread
from ..measure.neighbours import nearest
from .models import Served

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
    """store: of the training images, of which these rows are looked at. features: (N, D) of them."""

    store: Store
    rows: np.ndarray
    features: Tensor

    def by_pixels(self, images: Tensor, k: int) -> list[list[Near]]:
        """The k nearest of each picture (B, C, H, W) uint8."""
        references = self.store.batch(self.rows).flatten(1).float()
        distance, index = nearest(images.flatten(1).float(), references, min(k, len(self.rows)))
        return self._named(distance / references.shape[1] ** 0.5, index)

    def by_features(self, features: Tensor, k: int) -> list[list[Near]]:
        """The k nearest of each picture, by its features (B, D)."""
        return self._named(*nearest(features, self.features, min(k, len(self.rows))))

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
    """Whether its training images are on this machine; nothing is downloaded for a look at neighbours."""
    if served.trained is None:
        return False
    source = served.trained.source
    place = source.partition(":")[2] or source
    return source == "digits" or Path(place).expanduser().exists()


def reading(served: Served, most: int) -> Generator[None, None, Neighbours]:
    """Opens the training images and reads their features, a part at a time."""
    assert served.trained is not None
    store = open_store(served.trained)
    rows = store.indices("train")
    rows = rows[spread(len(rows), most)]
    parts: list[Any] = []
    for start in range(0, len(rows), PART):
        parts.append(served.reader.read(store.batch(rows[start : start + PART])))
        yield
    return Neighbours(store, rows, torch.cat(parts))
