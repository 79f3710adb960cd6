"""Folders of image files.

    photos/*.png                     no labels
    photos/<class>/**/*.png          one sub-folder a class, in sorted order
    photos/train/<class>/*.png       the same below train, val | valid | validation, test
    photos/test/*.png                a split without classes is unlabelled

Names that begin with a dot and files that are not images are ignored; links are followed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .decode import EXTENSIONS
from .items import FOLDER_SPLITS, Item

IMAGE_SUFFIXES = tuple("." + extension for extension in EXTENSIONS)
TABLE_SUFFIX = ".parquet"


class File(NamedTuple):
    """A file below the root: its parts, the last of which is its name."""

    parts: tuple[str, ...]
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        return "/".join(self.parts)


def walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[File]:
    """The files with these suffixes below root, sorted by name within each folder, files before sub-folders.

    Holds one folder's names at a time. Raises `UserError` for a folder that cannot be read or that contains itself.
    """
    yield from _walk(root, (), suffixes, ())


def _walk(
    root: Path, parts: tuple[str, ...], suffixes: tuple[str, ...], above: tuple[tuple[int, int], ...]
) -> Iterator[File]:
    folder = root.joinpath(*parts)
    try:
        status = folder.stat()
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(str(folder), f"cannot be read ({error.strerror})", "check its permissions") from error
    if (status.st_dev, status.st_ino) in above:
        raise UserError(str(folder), "is a link to a folder above it", "remove the link")
    for entry in entries:
        if entry.name.lower().endswith(suffixes) and not entry.is_dir():
            yield _file(entry, (*parts, entry.name))
    for entry in entries:
        if entry.is_dir():
            yield from _walk(root, (*parts, entry.name), suffixes, (*above, (status.st_dev, status.st_ino)))


def _file(entry: os.DirEntry[str], parts: tuple[str, ...]) -> File:
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere is not skipped in silence: reading it will say what is wrong
        status = entry.stat(follow_symlinks=False)
    return File(parts, status.st_size, status.st_mtime_ns)


@dataclass
class Scan:
    """What one walk over a folder finds.

    digest: of all relative names, sizes and modification times. images: how many. loose: how many of them lie in the
    root itself. classes: {first folder: {second folder or "" for images right in the first: images}}.
    tables: the Parquet files. folders: all visible sub-folders of the root.
    """

    digest: str = ""
    images: int = 0
    loose: int = 0
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def scan(root: Path) -> Scan:
    """One pass over the names below root; reads no file."""
    found, digest = Scan(), hashlib.sha256()
    for file in walk(root, (*IMAGE_SUFFIXES, TABLE_SUFFIX)):
        digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
        if file.name.lower().endswith(TABLE_SUFFIX):
            found.tables.append(file.name)
            continue
        found.images += 1
        if len(file.parts) == 1:
            found.loose += 1
            continue
        below = found.classes.setdefault(file.parts[0], {})
        second = file.parts[1] if len(file.parts) > 2 else ""
        below[second] = below.get(second, 0) + 1
    found.digest = digest.hexdigest()
    with os.scandir(root) as entries:
        found.folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return found


class ImageFolder:
    """A folder of images as a source. Raises `UserError` where its layout is ambiguous."""

    def __init__(self, root: Path, where: str, found: Scan | None = None) -> None:
        self.root, self.where = root, where
        self.name = root.resolve().name
        self._found = scan(root) if found is None else found
        if not self._found.images:
            raise UserError(where, "this folder holds no images", f"images end in {', '.join(EXTENSIONS)}")
        self._has_splits = self._check_layout()
        self._classes = self._class_names()
        self._label = {name: label for label, name in enumerate(self._classes)}

    def identity(self) -> str:
        return f"folder\0{self.root.resolve()}\0{self._found.digest}"

    def classes(self) -> list[str]:
        return self._classes

    def count(self) -> int:
        return self._found.images

    def left_out(self) -> list[str]:
        return []

    def items(self) -> Iterator[Item]:
        for file in walk(self.root, IMAGE_SUFFIXES):
            split, parts = None, file.parts
            if self._has_splits:
                split, parts = FOLDER_SPLITS[parts[0].lower()], parts[1:]
            # a class that appeared since the scan has no label yet; packing notices that the folder has changed
            label = self._label.get(parts[0], -1) if len(parts) > 1 else -1
            yield Item(file.name, self.root.joinpath(*file.parts), label, split)

    def _check_layout(self) -> bool:
        """Whether the sub-folders are splits."""
        found = self._found
        if found.loose and found.classes:
            folder = next(iter(found.classes))
            raise UserError(
                self.where,
                f"images lie both in the folder itself ({found.loose}) and in sub-folders such as {folder!r}",
                "move them all into sub-folders, one a class, or all into the folder itself",
            )
        splits = [name for name in found.classes if name.lower() in FOLDER_SPLITS]
        others = [name for name in found.classes if name.lower() not in FOLDER_SPLITS]
        if splits and others:
            raise UserError(
                self.where,
                f"sub-folder {splits[0]!r} is named like a split and {others[0]!r} like a class",
                "use splits (train, val, test) with the classes inside them, or rename the class",
            )
        for name in splits:
            below = found.classes[name]
            if "" in below and len(below) > 1:
                second = next(second for second in below if second)
                raise UserError(
                    f"{self.where}/{name}",
                    f"images lie both in the folder itself ({below['']}) and in sub-folders such as {second!r}",
                    "move them all into sub-folders, one a class, or all into the folder itself",
                )
        return bool(splits)

    def _class_names(self) -> list[str]:
        found = self._found
        if not found.classes:
            return []
        if self._has_splits:
            return sorted({second for below in found.classes.values() for second in below if second})
        empty = [name for name in found.folders if name not in found.classes]
        if empty:
            raise UserError(
                f"{self.where}/{empty[0]}",
                "this class folder holds no images",
                "add its images, or remove the folder (or begin its name with a dot)",
            )
        return sorted(found.classes)
