"""Two sources as one: `data.source` with its labels, and behind it the training images of `data.unlabelled`, bare.

For semi-supervised learning (a few labelled images, many that nobody has labelled) and domain adaptation (labelled
images of one kind, unlabelled ones of the kind that matters). The second source is opened without its labels
(`DataSettings.of_unlabelled`); what stands beside its images (attributes, masks, points, pairs) is not read either.
Where it has splits of its own, only its training images are taken. Classes, attributes and all other facts are those of
the first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from ..errors import UserError
from .items import JOINED, Item, Source

PREFIX = "unlabelled:"  # of the second source's ids


@contextlib.contextmanager
def as_unlabelled(source: str) -> Iterator[None]:
    """Errors about the second source name the setting that it comes from."""
    try:
        yield
    except UserError as error:
        parts = (error.where, error.what, error.hint)
        raise UserError(*(part.replace(f"data={source}", f"data.unlabelled={source}") for part in parts)) from error


class Joined:
    """`first`, and behind it the images of `second` as items of the split `JOINED`.

    source: what `data.unlabelled` says. where: names both, since an error may be about how they go together.
    """

    def __init__(self, first: Source, second: Source, source: str) -> None:
        self._first, self._second, self._source = first, second, source
        self.name, self.where = f"{first.name}+{second.name}", f"{first.where} data.unlabelled={source}"

    def identity(self) -> str:
        """Of both, and which is which."""
        return json.dumps(["joined", self._first.identity(), self._second.identity()])

    def classes(self) -> list[str]:
        """Those of the first source: what the second calls its classes is not asked."""
        return self._first.classes()

    def count(self) -> int:
        """Raises `UserError` where the second source has no image for training."""
        with as_unlabelled(self._source):
            second = self._second.count()
        if not second:
            what = "it has splits of its own, and none of them is for training"
            raise UserError(f"data.unlabelled={self._source}", what, "give images for training")
        return self._first.count() + second

    def left_out(self) -> list[str]:
        return [*self._first.left_out(), *(PREFIX + name for name in self._second.left_out())]

    def facts(self) -> dict[str, Any]:
        """The first source's; the licences of both."""
        found, licence = self._first.facts(), self._second.facts().get("licence")
        if licence is not None:
            own = [found["licence"]] if "licence" in found else []
            found = {**found, "licence": "; ".join([*own, f"{PREFIX} {licence}"])}
        return found

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        between = self._first.count()
        if start < between:
            yield from self._first.items(start, between if stop is None else min(stop, between))
        if stop is None or stop > between:
            behind = None if stop is None else stop - between
            with as_unlabelled(self._source):
                for item in self._second.items(max(0, start - between), behind):
                    yield Item(PREFIX + item.id, item.encoded, -1, JOINED, item.group)
