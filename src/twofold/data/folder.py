"""Folders of image files.

    photos/*.png                     no labels
    photos/<class>/**/*.png          one sub-folder a class, in sorted order
    photos/train/<class>/*.png       the same below train, val | valid | validation, test
    photos/test/*.png                a split without classes is unlabelled
    photos/unlabelled/**/*.png       beside class folders, also within a split: images without a label, no class
    photos/images/...                any of these, where masks/, pairs/, points/ or metadata.csv stands beside it

Names that begin with a dot and files that are not images are ignored; links are followed. What may stand beside the
images, and what it says, is in `beside`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import DataSettings
from .annotations import group_of, names_a_path
from .beside import Beside
from .decode import EXTENSIONS
from .items import FOLDER_SPLITS, UNLABELLED, Item, limited, spans
from .walking import IMAGE_SUFFIXES, Scan, names_in, scan

__all__ = ["IMAGE_SUFFIXES", "ImageFolder"]


class ImageFolder:
    """A folder of images as a source. Raises `UserError` where its layout is ambiguous.

    root: the folder. The images lie in it or in its `images`, see `beside`. found: what a scan of the images' folder
    has found, if there was one. A layout of its own is a subclass that says what its folders mean.
    """

    def __init__(self, root: Path, settings: DataSettings, found: Scan | None = None) -> None:
        self.root, self.settings, self.where = root, settings, f"data={settings.source}"
        self.name = root.resolve().name
        self.beside = Beside(root, settings)
        self.images_root = self.beside.images_root
        self.found = scan(self.images_root) if found is None else found
        if not self.found.images:
            raise UserError(self.where, "this folder holds no images", f"images end in {', '.join(EXTENSIONS)}")
        self.has_splits = self.check_layout()
        self.folder_classes = self.class_names()
        self.beside.folders_are_classes = bool(self.folder_classes)
        self._folders = self.folders()
        splits = [self.split_of(folder) for folder in self._folders]
        self._rows = limited(list(self._folders.values()), splits, settings)
        self._listed: tuple[tuple[str, ...] | None, list[str]] = (None, [])

    def identity(self) -> str:
        # there were stores that had such a folder as a class
        unlabelled = "\0unlabelled" if any(self._is_unlabelled(folder) for folder in self._folders) else ""
        return f"folder\0{self.root.resolve()}\0{self.found.digest}{self.beside.identity()}{unlabelled}"

    def classes(self) -> list[str]:
        return self.beside.classes(self.folder_classes)

    def count(self) -> int:
        return sum(self._rows) + len(self._lone)

    def left_out(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return self.beside.facts()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        folders = list(self._folders)
        for i, first, last in spans(self._rows, start, stop):
            yield from self._read(folders[i], self._names(folders[i])[first:last])
        own = sum(self._rows)
        for where, path in list(self._lone.items())[max(0, start - own) : None if stop is None else max(0, stop - own)]:
            yield Item(where, path, -1, None)  # none can be read, so each is counted and named

    @cached_property
    def _lone(self) -> dict[str, Path]:
        """What is said of images that are not there, see `Beside.lone`; they are bad images."""
        return self.beside.lone()

    def folders(self) -> dict[tuple[str, ...], int]:
        """{parts of a folder that is packed: images right in it}, in order."""
        return self.found.runs

    def split_of(self, folder: tuple[str, ...]) -> str | None:
        return FOLDER_SPLITS[folder[0].lower()] if self.has_splits else None

    def labels_of(self, folder: tuple[str, ...], names: list[str]) -> list[int]:
        """The label of each image in a folder by the folder's name."""
        inner = folder[1:] if self.has_splits else folder
        is_class = inner and not self._is_unlabelled(folder)
        return [self.folder_classes.index(inner[0]) if is_class else -1] * len(names)

    def _is_unlabelled(self, folder: tuple[str, ...]) -> bool:
        inner = folder[1:] if self.has_splits else folder
        return bool(inner) and not _is_class(inner[0])

    def _read(self, folder: tuple[str, ...], names: list[str]) -> Iterator[Item]:
        split, base = self.split_of(folder), self.images_root.joinpath(*folder)
        prefix = "".join(part + "/" for part in folder)
        group = self.settings.group if self.settings.group and names_a_path(self.settings.group) else None
        labels = [-1] * len(names) if self.settings.images_only else self.labels_of(folder, names)
        for name, label in zip(names, labels, strict=True):
            id = prefix + name
            label, more = self.beside.of(folder, name, label)
            if group is not None:
                more = more._replace(group=group_of(id, group))
            yield Item(id, base / name, label, split, *more)

    def _names(self, folder: tuple[str, ...]) -> list[str]:
        """The images right in a folder; the last list is kept, since a part of a large folder is often asked for."""
        if self._listed[0] != folder:
            self._listed = (folder, names_in(self.images_root, folder, IMAGE_SUFFIXES))
        return self._listed[1]

    def check_layout(self) -> bool:
        """Whether the sub-folders are splits."""
        found = self.found
        splits = [name for name in found.classes if name.lower() in FOLDER_SPLITS]
        others = [name for name in found.classes if name.lower() not in FOLDER_SPLITS]
        if found.loose and splits:
            raise _mixed(self.where, found.loose, splits[0], f"move them into {splits[0]}, or another split")
        _check_loose(self.where, found.loose, others)
        if splits and others:
            what = f"sub-folder {splits[0]!r} is named like a split and {others[0]!r} like a class"
            hint = "use splits (train, val, test) with the classes inside them, or rename the class"
            if not _is_class(others[0]):
                what = f"sub-folder {others[0]!r} lies beside the split {splits[0]!r}"
                hint = f"move it into one of the splits: {splits[0]}/{others[0]}"
            raise UserError(self.where, what, hint)
        for name in splits:
            below = found.classes[name]
            _check_loose(f"{self.where}/{name}", below.get("", 0), [second for second in below if second])
        return bool(splits)

    def class_names(self) -> list[str]:
        """The classes that the folders' names say, in label order."""
        found = self.found
        if not found.classes:
            return []
        if self.has_splits:
            seconds = {second for below in found.classes.values() for second in below if second}
            return sorted(filter(_is_class, seconds))
        empty = [name for name in found.folders if name not in found.classes and _is_class(name)]
        if empty:
            raise UserError(
                f"{self.where}/{empty[0]}",
                "this class folder holds no images",
                "add its images, or remove the folder (or begin its name with a dot)",
            )
        return sorted(filter(_is_class, found.classes))


def _is_class(name: str) -> bool:
    """Whether a sub-folder of this name is a class; images in the others have no label."""
    return name.lower() not in UNLABELLED


def _check_loose(where: str, loose: int, folders: list[str]) -> None:
    """Raises `UserError` for images beside class folders."""
    if loose and (named := next(filter(_is_class, folders), None)) is not None:
        hint = (
            "if they have no label, put them into a sub-folder called unlabelled, otherwise into those of their class"
        )
        raise _mixed(where, loose, named, hint)


def _mixed(where: str, loose: int, folder: str, hint: str) -> UserError:
    what = f"images lie both in the folder itself ({loose}) and in sub-folders such as {folder!r}"
    return UserError(where, what, hint)
