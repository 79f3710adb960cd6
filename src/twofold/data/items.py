"""What a source of images yields: undecoded images with their id, label and split, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from .decode import Encoded

SPLITS = ("train", "validation", "test")
FOLDER_SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation"), "validation"), "test": "test"}
FILE_SPLITS = {**FOLDER_SPLITS, "training": "train", "dev": "validation", "testing": "test", "eval": "test"}


class Item(NamedTuple):
    """One image of a source.

    id: stable name within the source. encoded: what `decode` takes. label: index into the classes, -1 = none.
    split: one of `SPLITS`, or None where the source has none of its own.
    """

    id: str
    encoded: Encoded
    label: int
    split: str | None


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

    def items(self) -> Iterator[Item]:
        """All items, in a fixed order."""
        ...
