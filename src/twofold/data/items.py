"""What a source of images yields: undecoded images with their id, label and split, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..settings.data import DataSettings
from .decode import Encoded

SPLITS = ("train", "validation", "test")
JOINED = "unlabelled"  # the split of an image of `data.unlabelled`: it joins the training part
GENERATED = "generated"  # and that of one of `data.generated`
CODES = (*SPLITS, JOINED, GENERATED)  # a source's own splits, as they are stored
FOLDER_SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation"), "validation"), "test": "test"}
UNLABELLED = ("unlabelled", "unlabeled", "_unlabelled")  # a folder beside class folders that is no class
FILE_SPLITS = {**FOLDER_SPLITS, "training": "train", "dev": "validation", "testing": "test", "eval": "test"}


class Item(NamedTuple):
    """One image of a source, with what belongs to it.

    id: stable name within the source. encoded: what `decode` takes. label: index into the classes, -1 = none.
    split: one of `CODES`, or None where the source has none of its own. group: whose image it is (person, part,
    patient); images of one group stay on one side of a split. attributes: 0, 1 or -1 (unknown), one for each of
    `facts()["attributes"]`. mask: class index of every pixel, as an image file or as uint8 (H, W); 255 = void.
    points: float32 (P, 2), x and y in pixels of the encoded image, 0 = the middle of the first pixel, NaN = not there.
    pair: a second image of the same field of view, which is transformed with the first.
    """

    id: str
    encoded: Encoded
    label: int
    split: str | None
    group: str | None = None
    attributes: tuple[int, ...] | None = None
    mask: Encoded = None
    points: np.ndarray | None = None
    pair: Encoded = None


class Source(Protocol):
    """Images to be packed. Only `identity` is called for a source that is packed already, so the rest may be slow.

    name: short, for people and folder names. where: how error messages name it.
    """

    name: str
    where: str

    def identity(self) -> str:
        """Changes whenever the images may have changed; costs no decoding."""
        ...

    def classes(self) -> list[str]:
        """Class names in label order; empty without labels."""
        ...

    def count(self) -> int:
        """How many items there are."""
        ...

    def left_out(self) -> Sequence[str]:
        """What the source holds beside train, validation and test: splits that are not packed."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the store's meta keeps about what belongs to the images; {} where there is nothing of it.

        attributes: [name]. mask_classes: [name]. mask_void: the index that means void in the masks, beside 255.
        mask_flip_pairs: [[i, j]], classes of masks that a mirror exchanges. points: [name] or how many. flip_pairs:
        the same of points. points_outside: what `data.points_outside` is by default. class_titles: [readable name of
        each class]. licence: text.
        """
        ...

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Items start <= i < stop (None: to the end) of one fixed order; what lies before start is skipped cheaply."""
        ...


def spans(rows: Iterable[int], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(i, first, last) for each of several pieces of `rows` rows that holds some of the rows start <= row < stop."""
    begin = 0
    for i, n in enumerate(rows):
        first, last = max(start - begin, 0), n if stop is None else min(n, stop - begin)
        if first < last:
            yield i, first, last
        begin += n


def limited(rows: Sequence[int], splits: Sequence[str | None], settings: DataSettings) -> list[int]:
    """How many rows of each piece are kept where every split keeps its first `data.most` rows; see `quotas` too."""
    left = quotas(splits, settings)
    kept = []
    for n, split in zip(rows, splits, strict=True):
        kept.append(n if left[split] is None else min(n, left[split]))
        left[split] = None if left[split] is None else left[split] - kept[-1]
    return kept


def quotas(splits: Iterable[str | None], settings: DataSettings) -> dict[str | None, Any]:
    """{split: how many of its images are kept, None = all}; where only training images are wanted, none of others."""
    left = dict.fromkeys(splits, settings.most)
    others = [split for split in left if split not in ("train", None)]
    return left | dict.fromkeys(others, 0) if settings.images_only else left
