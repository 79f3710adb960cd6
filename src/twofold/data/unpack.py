"""A packed store as a tree of PNG files, which people can look at and `data=FOLDER` reads again.

    out/<class>/<id>.png             one folder a class; out/unlabelled/ beside them; out/<id>.png without classes
    out/<split>/<class>/<id>.png     with splits
    out/images/...                   either of these, where masks/, points/ or pairs/ stand beside it
    out/metadata.csv                 attributes and groups, where there are any
    out/images.csv                   a row for each file: file, id, split, class

A file is called as its image (without the folders that say its class and split already). What is written appears
whole: the work is done beside `out`, in `.<name>.unpacking`, where a killed call is continued by the same one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic_bytes, disk_full
from .items import FOLDER_SPLITS, SPLITS, UNLABELLED
from .store import Store
from .walking import IMAGE_SUFFIXES

MARK = ".unpacking.json"  # in the folder of the work: what it is about
LONGEST = 180  # bytes of a file's name
NEVER = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')  # in a name, on one system or another

Told = Callable[[int, int | None], None]


def unpack(store: Store, out: Path, splits: bool | None = None, told: Told = lambda done, total: None) -> Path:
    """Writes every image of a store, and what belongs to it, below `out`; returns `out`.

    splits: a folder for each split; None: where the source has splits of its own. told: called with (done, total).
    Raises `UserError` where `out` is there and not empty, and for classes that no folder can be called.
    """
    if not out.name:  # "." or "/"
        raise UserError(f"--out {out}", "is the folder that you are in, or all of them", "name a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}", "is not empty" if out.is_dir() else "is a file", "name a new folder")
    named = bool((store.own_splits >= 0).any())
    names = _Names(store, named if splits is None else splits)
    work = out.with_name(f".{out.name}.unpacking")
    mark = json.dumps({"hash": store.training_hash, "splits": names.splits, "classes": store.classes})
    if work.exists() and (not (work / MARK).is_file() or (work / MARK).read_text() != mark):
        shutil.rmtree(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        atomic_bytes(work / MARK, mark)
        for row, name in enumerate(names):
            _write(store, row, name, work)
            told(row + 1, len(store))
        _tables(store, names, work)
        (work / MARK).unlink()
        if out.exists():
            out.rmdir()  # empty
        os.rename(work, out)
    except OSError as error:
        if error.errno in (28, 122):  # no space left, quota
            raise disk_full(out) from error
        raise
    return out


class _Names:
    """The path of every image below the folder of images, without its ending, in the order of the store."""

    def __init__(self, store: Store, splits: bool) -> None:
        self.store, self.splits = store, splits
        self.folders = [_fit(name) for name in store.classes]
        reserved = {*UNLABELLED, *(() if splits else FOLDER_SPLITS)}
        for name, folder in zip(store.classes, self.folders, strict=True):
            if not name or folder.lower() in reserved:
                hint = "set splits=true, which puts it into train/" if folder.lower() in FOLDER_SPLITS else "rename it"
                raise UserError(f"class {name!r}", "would not be read as a class from a folder of this name", hint)
        self.beside = any(array is not None for array in (store.masks, store.points, store.pairs))
        self._paths: list[str] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    @property
    def paths(self) -> list[str]:
        if self._paths is None:
            taken: set[str] = set()
            self._paths = []
            for row in range(len(self.store)):
                path = self._path(row)
                if path.lower() in taken:  # of two sources, or apart only in case
                    path = f"{path}-{row}"
                taken.add(path.lower())
                self._paths.append(path)
        return self._paths

    def image(self, path: str) -> str:
        """The file of an image, below the whole."""
        return f"images/{path}.png" if self.beside else f"{path}.png"

    def _path(self, row: int) -> str:
        store = self.store
        split = SPLITS[store.codes[row]] if self.splits else ""
        label = int(store.labels[row])
        folder = self.folders[label] if label >= 0 else UNLABELLED[0] if self.folders else ""
        return "/".join(part for part in (split, folder, self._stem(store.id(row), label)) if part)

    def _stem(self, id: str, label: int) -> str:
        """What is left of an id without its ending and the folders that stand for split and class; one name."""
        stem = id.rpartition(".")[0] if id.lower().endswith(IMAGE_SUFFIXES) else id
        parts = [part for part in stem.split("/") if part]
        if len(parts) > 1 and parts[0].lower() in FOLDER_SPLITS:
            parts = parts[1:]
        above = self.store.classes[label] if label >= 0 else None
        if len(parts) > 1 and (parts[0] == above or parts[0].lower() in UNLABELLED):
            parts = parts[1:]
        name = _fit("_".join(parts).replace(":", "-"))
        raw = name.encode("utf-8", "surrogateescape")
        if len(raw) <= LONGEST:
            return name
        kept = raw[: LONGEST - 17].decode("utf-8", "ignore")
        return f"{kept}-{hashlib.sha256(raw).hexdigest()[:16]}"


def _fit(name: str) -> str:
    """A name that any system's files may have; different ones stay different."""
    name = NEVER.sub(lambda found: f"%{ord(found[0]):02X}", name)
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _write(store: Store, row: int, path: str, work: Path) -> None:
    """One image and what belongs to it, what is there already excepted."""
    beside = any(array is not None for array in (store.masks, store.points, store.pairs))
    root = work / "images" if beside else work
    _png(root / f"{path}.png", store.images[row])
    if store.masks is not None:
        _png(work / "masks" / f"{path}.png", store.masks[row][None])
    if store.pairs is not None:
        _png(work / "pairs" / f"{path}.png", store.pairs[row])
    if store.points is not None:
        points = [[None if np.isnan(v) else round(float(v), 4) for v in point] for point in store.points[row]]
        _whole(work / "points" / f"{path}.json", json.dumps(points).encode())


def _png(path: Path, image: np.ndarray) -> None:
    """image: uint8 (C, H, W), of one or three channels."""
    if path.exists():
        return
    packed = io.BytesIO()
    pixels = np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    Image.fromarray(pixels).save(packed, "PNG")
    _whole(path, packed.getvalue())


def _whole(path: Path, data: bytes) -> None:
    """Under its name when it is complete; not synced one by one, which would take longer than the rest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    os.replace(aside, path)


def _tables(store: Store, names: _Names, work: Path) -> None:
    """images.csv, and metadata.csv where there is something to say in it."""
    files = [names.image(path) for path in names]
    rows: list[list[Any]] = [["file", "id", "split", "class"]]
    for row, file in enumerate(files):
        label = int(store.labels[row])
        rows.append([file, store.id(row), SPLITS[store.codes[row]], store.classes[label] if label >= 0 else ""])
    atomic_bytes(work / "images.csv", _csv(rows))
    columns: dict[str, np.ndarray] = {}
    if store.attributes is not None:
        columns |= {name: store.attributes[:, k] for k, name in enumerate(store.attribute_names)}
    if store.groups is not None:
        columns["group"] = store.groups
    if columns:
        table = [["file_name", *columns]]
        table += [[file, *(_known(values[row]) for values in columns.values())] for row, file in enumerate(files)]
        atomic_bytes(work / "metadata.csv", _csv(table))


def _known(value: Any) -> str:
    """-1 is unknown: an empty cell."""
    return "" if int(value) < 0 else str(int(value))


def _csv(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
