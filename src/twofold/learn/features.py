"""The features of a set of images, in files of a few thousand images each: every image is read once.

    00000000.npy, 00000001.npy, ...     float32 (images, D), in the order of the rows

Chunks are made by whichever process they fall to, written whole, and never made again. What needs all of them reads
one after the other, so memory stays flat as the data grows, except where a method wants all features at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_file

CHUNK = 4096  # images

Images = Callable[[np.ndarray], Tensor]  # rows (n,) -> uint8 (n, C, H, W)
Embed = Callable[[Tensor], Tensor]  # uint8 (n, C, H, W) -> (n, D)


class Features:
    """Features (N, D) on disk: `blocks()` reads them in order, `take(places)` some of them, `all()` everything."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    @property
    def chunks(self) -> int:
        return -(-self.count // CHUNK)

    def files(self) -> list[Path]:
        return [self.folder / f"{chunk:08d}.npy" for chunk in range(self.chunks)]

    def blocks(self) -> Iterator[Tensor]:
        """(n, D) float32, chunk by chunk."""
        for file in self.files():
            yield torch.from_numpy(np.load(file, allow_pickle=False)).float()

    def take(self, places: np.ndarray) -> Tensor:
        """Features of the images at these places (n,), in their order."""
        out: Tensor | None = None
        for chunk, file in enumerate(self.files()):
            mine = np.flatnonzero(places // CHUNK == chunk)
            if len(mine):
                part = np.load(file, mmap_mode="r", allow_pickle=False)[places[mine] - chunk * CHUNK]
                if out is None:
                    out = torch.empty(len(places), part.shape[1])
                out[torch.from_numpy(mine)] = torch.from_numpy(np.ascontiguousarray(part)).float()
        return torch.empty(0, 0) if out is None else out

    def all(self) -> Tensor:
        """(N, D) float32 in memory."""
        return torch.cat(list(self.blocks()))


def extract(
    folder: Path,
    images: Images,
    rows: np.ndarray,
    embed: Embed,
    progress: Callable[[int, int | None], None],
    rank: int = 0,
    world: int = 1,
) -> Features:
    """Makes the chunks of these rows that are missing and fall to this process. Raises `UserError` for a full disk and
    for features that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = Features(folder, len(rows))
    todo = [chunk for chunk in range(features.chunks)[rank::world] if not features.files()[chunk].is_file()]
    done = 0
    for chunk in todo:
        part = rows[chunk * CHUNK : (chunk + 1) * CHUNK]
        values = _embedded(images, part, embed, lambda n, done=done: progress(done + n, len(todo) * CHUNK))  # type: ignore[misc]
        if not np.isfinite(values).all():
            raise UserError("features", "are not finite", "use precision=fp32; if it stays so, the model is damaged")
        if chunk == todo[0]:
            _check_room(folder, values.nbytes * len(todo))
        atomic_file(features.files()[chunk], lambda path, values=values: _save(path, values))  # type: ignore[misc]
        done += len(part)
    return features


BATCH = 512  # images that are in memory at once


def _embedded(images: Images, rows: np.ndarray, embed: Embed, progress: Callable[[int], None]) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), BATCH):
        with torch.no_grad():
            parts.append(embed(images(rows[start : start + BATCH])).float().cpu().numpy())
        progress(min(start + BATCH, len(rows)))
    return np.concatenate(parts)


def _save(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"the features need {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise UserError(str(folder), what, "give --out on another disk, fewer layers or noise levels, or pool=mean")
