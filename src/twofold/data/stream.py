"""Images of a source as they come, batch by batch, without packing them: for looking at new images once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..settings.data import DataSettings
from .decode import BadImage, as_channels
from .folder import IMAGE_SUFFIXES
from .items import Item, Source
from .pack import decoded
from .sources import open_source


@dataclass(frozen=True)
class Streamed:
    """ids: names within the source. images: uint8 (B, C, H, W). labels: indices into the source's classes, -1 = none.
    skipped: (id, reason) of the unreadable ones that were left out."""

    ids: list[str]
    images: Tensor
    labels: list[int]
    skipped: list[tuple[str, str]]


class OneImage:
    """A single file as a source."""

    def __init__(self, path: Path) -> None:
        self.name, self.where, self.path = path.stem, str(path), path

    def identity(self) -> str:
        return str(self.path)

    def classes(self) -> list[str]:
        return []

    def count(self) -> int:
        return 1

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return {}

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        yield from [Item(self.path.name, self.path, -1, None)][start:stop]


def open_images(settings: DataSettings) -> Source:
    """The source of these settings, which may be a single image file as well."""
    path = Path(settings.source).expanduser()
    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        return OneImage(path)
    return open_source(settings)


def stream(source: Source, settings: DataSettings, batch: int) -> Iterator[Streamed]:
    """Batches of at most `batch` images, in the source's order, decoded ahead by threads.

    settings: `size` and `channels` must be set, so that all images have one shape. Raises `UserError` naming the first
    unreadable image, unless `on_bad_image` is "skip".
    """
    if settings.size is None or settings.channels is None:
        raise ValueError("images of a stream need a size and a number of channels")
    ids, images, labels, skipped = [], [], [], []
    bare = (item._replace(mask=None, points=None, pair=None) for item in source.items())
    with contextlib.closing(decoded(bare, settings, lambda: None)) as chunks:
        for items, found in chunks:
            for item, one in zip(items, found, strict=True):
                if isinstance(one, BadImage):
                    if settings.on_bad_image == "error":
                        raise UserError(f"{source.where}: {item.id}", str(one), "mend it, or use on_bad_image=skip")
                    skipped.append((item.id, str(one)))
                    continue
                ids.append(item.id)
                images.append(as_channels(one.pixels, settings.channels))
                labels.append(item.label)
                if len(ids) == batch:
                    yield Streamed(ids, torch.from_numpy(np.stack(images)), labels, skipped)
                    ids, images, labels, skipped = [], [], [], []
    if ids or skipped:
        shape = (0, settings.channels, *settings.size)
        stacked = np.stack(images) if images else np.empty(shape, np.uint8)
        yield Streamed(ids, torch.from_numpy(stacked), labels, skipped)
