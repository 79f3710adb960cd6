"""What `mask=` names: a box, one picture for all images, or a folder with a picture for each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, some
from ..settings.data import DataSettings
from .pictures import stem_of

if TYPE_CHECKING:
    from torch import Tensor

BOX = re.compile(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*")
WHITE = 128  # of a mask's grey levels: from here on it is painted anew


class Masks:
    """`of(id, placing)`: the mask (1, H, W) bool of an image, True = paint anew.

    text: see `settings.inpaint`. data: how images become the model's; a mask goes the way of its image. Raises
    `UserError` for a box outside the images and for pictures that cannot be read.
    """

    def __init__(self, text: str, data: DataSettings) -> None:
        assert data.size is not None
        self.where, self.size = f"mask={text}", data.size
        self.settings = DataSettings.model_validate(
            {"source": "mask", "size": data.size, "channels": 1, "fit": data.fit, "background": "black"}
        )
        self.box: Tensor | None = None
        self.one: Any = None
        self.pictures: dict[str, Any] = {}
        self.identity: Any = text
        box = BOX.fullmatch(text)
        if box:
            self.box = boxed(text, [int(side) for side in box.groups()], self.size)
        else:
            self._open(text)

    def _open(self, text: str) -> None:
        from ..data import open_images
        from ..data.stream import OneImage
        from .told import told_as

        if not Path(text).expanduser().exists():
            raise UserError(self.where, "no such file or folder", "give an image, a folder, or left,top,right,bottom")
        with told_as(self.where, f"data={text}"):
            source = open_images(DataSettings(source=text))
        self.identity = source.identity()
        items = {stem_of(item.id): item.encoded for item in source.items()}
        if isinstance(source, OneImage):
            (self.one,) = items.values()
        self.pictures = items

    def of(self, name: str, placing: Any) -> Tensor:
        """The mask of the image of this id. placing: how the image came to its place (`data.transform.Placing`)."""
        if self.box is not None:
            return self.box
        picture, where = self.one, self.where
        if picture is None:
            picture = self.pictures.get(stem_of(name))
            where = f"{self.where}: {stem_of(name)}"
            if picture is None:
                there = some(sorted(self.pictures))
                raise UserError(where, f"there is no mask of this name for {name}", f"there are {there}")
        return self._read(picture, placing, where)

    def _read(self, picture: Any, placing: Any, where: str) -> Tensor:
        import numpy as np
        import torch

        from ..data import BadImage
        from ..data.decode import decode_placed

        try:
            pixels, own = decode_placed(picture, self.settings.model_copy(update={"size": None}))
            if own.size != self.size[::-1]:  # not drawn for the model's images: it goes the way of its image
                pixels, _ = decode_placed(pixels, self.settings, upright(placing))
        except BadImage as error:
            hint = f"give one of the image's size, or of {self.size[0]}x{self.size[1]} (height x width)"
            raise UserError(where, str(error), hint) from None
        mask = torch.from_numpy(np.asarray(pixels) >= WHITE)[None]
        check_painted(mask, where)
        return mask


def upright(placing: Any) -> Any:
    """The way of an image from how it is shown: masks are drawn on what is seen, whatever EXIF turned."""
    from ..data.transform import ORIENTATIONS

    shown = placing.stored[::-1] if ORIENTATIONS[placing.orientation][3] else placing.stored
    return placing._replace(orientation=1, stored=shown)


def boxed(text: str, sides: list[int], size: tuple[int, int]) -> Tensor:
    """The mask (1, H, W) of left, top, right, bottom in pixels; right and bottom are the first that stay."""
    import torch

    left, top, right, bottom = sides
    height, width = size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        what = f"is no box within {width} x {height} pixels (width x height)"
        raise UserError(f"mask={text}", what, "give left,top,right,bottom with left < right and top < bottom")
    mask = torch.zeros((1, height, width), dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    check_painted(mask, f"mask={text}")
    return mask


def check_painted(mask: Tensor, where: str) -> None:
    """Raises `UserError` for a mask that paints nothing or keeps nothing."""
    if not bool(mask.any()):
        raise UserError(where, "is black all over: nothing would be painted anew", "make white what is to be painted")
    if bool(mask.all()):
        hint = "make black what stays, or use twofold sample"
        raise UserError(where, "covers the whole image: nothing of it would stay", hint)
