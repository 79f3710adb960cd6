"""What lies below a folder: one pass over the names, in a fixed order, without reading any file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .decode import EXTENSIONS

IMAGE_SUFFIXES = tuple("." + extension for extension in EXTENSIONS)
TABLE_SUFFIX, ARROW_SUFFIX, TAR_SUFFIX = ".parquet", ".arrow", ".tar"


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


def names_in(root: Path, parts: tuple[str, ...], suffixes: tuple[str, ...]) -> list[str]:
    """The names that `walk` finds right in root/parts, in its order."""
    return [e.name for e in _entries(root.joinpath(*parts)) if e.name.lower().endswith(suffixes) and not e.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is visible in a folder, sorted by name."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(str(folder), f"cannot be read ({error.strerror})", "check its permissions") from error


def _walk(
    root: Path, parts: tuple[str, ...], suffixes: tuple[str, ...], above: tuple[tuple[int, int], ...]
) -> Iterator[File]:
    folder = root.joinpath(*parts)
    entries = _entries(folder)
    status = folder.stat()
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

    digest: of the relative names, sizes and modification times of images and Parquet files. images: how many. loose:
    how many of them lie in the root itself. classes: {first folder: {second folder or "" for images right in the first:
    images}}. runs: {parts of a folder: images right in it}, in the order of the walk. tables, arrows, tars: the files
    of these kinds. folders: all visible sub-folders of the root.
    """

    digest: str = ""
    images: int = 0
    loose: int = 0
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    runs: dict[tuple[str, ...], int] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    arrows: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def scan(root: Path) -> Scan:
    """One pass over the names below root; reads no file."""
    found, digest = Scan(), hashlib.sha256()
    for file in walk(root, (*IMAGE_SUFFIXES, TABLE_SUFFIX, ARROW_SUFFIX, TAR_SUFFIX)):
        name = file.name.lower()
        if name.endswith((ARROW_SUFFIX, TAR_SUFFIX)):
            (found.arrows if name.endswith(ARROW_SUFFIX) else found.tars).append(file.name)
            continue
        digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode("utf-8", "surrogateescape"))
        if name.endswith(TABLE_SUFFIX):
            found.tables.append(file.name)
            continue
        found.images += 1
        found.runs[file.parts[:-1]] = found.runs.get(file.parts[:-1], 0) + 1
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
