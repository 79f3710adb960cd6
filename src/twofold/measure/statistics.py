"""Statistics of real images, computed once and kept on disk.

A file belongs to the pixels (the store's hash), the images chosen (a hash of their indices) and the encoder (name and
version); when any of them changes, so does the file's name. A file that cannot be read is computed again. Images are
read and embedded batch by batch and their vectors go into a Gaussian, so that memory does not grow with their number;
the vectors themselves are kept only up to `KEEP_BYTES`. With share=True, which all processes of a torchrun must then
say, they share the batches; the first one decides whether they are needed, gets the result, and writes.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from torch import Tensor

from ..data import cache_root
from ..denoiser import Encoder
from ..files import atomic_file
from . import processes
from .frechet import Gaussian, as_rows

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
    store: Images,
    split: str,
    encoder: Encoder,
    batch: int = 512,
    progress: Progress | None = None,
    share: bool = False,
) -> Reference:
    """The statistics of a split of a store, from the cache where they are there and whole.

    split: "train", "validation", "test" or "all". batch: images a pass, where the encoder has no `batch` of its own.
    progress(done, total) is called after each batch.
    Raises `UserError` where the split is empty or the encoder returns NaN or infinity.
    """
    indices = store.indices(split)
    path = _path(store, indices, encoder)
    found = _read(path, len(indices)) if processes.is_first(share) else None
    if processes.agreed(found is None, share):
        found = _compute(store, indices, encoder, batch, progress, share)
        if processes.is_first(share):
            _write(path, found)
    return found if found is not None else Reference(Gaussian(), None)  # another process than the first


def features_of(
    store: Images,
    indices: np.ndarray,
    encoder: Encoder,
    batch: int = 512,
    progress: Progress | None = None,
    share: bool = False,
) -> np.ndarray:
    """The vectors (N, D) float32 of these rows of a store, N >= 1, from the cache where they are there and whole.

    All of them are held and kept: the caller bounds their number. Raises `UserError` for NaN and infinity.
    """
    path = _path(store, indices, encoder).with_suffix(".features.npy")
    found = _read_features(path, len(indices)) if processes.is_first(share) else None
    if processes.agreed(found is None, share):
        parts = []
        for features in _batches(store, indices, encoder, batch, progress, share):
            as_rows(features)  # raises for NaN and infinity, which are not worth keeping
            parts.append(features.numpy())
        found = np.concatenate(parts)
        if processes.is_first(share):
            _write_features(path, found)
    return found if found is not None else np.empty((0, 0), np.float32)


def _path(store: Images, indices: np.ndarray, encoder: Encoder) -> Path:
    version = str(getattr(encoder, "version", ""))
    chosen = hashlib.sha256(np.ascontiguousarray(indices, np.int64).tobytes()).hexdigest()
    key = "\n".join([FORMAT, store.content_hash, chosen, encoder.name, version])
    return cache_root() / "statistics" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _batches(
    store: Images, indices: np.ndarray, encoder: Encoder, batch: int, progress: Progress | None, share: bool
) -> Iterator[Tensor]:
    """Vectors in the order of the indices, (B, D) float32 on the CPU."""
    done = 0
    size = getattr(encoder, "batch", batch)
    work = lambda part: encoder.embed(store.batch(indices[part])).float()  # noqa: E731
    for features in processes.batches(len(indices), size, work, share):
        yield features
        done += len(features)
        if progress:
            progress(done, len(indices))


def _compute(
    store: Images, indices: np.ndarray, encoder: Encoder, batch: int, progress: Progress | None, share: bool
) -> Reference:
    gaussian, first = Gaussian(), processes.is_first(share)
    kept: list[np.ndarray] | None = []
    for features in _batches(store, indices, encoder, batch, progress, share):
        if not first:  # which only embeds
            continue
        if len(indices) * features.shape[1] * 4 > KEEP_BYTES:
            kept = None
        gaussian.update(features)
        if kept is not None:
            kept.append(features.numpy())
    return Reference(gaussian, np.concatenate(kept) if kept else None)


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


def _read_features(path: Path, n: int) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == n and bool(np.isfinite(found).all()) else None


def _write(path: Path, found: Reference) -> None:
    """Atomic: a reader, or a run that was killed here, never sees half a file."""
    arrays = found.gaussian.to_arrays()
    if found.features is not None:
        arrays["features"] = found.features
    _save(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _write_features(path: Path, found: np.ndarray) -> None:
    _save(path, lambda file: np.save(file, found))


def _save(path: Path, save: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name would get its ending appended
            save(file)

    atomic_file(path, write)
