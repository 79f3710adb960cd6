"""Statistics of real images, computed once and kept on disk.

A file belongs to the pixels (the store's hash), the images chosen (a hash of their indices) and the encoder (name and
version); when any of them changes, so does the file's name. A file that cannot be read is computed again.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from ..data import cache_root
from ..denoiser import Encoder
from ..files import atomic_file
from .frechet import Gaussian

KEEP_BYTES = 64 * 2**20  # feature matrices up to this size are kept beside their Gaussian
FORMAT = "1"

Progress = Callable[[int, int], None]


class Images(Protocol):
    """What this module needs of a `twofold.data` store."""

    content_hash: str

    def indices(self, split: str) -> np.ndarray: ...

    def batch(self, indices: np.ndarray) -> Tensor: ...


@dataclass(frozen=True)
class Reference:
    """Real images as an encoder sees them. features: (N, D) float32 in the split's order; None if too large to keep."""

    gaussian: Gaussian
    features: np.ndarray | None


def reference(
    store: Images, split: str, encoder: Encoder, batch: int = 512, progress: Progress | None = None
) -> Reference:
    """The statistics of a split of a store, from the cache where they are there and whole.

    split: "train", "validation", "test" or "all". progress(done, total) is called after each batch.
    Raises `UserError` where the split is empty or the encoder returns NaN or infinity.
    """
    indices = store.indices(split)
    path = _path(store, indices, encoder)
    found = _read(path, len(indices))
    if found is None:
        found = _compute(store, indices, encoder, batch, progress)
        _write(path, found)
    return found


def _path(store: Images, indices: np.ndarray, encoder: Encoder) -> Path:
    version = str(getattr(encoder, "version", ""))
    chosen = hashlib.sha256(np.ascontiguousarray(indices, np.int64).tobytes()).hexdigest()
    key = "\n".join([FORMAT, store.content_hash, chosen, encoder.name, version])
    return cache_root() / "statistics" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _compute(store: Images, indices: np.ndarray, encoder: Encoder, batch: int, progress: Progress | None) -> Reference:
    gaussian = Gaussian()
    kept: list[np.ndarray] | None = []
    for start in range(0, len(indices), batch):
        features = encoder.embed(store.batch(indices[start : start + batch])).float().cpu()
        if len(indices) * features.shape[1] * 4 > KEEP_BYTES:
            kept = None
        gaussian.update(features)
        if kept is not None:
            kept.append(features.numpy())
        if progress:
            progress(min(start + batch, len(indices)), len(indices))
    return Reference(gaussian, np.concatenate(kept) if kept is not None else None)


def _read(path: Path, n: int) -> Reference | None:
    """What an earlier run wrote, or None where it is missing, damaged or of another number of images."""
    try:
        with np.load(path, allow_pickle=False) as file:
            gaussian = Gaussian.from_arrays(file)
            features = file.get("features")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if gaussian.n != n or (features is not None and features.shape != (n, gaussian.dims)):
        return None
    return Reference(gaussian, features)


def _write(path: Path, found: Reference) -> None:
    """Atomic: a reader, or a run that was killed here, never sees half a file."""
    arrays = found.gaussian.to_arrays()
    if found.features is not None:
        arrays["features"] = found.features
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name would get ".npz" appended
            np.savez(file, **arrays)  # type: ignore[arg-type]

    atomic_file(path, write)
