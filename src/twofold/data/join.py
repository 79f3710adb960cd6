"""Joins the parts of a store: many files become one of each kind, in the order of the source.

Pixels are copied once. Where the disk has no room for a second copy, each part is removed as soon as its pixels are
on the disk in the new file; joining that was killed then goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..settings.data import DataSettings
from .decode import RESAMPLING
from .duplicates import image_hashes
from .items import CODES, GENERATED, JOINED, SPLITS, Source
from .sources import FORMAT
from .transform import VOID
from .writer import BLOCK, UNKNOWN, ArrayFile, counts_differ, sizes_differ

SMALL = {"labels": np.int64, "splits": np.int8, "attributes": np.int8, "points": np.float32}
HASHED = ("attributes", "masks", "points", "pairs", "groups")  # in the content's hash where a store has them


@dataclass
class Part:
    """One part on disk: what part.json says, and its small arrays when asked for."""

    folder: Path
    facts: dict[str, Any]

    @property
    def rows(self) -> int:
        return int(self.facts["rows"])

    @cached_property
    def names(self) -> list[str]:
        """Of its small arrays."""
        with np.load(self.folder / "rows.npz", allow_pickle=False) as found:
            return list(found.files)

    def arrays(self) -> Mapping[str, np.ndarray]:
        with np.load(self.folder / "rows.npz", allow_pickle=False) as found:
            return dict(found)


class Join:
    """Joins `parts` (folders, in order) into the files of the folder `into`; `run` returns what meta.json says."""

    def __init__(
        self, parts: Sequence[Path], into: Path, source: Source, settings: DataSettings, alive: Callable[[], None]
    ) -> None:
        self._into, self._source, self._settings, self._alive = into, source, settings, alive
        found = [Part(folder, json.loads((folder / "part.json").read_text("utf-8"))) for folder in parts]
        self._bad = [bad for part in found for bad in part.facts["bad_images"]]
        self._parts = [part for part in found if part.rows]
        self._rows = sum(part.rows for part in self._parts)
        self._digests: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Raises `UserError` if there is no image, or if those of two parts do not go together."""
        self._check()
        self._into.mkdir(exist_ok=True)
        height, width = self._parts[0].facts["first"][1]
        shape = (max(part.facts["channels"] for part in self._parts), height, width)
        self._pixels("images", shape)
        if any(part.facts["masks"] for part in self._parts):
            self._pixels("masks", (height, width))
        if pair_channels := max(part.facts["pair_channels"] for part in self._parts):
            self._pixels("pairs", (pair_channels, height, width))
        counts = self._small()
        return self._meta(shape, counts)

    def _check(self) -> None:
        if not self._parts:
            if not self._bad:
                raise UserError(self._source.where, "holds no row", "give one with images")
            hint = f"the first: {self._bad[0]['id']}: {self._bad[0]['reason']}"
            raise UserError(self._source.where, f"none of its {len(self._bad)} images can be read", hint)
        first = self._parts[0].facts
        for part in self._parts:
            other = part.facts
            if other["first"][1] != first["first"][1]:
                raise sizes_differ(self._source.where, first["first"], other["first"])
            if bool(other["pair_channels"]) != bool(first["pair_channels"]):
                lone = min(first, other, key=lambda facts: facts["pair_channels"])["first"][0]
                raise UserError(f"{self._source.where}: {lone}", "has no paired image, while others have one", "add it")

    # -- pixels -------------------------------------------------------------------------------------------------------

    def _pixels(self, name: str, row: tuple[int, ...]) -> None:
        """One file of pixels out of those of the parts; of images, their hashes too."""
        files = [part.folder / f"{name}.npy" for part in self._parts]
        there = [file.exists() or not _expected(part, name) for part, file in zip(self._parts, files, strict=True)]
        done = there.index(True) if True in there else len(there)  # parts whose pixels were moved by a killed process
        needed = self._rows * int(np.prod(row))
        tight = done > 0 or shutil.disk_usage(self._into).free < needed + BLOCK
        kept = sum(part.rows for part in self._parts[:done])
        joined = ArrayFile(self._into / f"{name}.npy", np.uint8, row, True, kept)
        hashes: list[np.ndarray] = []
        try:
            # hashing and copying keep two cores busy, while what was copied goes to the disk
            with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(1) as to_disk:
                synced = to_disk.submit(joined.sync)
                for part, file in zip(self._parts[done:], files[done:], strict=True):
                    for block in _blocks(part, file, row):
                        copied = beside.submit(joined.append, block)
                        if name == "images" and not done:
                            hashes.append(image_hashes(block))
                        copied.result()
                        if synced.done():
                            synced.result()
                            synced = to_disk.submit(joined.sync)
                        self._alive()
                    if tight and file.exists():
                        joined.sync()
                        file.unlink()
                synced.result()
            joined.close()
        finally:
            joined.abandon()
        self._digests[name] = joined.digest.hexdigest()
        if name == "images":
            hashes = hashes if not done else [image_hashes(np.load(joined.path, mmap_mode="r"))]
            np.save(self._into / "hashes.npy", np.concatenate(hashes))

    # -- everything else ----------------------------------------------------------------------------------------------

    def _small(self) -> dict[str, np.ndarray]:
        """Writes the small arrays; returns how many images there are of each label and of each split, -1 last."""
        classes = len(self._source.classes())
        counts = {"labels": np.zeros(classes + 1, np.int64), "splits": np.zeros(len(CODES) + 1, np.int64)}
        rows = {name: self._row(name) for name in ("attributes", "points")}
        shapes = {"labels": (), "splits": (), **{name: row for name, row in rows.items() if row is not None}}
        grouped = any("group_lengths" in part.names for part in self._parts)
        files = {name: ArrayFile(self._into / f"{name}.npy", SMALL[name], row, True) for name, row in shapes.items()}
        files["id_offsets"] = ArrayFile(self._into / "id_offsets.npy", np.int64)
        files["id_bytes"] = ArrayFile(self._into / "id_bytes.npy", np.uint8)
        files["id_offsets"].append(np.zeros(1, np.int64))
        if grouped:
            files["groups"] = ArrayFile(self._into / "groups.npy", np.int64, hashed=True)
        codes: dict[bytes, int] = {}
        for part in self._parts:
            found = part.arrays()
            for name, row in shapes.items():
                missing = np.full((part.rows, *row), UNKNOWN if name != "points" else np.nan, SMALL[name])
                files[name].append(found.get(name, missing))
            for name, count in counts.items():
                known = found[name] < len(count) - 1  # not the labels of classes that are named by a label file
                np.add.at(count, np.where(known, found[name], -1), 1)  # -1 is the last one
            files["id_offsets"].append(files["id_bytes"].rows + np.cumsum(found["id_lengths"]))
            files["id_bytes"].append(found["id_bytes"])
            if grouped:
                files["groups"].append(_codes(part.rows, found, codes))
        for name, file in files.items():
            file.close()
            self._digests[name] = file.digest.hexdigest()
        return counts

    def _row(self, name: str) -> tuple[int, ...] | None:
        """Shape of one row of a small array, alike in all parts that have it; None if none has."""
        found = {part.arrays()[name].shape[1:] for part in self._parts if name in part.names}
        if len(found) > 1:
            raise counts_differ(self._source.where, name, [shape[0] for shape in found])
        return found.pop() if found else None

    def _meta(self, shape: tuple[int, ...], counts: Mapping[str, np.ndarray]) -> dict[str, Any]:
        settings = self._settings
        transform = {
            "size": list(shape[1:]),
            "fit": settings.fit if settings.size else None,
            "resampling": RESAMPLING if settings.size else None,
            "background": settings.background,
        }
        joined, generated = (int(counts["splits"][CODES.index(name)]) for name in (JOINED, GENERATED))
        return {
            "format": FORMAT,
            "name": self._source.name,
            "source": settings.source,
            **({"joined": {"source": settings.unlabelled, "images": joined}} if settings.unlabelled else {}),
            **({"generated": {"source": settings.generated, "images": generated}} if settings.generated else {}),
            "images": self._rows,
            "shape": list(shape),
            "classes": self._source.classes(),
            "class_counts": counts["labels"][:-1].tolist(),
            "unlabelled": int(counts["labels"][-1]),
            "splits": {name: int(n) for name, n in zip(SPLITS, counts["splits"], strict=False) if n},
            "left_out": list(self._source.left_out()),
            "facts": self._source.facts(),
            "bad_images": self._bad,
            **self._outside(),
            "transform": transform,
            "content_hash": self._content_hash(shape, joined, generated),
        }

    def _outside(self) -> dict[str, Any]:
        """How many points count as not there for being outside their image, and in how many images, if any."""
        counts = [part.facts.get("points_outside", {}) for part in self._parts]  # earlier versions did not count
        found = {name: sum(count.get(name, 0) for count in counts) for name in ("points", "images")}
        return {"points_outside": found} if found["points"] else {}

    def _content_hash(self, shape: tuple[int, ...], joined: int, generated: int) -> str:
        parts = [repr(shape), self._digests["images"], self._digests["labels"]]
        parts += [f"joined {joined}"] if joined else []
        parts += [f"generated {generated}"] if generated else []
        parts += [f"{name} {self._digests[name]}" for name in HASHED if name in self._digests]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _expected(part: Part, name: str) -> bool:
    """Whether the part was written with this file."""
    return {"images": True, "masks": part.facts["masks"], "pairs": True}[name]


def _blocks(part: Part, file: Path, row: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The part's pixels, some at a time, with as many channels as `row` has; void where it has no masks."""
    step = max(1, BLOCK // int(np.prod(row)))
    pixels = np.load(file, mmap_mode="r") if file.exists() else None
    for start in range(0, part.rows, step):
        stop = min(start + step, part.rows)
        if pixels is None:
            yield np.full((stop - start, *row), VOID, np.uint8)
        elif pixels.shape[1:] == row:
            yield np.asarray(pixels[start:stop])
        else:
            yield np.repeat(pixels[start:stop], row[0], axis=1)


def _codes(rows: int, found: Mapping[str, np.ndarray], codes: dict[bytes, int]) -> np.ndarray:
    """Numbers of the groups' names, in order of first appearance; -1 = none."""
    if "group_lengths" not in found:
        return np.full(rows, -1, np.int64)
    text, at, out = found["group_bytes"].tobytes(), 0, []
    for length in found["group_lengths"].tolist():
        if length < 0:
            out.append(-1)
            continue
        out.append(codes.setdefault(text[at : at + length], len(codes)))
        at += length
    return np.array(out, np.int64)
