"""The images that `twofold upscale` is given, one after the other and each of its own size, with the truth if known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..settings.upscale import UpscaleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Store
    from ..denoiser import Denoiser


@dataclass(frozen=True)
class Picture:
    """id: its name in the source. low: uint8 (C, h, w). truth: uint8 (C, H, W) or None. size: (H, W) that it gets."""

    id: str
    low: Tensor
    truth: Tensor | None
    size: tuple[int, int]


@dataclass
class Pictures:
    """Iterable of `Picture`. identity: of the source. total: how many there are. tell: called with what is left out."""

    identity: Any
    total: int
    items: Callable[[], Iterator[tuple[str, Any]]]
    settings: UpscaleSettings
    shape: tuple[int, int, int]
    factor: int
    truths: dict[str, Any] | None = None
    shrinks: bool = False
    where: str = ""
    tell: Callable[[str], None] = field(default=lambda line: None)

    @classmethod
    def of_store(cls, store: Store, settings: UpscaleSettings, model: Denoiser) -> Pictures:
        """The held-out images of packed data."""
        rows = store.indices(settings.split)

        def items() -> Iterator[tuple[str, Any]]:
            return ((store.id(int(row)), store.batch([row])[0]) for row in rows)

        identity = [store.content_hash, settings.split, len(rows)]
        of_model = model.shape, model.low_factor
        return cls(identity, len(rows), items, settings, *of_model, shrinks=True, where=store.name)

    @classmethod
    def of_source(cls, source: Any, truth: Any, settings: UpscaleSettings, model: Denoiser) -> Pictures:
        """The images of a source. truth: the source of the true ones, found by their names without endings."""

        def items() -> Iterator[tuple[str, Any]]:
            return ((item.id, item.encoded) for item in source.items())

        truths = None if truth is None else {stem_of(item.id): item.encoded for item in truth.items()}
        identity = [source.identity(), None if truth is None else truth.identity()]
        of_model = model.shape, model.low_factor
        return cls(identity, source.count(), items, settings, *of_model, truths, settings.shrink, source.where)

    def first(self, n: int | None) -> Iterator[Picture]:
        return islice(self, n)

    def __iter__(self) -> Iterator[Picture]:
        from ..data.decode import BadImage

        for name, encoded in self.items():
            try:
                yield self._picture(name, encoded)
            except BadImage as error:
                if self.settings.on_bad_image == "error":
                    raise UserError(
                        f"{self.where}: {name}", str(error), "or leave such images out: on_bad_image=skip"
                    ) from None
                self.tell(f"left out: {name} ({error})")

    def _picture(self, name: str, encoded: Any) -> Picture:
        from ..lowres import shrink

        pixels, truth = self._pixels(encoded), None
        if self.shrinks:
            height, width = (side - side % self.factor for side in pixels.shape[1:])
            if not height or not width:
                raise self._bad(f"of {_size(pixels.shape[1:])} pixels cannot be shrunk by {self.factor}")
            truth = pixels[:, :height, :width]
            pixels = shrink(truth[None], self.factor)[0]
        size = (pixels.shape[1] * self.factor, pixels.shape[2] * self.factor)
        if size[0] * size[1] > self.settings.most_pixels:
            what = f"would become {_size(size)}, more than most_pixels={self.settings.most_pixels:,}"
            raise self._bad(f"{what}; give smaller images, or raise it")
        return Picture(name, pixels, self._true(name, size) if self.truths is not None else truth, size)

    def _true(self, name: str, size: tuple[int, int]) -> Tensor:
        assert self.truths is not None
        if stem_of(name) not in self.truths:
            raise self._bad(f"has no true image of its name in {self.settings.truth}")
        found = self._pixels(self.truths[stem_of(name)])
        if tuple(found.shape[1:]) != size:
            raise self._bad(f"becomes {_size(size)}, and its true image is {_size(found.shape[1:])}")
        return found

    def _pixels(self, encoded: Any) -> Tensor:
        """uint8 (C, H, W) with the model's channels."""
        import numpy as np
        import torch

        from ..data.decode import as_channels, decode, is_grey
        from ..settings.data import DataSettings

        if isinstance(encoded, torch.Tensor):
            return encoded
        pixels = decode(encoded, DataSettings(source="images"))
        channels = self.shape[0]
        if channels == 1 and not is_grey(pixels):
            raise self._bad(
                "is in colour, and this model enlarges grey images; convert it, or train one with channels=3"
            )
        return torch.from_numpy(np.array(as_channels(pixels, channels)))

    def _bad(self, reason: str) -> Exception:
        from ..data.decode import BadImage

        return BadImage(reason)


def stem_of(name: str) -> str:
    """The name of an image without its ending, as it is compared."""
    return re.sub(r"\.[A-Za-z0-9]{1,5}$", "", Path(name).as_posix())


def _size(sides: Any) -> str:
    return "x".join(str(int(side)) for side in sides)
