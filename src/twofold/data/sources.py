"""What `data=SOURCE` may be: digits, a folder, Parquet files, a hub name; each becomes a stream of items."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError, nearest
from ..settings.data import DataSettings
from . import hub
from .decode import RESAMPLING
from .folder import IMAGE_SUFFIXES, TABLE_SUFFIX, ImageFolder, scan
from .items import Item, Source
from .tables import ParquetFiles

FORMAT = 1  # of the packed store: stores of another format are packed again
KINDS = "digits, a folder of images or Parquet files, a Parquet file, or a hub name such as org/name"
PIXEL_SETTINGS = ("size", "fit", "channels", "background", "image_column", "label_column", "on_bad_image")


class Digits:
    """scikit-learn's handwritten digits (UCI): 1797 grey images of 8x8, 16 levels of grey spread over 0..255."""

    name = "digits"
    where = "data=digits"

    def identity(self) -> str:
        return "sklearn.datasets.load_digits"

    def classes(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def count(self) -> int:
        return 1797

    def left_out(self) -> list[str]:
        return []

    def items(self) -> Iterator[Item]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        for row, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            yield Item(f"digits:{row}", image, int(label), None)


def open_source(settings: DataSettings) -> Source:
    """The source that `settings.source` names; reads names and sizes, no image.

    Raises `UserError` where there is nothing of that name or its layout is ambiguous.
    """
    where = f"data={settings.source}"
    if settings.source == "digits":
        return _without_columns(Digits(), settings)
    path = Path(settings.source).expanduser()
    if glob.has_magic(settings.source) and not path.exists():
        return _matching(path, settings)
    if path.is_dir():
        found = scan(path)
        if found.tables and found.images:
            raise UserError(
                where,
                f"holds both images ({found.images}) and Parquet files ({found.tables[0]})",
                "keep one kind in it",
            )
        if found.tables:
            return ParquetFiles(settings, path, found.tables)
        return _without_columns(ImageFolder(path, where, found), settings)
    if path.is_file():
        return _one_file(path, settings)
    hint = _nearest_path(path)
    if hub.NAME.fullmatch(settings.source) and not path.parent.is_dir():
        return hub.Hub(settings, hint)
    raise UserError(where, "there is no such file or folder", hint or f"valid: {KINDS}")


def fingerprint(settings: DataSettings) -> str:
    """Names the packed store of these settings: 64 hex digits over the source's identity and what shapes its pixels.

    A source's identity is the names, sizes and modification times of its files, not their contents. How the images
    are split, flipped or used does not change it.
    """
    return fingerprint_of(open_source(settings), settings)


def fingerprint_of(source: Source, settings: DataSettings) -> str:
    """The same for a source that is open already."""
    pixels = {name: getattr(settings, name) for name in PIXEL_SETTINGS}
    text = json.dumps([FORMAT, RESAMPLING, source.identity(), pixels], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _without_columns(source: Source, settings: DataSettings) -> Source:
    for name in ("image_column", "label_column"):
        if (column := getattr(settings, name)) is not None:
            raise UserError(f"data.{name}={column}", f"{source.where} has no columns", "only Parquet and hub data have")
    return source


def _matching(pattern: Path, settings: DataSettings) -> Source:
    """data=folder/train-*.parquet"""
    files = sorted(file for file in glob.glob(str(pattern)) if file.lower().endswith(TABLE_SUFFIX))
    if not files:
        raise UserError(f"data={settings.source}", "no Parquet file matches this pattern", f"valid: {KINDS}")
    folders = {str(Path(file).parent) for file in files}
    if len(folders) > 1:
        raise UserError(f"data={settings.source}", "this pattern matches files in several folders", "give their folder")
    return ParquetFiles(settings, Path(folders.pop()), [Path(file).name for file in files])


def _one_file(path: Path, settings: DataSettings) -> Source:
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIX):
        return ParquetFiles(settings, path.parent, [path.name])
    if name.endswith(IMAGE_SUFFIXES):
        raise UserError(f"data={settings.source}", "is one image", f"give the folder it is in: data={path.parent}")
    if name.endswith((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")):
        raise UserError(f"data={settings.source}", "is an archive", "unpack it and give the folder")
    raise UserError(f"data={settings.source}", "this kind of file is not a source of images", f"valid: {KINDS}")


def _nearest_path(path: Path) -> str:
    """A hint naming what is most like the first part of the path that does not exist; "" where nothing is."""
    missing = next(part for part in [*reversed(path.parents), path] if not part.exists())
    try:
        names = [entry.name for entry in missing.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    hint = nearest(missing.name, ["digits", *names] if str(missing) == path.name else names)
    if not hint.startswith("did you mean"):
        return ""
    return hint if missing.parent == Path() else f"in {missing.parent}, {hint}"
