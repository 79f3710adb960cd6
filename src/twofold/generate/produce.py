"""A folder of generated images: seeded, shared among processes, resumable.

    images/<class name or "all">/<seed>.png      images.npz      grid.png      manifest.json

The images are made in chunks of micro_batch; process r of w makes chunks r, r + w, ... A finished chunk is written to
`chunks/` at once, so after a kill only missing or damaged chunks are made again. Whoever finds all of them there puts
them together and removes them. Everything in the folder is bit-identical to what one uninterrupted process writes.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from ..denoiser import Classifier, Denoiser
from ..errors import UserError
from ..hashing import weights_hash
from ..settings.sample import GUIDES, SampleSettings
from . import manifest
from .chunks import MODES, read_chunk, write_chunk, write_grid, write_npz, write_png
from .labels import asks_attributes, check_labels, in_words
from .labels import class_names as class_names
from .labels import requested as requested
from .sample import Plan, Progress, check_seeds, draw, image_shape, place, plan

OUTPUTS = ("images", "images.npz", "grid.png", "chunks")


@dataclass(frozen=True)
class Produced:
    """What a call of `produce` did.

    out: the folder. images: how many were asked for. made: how many this call computed.
    complete: everything is in place; False where other processes have not finished their chunks.
    """

    out: Path
    images: int
    made: int
    complete: bool


def guide_of(settings: SampleSettings, guide: Classifier | None = None) -> Classifier | str | None:
    """The guide that settings ask for: one of `GUIDES` but labels, or the classifier that the caller has loaded."""
    if settings.guide in GUIDES:
        return None if settings.guide == GUIDES[0] else settings.guide
    if settings.guide is not None and guide is None:
        raise ValueError("settings.guide names a classifier: load it and pass it as guide=")
    return guide


def produce(
    denoiser: Denoiser,
    out: str | Path,
    settings: SampleSettings,
    checkpoint_hash: str,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
    seeds: int | Sequence[int] | None = None,
    labels: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    guide: Classifier | None = None,
    guide_hash: str = "",
) -> Produced:
    """Generates the images of these settings into a folder; the same call again resumes, and does nothing when done.

    out: a new folder, or one begun by the same call. checkpoint_hash: names the weights, for the manifest and so that
    images of two models never mix. settings.precision is the caller's to apply (`autocast` of the denoiser); the
    manifest records what the denoiser computes in. rank, world: this process and their number; they share nothing but
    the folder.
    progress: called with (images done, images in all) of this process's share.
    seeds, labels: one per image, instead of what the settings ask for (n, seed, label); labels may be attributes (N, K)
    for a guide that knows them.
    guide: the classifier that settings.guide names, loaded by the caller. guide_hash: names it in the manifest, so that
    images of two guides never mix; default: the hash of its weights, if it has weights.

    Raises `UserError` before computing anything for settings that cannot be, for a folder that holds images of other
    settings (listing the differences) or other files under the names used here. A folder begun with other versions of
    the packages or on another kind of device is continued with a warning.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}")
    guide_hash = guide_hash or _hash_of(guide)
    job = _Job(denoiser, Path(out), settings, checkpoint_hash, seeds, labels, guide, guide_hash)
    if not job.begin():
        made = job.make(range(rank, job.chunks, world), progress)
        return Produced(job.out, len(job.seeds), made, job.assemble())
    if progress:
        progress(len(job.seeds), len(job.seeds))
    return Produced(job.out, len(job.seeds), 0, True)


class _Job:
    """One folder of images: what is asked for, and the files of each part."""

    def __init__(
        self,
        denoiser: Denoiser,
        out: Path,
        settings: SampleSettings,
        checkpoint_hash: str,
        seeds: Any,
        labels: Any,
        guide: Classifier | None,
        guide_hash: str,
    ) -> None:
        self.denoiser, self.out, self.settings = denoiser, out, settings
        self.plan = plan_of(denoiser, settings, guide)
        by = guide_of(settings, guide)
        if seeds is None and labels is None:
            seeds, labels = requested(settings, denoiser, by)
        self.seeds = check_seeds(range(settings.seed, settings.seed + settings.n) if seeds is None else seeds)
        self.labels = check_labels(denoiser, labels, len(self.seeds), settings.guidance, self.plan.guide)
        self.chunks = -(-len(self.seeds) // settings.micro_batch)
        self.shape = image_shape(denoiser, self.plan.shape)
        if settings.png and self.shape[0] not in MODES:
            raise UserError("png=true", f"a PNG cannot hold {self.shape[0]} channels", "set png=false")
        names = class_names(denoiser, by)
        self.attributes = names if asks_attributes(denoiser, by) else None
        self.numbers, self.classes = in_words(self.labels, len(self.seeds), names)
        self.folders = (manifest.folders if self.attributes is None else manifest.target_folders)(self.classes)
        if settings.png:
            self._check_unique()
        self.request = manifest.plain(self._request(checkpoint_hash, guide_hash))
        self.versions = manifest.versions(place(denoiser)[0].type)

    def _check_unique(self) -> None:
        apart = self.numbers if len({*self.folders.values()}) == len(self.folders) else np.zeros_like(self.numbers)
        pairs, counts = np.unique(np.stack([np.asarray(self.seeds), apart]), axis=1, return_counts=True)
        if int(counts.max()) > 1:
            seed = int(pairs[0, int(counts.argmax())])
            raise UserError(f"seed={seed}", "asked for twice with the same label", "give every image its own seed")

    def _request(self, checkpoint_hash: str, guide_hash: str) -> dict[str, Any]:
        plan, by = self.plan, self.plan.guide
        return {
            "checkpoint": checkpoint_hash,
            "images": len(self.seeds),
            "shape": self.shape,
            "seeds": manifest.compact(np.asarray(self.seeds)),
            "labels": manifest.compact(self.numbers),
            "classes": self.classes,
            "sampler": plan.sampler,
            "options": plan.options,
            "steps": len(plan.sigmas) - 1,
            "grid": plan.grid,
            "sigma_max": float(plan.sigmas[0]),
            "sigma_min": float(plan.sigmas[plan.sigmas > 0][-1]),
            "guidance": plan.guidance,
            "guidance_interval": plan.interval,
            "guide": by and by.request(guide_hash),
            "clip": plan.clip,
            "micro_batch": plan.micro_batch,
            "precision": str(getattr(self.denoiser, "autocast", None) or "full").removeprefix("torch."),
            "png": self.settings.png,
            "npz": self.settings.npz,
            "columns": self.settings.columns,
            **({} if float(plan.sigmas[-1]) == 0 else {"to_zero": False}),
            **({} if self.attributes is None else {"attributes": self.attributes}),
        }

    def begin(self) -> bool:
        """Claims the folder for this request; True if all of it is there already."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(str(self.out), "is a file", "give a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        with self._lock():
            old = manifest.read(self.out)
            if old is None:
                foreign = [name for name in OUTPUTS if (self.out / name).exists()]
                if foreign:
                    where = f"{self.out}: {', '.join(foreign)}"
                    raise UserError(where, "not made by this command (no manifest.json)", "give a new folder")
            else:
                different = manifest.differences(old["request"], self.request)
                if different:
                    what = "holds images of other settings: " + "; ".join(different)
                    raise UserError(str(self.out), what, "give another folder")
                if self._is_complete(old):
                    self._clean()
                    return True
                changed = manifest.differences(old["versions"], self.versions)
                if changed:
                    warnings.warn(f"{self.out} was begun with other versions: {'; '.join(changed)}", stacklevel=4)
            manifest.write(self.out, False, self.request, self.versions)
        return False

    def make(self, indices: Sequence[int], progress: Progress | None) -> int:
        """Makes the chunks of these numbers that are not there; returns how many images it computed."""
        total = sum(len(self._seeds_of(i)) for i in indices)
        done = made = 0
        for i in indices:
            count = len(self._seeds_of(i))
            if read_chunk(self._chunk_file(i)) is None:
                # another process may have put everything together since, and removed the chunks
                if self._is_complete(manifest.read(self.out)):
                    break
                self._make(i)
                made += count
            done += count
            if progress:
                progress(done, total)
        return made

    def assemble(self) -> bool:
        """Puts the outputs together if all chunks are there, and removes them; True when the folder is complete."""
        with self._lock():
            if self._is_complete(manifest.read(self.out)):
                self._clean()
                return True
            if not all(self._chunk_file(i).is_file() for i in range(self.chunks)):
                return False
            if self.settings.npz:
                several = self.labels is not None and self.labels.ndim == 2
                labels = self.labels.numpy() if several and self.labels is not None else self.numbers
                names = self.classes if self.attributes is None else self.attributes
                write_npz(self.out / "images.npz", self._read_all(), self.shape, labels, names)
            if self.shape[0] in MODES:
                columns = min(self.settings.columns, len(self.seeds))
                write_grid(self.out / "grid.png", self._first(columns * columns), columns)
            manifest.write(self.out, True, self.request, self.versions)
            self._clean()
        return True

    def _lock(self) -> FileLock:
        """Held for moments only, never while images are made; freed by the system if its holder is killed."""
        return FileLock(self.out / ".lock")

    def _clean(self) -> None:
        shutil.rmtree(self.out / "chunks", ignore_errors=True)

    def _is_complete(self, found: dict[str, Any] | None) -> bool:
        if found is None or not found["complete"]:
            return False
        files = [self.out / "images.npz"] if self.settings.npz else []
        if self.shape[0] in MODES:
            files.append(self.out / "grid.png")
        if self.settings.png:
            files += [self._png_file(i) for i in range(len(self.seeds))]
        return all(file.is_file() for file in files)

    def _chunk_file(self, i: int) -> Path:
        return self.out / "chunks" / f"{i:08d}.chunk"

    def _png_file(self, i: int) -> Path:
        return self.out / "images" / manifest.png_name(self.folders, self.seeds[i], self.numbers[i])

    def _part(self, i: int) -> slice:
        return slice(i * self.plan.micro_batch, (i + 1) * self.plan.micro_batch)

    def _seeds_of(self, i: int) -> Sequence[int]:
        return self.seeds[self._part(i)]

    def _make(self, i: int) -> np.ndarray:
        labels = None if self.labels is None else self.labels[self._part(i)]
        images = draw(self.denoiser, self.plan, self._seeds_of(i), labels).numpy()
        if self.settings.png:  # before the chunk: where a chunk is, its PNGs are
            for k, image in enumerate(images, self._part(i).start):
                self._png_file(k).parent.mkdir(parents=True, exist_ok=True)
                write_png(self._png_file(k), image)
        self._chunk_file(i).parent.mkdir(exist_ok=True)
        write_chunk(self._chunk_file(i), images)
        return images

    def _read_all(self) -> Iterator[np.ndarray]:
        for i in range(self.chunks):
            images = read_chunk(self._chunk_file(i))
            yield self._make(i) if images is None else images  # damaged since its maker looked

    def _first(self, count: int) -> np.ndarray:
        found: list[np.ndarray] = []
        for images in self._read_all():
            found.extend(images)
            if len(found) >= count:
                break
        return np.stack(found[:count])


def _hash_of(guide: Classifier | None) -> str:
    if guide is not None and not isinstance(guide, nn.Module):
        raise ValueError("this guide has no weights to name it by: give guide_hash=")
    return "" if guide is None else weights_hash(guide)


def plan_of(denoiser: Denoiser, settings: SampleSettings, guide: Classifier | None = None) -> Plan:
    """The plan that settings describe. Raises `UserError` for whatever cannot be."""
    return plan(
        denoiser,
        settings.sampler,
        settings.steps,
        settings.guidance,
        settings.guidance_interval,
        settings.grid,
        settings.sigma_min,
        settings.sigma_max,
        settings.micro_batch,
        settings.clip,
        settings.guide if settings.guide in GUIDES else guide_of(settings, guide),
        settings.guide_scale,
        settings.guide_interval,
        settings.size,
        settings.to_zero,
        **settings.sampler_options(),
    )
