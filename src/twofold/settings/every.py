"""Durations as people say them: so many images, or epochs (`300epochs`, `1epoch`) until the data are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, PlainSerializer, WrapValidator

from ..errors import UserError

M = TypeVar("M", bound=BaseModel)
TEXT = re.compile(r"\s*([1-9]\d*)\s*epochs?\s*")


class Epochs(int):
    """So many times all training images. A number of images only after `in_images`: it refuses to be reckoned with."""

    def __str__(self) -> str:
        return f"{int(self)}epoch" + ("" if int(self) == 1 else "s")

    def __repr__(self) -> str:
        return str(self)

    def _refuse(self, other: Any) -> NoReturn:
        hint = "write the number of images"
        raise UserError(str(self), "how many images an epoch has is not known here", hint)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse


def _read(value: Any, handler: Callable[[Any], int]) -> int:
    if isinstance(value, Epochs):
        return value
    if isinstance(value, str) and (found := TEXT.fullmatch(value)):
        return Epochs(found[1])
    return handler(value)


def _write(value: int) -> int | str:
    return str(value) if isinstance(value, Epochs) else value


Duration = Annotated[int, WrapValidator(_read), PlainSerializer(_write, return_type=int | str)]


def has_epochs(settings: BaseModel) -> bool:
    """Whether any of these settings (not of groups in them) waits for the data."""
    return any(_waits(value) for _, value in settings)


def in_images(settings: M, epoch: int) -> M:
    """The same settings with every duration, and every list of them, in images. epoch: how many training images there
    are.
    """
    known = lambda value: int(value) * epoch if isinstance(value, Epochs) else value  # noqa: E731
    update = {
        name: tuple(map(known, value)) if isinstance(value, tuple) else known(value)
        for name, value in settings
        if _waits(value)
    }
    return settings.model_copy(update=update) if update else settings


def check_rising(name: str, values: Sequence[int]) -> None:
    """Raises `ValueError` for counts that do not rise. Epochs and images are not compared: that waits for the data."""
    for kind in (True, False):
        alike = [int(value) for value in values if isinstance(value, Epochs) is kind]
        if alike != sorted(set(alike)):
            raise ValueError(f"{name}={list(values)} do not rise")


def _waits(value: Any) -> bool:
    return any(isinstance(one, Epochs) for one in (value if isinstance(value, tuple) else (value,)))
