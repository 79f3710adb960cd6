"""Two sources as one: `data.source` with its labels, and behind it the images of another one.

    data.unlabelled   its training images, bare: many that nobody has labelled, or of the kind that matters
    data.generated    all of its images, with their labels: made by a model of these classes, in a folder for each class
                      or a .npz file, or what `twofold sample` writes, which is both

Both may be given. What stands beside their images (attributes, masks, points, pairs) is not read. Where the source of
unlabelled images has splits of its own, only those for training are taken; generated ones are all for training.
Classes, attributes and all other facts are those of the first; a generated image's class is found there by its name or,
where these are other names, by its number.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from .items import GENERATED, JOINED, Item, Source

PREFIX = f"{JOINED}:"  # of the ids of unlabelled images
GENERATED_CLASSES = "generated_classes"  # the fact: what generated images are called, where the others have no classes


@contextlib.contextmanager
def named(setting: str, source: str) -> Iterator[None]:
    """Errors about another source than the first name the setting that it comes from."""
    try:
        yield
    except UserError as error:
        parts = (error.where, error.what, error.hint)
        raise UserError(*(part.replace(f"data={source}", f"data.{setting}={source}") for part in parts)) from error


def sampled(source: str) -> str:
    """What holds the images of a folder that `twofold sample` wrote: its .npz file, or images/; of others, the source.

    Raises `UserError` for one that is not finished.
    """
    folder = Path(source).expanduser()
    try:
        complete = json.loads((folder / "manifest.json").read_text("utf-8"))["complete"]
    except (OSError, ValueError, KeyError, TypeError):
        return source
    if not complete:
        what = "these images are not all there yet"
        raise UserError(f"data.generated={source}", what, "the same `twofold sample` command goes on with them")
    return str(folder / ("images.npz" if (folder / "images.npz").is_file() else "images"))


class Joined:
    """`first`, and behind it the images of `second` without labels, as items of the split `JOINED`.

    source: what the setting says. where: names both, since an error may be about how they go together.
    """

    setting, split = "unlabelled", JOINED

    def __init__(self, first: Source, second: Source, source: str) -> None:
        self._first, self._second, self._source = first, second, source
        self._prefix = f"{self.setting}:"  # of the second source's ids
        self.name, self.where = f"{first.name}+{second.name}", f"{first.where} data.{self.setting}={source}"

    def identity(self) -> str:
        """Of both, and which is which."""
        kind = "joined" if self.setting == "unlabelled" else self.setting
        return json.dumps([kind, self._first.identity(), self._second.identity()])

    def classes(self) -> list[str]:
        """Those of the first source."""
        return self._first.classes()

    def count(self) -> int:
        """Raises `UserError` where the second source has no image for training."""
        with named(self.setting, self._source):
            second = self._second.count()
        if not second:
            what = "it has splits of its own, and none of them is for training"
            raise UserError(f"data.{self.setting}={self._source}", what, "give images for training")
        return self._first.count() + second

    def left_out(self) -> list[str]:
        return [*self._first.left_out(), *(self._prefix + name for name in self._second.left_out())]

    def facts(self) -> dict[str, Any]:
        """The first source's; the licences of both."""
        found, licence = self._first.facts(), self._second.facts().get("licence")
        if licence is not None:
            own = [found["licence"]] if "licence" in found else []
            found = {**found, "licence": "; ".join([*own, f"{self._prefix} {licence}"])}
        return found

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        between = self._first.count()
        if start < between:
            yield from self._first.items(start, between if stop is None else min(stop, between))
        if stop is None or stop > between:
            behind = None if stop is None else stop - between
            with named(self.setting, self._source):
                for item in self._second.items(max(0, start - between), behind):
                    yield Item(self._prefix + item.id, item.encoded, self._label(item.label), self.split, item.group)

    def _label(self, label: int) -> int:
        """What the second source calls its classes is not asked."""
        return -1


class WithGenerated(Joined):
    """`first`, and behind it all images of `second` with their labels, as items of the split `GENERATED`.

    listed: whether a label file may say what the classes of `first` are; where it has none of its own, labels are
    those of the second source, whose names are among the facts, until that file is read.
    """

    setting, split = "generated", GENERATED

    def __init__(self, first: Source, second: Source, source: str, listed: bool = False) -> None:
        super().__init__(first, second, source)
        self._listed = listed

    def count(self) -> int:
        """Raises `UserError` where their classes are not those of the first source."""
        _ = self._labels
        return super().count()

    def facts(self) -> dict[str, Any]:
        found = super().facts()
        return found if self._first.classes() else {**found, GENERATED_CLASSES: self._second.classes()}

    def _label(self, label: int) -> int:
        return -1 if label < 0 else self._labels[label]

    @cached_property
    def _labels(self) -> list[int]:
        """The label in the first source of each class of the second."""
        ours, where = self._first.classes(), f"data.generated={self._source}"
        with named(self.setting, self._source):
            theirs = self._second.classes()
        if not theirs:
            hint = "give a folder with one sub-folder per class, or a .npz file with labels"
            raise UserError(where, "its images have no labels", hint)
        if not ours and self._listed:
            return list(range(len(theirs)))
        return places(theirs, ours, where, self._first.where)


def places(theirs: list[str], ours: list[str], where: str, ours_where: str) -> list[int]:
    """The label that each of their classes has among ours: by its name or, where these are other names, its number.

    where, ours_where: who has them. Raises `UserError` for one that is not among ours.
    """
    unknown = [name for name in theirs if name not in ours]
    if not unknown:
        return [ours.index(name) for name in theirs]
    if all(name.isdecimal() and int(name) < len(ours) for name in theirs):
        return [int(name) for name in theirs]
    what = f"{ours_where} has no class {unknown[0]!r}" if ours else f"{ours_where} has no classes"
    hint = nearest(unknown[0], ours) if ours else "name them in its folders, or in a file: data.labels=FILE"
    raise UserError(where, what, hint)
