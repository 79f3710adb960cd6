"""Features of many images, computed once: a cache of pooled layers at several noise levels.

    images -> views -> codec.encode -> + sigma * noise -> denoiser.features (all layers, one pass) -> pool -> file

A shelf is a folder named by everything its numbers depend on but sigma: model, data and rows, layers, pooling, views,
precision. In it every (sigma, chunk of images) is one safetensors file {layer: (views, images, D)}, written whole or
not at all and memory-mapped when it is read. So an interrupted extraction continues, processes share the chunks and
end with the same files as one, another noise level adds to what is there, and nothing of another model is mixed in.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import UserError
from ..files import atomic_file, atomic_json
from ..generate.sample import place
from ..hashing import model_hash
from ..noise import add
from ..taps import check_layers
from .pooling import check_pool, pooled, pooled_width
from .views import Views

CHUNK = 1024  # images per file, at most,
MOST_NUMBERS = 2**26  # of which no more features than this at one noise level: 256 MiB
FORMAT = 1

Images = Callable[[np.ndarray], Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Grid:
    """What is read off a denoiser. layers: names, in order of execution. sigmas: noise levels in units of x0; 0 is the
    clean image. pool: see `pooling`. views: see `Views`. clean: no noise is added, the network is only told sigma
    (RepFusion). micro_batch: images per forward pass."""

    layers: tuple[str, ...]
    sigmas: tuple[float, ...]
    pool: str = "mean"
    views: Views = field(default_factory=Views)
    clean: bool = False
    micro_batch: int = 128

    def checked(self, denoiser: Denoiser) -> Grid:
        """The same with the layers named and ordered as the denoiser has them. Raises `UserError` for what it lacks."""
        check_pool(self.pool)
        layers = check_layers(self.layers, denoiser.layers, denoiser.aliases)
        low, high = denoiser.sigma_range
        for sigma in self.sigmas:
            if sigma != 0 and not low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
                raise UserError(f"sigma={sigma:g}", f"the model knows {low:.4g} to {high:.4g}", "or 0, the clean image")
        return Grid(tuple(layers), self.sigmas, self.pool, self.views, self.clean, self.micro_batch)


class Bank:
    """The features of a set of images: `features(layer, sigma)` is (views, images, D) float32.

    Made by `extract`. rows: the rows of the data the images are, in the order of the features.
    """

    def __init__(self, folder: Path, grid: Grid, rows: np.ndarray, chunk: int = CHUNK) -> None:
        self.folder, self.grid, self.rows, self.chunk = folder, grid, rows, chunk
        self.layers, self.sigmas = grid.layers, grid.sigmas

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, layer: str, sigma: float, views: Sequence[int] | None = None) -> np.ndarray:
        """(views, images, D) float32 of one layer at one noise level; only these views, if any are named."""
        wanted = range(self.grid.views.count) if views is None else views
        parts = []
        for chunk in range(self.chunks):
            with safe_open(self.file(sigma, chunk), "np") as file:
                part = file.get_slice(layer)
                parts.append(np.concatenate([part[v : v + 1] for v in wanted]))
        return np.concatenate(parts, axis=1)

    @property
    def chunks(self) -> int:
        """Files per noise level."""
        return -(-len(self) // self.chunk)

    def part(self, chunk: int) -> np.ndarray:
        """The rows of one file."""
        return self.rows[chunk * self.chunk : (chunk + 1) * self.chunk]

    def width(self, layer: str) -> int:
        """D of a layer's features."""
        with safe_open(self.file(self.sigmas[0], 0), "np") as file:
            return file.get_slice(layer).get_shape()[2]

    def file(self, sigma: float, chunk: int) -> Path:
        return self.folder / f"sigma-{float(sigma)!r}-{chunk:06d}.safetensors"

    def missing(self, chunk: int) -> list[float]:
        """Noise levels of a chunk that have no whole file yet."""
        return [sigma for sigma in self.sigmas if not _whole(self.file(sigma, chunk))]


def extract(
    denoiser: Denoiser,
    images: Images,
    rows: np.ndarray,
    data: str,
    grid: Grid,
    cache: Path,
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
    model: str | None = None,
) -> Bank:
    """The bank of these images, of which only what is not there yet is computed, one pass per view and noise level.

    images: rows (n,) -> uint8 (n, C, H, W). data: content hash of what the rows are rows of. cache: folder of the
    shelves. progress: called with (images done, images to do). rank, world: this process's share of the chunks; the
    bank is complete when all have returned. model: the denoiser's `model_hash`, for who knows it already. The denoiser
    stays in its mode; call it in eval mode without gradients.
    Raises `UserError` for layers, noise levels or poolings that do not exist and for a disk without room.
    """
    grid = grid.checked(denoiser)
    rows = np.asarray(rows, np.int64)
    facts = shelf_facts(denoiser, rows, data, grid, model or model_hash(denoiser))
    bank = Bank(cache / "features" / _name(facts), grid, rows, facts["chunk"])
    mine = list(range(bank.chunks))[rank::world]
    todo = [(chunk, missing) for chunk in mine if (missing := bank.missing(chunk))]
    _claim(bank.folder, facts)
    if not todo:
        return bank
    _check_room(denoiser, bank, sum(len(missing) for _, missing in todo))
    shelf = _latent_shelf(denoiser, facts, cache)
    done, total = 0, sum(len(bank.part(chunk)) for chunk, _ in todo)
    for chunk, missing in todo:
        part = bank.part(chunk)
        latents = _Latents(denoiser, shelf, facts, chunk)
        for sigma, tensors in _computed(denoiser, images(part), grid, missing, latents).items():
            _check_finite(tensors, sigma)
            atomic_file(bank.file(sigma, chunk), lambda path, tensors=tensors: save_file(tensors, path))  # type: ignore[misc]
        done += len(part)
        if progress is not None:
            progress(done, total)
    return bank


def shelf_facts(denoiser: Denoiser, rows: np.ndarray, data: str, grid: Grid, model: str) -> dict[str, Any]:
    """Everything the numbers on a shelf depend on, as plain data."""
    autocast = getattr(denoiser, "autocast", None)
    return {
        "format": FORMAT,
        "model": model,
        "data": data,
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "images": len(rows),
        "layers": list(grid.layers),
        "pool": grid.pool,
        "views": asdict(grid.views),
        "clean": grid.clean,
        "micro_batch": grid.micro_batch,
        "chunk": chunk_size(denoiser, grid),
        "precision": str(autocast or "float32").removeprefix("torch."),
    }


def chunk_size(denoiser: Denoiser, grid: Grid) -> int:
    """Images per file: fewer where their features are many."""
    width = sum(pooled_width(denoiser.layers[layer], denoiser.shape, grid.pool) for layer in grid.layers)
    return max(1, min(CHUNK, MOST_NUMBERS // (width * grid.views.count)))


def feature_maps(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, sigma: float, layers: Sequence[str], clean: bool = False
) -> dict[str, Tensor]:
    """{layer: (B, D, h, w)} of x0 (B, C, H, W) at one noise level; noise (B, C, H, W) on x0's device."""
    if not sigma:
        return denoiser.features(x0, sigma, layers)
    x = denoiser.family.clean(x0, sigma) if clean else add(x0, noise, sigma)  # type: ignore[union-attr, operator]
    return denoiser.features(x, sigma, layers)


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Marks a shelf as that of these facts. Raises `UserError` for one that was renamed or copied there by hand."""
    meta = folder / "meta.json"
    if not meta.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_json(meta, facts)
    elif json.loads(meta.read_text()) != json.loads(json.dumps(facts)):
        raise UserError(str(folder), "holds features of another model, data or setting", "delete the folder")


def _computed(
    denoiser: Denoiser, images: Tensor, grid: Grid, sigmas: list[float], latents: _Latents
) -> dict[float, dict[str, np.ndarray]]:
    """{sigma: {layer: (views, images, D)}} of a chunk of images; every view is encoded once for all noise levels."""
    device = place(denoiser)[0]
    rows: dict[float, list[np.ndarray]] = {sigma: [] for sigma in sigmas}
    widths: list[int] = []
    for view in range(grid.views.count):
        seen, noise = grid.views.make(images, view, denoiser.shape)
        for part, x0 in latents.batches(seen, view, device):
            eps = noise[part].to(device, non_blocking=True)
            for sigma in sigmas:
                maps = feature_maps(denoiser, x0, eps, sigma, grid.layers, grid.clean)
                vectors = [pooled(maps[layer], grid.pool) for layer in grid.layers]
                widths = [vector.shape[1] for vector in vectors]
                rows[sigma].append(torch.cat(vectors, 1).cpu().numpy())  # one copy from the device for all layers
    ends = np.cumsum(widths)[:-1]
    found = {}
    for sigma in sigmas:
        table = np.concatenate(rows[sigma]).reshape(grid.views.count, len(images), -1)
        parts = np.split(table, ends, axis=2)
        found[sigma] = {n: np.ascontiguousarray(part) for n, part in zip(grid.layers, parts, strict=True)}
    return found


def _latent_shelf(denoiser: Denoiser, facts: dict[str, Any], cache: Path) -> Path | None:
    """Where the latents of these images are kept, with this augmentation; None for models of pixels."""
    key, views = getattr(denoiser.codec, "key", None), facts["views"]
    augmentation = {name: views[name] for name in ("flip", "shift", "seed")} if _augments(views) else None
    about = {name: facts[name] for name in ("data", "rows", "chunk")} | {"codec": key, "augmentation": augmentation}
    return cache / "latents" / _name(about) if key else None


def _augments(views: dict[str, Any]) -> bool:
    return bool(views["flip"] or views["shift"])


class _Latents:
    """x0 of a chunk's views, in micro-batches. Latents cost more than features, so they are kept: float16, by view."""

    def __init__(self, denoiser: Denoiser, folder: Path | None, facts: dict[str, Any], chunk: int) -> None:
        self.codec, self.folder, self.micro_batch, self.chunk = denoiser.codec, folder, facts["micro_batch"], chunk
        self.augments = _augments(facts["views"])

    def batches(self, images: Tensor, view: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """(place in the chunk, x0 on the device) of all images."""
        kept = self._kept(view)
        parts = []
        for start in range(0, len(images), self.micro_batch):
            place = slice(start, min(start + self.micro_batch, len(images)))
            if kept is not None:
                x0 = torch.from_numpy(kept[place])
            else:
                x0 = self.codec.encode(images[place].to(device))
                if self.folder is not None:  # what is computed with now is what is read back later
                    x0 = x0.half()
                    parts.append(x0.cpu().numpy())
            yield place, x0.to(device).float()
        if parts and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensors = {"x0": np.concatenate(parts)}
            atomic_file(self._file(view), lambda path: save_file(tensors, path))

    def _file(self, view: int) -> Path:
        assert self.folder is not None
        return self.folder / f"view-{view if self.augments else 0:04d}-{self.chunk:06d}.safetensors"

    def _kept(self, view: int) -> np.ndarray | None:
        if self.folder is None or not _whole(self._file(view)):
            return None
        with safe_open(self._file(view), "np") as file:
            return file.get_tensor("x0")


def _whole(path: Path) -> bool:
    """Whether a file is there and not cut short (its header names its length)."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _check_finite(tensors: dict[str, np.ndarray], sigma: float) -> None:
    for layer, values in tensors.items():
        if not np.isfinite(values).all():
            what = f"layer {layer} gives values that are not finite at sigma={sigma:g}"
            raise UserError("features", what, "use precision=fp32; if it stays so, the model is damaged")


def _check_room(denoiser: Denoiser, bank: Bank, files: int) -> None:
    """Raises `UserError` where the disk has no room for so many files, before anything is computed."""
    grid = bank.grid
    width = sum(pooled_width(denoiser.layers[layer], denoiser.shape, grid.pool) for layer in grid.layers)
    needed = 4 * width * grid.views.count * min(bank.chunk, len(bank)) * files
    folder = next(p for p in [bank.folder, *bank.folder.parents] if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"the features need {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise UserError(str(folder), what, "fewer layers, sigmas or views, pool=mean, or TWOFOLD_CACHE on another disk")


def _name(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
